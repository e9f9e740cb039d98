package mns_test

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/mns"
)

const twoMessages = `<?xml version="1.0" encoding="utf-8"?>
<Messages xmlns="http://mns.aliyuncs.com/doc/v1/">
  <Message>
    <MessageId>5F290C926D472878-2-14D9529A8FA-200000001</MessageId>
    <ReceiptHandle>1-ODU4OTkzNDU5My0xNDMyNzI3ODI3LTItOA==</ReceiptHandle>
    <MessageBody>one</MessageBody>
    <EnqueueTime>1250700979248</EnqueueTime>
    <NextVisibleTime>1250700799348</NextVisibleTime>
    <FirstDequeueTime>1250700779318</FirstDequeueTime>
    <DequeueCount>1</DequeueCount>
    <Priority>8</Priority>
  </Message>
  <Message><MessageId>b</MessageId><ReceiptHandle>c</ReceiptHandle><MessageBody/><DequeueCount> 2
  </DequeueCount></Message>
</Messages>`

func TestMessagesAreRead(t *testing.T) {
	ms, err := mns.ReadMessages([]byte(twoMessages))
	require.NoError(t, err)
	require.Equal(t, []mns.Received{
		{
			ID: "5F290C926D472878-2-14D9529A8FA-200000001", Receipt: "1-ODU4OTkzNDU5My0xNDMyNzI3ODI3LTItOA==",
			Body: "one", Enqueued: 1250700979248, Next: 1250700799348, Attempt: 1,
		},
		{ID: "b", Receipt: "c", Attempt: 2},
	}, ms)
}

func TestBodyIsReadWhateverItsSpelling(t *testing.T) {
	for name, tt := range map[string]struct{ xml, want string }{
		"plain":                {"abc", "abc"},
		"entities":             {"&lt;a href=&quot;x&quot;&gt;&amp;amp;&apos;", `<a href="x">&amp;'`},
		"references":           {"&#65;&#x42;&#x1F600;&#xD;&#10;", "AB😀\r\n"},
		"control reference":    {"&#1;", "\x01"},
		"carriage return":      {"a\r\nb\rc", "a\r\nb\rc"},
		"CDATA":                {"<![CDATA[<a>&amp;]]>", "<a>&amp;"},
		"CDATA in pieces":      {"x<![CDATA[a]]]]><![CDATA[>b]]>&lt;y", "xa]]>b<y"},
		"comment":              {"a<!-- & < <b> -->b", "ab"},
		"instruction":          {"a<?php echo '<b>' ?>b", "ab"},
		"child":                {"a<b>x<c/>y</b>d", "ad"},
		"child of the name":    {"a<MessageBody>x</MessageBody>d", "ad"},
		"space":                {"  a b\n", "  a b\n"},
		"not UTF-8":            {"\xff\xfe", "\xff\xfe"},
		"control characters":   {"\x01\x02", "\x01\x02"},
		"bracket":              {"a]]>b", "a]]>b"},
		"empty":                {"", ""},
		"quote":                {`"'`, `"'`},
		"surrogate":            {"&#xD800;", "\uFFFD"},
		"zeros in a reference": {"&#0000065;", "A"},
	} {
		t.Run(name, func(t *testing.T) {
			doc := "<Message><MessageId>i</MessageId><MessageBody>" + tt.xml + "</MessageBody></Message>"
			ms, err := mns.ReadMessages([]byte(doc))
			require.NoError(t, err)
			require.Equal(t, tt.want, ms[0].Body)
		})
	}
}

func TestDocumentIsReadWhateverItsShape(t *testing.T) {
	for name, doc := range map[string]string{
		"prefix":             `<m:Messages xmlns:m="x"><m:Message><m:MessageId>i</m:MessageId></m:Message></m:Messages>`,
		"other namespace":    `<Messages xmlns="y"><Message><MessageId>i</MessageId></Message></Messages>`,
		"byte order mark":    "\xef\xbb\xbf<Messages><Message><MessageId>i</MessageId></Message></Messages>",
		"unknown elements":   `<Messages><New><Message><MessageId>no</MessageId></Message></New><Message><Deep><MessageId>no</MessageId></Deep><MessageId>i</MessageId><E a="/>" b='">'/></Message></Messages>`,
		"attributes":         `<Messages a="<" ><Message x='1' ><MessageId y = "&gt;">i</MessageId ></Message></Messages  >`,
		"single":             `<Message><MessageId>i</MessageId></Message>`,
		"around":             "<!-- a --><?b?> \n<Messages><Message><MessageId>i</MessageId></Message></Messages>\n<!-- c --> ",
		"the last one holds": `<Message><MessageId>no</MessageId><MessageId>i</MessageId></Message>`,
	} {
		t.Run(name, func(t *testing.T) {
			ms, err := mns.ReadMessages([]byte(doc))
			require.NoError(t, err)
			require.Len(t, ms, 1)
			require.Equal(t, "i", ms[0].ID)
		})
	}
}

func TestWhatIsNotWholeIsRefused(t *testing.T) {
	for i := range len(twoMessages) - 1 {
		_, err := mns.ReadMessages([]byte(twoMessages)[:i])
		require.Error(t, err, "cut after %d bytes", i)
	}
	for name, doc := range map[string]string{
		"nothing":               "",
		"HTML":                  "<!DOCTYPE html><html><body>502</body></html>",
		"HTML without a type":   "<html><body><br>502</body></html>",
		"JSON":                  `{"Messages":[]}`,
		"another document":      "<Queue></Queue>",
		"tags that cross":       "<Messages><Message></Messages></Message>",
		"two documents":         "<Messages></Messages><Messages></Messages>",
		"text after":            "<Messages></Messages>x",
		"text before":           "x<Messages></Messages>",
		"unknown entity":        "<Message><MessageId>i</MessageId><MessageBody>&nbsp;</MessageBody></Message>",
		"bare ampersand":        "<Message><MessageId>i</MessageId><MessageBody>a & b</MessageBody></Message>",
		"reference too large":   "<Message><MessageId>i</MessageId><MessageBody>&#x110000;</MessageBody></Message>",
		"empty reference":       "<Message><MessageId>i</MessageId><MessageBody>&#;</MessageBody></Message>",
		"no id":                 "<Messages><Message><MessageBody>b</MessageBody></Message></Messages>",
		"number that is none":   "<Message><MessageId>i</MessageId><NextVisibleTime>soon</NextVisibleTime></Message>",
		"nested without end":    strings.Repeat("<a>", 1<<16),
		"prefix that differs":   "<a:Messages></b:Messages>",
		"end without beginning": "</Messages>",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := mns.ReadMessages([]byte(doc))
			require.Error(t, err)
		})
	}
}

func TestWhatIsSentReadsBack(t *testing.T) {
	all := make([]byte, 0, 1<<16)
	for r := rune(' '); len(all) < 1<<16-4; r++ {
		if r != 0xfffe && r != 0xffff && (r < 0xd800 || r > 0xdfff) {
			all = utf8.AppendRune(all, r)
		}
	}
	for name, body := range map[string]string{
		"plain": "abc", "markup": `<a b="c">&amp;]]></a>`, "lines": "a\r\nb\rc\n\td", "empty": "", "unicode": string(all),
	} {
		t.Run(name, func(t *testing.T) {
			doc, err := mns.EncodeMessage(mns.Outgoing{Body: []byte(body), Delay: 1500e6})
			require.NoError(t, err)

			var theirs struct {
				MessageBody  string
				DelaySeconds int
			}
			require.NoError(t, xml.Unmarshal(doc, &theirs))
			require.Equal(t, body, theirs.MessageBody)
			require.Equal(t, 2, theirs.DelaySeconds)

			ours, err := mns.ReadRecord(doc, "Message", "MessageBody")
			require.NoError(t, err)
			require.Equal(t, body, ours[0])
		})
	}
	for _, body := range []string{"\x00", "\xff", "a\x1b", "\ufffe"} {
		_, err := mns.EncodeMessage(mns.Outgoing{Body: []byte(body)})
		require.ErrorContains(t, err, "base64", "%q", body)
	}
	var handles struct{ ReceiptHandle []string }
	require.NoError(t, xml.Unmarshal(mns.EncodeHandles([]string{"a==", "<&>"}), &handles))
	require.Equal(t, []string{"a==", "<&>"}, handles.ReceiptHandle)
}

// standard reads a document with encoding/xml, as far as the scanner promises to agree
// with it; false: it makes no promise.
func standard(data []byte) (ms []mns.Received, accepts, promised bool) {
	d := xml.NewDecoder(strings.NewReader(string(data)))
	depth, roots := 0, 0
	for {
		t, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, false, true
		}
		switch t := t.(type) {
		case xml.Directive:
			return nil, false, false
		case xml.StartElement:
			if depth++; depth > 64 {
				return nil, false, false
			}
			if depth == 1 {
				roots++
			}
		case xml.EndElement:
			depth--
		case xml.CharData:
			if depth == 0 && strings.TrimSpace(strings.TrimPrefix(string(t), "\ufeff")) != "" {
				return nil, false, true
			}
		}
	}
	if roots != 1 {
		return nil, false, true
	}
	type message struct {
		MessageID   string `xml:"MessageId"`
		MessageBody string
	}
	var batch struct {
		XMLName xml.Name
		message
		Message []message
	}
	if err := xml.Unmarshal(data, &batch); err != nil {
		return nil, false, true
	}
	switch batch.XMLName.Local {
	case "Message":
		batch.Message = []message{batch.message}
	case "Messages":
	default:
		return nil, false, true
	}
	for _, m := range batch.Message {
		if m.MessageID == "" {
			return nil, false, true
		}
		ms = append(ms, mns.Received{ID: m.MessageID, Body: m.MessageBody})
	}
	return ms, true, true
}

func FuzzMessages(f *testing.F) {
	f.Add([]byte(twoMessages))
	f.Add([]byte("<a:Message xmlns:a='x'><MessageId>i</MessageId><MessageBody>a&#x41;<![CDATA[<]]><!-- x -->&lt;<b/>c</MessageBody></a:Message>"))
	f.Add([]byte("<Messages><Message><MessageId>i</MessageId></Message><X><Message/></X></Messages>"))
	f.Add([]byte("<?xml version='1.0'?><Message a='>'><MessageId>\r\n</MessageId></Message >"))
	lines := strings.NewReplacer("\r\n", "\n", "\r", "\n")
	f.Fuzz(func(t *testing.T, data []byte) {
		ours, err := mns.ReadMessages(data)
		theirs, accepts, promised := standard(data)
		if !promised || !accepts {
			return
		}
		if err != nil {
			for _, name := range []string{"NextVisibleTime", "EnqueueTime", "DequeueCount", "FirstDequeueTime"} {
				if strings.Contains(string(data), name) {
					return // a number that is none: encoding/xml was not asked for it
				}
			}
		}
		require.NoError(t, err, "encoding/xml accepts it")
		require.Len(t, ours, len(theirs))
		for i := range ours {
			require.Equal(t, lines.Replace(theirs[i].ID), lines.Replace(ours[i].ID))
			require.Equal(t, lines.Replace(theirs[i].Body), lines.Replace(ours[i].Body))
		}
	})
}

// FuzzEncode sends what can be sent and reads it back with encoding/xml and with the
// scanner.
func FuzzEncode(f *testing.F) {
	f.Add("a\r\n<&>]]>", "1-a==")
	f.Fuzz(func(t *testing.T, body, receipt string) {
		doc, err := mns.EncodeMessage(mns.Outgoing{Body: []byte(body)})
		if err != nil {
			// Then encoding/xml cannot carry it either: it would replace something.
			var b strings.Builder
			require.NoError(t, xml.EscapeText(&b, []byte(body)))
			require.Contains(t, b.String(), "\uFFFD")
			return
		}
		var theirs struct{ MessageBody string }
		require.NoError(t, xml.Unmarshal(doc, &theirs))
		require.Equal(t, body, theirs.MessageBody)
		ours, err := mns.ReadRecord(doc, "Message", "MessageBody")
		require.NoError(t, err)
		require.Equal(t, body, ours[0])
		_, err = mns.ReadRecord(mns.EncodeHandles([]string{receipt}), "ReceiptHandles", "ReceiptHandle")
		require.NoError(t, err)
	})
}
