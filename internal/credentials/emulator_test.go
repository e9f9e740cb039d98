package credentials_test

import (
	"context"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"mnsrelay/internal/credentials"
	"mnsrelay/internal/emulator"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

// startEmulator gives a server that issues tokens of life, and an mns_token's
// configuration that asks it.
func startEmulator(t *testing.T, life time.Duration) (*emulator.Server, credentials.Config, string) {
	t.Helper()
	server, err := emulator.New(emulator.Config{
		AccessKeys: []emulator.AccessKey{{ID: baseID, Secret: secret(baseSecret)}},
		TokenLife:  life,
	})
	require.NoError(t, err)
	endpoint, err := server.Start(t.Context(), "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Close()) })
	name := server.AlicomQueue("SmsReport")
	if _, found := server.QueueStats(name); !found {
		require.NoError(t, server.CreateQueue(name, emulator.QueueConfig{}))
	}
	config := credentials.Config{
		Type: credentials.TypeMNSToken, MessageType: "SmsReport", Endpoint: setting.NewURL(endpoint),
		AccessKeyID: secret(baseID), AccessKeySecret: secret(baseSecret),
	}
	config.Defaults(os.Getenv)
	return server, config, name
}

func TestEmulatorIssuesTokens(t *testing.T) {
	_, config, name := startEmulator(t, time.Hour)
	for _, tt := range []struct {
		name   string
		change func(*credentials.Config)
		code   string
		text   string
	}{
		{"right", func(*credentials.Config) {}, "", ""},
		{"a key that is not there", func(c *credentials.Config) { c.AccessKeyID = secret("LTAInobody") }, "InvalidAccessKeyId.NotFound", "check that access_key_id is right"},
		{"a wrong secret", func(c *credentials.Config) { c.AccessKeySecret = secret(tokenSecret) }, "SignatureDoesNotMatch", "check that access_key_secret belongs to access_key_id"},
		{"a token of other keys", func(c *credentials.Config) { c.SecurityToken = secret(baseToken) }, "InvalidSecurityToken.MismatchWithAccessKey", "belongs to other keys"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			config := config
			tt.change(&config)
			retriever, err := config.Provider(name)
			require.NoError(t, err)
			keys, err := retriever.Retrieve(t.Context())
			if tt.code == "" {
				require.NoError(t, err)
				require.InDelta(t, time.Hour, time.Until(keys.Expires), float64(3*time.Second))
				return
			}
			var refused *credentials.Error
			require.ErrorAs(t, err, &refused)
			require.Equal(t, tt.code, refused.Code)
			require.Equal(t, relay.ClassAuth, relay.ClassOf(err))
			require.ErrorContains(t, err, tt.text)
			requireNoSecret(t, err)
		})
	}
}

// A refresher against a server whose tokens live for three seconds, through what a
// server does wrong: at no moment is there no token, or one that has ended.
func TestEmulatorTokensOfThreeSeconds(t *testing.T) {
	server, config, name := startEmulator(t, 3*time.Second)
	provider, err := config.Provider(name)
	require.NoError(t, err)
	core, logs := observer.New(zapcore.DebugLevel)
	refresher := credentials.NewRefresher(provider, &config, zap.New(core))
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- refresher.Run(ctx, "sms") }()
	<-refresher.Ready()

	faults := []emulator.Fault{
		{Connection: emulator.DropBefore},
		{Status: http.StatusOK, Code: "isp.SYSTEM_ERROR"},
		{Status: http.StatusBadGateway, Body: "<html>"},
	}
	seen := map[string]bool{}
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for ctx.Err() == nil {
		keys, err := refresher.Current()
		require.NoError(t, err)
		require.Positive(t, time.Until(keys.Expires))
		if !seen[keys.AccessKeyID] {
			seen[keys.AccessKeyID] = true
			if len(faults) > 0 {
				fault := faults[0]
				fault.Operation, fault.Count = emulator.OpToken, 1
				_, err := server.AddFault(fault)
				require.NoError(t, err)
				faults = faults[1:]
			}
			refresher.Refused(keys)
		}
		select {
		case <-look.C:
		case <-ctx.Done():
		}
	}
	require.NoError(t, <-ended)
	require.GreaterOrEqual(t, len(seen), 4)
	status := refresher.Status()
	require.EqualValues(t, 3, status.Failures)
	require.GreaterOrEqual(t, status.Refreshes, uint64(len(seen)))
	require.Equal(t, 6, logs.Len(), "one line when a trouble begins, one when it ends")
	for _, entry := range logs.All() {
		requireNoSecret(t, entry.ContextMap())
	}
}

func TestEmulatorWithAnotherClock(t *testing.T) {
	server, config, name := startEmulator(t, time.Hour)
	retriever, err := config.Provider(name)
	require.NoError(t, err)
	for _, offset := range []time.Duration{10 * time.Minute, -10 * time.Minute} {
		server.SetClockOffset(offset)
		keys, err := retriever.Retrieve(t.Context())
		require.NoError(t, err)
		require.InDelta(t, time.Hour, time.Until(keys.Expires), float64(3*time.Second))
	}
	// What the server refuses for its time is signed with the server's own.
	for _, offset := range []time.Duration{20 * time.Minute, -20 * time.Minute, 8 * time.Hour, -8 * time.Hour} {
		server.SetClockOffset(offset)
		keys, err := retriever.Retrieve(t.Context())
		require.NoError(t, err)
		require.InDelta(t, time.Hour, time.Until(keys.Expires), float64(3*time.Second))
	}
}
