package mns_test

import (
	"encoding/base64"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/mns"
	"mnsrelay/internal/relay"
)

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

func TestAutoTakesOnlyCanonicalBase64OfTextForBase64(t *testing.T) {
	report := `{"phone_number":"13900001111","success":true,"err_msg":"用户接收成功"}`
	for name, tt := range map[string]struct{ in, want, encoding string }{
		"base64 of JSON":       {b64(report), report, relay.BodyBase64},
		"JSON":                 {report, report, relay.BodyRaw},
		"base64 with lines":    {b64("a\tb\r\nc\n"), "a\tb\r\nc\n", relay.BodyBase64},
		"base64 of binary":     {b64("\x00\x01\x02"), b64("\x00\x01\x02"), relay.BodyRaw},
		"base64 of an escape":  {b64("a\x1b[0m"), b64("a\x1b[0m"), relay.BodyRaw},
		"base64 of DEL":        {b64("a\x7fb"), b64("a\x7fb"), relay.BodyRaw},
		"base64 of C1":         {b64("a\u0085b"), b64("a\u0085b"), relay.BodyRaw},
		"base64 of not UTF-8":  {b64("abc\xff"), b64("abc\xff"), relay.BodyRaw},
		"a word of the length": {"test", "test", relay.BodyRaw},
		"digits":               {"12345678", "12345678", relay.BodyRaw},
		"without padding":      {"YWI", "YWI", relay.BodyRaw},
		"not canonical":        {"YWJ=", "YWJ=", relay.BodyRaw}, // YWI= is "ab"
		"broken into lines":    {"YWJj\nYWJ\n", "YWJj\nYWJ\n", relay.BodyRaw},
		"with a line end":      {"YWJjYWI=\n\n\n\n", "YWJjYWI=\n\n\n\n", relay.BodyRaw},
		"URL alphabet":         {"_-__", "_-__", relay.BodyRaw},
		"empty":                {"", "", relay.BodyRaw},
		"bad at the end":       {b64(report)[:80] + "\x01\x01\x01\x01", b64(report)[:80] + "\x01\x01\x01\x01", relay.BodyRaw},
	} {
		t.Run(name, func(t *testing.T) {
			d := mns.Decoder{Body: mns.BodyAuto, Unwrap: true}
			m, err := d.Decode(relay.Message{ID: "i", Body: []byte(tt.in)})
			require.NoError(t, err)
			require.Equal(t, tt.want, string(m.Body))
			require.Equal(t, tt.encoding, m.BodyEncoding())
			require.Equal(t, "i", m.ID)
		})
	}
}

func TestDecodingThatIsAskedFor(t *testing.T) {
	raw := mns.Decoder{Body: mns.BodyRaw}
	m, err := raw.Decode(relay.Message{Body: []byte(b64("abc"))})
	require.NoError(t, err)
	require.Equal(t, b64("abc"), string(m.Body))
	require.Equal(t, relay.BodyRaw, m.BodyEncoding())

	promised := mns.Decoder{Body: mns.BodyBase64}
	m, err = promised.Decode(relay.Message{Body: []byte("AAEC\r\n/w==\r\n")})
	require.NoError(t, err)
	require.Equal(t, "\x00\x01\x02\xff", string(m.Body))
	require.Equal(t, relay.BodyBase64, m.BodyEncoding())

	_, err = promised.Decode(relay.Message{Body: []byte("{}")})
	var failure *relay.Failure
	require.ErrorAs(t, err, &failure)
	require.Equal(t, "decode", failure.Reason)
}

const notificationXML = `<?xml version="1.0" encoding="utf-8"?>
<Notification xmlns="http://mns.aliyuncs.com/doc/v1/">
<TopicOwner>100</TopicOwner><TopicName>orders</TopicName><Subscriber>200</Subscriber>
<SubscriptionName>to-queue</SubscriptionName><MessageId>6CC4D900CA59A2CD</MessageId>
<Message>&lt;a&gt;<![CDATA[&]]></Message><MessageMD5>X</MessageMD5><MessageTag>vip</MessageTag>
<PublishTime>1449556920975</PublishTime></Notification>`

const notificationJSON = `{"TopicOwner":"100","TopicName":"orders","Subscriber":"200","SubscriptionName":"to-queue",
"MessageId":"6CC4D900CA59A2CD","Message":"<a>&","MessageMD5":"X","MessageTag":"vip","PublishTime":1449556920975}`

func TestNotificationBecomesItsMessage(t *testing.T) {
	for name, body := range map[string]string{"XML": notificationXML, "JSON": notificationJSON} {
		t.Run(name, func(t *testing.T) {
			d := mns.Decoder{Body: mns.BodyAuto, Unwrap: true}
			m, err := d.Decode(relay.Message{ID: "of the queue", Body: []byte(body)})
			require.NoError(t, err)
			require.Equal(t, "of the queue", m.ID)
			require.Equal(t, "<a>&", string(m.Body))
			require.Equal(t, map[string]string{
				"body": "raw", "topic": "orders", "topic_owner": "100", "subscriber": "200", "subscription": "to-queue",
				"topic_message_id": "6CC4D900CA59A2CD", "tag": "vip", "publish_time": "2015-12-08T06:42:00.975Z",
			}, m.Attributes)

			kept := mns.Decoder{Body: mns.BodyAuto}
			m, err = kept.Decode(relay.Message{Body: []byte(body)})
			require.NoError(t, err)
			require.Equal(t, body, string(m.Body))
		})
	}
}

func TestMessageOfANotificationIsDecodedToo(t *testing.T) {
	d := mns.Decoder{Unwrap: true}
	m, err := d.Decode(relay.Message{Body: []byte(`{"TopicOwner":"1","TopicName":"t","MessageId":"m","PublishTime":"1","Message":"` + b64("hello") + `"}`)})
	require.NoError(t, err)
	require.Equal(t, "hello", string(m.Body))
	require.Equal(t, relay.BodyBase64, m.BodyEncoding())
	require.Equal(t, "t", m.Attributes["topic"])
	require.NotContains(t, m.Attributes, "tag")
}

func TestBodyThatOnlyLooksLikeANotificationIsKept(t *testing.T) {
	for _, body := range []string{
		`{"TopicOwner":"1","TopicName":"t"}`,
		`{"TopicOwner":"1","TopicName":"t","MessageId":"m","PublishTime":1,"Message":{"a":1}}`,
		`{"TopicOwner":1}`, `{"TopicOwner`, "<Notification><TopicOwner>1</TopicOwner></Notification>",
		"<Notification><TopicOwner>1", "TopicOwner", `["TopicOwner"]`,
	} {
		d := mns.Decoder{Unwrap: true}
		m, err := d.Decode(relay.Message{Body: []byte(body)})
		require.NoError(t, err)
		require.Equal(t, body, string(m.Body))
		require.False(t, mns.IsNotification([]byte(body)))
	}
}

func TestMessagesShareTheirAttributes(t *testing.T) {
	d := mns.Decoder{Body: mns.BodyAuto, Unwrap: true}
	for name, tt := range map[string]struct {
		body   string
		allocs float64
	}{"raw": {`{"a":1}`, 0}, "base64": {b64(`{"a":1}`), 1}} {
		t.Run(name, func(t *testing.T) {
			m := relay.Message{Body: []byte(tt.body)}
			require.LessOrEqual(t, testing.AllocsPerRun(100, func() {
				if _, err := d.Decode(m); err != nil {
					t.Error(err)
				}
			}), tt.allocs)
		})
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(notificationXML))
	f.Add([]byte(notificationJSON))
	f.Add([]byte(b64("hello")))
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, encoding := range []mns.BodyEncoding{mns.BodyAuto, mns.BodyRaw, mns.BodyBase64} {
			d := mns.Decoder{Body: encoding, Unwrap: true}
			before := string(body)
			m, err := d.Decode(relay.Message{Body: body})
			require.Equal(t, before, string(body), "the body that was handed in is not written to")
			if err != nil {
				require.Equal(t, mns.BodyBase64, encoding)
				continue
			}
			if m.BodyEncoding() == relay.BodyBase64 && encoding == mns.BodyAuto && !mns.IsNotification(body) {
				require.Equal(t, before, b64(string(m.Body)), "auto takes canonical base64 only: it can be undone")
			}
			if encoding == mns.BodyRaw && !mns.IsNotification(body) {
				require.Equal(t, before, string(m.Body))
			}
		}
	})
}

// What makes a body no text does so wherever it stands in it.
func TestDecodeAutoLooksAtEveryByte(t *testing.T) {
	for _, c := range []struct {
		in   string
		text bool
	}{
		{" ", true},
		{"~", true},
		{"\t", true},
		{"\r\n", true},
		{"é", true},
		{"短信", true},
		{"\x00", false},
		{"\x1f", false},
		{"\x7f", false},
		{"\x80", false},
		{"\xff", false},
		{"\u0085", false},
	} {
		for n := range 20 {
			text := strings.Repeat("x", n) + c.in + strings.Repeat("y", 20-n)
			d := mns.Decoder{Body: mns.BodyAuto}
			m, err := d.Decode(relay.Message{Body: []byte(b64(text))})
			require.NoError(t, err)
			if c.text {
				require.Equal(t, text, string(m.Body))
			} else {
				require.Equal(t, b64(text), string(m.Body))
			}
		}
	}
}
