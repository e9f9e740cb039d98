package mns_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/mns"
)

func TestEndpointIsAnyURLWithAHost(t *testing.T) {
	for in, want := range map[string]struct {
		text    string
		exposed bool
	}{
		"https://1943695596114318.mns.cn-hangzhou.aliyuncs.com":  {"https://1943695596114318.mns.cn-hangzhou.aliyuncs.com", false},
		"https://1943695596114318.mns.cn-hangzhou.aliyuncs.com/": {"https://1943695596114318.mns.cn-hangzhou.aliyuncs.com", false},
		"http://100.mns.cn-hangzhou-internal-vpc.aliyuncs.com":   {"http://100.mns.cn-hangzhou-internal-vpc.aliyuncs.com", true},
		"http://127.0.0.1:8080":                                  {"http://127.0.0.1:8080", false},
		"http://127.0.0.1:8080/.":                                {"http://127.0.0.1:8080", false},
		"http://localhost":                                       {"http://localhost", false},
		"http://emulator:8080":                                   {"http://emulator:8080", true},
		"http://[::1]:8080":                                      {"http://[::1]:8080", false},
		"https://[fe80::1%25eth0]:8443":                          {"https://[fe80::1]:8443", false},
		"https://gateway.example.com/mns/v1/":                    {"https://gateway.example.com/mns/v1", false},
	} {
		t.Run(in, func(t *testing.T) {
			e, err := mns.ParseEndpoint(in)
			require.NoError(t, err)
			require.Equal(t, want.text, e.String())
			require.Equal(t, want.exposed, e.Exposed())
		})
	}
}

func TestWrongEndpointIsAnError(t *testing.T) {
	for in, says := range map[string]string{
		"": "required",
		"1943695596114318.mns.cn-hangzhou.aliyuncs.com": "no http or https URL",
		"localhost:8080":              "no http or https URL",
		"ftp://host":                  "no http or https URL",
		"https://":                    "has no host",
		"https:host":                  "has no host",
		"https://:8080":               "has no host",
		"https://user:pass@host":      "holds a user name",
		"https://host?x=1":            "query",
		"https://host#x":              "fragment",
		"https://host:0":              "port",
		"https://host:":               "colon without a port",
		"https://host:65536":          "port",
		"https://host:https":          "not a URL",
		"https://ho,st":               "characters",
		"https://ho st":               "not a URL",
		"https://häst":                "xn--",
		"https://[::1":                "not a URL",
		"https://[1.2.3.4.5]":         "not a URL",
		"https://host/a%20b":          "path",
		"https://host/../x":           "path",
		"https://host/pass\x00word":   "not a URL",
		"http://%zz":                  "not a URL",
		"http://a.b.c.d.e.f.g.h/x//y": "path",
	} {
		t.Run(in, func(t *testing.T) {
			_, err := mns.ParseEndpoint(in)
			require.ErrorContains(t, err, says)
			require.NotContains(t, err.Error(), "pass")
		})
	}
}

func TestConfigReportsEveryProblem(t *testing.T) {
	c := mns.Config{Endpoint: "nowhere", Queue: "a/b", Wait: 31e9}
	err := c.Validate()
	require.ErrorContains(t, err, "endpoint: ")
	require.ErrorContains(t, err, "queue: ")
	require.ErrorContains(t, err, "wait: ")
	_, err = mns.NewSource(c, mns.Deps{})
	require.Error(t, err)
}

func FuzzEndpoint(f *testing.F) {
	for _, seed := range []string{"https://1.mns.cn.aliyuncs.com", "http://[::1%25a]:1/x", "http://a,b", "http:///", "http://a.b.c.d.e.f/."} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		e, err := mns.ParseEndpoint(raw)
		if err != nil {
			return
		}
		again, err := mns.ParseEndpoint(e.String())
		require.NoError(t, err, e.String())
		require.Equal(t, e.String(), again.String())
		q, err := mns.NewQueue(mns.Config{Endpoint: raw, Queue: "q"}, mns.Deps{Credentials: static("id", "secret")})
		require.NoError(t, err)
		q.Close()
	})
}
