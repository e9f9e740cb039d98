package credentials_test

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/credentials"
	"mnsrelay/internal/setting"
)

func secret(s string) setting.Secret { return setting.NewSecret(s) }

func TestDefaultsOfAnMNSToken(t *testing.T) {
	config := credentials.Config{Type: credentials.TypeMNSToken, MessageType: "SmsReport"}
	config.Defaults(os.Getenv)
	require.Equal(t, credentials.Config{
		Type:          credentials.TypeMNSToken,
		MessageType:   "SmsReport",
		Region:        "cn-hangzhou",
		Endpoint:      setting.NewURL("https://dybaseapi.aliyuncs.com"),
		RefreshBefore: 2 * time.Minute,
		Base:          &credentials.Config{Type: credentials.TypeDefault},
	}, config)
	require.NoError(t, config.Validate())

	again := config
	again.Defaults(os.Getenv)
	require.Equal(t, config, again)
}

func TestDefaultsLeaveWhatIsWritten(t *testing.T) {
	written := credentials.Config{
		Type: credentials.TypeMNSToken, MessageType: "SmsUp", Region: "eu-central-1",
		Endpoint: setting.NewURL("http://127.0.0.1:8000"), RefreshBefore: time.Minute, OwnerID: 7,
		AccessKeyID: secret("LTAI"), AccessKeySecret: secret(baseSecret),
	}
	config := written
	config.Defaults(os.Getenv)
	require.Equal(t, written, config)
	require.NoError(t, config.Validate())

	static := credentials.Config{Type: credentials.TypeStatic, AccessKeyID: secret("LTAI"), AccessKeySecret: secret(baseSecret)}
	config = static
	config.Defaults(os.Getenv)
	require.Equal(t, static, config)
	require.NoError(t, config.Validate())
}

func TestValidateReportsEveryProblemByPath(t *testing.T) {
	token := func(change func(*credentials.Config)) credentials.Config {
		c := credentials.Config{Type: credentials.TypeMNSToken, MessageType: "SmsReport"}
		change(&c)
		return c
	}
	for _, tt := range []struct {
		name   string
		config credentials.Config
		// want holds the path and a part of the message of each problem, in order.
		want [][2]string
	}{
		{"no type", credentials.Config{}, [][2]string{{"type", "write static, mns_token"}}},
		{"unknown type", credentials.Config{Type: "sts"}, [][2]string{{"type", "no such type: write static"}}},
		{"ram_role_arn", credentials.Config{Type: credentials.TypeRAMRoleARN}, [][2]string{{"role_arn", "required"}}},
		{"a role of another form", credentials.Config{
			Type: credentials.TypeRAMRoleARN, RoleARN: "mnsrelay", SessionName: "a b", Policy: "{", Duration: time.Minute, Endpoint: setting.NewURL("sts"),
		}, [][2]string{
			{"role_arn", "not the ARN of a role"}, {"session_name", "2 to 64"}, {"policy", "not JSON"}, {"duration", "is 1m0s: write whole seconds from 15m0s to 12h0m0s"}, {"endpoint", "write the address of a host"},
		}},
		{"oidc_role_arn", credentials.Config{Type: credentials.TypeOIDCRoleARN, ExternalID: "x"}, [][2]string{
			{"role_arn", "set ALIBABA_CLOUD_ROLE_ARN"},
			{"oidc_provider_arn", "set ALIBABA_CLOUD_OIDC_PROVIDER_ARN"},
			{"oidc_token_file", "set ALIBABA_CLOUD_OIDC_TOKEN_FILE"},
			{"external_id", "no meaning for type oidc_role_arn: remove it, or write type: ram_role_arn"},
		}},
		{"ecs_ram_role", credentials.Config{Type: credentials.TypeECSRAMRole, RoleName: "a/b", AccessKeyID: secret("LTAI")}, [][2]string{{"role_name", "not the name of a role"}, {"access_key_id", "no meaning"}}},
		{"credentials_uri", credentials.Config{Type: credentials.TypeCredentialsURI}, [][2]string{{"uri", "set ALIBABA_CLOUD_CREDENTIALS_URI"}}},
		{"credentials_uri of another scheme", credentials.Config{Type: credentials.TypeCredentialsURI, URI: setting.NewURL("file:///x")}, [][2]string{{"uri", "not an http"}}},
		{"credentials_uri with a user", credentials.Config{Type: credentials.TypeCredentialsURI, URI: setting.NewURL("http://user:base-Secret@x/")}, [][2]string{{"uri", "user name"}}},
		{"default", credentials.Config{Type: credentials.TypeDefault, Region: "r"}, [][2]string{{"region", "no meaning"}}},
		{"static without keys", credentials.Config{Type: credentials.TypeStatic}, [][2]string{
			{"access_key_id", "required"}, {"access_key_secret", "required"},
		}},
		{"static with what it does not have", credentials.Config{
			Type: credentials.TypeStatic, AccessKeyID: secret("LTAI"), AccessKeySecret: secret("s"),
			MessageType: "SmsUp", Region: "r", Endpoint: setting.NewURL("https://x"), OwnerID: 1, RefreshBefore: 1, Base: &credentials.Config{},
		}, [][2]string{
			{"message_type", "no meaning for type static"},
			{"region", "no meaning"},
			{"endpoint", "no meaning"},
			{"owner_id", "no meaning"},
			{"refresh_before", "no meaning"},
			{"base", "no meaning"},
		}},
		{"keys with line breaks", credentials.Config{
			Type: credentials.TypeStatic, AccessKeyID: secret("LTAI "), AccessKeySecret: secret(baseSecret + "\n"), SecurityToken: secret("\x00"),
		}, [][2]string{
			{"access_key_id", "space or a line break"}, {"access_key_secret", "space or a line break"}, {"security_token", "space or a line break"},
		}},
		{"token of no kind", credentials.Config{Type: credentials.TypeMNSToken}, [][2]string{{"message_type", "required"}}},
		{"token with a secret alone", token(func(c *credentials.Config) { c.AccessKeySecret = secret(baseSecret) }), [][2]string{{"access_key_id", "required"}}},
		{"token with a security token alone", token(func(c *credentials.Config) { c.SecurityToken = secret(baseToken) }), [][2]string{
			{"access_key_id", "required"}, {"access_key_secret", "required"},
		}},
		{"keys and base", token(func(c *credentials.Config) {
			c.AccessKeyID, c.AccessKeySecret = secret("LTAI"), secret(baseSecret)
			c.Base = &credentials.Config{Type: credentials.TypeDefault}
		}), [][2]string{{"base", "either base or access_key_id"}}},
		{"words and numbers", token(func(c *credentials.Config) {
			c.MessageType, c.Region, c.RefreshBefore, c.OwnerID = "Sms Report", "cn hangzhou", -1, -1
			c.Endpoint = setting.NewURL("https://dybaseapi.aliyuncs.com")
		}), [][2]string{
			{"message_type", "not a message type"}, {"owner_id", "negative"}, {"region", "not a region"}, {"refresh_before", "negative"},
		}},
		{"region without a known endpoint", token(func(c *credentials.Config) { c.Region = "eu-central-1" }), [][2]string{{"endpoint", "required"}}},
		{"endpoint without scheme", token(func(c *credentials.Config) { c.Endpoint = setting.NewURL("dybaseapi.aliyuncs.com") }), [][2]string{{"endpoint", "write the address of a host"}}},
		{"endpoint of another scheme", token(func(c *credentials.Config) { c.Endpoint = setting.NewURL("ftp://dybaseapi.aliyuncs.com") }), [][2]string{{"endpoint", "not an https"}}},
		{"endpoint with a port alone", token(func(c *credentials.Config) { c.Endpoint = setting.NewURL("https://:443") }), [][2]string{{"endpoint", "has no host"}}},
		{"endpoint with a user", token(func(c *credentials.Config) {
			c.Endpoint = setting.NewURL("https://" + "user:base-Secret@dybaseapi.aliyuncs.com")
		}), [][2]string{{"endpoint", "user name"}}},
		{"endpoint with a path", token(func(c *credentials.Config) { c.Endpoint = setting.NewURL("https://gateway/dybaseapi") }), [][2]string{{"endpoint", "more than a host"}}},
		{"endpoint with a query", token(func(c *credentials.Config) { c.Endpoint = setting.NewURL("https://gateway?a=b") }), [][2]string{{"endpoint", "more than a host"}}},
		{"a base that is not complete", token(func(c *credentials.Config) {
			c.Base = &credentials.Config{Type: credentials.TypeRAMRoleARN, RefreshBefore: 1, Base: &credentials.Config{Type: credentials.TypeCredentialsURI}}
		}), [][2]string{{"base.refresh_before", "no meaning in a base"}, {"base.role_arn", "required"}, {"base.base.uri", "required"}}},
		{"base of itself", token(func(c *credentials.Config) { c.Base = &credentials.Config{Type: credentials.TypeMNSToken} }), [][2]string{{"base.type", "good for its queue only"}}},
		{"base without a type", token(func(c *credentials.Config) { c.Base = &credentials.Config{} }), [][2]string{{"base.type", "required: write static, ram_role_arn"}}},
		{"base default with keys", token(func(c *credentials.Config) {
			c.Base = &credentials.Config{Type: credentials.TypeDefault, AccessKeyID: secret("LTAI")}
		}), [][2]string{{"base.access_key_id", "write type: static"}}},
		{"base static", token(func(c *credentials.Config) {
			c.Base = &credentials.Config{Type: credentials.TypeStatic, Region: "r"}
		}), [][2]string{{"base.access_key_id", "required"}, {"base.access_key_secret", "required"}, {"base.region", "no meaning"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.config.Defaults(func(string) string { return "" })
			err := tt.config.Validate()
			require.Error(t, err)
			requireNoSecret(t, err)
			problems := []error{err}
			if joined, ok := err.(interface{ Unwrap() []error }); ok {
				problems = joined.Unwrap()
			}
			require.Len(t, problems, len(tt.want), "%v", err)
			for i, want := range tt.want {
				var problem *setting.Problem
				require.ErrorAs(t, problems[i], &problem)
				require.Equal(t, want[0], problem.Path)
				require.Contains(t, problem.Message, want[1])
			}
		})
	}
}

func TestWarnings(t *testing.T) {
	for endpoint, warned := range map[string]bool{
		"":                               false,
		"https://dybaseapi.aliyuncs.com": false,
		"http://dybaseapi.aliyuncs.com":  true,
		"http://10.0.0.1:8000":           true,
		"http://127.0.0.1:8000":          false,
		"http://[::1]:8000":              false,
		"http://localhost:8000":          false,
	} {
		config := credentials.Config{Type: credentials.TypeMNSToken, Endpoint: setting.NewURL(endpoint)}
		require.Equal(t, warned, len(config.Warnings()) == 1, endpoint)
	}
	for name, warned := range map[string]bool{"SmsReport": false, "SmsReprot": true, "FlowReport": false, "SomethingElseEntirely": false} {
		require.Equal(t, warned, len((&credentials.Config{Type: credentials.TypeMNSToken, MessageType: name}).Warnings()) == 1, name)
	}
	var paths []string
	for _, err := range (&credentials.Config{
		Type: credentials.TypeRAMRoleARN, Endpoint: setting.NewURL("http://sts.example.com"), Base: &credentials.Config{
			Type: credentials.TypeRAMRoleARN, Endpoint: setting.NewURL("http://sts.example.com"),
			Base: &credentials.Config{Type: credentials.TypeCredentialsURI, URI: setting.NewURL("http://keys.example.com/x")},
		},
	}).Warnings() {
		problem, is := errors.AsType[*setting.Problem](err)
		require.True(t, is)
		paths = append(paths, problem.Path)
	}
	require.Equal(t, []string{"endpoint", "base.endpoint", "base.base.uri"}, paths)
	require.Empty(t, (&credentials.Config{Type: credentials.TypeECSRAMRole, Endpoint: setting.NewURL("http://100.100.100.200")}).Warnings())
}

func TestProviderOfStaticKeys(t *testing.T) {
	config := credentials.Config{Type: credentials.TypeStatic, AccessKeyID: secret("LTAI"), AccessKeySecret: secret(baseSecret), SecurityToken: secret(baseToken)}
	provider, err := config.Provider("")
	require.NoError(t, err)
	keys, err := provider.Retrieve(t.Context())
	require.NoError(t, err)
	require.Equal(t, credentials.Keys{AccessKeyID: "LTAI", AccessKeySecret: secret(baseSecret), SecurityToken: secret(baseToken)}, keys)
}

func TestProviderRefusesWhatItCannotDo(t *testing.T) {
	token := func() credentials.Config {
		c := credentials.Config{Type: credentials.TypeMNSToken, MessageType: "SmsReport"}
		c.Defaults(os.Getenv)
		return c
	}
	t.Run("a token for no queue", func(t *testing.T) {
		config := token()
		_, err := config.Provider("")
		require.ErrorContains(t, err, "none is named")
	})
	t.Run("an environment that makes the SDK print secrets", func(t *testing.T) {
		t.Setenv("DEBUG", "tea,sdk")
		config := token()
		_, err := config.Provider("q")
		require.ErrorContains(t, err, "unset it")
	})
}

// ACK's add-on names the STS that the pod can reach, a host.
func TestTheEndpointOfSTSFromTheEnvironment(t *testing.T) {
	for _, c := range []struct{ host, region, endpoint, want string }{
		{"", "", "", "https://sts.aliyuncs.com"},
		{"sts-vpc.cn-hangzhou.aliyuncs.com", "", "", "https://sts-vpc.cn-hangzhou.aliyuncs.com"},
		{"http://10.0.0.1:8000", "", "", "http://10.0.0.1:8000"},
		{"sts-vpc.cn-hangzhou.aliyuncs.com", "cn-beijing", "", "https://sts.cn-beijing.aliyuncs.com"},
		{"sts-vpc.cn-hangzhou.aliyuncs.com", "", "https://sts.example.com", "https://sts.example.com"},
	} {
		config := credentials.Config{Type: credentials.TypeOIDCRoleARN, Region: c.region, Endpoint: setting.NewURL(c.endpoint)}
		config.Defaults(func(name string) string { return map[string]string{"ALIBABA_CLOUD_STS_ENDPOINT": c.host}[name] })
		require.Equal(t, c.want, config.Endpoint.Reveal())
	}
}
