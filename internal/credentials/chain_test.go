package credentials_test

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/credentials"
)

// noChain leaves the default chain nothing to find.
func noChain(t *testing.T) {
	t.Helper()
	for _, name := range []string{
		"ALIBABA_CLOUD_ACCESS_KEY_ID", "ALIBABA_CLOUD_ACCESS_KEY_SECRET", "ALIBABA_CLOUD_SECURITY_TOKEN",
		"ALIBABA_CLOUD_ROLE_ARN", "ALIBABA_CLOUD_OIDC_PROVIDER_ARN", "ALIBABA_CLOUD_OIDC_TOKEN_FILE", "ALIBABA_CLOUD_ROLE_SESSION_NAME",
		"ALIBABA_CLOUD_CREDENTIALS_URI", "ALIBABA_CLOUD_PROFILE", "ALIBABA_CLOUD_ECS_METADATA",
	} {
		t.Setenv(name, "")
	}
	t.Setenv("ALIBABA_CLOUD_ECS_METADATA_DISABLED", "true")
	t.Setenv("HOME", t.TempDir())
}

// chainKeys is what a default chain finds now.
func chainKeys(t *testing.T) (credentials.Keys, error) {
	t.Helper()
	c := &credentials.Config{Type: credentials.TypeDefault}
	c.Defaults(os.Getenv)
	p, err := c.Provider("")
	require.NoError(t, err)
	keys, err := p.Retrieve(t.Context())
	if err != nil {
		requireNoSecret(t, err)
	}
	return keys, err
}

// The chain takes the first place that has anything, in this order.
func TestChain(t *testing.T) {
	noChain(t)
	_, err := chainKeys(t)
	require.ErrorContains(t, err, "find keys: there are none in the environment")

	uri := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"Code":"Success","AccessKeyId":"STS.uri","AccessKeySecret":"s","SecurityToken":"t","Expiration":"`+time.Now().UTC().Add(time.Hour).Format(time.RFC3339)+`"}`)
	})
	t.Setenv("ALIBABA_CLOUD_CREDENTIALS_URI", uri)
	keys, err := chainKeys(t)
	require.NoError(t, err)
	require.Equal(t, "STS.uri", keys.AccessKeyID)

	home := os.Getenv("HOME")
	require.NoError(t, os.Mkdir(filepath.Join(home, ".aliyun"), 0o700))
	profiles := filepath.Join(home, ".aliyun", "config.json")
	require.NoError(t, os.WriteFile(profiles, []byte(`{"current": "a", "profiles": [
		{"name": "a", "mode": "AK", "access_key_id": "LTAIprofile", "access_key_secret": "base-Secret"},
		{"name": "b", "mode": "StsToken", "access_key_id": "STS.b", "access_key_secret": "base-Secret", "sts_token": "t"},
		{"name": "u", "mode": "CredentialsURI", "credentials_uri": "`+uri+`"},
		{"name": "loop", "mode": "ChainableRamRoleArn", "source_profile": "loop"},
		{"name": "browser", "mode": "CloudSSO"},
		{"name": "half", "mode": "AK", "access_key_id": "LTAI"}
	]}`), 0o600))
	for name, want := range map[string]string{"": "LTAIprofile", "b": "STS.b", "u": "STS.uri"} {
		t.Setenv("ALIBABA_CLOUD_PROFILE", name)
		keys, err := chainKeys(t)
		require.NoError(t, err)
		require.Equal(t, want, keys.AccessKeyID)
	}
	for name, want := range map[string]string{
		"c": `there is no profile "c"`, "loop": "has itself as its source", "browser": `the mode "CloudSSO", which a service cannot use`, "half": "access_key_secret: required",
	} {
		t.Setenv("ALIBABA_CLOUD_PROFILE", name)
		_, err := chainKeys(t)
		require.ErrorContains(t, err, want)
		require.ErrorContains(t, err, profiles)
	}
	t.Setenv("ALIBABA_CLOUD_PROFILE", "")
	require.NoError(t, os.WriteFile(profiles, []byte(`{`), 0o600))
	_, err = chainKeys(t)
	require.ErrorContains(t, err, "is no profile file of aliyun configure", "what is set and broken is not passed over")

	// What is half set is not passed over either.
	for name, want := range map[string]string{
		"ALIBABA_CLOUD_ACCESS_KEY_ID": "set both, or neither", "ALIBABA_CLOUD_ACCESS_KEY_SECRET": "set both, or neither",
		"ALIBABA_CLOUD_OIDC_TOKEN_FILE": "oidc_provider_arn: required", "ALIBABA_CLOUD_OIDC_PROVIDER_ARN": "oidc_token_file: required",
	} {
		t.Setenv(name, "x")
		_, err = chainKeys(t)
		require.ErrorContains(t, err, want, name)
		t.Setenv(name, "")
	}

	// RRSA before the profile. It fails, for nobody answers, and nothing else is tried.
	t.Setenv("ALIBABA_CLOUD_ROLE_ARN", "acs:ram::1:role/pod")
	t.Setenv("ALIBABA_CLOUD_OIDC_PROVIDER_ARN", "acs:ram::1:oidc-provider/ack")
	t.Setenv("ALIBABA_CLOUD_OIDC_TOKEN_FILE", "/nowhere/token")
	_, err = chainKeys(t)
	require.ErrorContains(t, err, "assume role acs:ram::1:role/pod: read oidc_token_file: open /nowhere/token")

	t.Setenv("ALIBABA_CLOUD_ACCESS_KEY_ID", baseID)
	t.Setenv("ALIBABA_CLOUD_ACCESS_KEY_SECRET", baseSecret)
	keys, err = chainKeys(t)
	require.NoError(t, err)
	require.Equal(t, baseID, keys.AccessKeyID)
}

// The place that has given keys is the one that is asked from then on: while it is out of
// order, nothing is signed as somebody else.
func TestTheChainStaysWithAPlace(t *testing.T) {
	noChain(t)
	grant := func(id string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"Code":"Success","AccessKeyId":"`+id+`","AccessKeySecret":"s","SecurityToken":"t","Expiration":"`+time.Now().UTC().Add(time.Hour).Format(time.RFC3339)+`"}`)
		}
	}
	profile := func() string {
		folder := filepath.Join(os.Getenv("HOME"), ".aliyun")
		require.NoError(t, os.MkdirAll(folder, 0o700))
		path := filepath.Join(folder, "config.json")
		require.NoError(t, os.WriteFile(path, []byte(`{"current": "a", "profiles": [{"name": "a", "mode": "AK", "access_key_id": "LTAIprofile", "access_key_secret": "base-Secret"}]}`), 0o600))
		return path
	}
	c := &credentials.Config{Type: credentials.TypeDefault}
	path := profile()
	p, err := c.Provider("")
	require.NoError(t, err)
	_, err = p.Retrieve(t.Context())
	require.NoError(t, err)
	t.Setenv("ALIBABA_CLOUD_CREDENTIALS_URI", serve(t, grant("STS.uri")))
	require.NoError(t, os.Remove(path))
	_, err = p.Retrieve(t.Context())
	require.EqualError(t, err, "find keys: the profile file had them and holds none now: put them back, or restart the relay to look elsewhere")
	profile()
	keys, err := p.Retrieve(t.Context())
	require.NoError(t, err)
	require.Equal(t, "LTAIprofile", keys.AccessKeyID)

	require.NoError(t, os.Remove(path))
	p, err = c.Provider("")
	require.NoError(t, err)
	keys, err = p.Retrieve(t.Context())
	require.NoError(t, err)
	require.Equal(t, "STS.uri", keys.AccessKeyID)
	profile()
	keys, err = p.Retrieve(t.Context())
	require.NoError(t, err)
	require.Equal(t, "STS.uri", keys.AccessKeyID, "a place that comes up later is none")
}
