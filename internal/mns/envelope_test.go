package mns_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/mns"
	"mnsrelay/internal/relay"
)

// The format is a promise to whoever reads a dead-letter queue: this text must not
// change.
const deadLetter = `{"envelope":"mnsrelay/1","id":"5F29-1","source":"sms","queue":"Alicom-Queue-1-SmsReport","body_base64":"eyJhIjoxfQ==",` +
	`"attributes":{"body":"base64","tag":"a<b"},"attempts":16,"enqueued_at":"2026-03-01T01:30:00.045Z","reason":"max_receives","error":"status 503",` +
	`"sink":"hook","first":"2026-03-01T01:30:00.045Z","last":"2026-03-02T01:30:00.045Z"}`

func deadMessage() *relay.Message {
	at := time.Date(2026, time.March, 1, 9, 30, 0, 45e6, time.FixedZone("CST", 8*60*60))
	return &relay.Message{
		ID: "5F29-1", Source: "sms", Queue: "Alicom-Queue-1-SmsReport", Body: []byte(`{"a":1}`),
		Attributes: map[string]string{relay.AttributeBody: relay.BodyBase64, "tag": "a<b"}, Attempt: 16, EnqueuedAt: at,
		Dead: &relay.DeadLetter{Reason: "max_receives", Error: "status 503", Sink: "hook", First: at, Last: at.Add(24 * time.Hour)},
	}
}

func TestEnvelopeIsStable(t *testing.T) {
	wrapped := mns.Wrap(deadMessage())
	text, err := wrapped.Text()
	require.NoError(t, err)
	require.JSONEq(t, deadLetter, string(text))

	read, is, err := mns.ReadEnvelope([]byte(deadLetter))
	require.NoError(t, err)
	require.True(t, is)
	require.Equal(t, wrapped, read)
	original, err := read.Original()
	require.NoError(t, err)
	require.Equal(t, "eyJhIjoxfQ==", string(original), "as it was in its queue")

	// What a later version of the same format adds is passed over.
	_, is, err = mns.ReadEnvelope([]byte(strings.Replace(deadLetter, `"id"`, `"colour":["blue"],"id"`, 1)))
	require.NoError(t, err)
	require.True(t, is)
}

func TestEnvelopeOfALivingMessageSaysNothingOfDeath(t *testing.T) {
	text, err := mns.Wrap(&relay.Message{ID: "1", Source: "s", Attempt: 1}).Text()
	require.NoError(t, err)
	require.JSONEq(t, `{"envelope":"mnsrelay/1","id":"1","source":"s","body_base64":"","attempts":1}`, string(text))
	read, is, err := mns.ReadEnvelope(text)
	require.NoError(t, err)
	require.True(t, is)
	require.Empty(t, read.Body)
}

func TestEnvelopeCanBeCarriedWhateverItHolds(t *testing.T) {
	m := deadMessage()
	m.Body = []byte("\x00\xff\ufffe")
	m.Attributes = map[string]string{"tag": "\x01\xff \ufffe\uffff"}
	m.Dead.Error = strings.Repeat("短", 1000) + "\x00"
	text, err := mns.Wrap(m).Text()
	require.NoError(t, err)
	require.True(t, mns.IsText(text))
	read, is, err := mns.ReadEnvelope(text)
	require.NoError(t, err)
	require.True(t, is)
	require.Equal(t, m.Body, read.Body)
	require.Equal(t, "\x01\ufffd \ufffe\uffff", read.Attributes["tag"])
	require.Equal(t, strings.Repeat("短", 1024/3), read.Error)
}

func TestWhatIsAnEnvelope(t *testing.T) {
	for name, tt := range map[string]struct {
		body string
		is   bool
		err  string
	}{
		"nothing":            {"", false, ""},
		"text":               {"mnsrelay/1", false, ""},
		"JSON of others":     {`{"envelope":"C5","note":"mnsrelay/1"}`, false, ""},
		"another type":       {`{"envelope":1,"note":"mnsrelay/1"}`, false, ""},
		"an inner one":       {`{"data":` + deadLetter + `}`, false, ""},
		"a list":             {`[` + deadLetter + `]`, false, ""},
		"cut":                {deadLetter[:len(deadLetter)-1], false, ""},
		"with space":         {" " + deadLetter + "\n", true, ""},
		"a later version":    {strings.Replace(deadLetter, "mnsrelay/1", "mnsrelay/2", 1), true, `its version is "mnsrelay/2"`},
		"no body":            {`{"envelope":"mnsrelay/1","id":"1"}`, true, "no body_base64"},
		"a body of no bytes": {`{"envelope":"mnsrelay/1","body_base64":"%"}`, true, "illegal base64"},
	} {
		t.Run(name, func(t *testing.T) {
			_, is, err := mns.ReadEnvelope([]byte(tt.body))
			require.Equal(t, tt.is, is)
			if tt.err == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, tt.err)
		})
	}
}

// What was in one queue is in the other, and whoever could read the one can read the
// other.
func TestBodiesGoIntoAQueueAsTheyCameOutOfOne(t *testing.T) {
	for name, tt := range map[string]struct {
		encoding mns.BodyEncoding
		body     string
		was      string
		want     string
		fails    bool
	}{
		"auto, text":                {mns.BodyAuto, "a <&> b\r\n", relay.BodyRaw, "a <&> b\r\n", false},
		"auto, text, was base64":    {mns.BodyAuto, "text", relay.BodyBase64, "dGV4dA==", false},
		"auto, looks like base64":   {mns.BodyAuto, "dGV4dA==", relay.BodyRaw, "dGV4dA==", false},
		"auto, of no queue":         {mns.BodyAuto, "text", "", "text", false},
		"auto, binary":              {mns.BodyAuto, "a\x00\xff", relay.BodyRaw, "YQD/", false},
		"auto, empty":               {mns.BodyAuto, "", relay.BodyRaw, "", false},
		"none said, text":           {"", "text", relay.BodyRaw, "text", false},
		"base64, text":              {mns.BodyBase64, "text", relay.BodyRaw, "dGV4dA==", false},
		"raw, text, was base64":     {mns.BodyRaw, "text", relay.BodyBase64, "text", false},
		"raw, not UTF-8":            {mns.BodyRaw, "a\xff", relay.BodyRaw, "", true},
		"raw, a control character":  {mns.BodyRaw, "a\x01", relay.BodyRaw, "", true},
		"raw, a character of XML's": {mns.BodyRaw, "\ufffe", relay.BodyRaw, "", true},
	} {
		t.Run(name, func(t *testing.T) {
			m := relay.Message{Body: []byte(tt.body)}
			if tt.was != "" {
				m.Attributes = map[string]string{relay.AttributeBody: tt.was}
			}
			got, err := tt.encoding.Encode(&m)
			if tt.fails {
				require.Error(t, err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tt.want, string(got))
			require.True(t, mns.IsText(got))
		})
	}
}

func FuzzEnvelope(f *testing.F) {
	f.Add([]byte(deadLetter), "tag", "err")
	f.Add([]byte("\x00\ufffe"), "\xff", "\uffff")
	f.Fuzz(func(t *testing.T, body []byte, attribute, words string) {
		m := relay.Message{ID: attribute, Body: body, Attributes: map[string]string{attribute: words}, Dead: &relay.DeadLetter{Error: words}}
		text, err := mns.Wrap(&m).Text()
		require.NoError(t, err)
		require.True(t, mns.IsText(text))
		require.True(t, json.Valid(text))
		read, is, err := mns.ReadEnvelope(text)
		require.NoError(t, err)
		require.True(t, is)
		require.Equal(t, string(body), string(read.Body))
		_, is, err = mns.ReadEnvelope(body)
		require.True(t, is || err == nil)
	})
}
