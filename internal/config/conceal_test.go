package config_test

import (
	"encoding/base64"
	"net/url"
	"testing"

	"github.com/stretchr/testify/require"
)

// What comes from outside is found in a text, however it is written there; what is found
// everywhere stays.
func TestConceal(t *testing.T) {
	t.Parallel()
	const secret = `p"w<s> &/crét`
	c := parse(t, with("exchange: sms.events", `exchange: sms.events
    routing_key: ${TOKEN}.${SHORT}.${YES}.${NUMBER}.${file:/odd}.${file:/number}`),
		environment(map[string]string{"TOKEN": "a-token", "SHORT": "abc", "YES": "true", "NUMBER": "8080"},
			map[string]string{"/odd": secret, "/number": "20240101"}))
	for text, want := range map[string]string{
		"a-token.abc.true.8080":           "***.abc.true.8080",
		secret:                            "***",
		"20240101":                        "***",
		`{"a":"p\"w<s> &/crét"}`:          `{"a":"***"}`,
		`"p\"w\u003cs\u003e \u0026/crét"`: `"***"`,
		url.QueryEscape(secret):           "***",
		url.PathEscape(secret) + "/x":     "***/x",
		"in " + base64.StdEncoding.EncodeToString([]byte(secret)) + ".": "in ***.",
		"in " + base64.RawURLEncoding.EncodeToString([]byte("a-token")): "in ***",
	} {
		require.Equal(t, want, c.Conceal(text))
	}
}
