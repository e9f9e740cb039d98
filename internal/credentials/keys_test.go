package credentials_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/credentials"
	"mnsrelay/internal/setting"
)

// secrets that the tests use; none may be seen anywhere.
const (
	baseSecret  = "base-Secret/with+odd=signs"
	baseToken   = "base-Token/with+odd=signs"
	tokenSecret = "token-Secret/with+odd=signs"
	tokenToken  = "token-Token/with+odd=signs"
)

// requireNoSecret fails if v shows a secret in any of the ways that values are
// printed.
func requireNoSecret(t *testing.T, v any) {
	t.Helper()
	shown := fmt.Sprintf("%v\n%+v\n%#v", v, v, v)
	if err, ok := v.(error); ok {
		shown += err.Error()
	}
	encoded, err := json.Marshal(v)
	require.NoError(t, err)
	shown += string(encoded)
	for _, secret := range []string{baseSecret, baseToken, tokenSecret, tokenToken} {
		for _, part := range []string{secret, strings.NewReplacer("/", "%2F", "+", "%2B", "=", "%3D").Replace(secret)} {
			require.NotContains(t, shown, part)
		}
	}
	require.NotContains(t, shown, "Signature=")
}

func TestKeysDoNotPrintTheirSecrets(t *testing.T) {
	keys := credentials.Keys{
		AccessKeyID:     "LTAI5tAbCdEfGhIjKlMnOpQr",
		AccessKeySecret: setting.NewSecret(baseSecret),
		SecurityToken:   setting.NewSecret(baseToken),
	}
	requireNoSecret(t, keys)
	requireNoSecret(t, &keys)
	config := credentials.Config{
		Type:            credentials.TypeStatic,
		AccessKeySecret: keys.AccessKeySecret,
		SecurityToken:   keys.SecurityToken,
		Base:            &credentials.Config{AccessKeySecret: keys.AccessKeySecret},
	}
	requireNoSecret(t, config)
	requireNoSecret(t, &config)
	provider, err := config.Provider("")
	require.NoError(t, err)
	requireNoSecret(t, provider)
}

func TestShortIDLeavesTheMiddleOut(t *testing.T) {
	for id, short := range map[string]string{
		"":                         "",
		"a":                        "***",
		"root":                     "ro***",
		"emulator":                 "emul***",
		"LTAI5tAbCdEfGhIjKlMnOpQr": "LTAI***OpQr",
	} {
		require.Equal(t, short, credentials.Keys{AccessKeyID: id}.ShortID())
	}
}
