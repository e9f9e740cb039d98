package emulator_test

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"mnsrelay/internal/emulator"
)

// Close answers waiting polls, ends idle connections and those that never asked
// anything, and leaves no goroutine.
func TestCloseWaits(t *testing.T) {
	ignore := goleak.IgnoreCurrent()
	s := newServer(t, emulator.Config{})
	_, err := s.Start(t.Context(), "127.0.0.1:bad")
	require.Error(t, err)
	url, err := s.Start(t.Context(), "127.0.0.1:0")
	require.NoError(t, err)
	_, err = s.Start(t.Context(), "127.0.0.1:0")
	require.ErrorContains(t, err, "started before")

	silent, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(url, "http://"))
	require.NoError(t, err)
	defer func() { _ = silent.Close() }()
	transport := &http.Transport{}
	answers := make(chan string, 3)
	for range cap(answers) {
		go func() {
			response, err := transport.RoundTrip(demoKey().request(t.Context(), http.MethodGet, url, messagesPath("?waitseconds=30"), ""))
			if err != nil {
				answers <- err.Error()
				return
			}
			body, _ := io.ReadAll(response.Body)
			_ = response.Body.Close()
			answers <- string(body)
		}()
	}
	require.Eventually(t, func() bool { return stats(t, s).Waiting == 3 }, 5*time.Second, time.Millisecond)
	start := time.Now()
	require.NoError(t, s.Close())
	require.NoError(t, s.Close(), "twice is once")
	require.Less(t, time.Since(start), 10*time.Second, "not the polls' wait")
	for range cap(answers) {
		require.Contains(t, <-answers, "MessageNotExist")
	}
	transport.CloseIdleConnections()
	goleak.VerifyNone(t, ignore)
}

// A server that was never started has nothing to close, but ends its polls.
func TestCloseWithoutStart(t *testing.T) {
	t.Parallel()
	s := newServer(t, emulator.Config{})
	answer := poll(t.Context(), s, "?waitseconds=30")
	require.Eventually(t, func() bool { return stats(t, s).Waiting == 1 }, 5*time.Second, time.Millisecond)
	require.NoError(t, s.Close())
	require.Equal(t, http.StatusNotFound, (<-answer).Code)
}

func TestEveryAnswerHasItsHeaders(t *testing.T) {
	t.Parallel()
	s, url := startServer(t, emulator.Config{})
	sendBody(t, s, "x")
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	for path, status := range map[string]int{
		messagesPath(""): 200, "/queues/none": 404, messagesPath("?numOfMessages=0"): 400, "/x": 400,
	} {
		response, err := transport.RoundTrip(demoKey().request(t.Context(), http.MethodGet, url, path, ""))
		require.NoError(t, err)
		_ = response.Body.Close()
		require.Equal(t, status, response.StatusCode)
		require.Len(t, response.Header.Values("Date"), 1)
		date, err := http.ParseTime(response.Header.Get("Date"))
		require.NoError(t, err)
		require.WithinDuration(t, time.Now(), date, 5*time.Second)
		require.NotEmpty(t, response.Header.Get("x-mns-request-id"))
		require.Equal(t, "2015-06-06", response.Header.Get("x-mns-version"))
		require.True(t, strings.HasPrefix(response.Header.Get("Content-Type"), "text/xml"))
		require.Positive(t, response.ContentLength)
	}
}

// Neither secrets, tokens, handles nor bodies are logged.
func TestLogHoldsNoSecret(t *testing.T) {
	t.Parallel()
	core, logs := observer.New(zap.DebugLevel)
	s := newServer(t, emulator.Config{Log: zap.New(core), InstanceRole: "relay"})
	k := issueToken(t, s)
	oidc := s.MintOIDCToken(emulator.OIDCToken{})
	_, session := assumeRoleWithOIDC(t, s, map[string]string{"OIDCToken": oidc})
	instance, _ := parseCredentials(t, metadata(t, s, http.MethodGet, rolesPath+"relay", nil))
	sendBody(t, s, "the-body")
	handle := receiveOne(t, s).ReceiptHandle
	s.RevokeTokens()
	require.NotZero(t, logs.Len())
	for _, entry := range logs.All() {
		for _, field := range entry.Context {
			for _, secret := range []string{
				k.secret, k.token, handle, "the-body", emulator.DemoAccessKeySecret, oidc,
				session.Credentials.AccessKeySecret, session.Credentials.SecurityToken, instance.secret, instance.token,
			} {
				require.NotContains(t, field.String, secret)
			}
		}
	}
}
