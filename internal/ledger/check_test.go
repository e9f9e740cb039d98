package ledger_test

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/ledger"
	"mnsrelay/internal/relay"
	"mnsrelay/test/redisserver"
)

func TestCheck(t *testing.T) {
	require.Empty(t, ledger.Check(t.Context(), ledger.Defaults(), ledger.Deps{}))

	server := redisserver.Start(t, redisserver.Config{Password: secret})
	c := client(t, server)
	require.NoError(t, c.ACLSetUser(t.Context(), "relay", "on", ">pass", "~mnsrelay:ledger:*", "+exists", "+set", "+del").Err())
	require.NoError(t, c.ACLSetUser(t.Context(), "other", "on", ">pass", "~other:*", "+@all").Err())
	silent, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = silent.Close() })
	closed, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, closed.Close())
	for name, tt := range map[string]struct {
		url     string
		verdict relay.Verdict
		want    string
	}{
		"all is well":              {server.URL(), relay.OK, "answers"},
		"a user with three rights": {"redis://relay:pass@" + server.Addr(), relay.OK, "answers"},
		"a user without them":      {"redis://other:pass@" + server.Addr(), relay.Failed, "allow the user EXISTS, SET and DEL on mnsrelay:ledger:*"},
		"a wrong password":         {strings.Replace(server.URL(), "default:", "default:not-", 1), relay.Failed, "check user and password in ledger.url"},
		"no password":              {"redis://" + server.Addr(), relay.Failed, "check user and password in ledger.url"},
		"nothing listens":          {"redis://" + closed.Addr().String(), relay.Failed, "nothing listens there"},
		"nobody answers":           {"redis://" + silent.Addr().String(), relay.Failed, "nobody answers"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			began := time.Now()
			findings := ledger.Check(ctx, redisConfig(tt.url), ledger.Deps{})
			require.Less(t, time.Since(began), 3*time.Second)
			require.Len(t, findings, 1)
			require.Equal(t, tt.verdict, findings[0].Verdict, findings[0].Text)
			require.Contains(t, findings[0].Text, tt.want)
			require.NotContains(t, findings[0].Text, "p:a")
		})
	}
	keys, err := c.Keys(t.Context(), "*").Result()
	require.NoError(t, err)
	require.Empty(t, keys, "nothing is recorded")
}
