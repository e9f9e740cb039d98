package credentials_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/credentials"
	"mnsrelay/internal/emulator"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

// account is an emulator and what is needed to take on its roles.
type account struct {
	*emulator.Server
	t         *testing.T
	url       string
	tokenFile string
}

func newAccount(t *testing.T, change func(*emulator.Config)) *account {
	t.Helper()
	config := emulator.Config{
		AccessKeys: []emulator.AccessKey{{ID: baseID, Secret: secret(baseSecret)}}, TokenLife: time.Hour,
		InstanceRole: "instance", Roles: map[string]emulator.Role{"relay": {}, "partner": {ExternalID: "partner-1"}, "instance": {}, "closed": {Trusts: []string{"nobody"}}},
	}
	if change != nil {
		change(&config)
	}
	server, err := emulator.New(config)
	require.NoError(t, err)
	url, err := server.Start(t.Context(), "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Close()) })
	a := &account{Server: server, t: t, url: url, tokenFile: filepath.Join(t.TempDir(), "token")}
	a.project(emulator.OIDCToken{})
	return a
}

// project writes the pod's token.
func (a *account) project(token emulator.OIDCToken) {
	a.t.Helper()
	require.NoError(a.t, os.WriteFile(a.tokenFile, []byte(a.MintOIDCToken(token)+"\n"), 0o600))
}

func (a *account) role(name string) *credentials.Config {
	return &credentials.Config{
		Type: credentials.TypeRAMRoleARN, RoleARN: a.RoleARN(name), Endpoint: setting.NewURL(a.url),
		AccessKeyID: secret(baseID), AccessKeySecret: secret(baseSecret),
	}
}

func (a *account) oidc() *credentials.Config {
	return &credentials.Config{
		Type: credentials.TypeOIDCRoleARN, RoleARN: a.RoleARN("relay"), Endpoint: setting.NewURL(a.url),
		OIDCProviderARN: a.OIDCProviderARN(), OIDCTokenFile: a.tokenFile,
	}
}

func (a *account) ecs() *credentials.Config {
	return &credentials.Config{Type: credentials.TypeECSRAMRole, Endpoint: setting.NewURL(a.url)}
}

func (a *account) uri() *credentials.Config {
	return &credentials.Config{Type: credentials.TypeCredentialsURI, URI: setting.NewURL(a.url + "/credentials")}
}

// retrieve fetches keys once.
func retrieve(t *testing.T, c *credentials.Config) (credentials.Keys, error) {
	t.Helper()
	c.Defaults(func(string) string { return "" })
	require.NoError(t, c.Validate())
	p, err := c.Provider("Alicom-Queue-1-SmsReport")
	require.NoError(t, err)
	keys, err := p.Retrieve(t.Context())
	if err != nil {
		requireNoSecret(t, err)
	}
	return keys, err
}

// Every type gives keys that last as long as the server says, and with which a token for
// a queue is given.
func TestTypesGiveKeys(t *testing.T) {
	t.Parallel()
	a := newAccount(t, nil)
	with := func(c *credentials.Config, change func(*credentials.Config)) *credentials.Config {
		change(c)
		return c
	}
	for name, c := range map[string]*credentials.Config{
		"role": a.role("relay"),
		"role with everything": with(a.role("partner"), func(c *credentials.Config) {
			c.ExternalID, c.SessionName, c.Duration, c.Region = "partner-1", "me@here", time.Hour, "eu-central-1"
			c.Policy = `{"Version": "1", "Statement": [{"Effect": "Allow", "Action": "mns:*", "Resource": "*"}]}`
		}),
		"RRSA":               a.oidc(),
		"ECS":                a.ecs(),
		"ECS, named":         with(a.ecs(), func(c *credentials.Config) { c.RoleName = "instance" }),
		"URI":                a.uri(),
		"role of RRSA":       {Type: credentials.TypeRAMRoleARN, RoleARN: a.RoleARN("relay"), Endpoint: setting.NewURL(a.url), Base: a.oidc()},
		"role of role of it": {Type: credentials.TypeRAMRoleARN, RoleARN: a.RoleARN("relay"), Endpoint: setting.NewURL(a.url), Base: &credentials.Config{Type: credentials.TypeRAMRoleARN, RoleARN: a.RoleARN("relay"), Endpoint: setting.NewURL(a.url), Base: a.ecs()}},
	} {
		t.Run(name, func(t *testing.T) {
			keys, err := retrieve(t, c)
			require.NoError(t, err)
			require.InDelta(t, time.Hour, time.Until(keys.Expires), float64(3*time.Second))
			require.NotEmpty(t, keys.SecurityToken.Reveal())
			token := &credentials.Config{Type: credentials.TypeMNSToken, MessageType: "SmsReport", Endpoint: setting.NewURL(a.url), Base: c}
			c.RefreshBefore = 0
			_, err = retrieve(t, token)
			require.NoError(t, err)
		})
	}
}

// What a server refuses is said with what to do about it.
func TestTypesThatAreRefused(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		config func(a *account) *credentials.Config
		code   string
		want   string
	}{
		{"a role that is not there", func(a *account) *credentials.Config { return a.role("nothing") }, "EntityNotExist.Role", "check role_arn"},
		{"a role that trusts others", func(a *account) *credentials.Config { return a.role("closed") }, "NoPermission", "trust policy"},
		{"without the external id", func(a *account) *credentials.Config { return a.role("partner") }, "NoPermission", "external_id"},
		{"a wrong secret", func(a *account) *credentials.Config {
			c := a.role("relay")
			c.AccessKeySecret = secret(tokenSecret)
			return c
		}, "SignatureDoesNotMatch", "check that access_key_secret belongs"},
		{"an expired token", func(a *account) *credentials.Config {
			a.project(emulator.OIDCToken{Life: emulator.Duration(-time.Minute)})
			return a.oidc()
		}, "AuthenticationFail.OIDCToken.Expired", "projected token"},
		{"a token for others", func(a *account) *credentials.Config {
			a.project(emulator.OIDCToken{Audience: "kubernetes"})
			return a.oidc()
		}, "", "sts.aliyuncs.com"},
		{"a provider that is not there", func(a *account) *credentials.Config {
			c := a.oidc()
			c.OIDCProviderARN += "x"
			return c
		}, "", "oidc_provider_arn"},
		{"an empty token file", func(a *account) *credentials.Config {
			require.NoError(a.t, os.WriteFile(a.tokenFile, nil, 0o600))
			return a.oidc()
		}, "", "is empty: check the projected volume"},
		{"no token file", func(a *account) *credentials.Config {
			require.NoError(a.t, os.Remove(a.tokenFile))
			return a.oidc()
		}, "", "read oidc_token_file: open "},
		{"an instance without a role", func(a *account) *credentials.Config {
			require.NoError(a.t, a.SetInstanceRole(""))
			return a.ecs()
		}, "", "the instance has no RAM role: bind one to it"},
		{"a role that the instance does not have", func(a *account) *credentials.Config {
			c := a.ecs()
			c.RoleName = "other"
			return c
		}, "", "does not have the role other"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a := newAccount(t, nil)
			a.t = t
			_, err := retrieve(t, c.config(a))
			require.ErrorContains(t, err, c.want)
			if c.code != "" {
				var e *credentials.Error
				require.ErrorAs(t, err, &e)
				require.Equal(t, c.code, e.Code)
			}
		})
	}
}

// A metadata server that knows no tokens of its own is asked without, one that demands
// them never is.
func TestMetadataTokens(t *testing.T) {
	t.Parallel()
	a := newAccount(t, nil)
	a.RequireMetadataToken(true)
	_, err := retrieve(t, a.ecs())
	require.NoError(t, err)

	for _, status := range []int{http.StatusNotFound, http.StatusMethodNotAllowed} {
		old := serve(t, func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.Method == http.MethodPut:
				w.WriteHeader(status)
			case r.Header.Get("X-aliyun-ecs-metadata-token") != "":
				w.WriteHeader(http.StatusBadRequest)
			case strings.HasSuffix(r.URL.Path, "/security-credentials/"):
				_, _ = io.WriteString(w, "a.role")
			case strings.HasSuffix(r.URL.Path, "/security-credentials/a.role"):
				_, _ = io.WriteString(w, `{"Code":"Success","AccessKeyId":"STS.x","AccessKeySecret":"s","SecurityToken":"t","Expiration":"`+
					time.Now().UTC().Add(time.Hour).Format(time.RFC3339)+`"}`)
			}
		})
		keys, err := retrieve(t, &credentials.Config{Type: credentials.TypeECSRAMRole, Endpoint: setting.NewURL(old)})
		require.NoError(t, err)
		require.Equal(t, "STS.x", keys.AccessKeyID)
	}
	broken := serve(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusForbidden) })
	_, err = retrieve(t, &credentials.Config{Type: credentials.TypeECSRAMRole, Endpoint: setting.NewURL(broken)})
	require.ErrorContains(t, err, "HTTP 403: it gives no metadata token")
}

// What is no answer of the server that is meant is an error that says so, of a class
// that is tried again; nothing of it is quoted at length, and no redirect is followed.
func TestTypesThatGetGarbage(t *testing.T) {
	t.Parallel()
	elsewhere := serve(t, func(w http.ResponseWriter, _ *http.Request) { t.Error("a redirect was followed") })
	for name, answer := range map[string]http.HandlerFunc{
		"HTML": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "<html>hello"+strings.Repeat("x", 5000))
		},
		"HTML of a proxy": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusBadGateway)
			_, _ = io.WriteString(w, "<html>")
		},
		"nothing": func(http.ResponseWriter, *http.Request) {},
		"null":    func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "null") },
		"other JSON": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"Code": 5, "Credentials": []}`)
		},
		"no keys": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"Code":"Success","Credentials":{}}`)
		},
		"keys without a time": func(w http.ResponseWriter, _ *http.Request) {
			const keys = `"AccessKeyId":"STS.x","AccessKeySecret":"s","SecurityToken":"t","Expiration":"soon"`
			_, _ = io.WriteString(w, `{"Code":"Success",`+keys+`,"Credentials":{`+keys+`}}`)
		},
		"keys that have ended": func(w http.ResponseWriter, _ *http.Request) {
			const keys = `"AccessKeyId":"STS.x","AccessKeySecret":"s","SecurityToken":"t","Expiration":"2020-01-01T00:00:00Z"`
			_, _ = io.WriteString(w, `{"Code":"Success",`+keys+`,"Credentials":{`+keys+`}}`)
		},
		"a refusal of 200": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"Code":"Failed","Message":"no"}`)
		},
		"a redirect": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, elsewhere, http.StatusFound) },
		"half an answer": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, `{"Code":`)
		},
	} {
		far := serve(t, answer)
		a := &account{url: far, tokenFile: filepath.Join(t.TempDir(), "token")}
		require.NoError(t, os.WriteFile(a.tokenFile, []byte(tokenSecret), 0o600))
		endpoint := setting.NewURL(far)
		for kind, c := range map[string]*credentials.Config{
			"role": {Type: credentials.TypeRAMRoleARN, RoleARN: "acs:ram::1:role/x", Endpoint: endpoint, AccessKeyID: secret(baseID), AccessKeySecret: secret(baseSecret)},
			"RRSA": {Type: credentials.TypeOIDCRoleARN, RoleARN: "acs:ram::1:role/x", Endpoint: endpoint, OIDCProviderARN: "acs:ram::1:oidc-provider/x", OIDCTokenFile: a.tokenFile},
			"ECS":  {Type: credentials.TypeECSRAMRole, RoleName: "x", Endpoint: endpoint},
			"URI":  {Type: credentials.TypeCredentialsURI, URI: endpoint},
		} {
			t.Run(name+", "+kind, func(t *testing.T) {
				_, err := retrieve(t, c)
				require.Error(t, err)
				require.Less(t, len(err.Error()), 500)
				require.NotContains(t, err.Error(), "\n")
				require.NotEqual(t, relay.ClassAuth, relay.ClassOf(err), "%v", err)
			})
		}
	}
}

// What guards the keys at an address of one's own is not told, whatever its server quotes.
func TestAnAddressThatIsQuoted(t *testing.T) {
	t.Parallel()
	far := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		_ = json.NewEncoder(w).Encode(map[string]string{"Code": "Denied", "Message": "no " + r.URL.Query().Get("key") + " at " + r.RequestURI + " or " + r.URL.Path})
	})
	_, err := retrieve(t, &credentials.Config{Type: credentials.TypeCredentialsURI, URI: setting.NewURL(far + "/of/hidden-path?key=hidden%2Fvalue&n=1")})
	require.ErrorContains(t, err, "Denied (HTTP 403): no *** at /***?*** or /***")
}

// A call ends with its context, at whatever stage the server hangs.
func TestTypesEndWithTheirContext(t *testing.T) {
	t.Parallel()
	hang := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	a := &account{url: hang}
	for name, c := range map[string]*credentials.Config{"ECS": a.ecs(), "URI": a.uri()} {
		t.Run(name, func(t *testing.T) {
			c.Defaults(func(string) string { return "" })
			p, err := c.Provider("")
			require.NoError(t, err)
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			began := time.Now()
			_, err = p.Retrieve(ctx)
			require.ErrorContains(t, err, "no answer in time")
			require.Less(t, time.Since(began), 2*time.Second)
		})
	}
}
