package credentials_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"mnsrelay/internal/credentials"
	"mnsrelay/internal/setting"
)

func secret(s string) setting.Secret { return setting.NewSecret(s) }

func TestDefaultsOfAnMNSToken(t *testing.T) {
	config := credentials.Config{Type: credentials.TypeMNSToken, MessageType: "SmsReport"}
	config.Defaults()
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
	again.Defaults()
	require.Equal(t, config, again)
}

func TestDefaultsLeaveWhatIsWritten(t *testing.T) {
	written := credentials.Config{
		Type: credentials.TypeMNSToken, MessageType: "SmsUp", Region: "eu-central-1",
		Endpoint: setting.NewURL("http://127.0.0.1:8000"), RefreshBefore: time.Minute, OwnerID: 7,
		AccessKeyID: "LTAI", AccessKeySecret: secret(baseSecret),
	}
	config := written
	config.Defaults()
	require.Equal(t, written, config)
	require.NoError(t, config.Validate())

	static := credentials.Config{Type: credentials.TypeStatic, AccessKeyID: "LTAI", AccessKeySecret: secret(baseSecret)}
	config = static
	config.Defaults()
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
		{"ram_role_arn", credentials.Config{Type: credentials.TypeRAMRoleARN}, [][2]string{{"type", "ram_role_arn is not supported yet"}}},
		{"oidc_role_arn", credentials.Config{Type: credentials.TypeOIDCRoleARN}, [][2]string{{"type", "not supported yet"}}},
		{"ecs_ram_role", credentials.Config{Type: credentials.TypeECSRAMRole}, [][2]string{{"type", "not supported yet"}}},
		{"credentials_uri", credentials.Config{Type: credentials.TypeCredentialsURI}, [][2]string{{"type", "not supported yet"}}},
		{"default", credentials.Config{Type: credentials.TypeDefault}, [][2]string{{"type", "not supported yet"}}},
		{"static without keys", credentials.Config{Type: credentials.TypeStatic}, [][2]string{
			{"access_key_id", "required"}, {"access_key_secret", "required"},
		}},
		{"static with what it does not have", credentials.Config{
			Type: credentials.TypeStatic, AccessKeyID: "LTAI", AccessKeySecret: secret("s"),
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
			Type: credentials.TypeStatic, AccessKeyID: "LTAI ", AccessKeySecret: secret(baseSecret + "\n"), SecurityToken: secret("\x00"),
		}, [][2]string{
			{"access_key_id", "space or a line break"}, {"access_key_secret", "space or a line break"}, {"security_token", "space or a line break"},
		}},
		{"token of no kind", credentials.Config{Type: credentials.TypeMNSToken}, [][2]string{{"message_type", "required"}}},
		{"token with a secret alone", token(func(c *credentials.Config) { c.AccessKeySecret = secret(baseSecret) }), [][2]string{{"access_key_id", "required"}}},
		{"token with a security token alone", token(func(c *credentials.Config) { c.SecurityToken = secret(baseToken) }), [][2]string{
			{"access_key_id", "required"}, {"access_key_secret", "required"},
		}},
		{"keys and base", token(func(c *credentials.Config) {
			c.AccessKeyID, c.AccessKeySecret = "LTAI", secret(baseSecret)
			c.Base = &credentials.Config{Type: credentials.TypeDefault}
		}), [][2]string{{"base", "either base or access_key_id"}}},
		{"words and numbers", token(func(c *credentials.Config) {
			c.MessageType, c.Region, c.RefreshBefore, c.OwnerID = "Sms Report", "cn hangzhou", -1, -1
			c.Endpoint = setting.NewURL("https://dybaseapi.aliyuncs.com")
		}), [][2]string{
			{"message_type", "not a message type"}, {"region", "not a region"}, {"refresh_before", "negative"}, {"owner_id", "negative"},
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
		{"base of later", token(func(c *credentials.Config) { c.Base = &credentials.Config{Type: credentials.TypeOIDCRoleARN} }), [][2]string{{"base.type", "oidc_role_arn is not supported yet"}}},
		{"base of itself", token(func(c *credentials.Config) { c.Base = &credentials.Config{Type: credentials.TypeMNSToken} }), [][2]string{{"base.type", "cannot be the base"}}},
		{"base without a type", token(func(c *credentials.Config) { c.Base = &credentials.Config{} }), [][2]string{{"base.type", "no such type: write static"}}},
		{"base default with keys", token(func(c *credentials.Config) {
			c.Base = &credentials.Config{Type: credentials.TypeDefault, AccessKeyID: "LTAI"}
		}), [][2]string{{"base.type", "write type: static"}}},
		{"base static", token(func(c *credentials.Config) {
			c.Base = &credentials.Config{Type: credentials.TypeStatic, Region: "r"}
		}), [][2]string{{"base.access_key_id", "required"}, {"base.access_key_secret", "required"}, {"base.region", "no meaning"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.config.Defaults()
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

func TestWarningsOfAnEndpointInTheClear(t *testing.T) {
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
}

func TestProviderOfStaticKeys(t *testing.T) {
	config := credentials.Config{Type: credentials.TypeStatic, AccessKeyID: "LTAI", AccessKeySecret: secret(baseSecret), SecurityToken: secret(baseToken)}
	provider, err := config.Provider(credentials.Deps{Log: zap.NewNop()})
	require.NoError(t, err)
	keys, err := provider.Retrieve(t.Context())
	require.NoError(t, err)
	require.Equal(t, credentials.Keys{AccessKeyID: "LTAI", AccessKeySecret: secret(baseSecret), SecurityToken: secret(baseToken)}, keys)
}

func TestProviderRefusesWhatItCannotDo(t *testing.T) {
	token := func() credentials.Config {
		c := credentials.Config{Type: credentials.TypeMNSToken, MessageType: "SmsReport"}
		c.Defaults()
		return c
	}
	t.Run("a type of later", func(t *testing.T) {
		config := credentials.Config{Type: credentials.TypeECSRAMRole}
		_, err := config.Provider(credentials.Deps{})
		require.ErrorContains(t, err, "not supported yet")
	})
	t.Run("a base of later", func(t *testing.T) {
		config := token()
		config.Base = &credentials.Config{Type: credentials.TypeECSRAMRole}
		_, err := config.Provider(credentials.Deps{Queue: "q"})
		require.ErrorContains(t, err, "not supported yet")
	})
	t.Run("a token for no queue", func(t *testing.T) {
		config := token()
		_, err := config.Provider(credentials.Deps{})
		require.ErrorContains(t, err, "none is named")
	})
	t.Run("an environment that makes the SDK print secrets", func(t *testing.T) {
		t.Setenv("DEBUG", "tea,sdk")
		config := token()
		_, err := config.Provider(credentials.Deps{Queue: "q"})
		require.ErrorContains(t, err, "unset it")
	})
}
