package setting_test

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/setting"
)

// No way of printing shows a secret, not even from an unexported field, where fmt does
// not ask the methods of the type.
func TestNothingPrintsASecret(t *testing.T) {
	t.Parallel()
	const secret, password = "opensesame", "swordfish"
	type inner struct {
		s setting.Secret
		u setting.URL
		p *setting.Secret
	}
	s, u := setting.NewSecret(secret), setting.NewURL("amqp://user:"+password+"@host:5672/v?token="+password)
	holders := []any{
		s, u, &s, &u,
		[]setting.Secret{s},
		map[string]setting.URL{"u": u},
		inner{s, u, &s},
		&inner{s, u, &s},
		struct {
			S setting.Secret
			U *setting.URL
		}{s, &u},
	}
	for _, holder := range holders {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			text := fmt.Sprintf(verb, holder)
			require.NotContains(t, text, secret, verb)
			require.NotContains(t, text, password, verb)
			require.NotContains(t, text, fmt.Sprintf("%x", secret), verb)
		}
		text, err := json.Marshal(holder)
		require.NoError(t, err)
		require.NotContains(t, string(text), secret)
		require.NotContains(t, string(text), password)
	}
	require.Equal(t, secret, s.Reveal())
	require.Equal(t, "amqp://***@host:5672/v?***", u.String())
	require.True(t, setting.NewSecret("").IsZero())
	require.Equal(t, s, setting.NewSecret(secret))
}
