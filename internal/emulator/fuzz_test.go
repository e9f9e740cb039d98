package emulator_test

import (
	"encoding/xml"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/emulator"
)

// What the emulator takes for a message, encoding/xml takes too, with the same
// body; and every body it took comes out as it went in.
func FuzzSend(f *testing.F) {
	for _, seed := range []string{
		oneMessage, "<Message/>", "<Message><MessageBody/></Message>",
		`<?xml version="1.0" encoding="UTF-8"?><m:Message a='1' xmlns:m="x"><m:MessageBody>a&#13;<![CDATA[<]]>&gt;<!-- c --></m:MessageBody></m:Message>`,
		"<Message><MessageBody>a\r\nb]]&gt;</MessageBody><Other><a b='c'/></Other></Message> ",
		"<?>0", "<?xml version='1.1'?><Message/>", "<?xml version='1.0' encoding='gbk'?><Message/>",
		"<Message><MessageBody>\ufffd😀</MessageBody></Message><!-- end -->",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, document string) {
		s := newServer(t, emulator.Config{})
		sent := mns(t, s, http.MethodPost, messagesPath(""), document)
		if sent.status != http.StatusCreated || sent.XMLName.Local != "Message" {
			return
		}
		var want struct {
			XMLName     xml.Name `xml:"Message"`
			MessageBody []string
		}
		decoder := xml.NewDecoder(strings.NewReader(document))
		require.NoError(t, decoder.Decode(&want), "%q", document)
		for {
			if _, err := decoder.Token(); err != nil {
				require.True(t, errors.Is(err, io.EOF), "%q: %v", document, err) //nolint:testifylint // error-is-as: the document belongs to the message.
				break
			}
		}
		require.NotEmpty(t, want.MessageBody)
		m := receive(t, s, "")
		if len(m) == 0 {
			return // it has a delay
		}
		require.Equal(t, want.MessageBody[len(want.MessageBody)-1], m[0].MessageBody, "%q", document)
	})
}

// Any text that can be sent by Go comes out as it went in.
func FuzzBody(f *testing.F) {
	for _, seed := range []string{"", "x", "<&>\r\n\t\"'", "]]>", "😀", "\x00", "\xff", "&#13;"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body string) {
		s := newServer(t, emulator.Config{})
		if _, err := s.Send(queueName, []byte(body)); err != nil {
			return
		}
		require.Equal(t, body, receiveOne(t, s).MessageBody)
	})
}

// Only what an issuer has signed is a token: everything else is refused in STS's
// words.
func FuzzOIDCToken(f *testing.F) {
	for _, seed := range []string{
		"", "a.b.c", jwt(`{"alg":"ES256"}`, `{"iss":"https://oidc.emulator.internal","aud":"sts.aliyuncs.com","exp":1e300}`, strings.Repeat("s", 64)),
		jwt(`{"alg":"none"}`, `{"exp":"9"}`, ""), jwt(`null`, `null`, ""), jwt(`{"alg":["ES256"]}`, `{"aud":[1]}`, ""),
	} {
		f.Add(seed)
	}
	s, err := emulator.New(emulator.Config{})
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, token string) {
		status, got := assumeRoleWithOIDC(t, s, map[string]string{"OIDCToken": token})
		require.Equal(t, http.StatusUnauthorized, status)
		require.True(t, strings.HasPrefix(got.Code, "AuthenticationFail.OIDCToken."), got.Code)
	})
}
