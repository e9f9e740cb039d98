package setting_test

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v4"

	"mnsrelay/internal/setting"
)

func TestSize(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]setting.Size{
		"0":      0,
		"512":    512,
		"1KiB":   setting.KiB,
		"1024":   setting.KiB,
		"64 KiB": 64 * setting.KiB,
		"256MiB": 256 * setting.MiB,
		"3GiB":   3 * setting.GiB,
		strconv.FormatInt(math.MaxInt64/int64(setting.GiB), 10) + "GiB": math.MaxInt64 / setting.GiB * setting.GiB,
	} {
		var got setting.Size
		require.NoError(t, got.UnmarshalText([]byte(text)), text)
		require.Equal(t, want, got, text)

		written, err := got.MarshalText()
		require.NoError(t, err)
		var again setting.Size
		require.NoError(t, again.UnmarshalText(written))
		require.Equal(t, want, again, "%s was written as %s", text, written)
	}
	for _, text := range []string{
		"", "KiB", "-1", "-1MiB", "1.5GiB", "64MB", "64mib", "1TiB", "1KiBKiB", "0x10", "8589934592GiB", "9223372036854775808",
	} {
		kept := 7 * setting.MiB
		require.EqualError(t, kept.UnmarshalText([]byte(text)), "not a size: write a whole number with KiB, MiB or GiB, as in 64MiB", text)
		require.Equal(t, 7*setting.MiB, kept, "a size that cannot be read changes nothing")
	}
	require.Equal(t, "1GiB", (1024 * setting.MiB).String())
	require.Equal(t, "1025MiB", (1025 * setting.MiB).String())
	require.Equal(t, "1537", setting.Size(1537).String())
}

func TestURL(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		"":                                   "",
		"amqps://rabbit:5671/prod":           "amqps://rabbit:5671/prod",
		"amqps://u:p%2Fw@rabbit:5671/a%2Fb":  "amqps://***@rabbit:5671/a%2Fb",
		"https://token@h/":                   "https://***@h/",
		"https://h/path?key=value#fragment":  "https://h/path?***",
		"http://[::1]:8080":                  "http://[::1]:8080",
		"amqp://u:p/w@h":                     "***", // the port is p
		"amqp://u:p#w@h":                     "***",
		"u:p@h":                              "***",
		"not a URL":                          "***",
		"https://":                           "***",
		"amqp://u:" + string(rune(7)) + "@h": "***",
	} {
		u := setting.NewURL(raw)
		require.Equal(t, want, u.String(), raw)
		require.Equal(t, raw, u.Reveal())
		require.Equal(t, raw == "", u.IsZero())
	}
	alike := map[setting.URL]bool{setting.NewURL("https://h"): true}
	require.True(t, alike[setting.NewURL("https://"+"h")], "those written alike are ==")
	require.False(t, alike[setting.NewURL("https://i")])
}

func TestWhatIsWrongWithAURLIsToldWithoutIt(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		"amqp://u:swordfish/w@h":   "not a URL; special characters in a user name or password must be percent-encoded, or use the username and password settings",
		"amqp://u:sword%fish@h":    "not a URL; special characters in a user name or password must be percent-encoded, or use the username and password settings",
		"swordfish":                "not a complete URL: write scheme://host",
		"mailto:swordfish@example": "not a complete URL: write scheme://host",
	} {
		_, err := setting.NewURL(raw).Parse()
		require.EqualError(t, err, want, raw)
	}
	parsed, err := setting.NewURL("amqps://u:p%2Fw@h/v").Parse()
	require.NoError(t, err)
	password, set := parsed.User.Password()
	require.True(t, set)
	require.Equal(t, "p/w", password)
}

func TestSecretsThroughYAML(t *testing.T) {
	t.Parallel()
	type settings struct {
		Password setting.Secret `yaml:"password"`
		URL      setting.URL    `yaml:"url"`
		Room     setting.Size   `yaml:"room"`
		Unset    setting.Secret `yaml:"unset"`
	}
	var s settings
	require.NoError(t, yaml.Load([]byte("password: swordfish\nurl: https://u:swordfish@h/\nroom: 64MiB\n"), &s))
	require.Equal(t, "swordfish", s.Password.Reveal())
	require.Equal(t, "https://u:swordfish@h/", s.URL.Reveal())
	require.Equal(t, 64*setting.MiB, s.Room)

	written, err := yaml.Dump(s)
	require.NoError(t, err)
	var shown map[string]string
	require.NoError(t, yaml.Load(written, &shown))
	require.Equal(t, map[string]string{"password": "***", "url": "https://***@h/", "room": "64MiB", "unset": ""}, shown)
}

func TestProblems(t *testing.T) {
	t.Parallel()
	require.EqualError(t, setting.Problemf("urls[1]", "must be %d", 7), "urls[1]: must be 7")
	require.EqualError(t, setting.Problemf("", "required"), "required")

	err := fmt.Errorf("validate: %w", errors.Join(setting.Problemf("a", "x"), setting.Problemf("b", "y")))
	p, found := errors.AsType[*setting.Problem](err)
	require.True(t, found)
	require.Equal(t, &setting.Problem{Path: "a", Message: "x"}, p)
}
