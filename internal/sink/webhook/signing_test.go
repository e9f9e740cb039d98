package webhook_test

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	standard "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"github.com/stretchr/testify/require"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink/webhook"
)

// capture keeps the last request that came and its body.
type capture struct {
	*server

	mu   sync.Mutex
	body []byte
}

func capturing(t *testing.T) *capture {
	t.Helper()
	c := &capture{}
	c.server = start(t, func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.body = body
	})
	return c
}

func (c *capture) lastBody() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.body
}

// secret makes one of Standard Webhooks from 32 times the same byte.
func secret(of byte) string {
	return "whsec_" + base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{of}, 32))
}

// sinkWith runs an endpoint and binds a sink.
func sinkWith(t *testing.T, change func(*webhook.Config)) relay.Sink {
	t.Helper()
	endpoint := open(t, change)
	run(t, endpoint)
	return bind(t, endpoint)
}

func requireDelivered(t *testing.T, results []relay.Result) {
	t.Helper()
	for _, r := range results {
		require.NoError(t, r.Err)
		require.Equal(t, relay.Delivered, r.Outcome)
	}
}

// The library of Standard Webhooks verifies what is signed here, by either secret while
// they are rotated, and nothing else does.
func TestSignature(t *testing.T) {
	far := capturing(t)
	sink := sinkWith(t, func(c *webhook.Config) {
		c.URL = setting.NewURL(far.url)
		c.Signing.Secrets = []setting.Secret{setting.NewSecret(secret('n')), setting.NewSecret(strings.TrimPrefix(secret('o'), "whsec_"))}
	})
	for name, m := range map[string]relay.Message{
		"json":        message("5F290C926D472878-2-14D9529A8FA-200000001"),
		"empty":       {ID: "1"},
		"binary":      {ID: "2", Body: []byte{0, 0xff, '\r', '\n'}},
		"strange id":  {ID: "a.b c%短"},
		"dead letter": {ID: "3", Body: []byte("x"), Dead: &relay.DeadLetter{Reason: "rejected"}},
	} {
		t.Run(name, func(t *testing.T) {
			requireDelivered(t, deliver(t, sink, m))
			h, body := far.last().Header, far.lastBody()
			require.Equal(t, string(m.Body), string(body))
			require.NotContains(t, h.Get("webhook-id"), ".", "the dot ends the id in what is signed")
			for _, of := range []byte{'n', 'o'} {
				verifier, err := standard.NewWebhook(secret(of))
				require.NoError(t, err)
				require.NoError(t, verifier.Verify(body, h))
				require.Error(t, verifier.Verify(append(body, ' '), h))
			}
			other, err := standard.NewWebhook(secret('x'))
			require.NoError(t, err)
			require.Error(t, other.Verify(body, h))
		})
	}
}

// A message has one id, however often and from where it is sent; its timestamp is that of
// the try.
func TestSignatureOfARedelivery(t *testing.T) {
	far := capturing(t)
	m, ids := message("1"), map[string]bool{}
	for range 2 {
		sink := sinkWith(t, func(c *webhook.Config) {
			c.URL = setting.NewURL(far.url)
			c.Signing.Secrets = []setting.Secret{setting.NewSecret(secret('n'))}
		})
		m.Attempt++
		requireDelivered(t, deliver(t, sink, m))
		ids[far.last().Header.Get("webhook-id")] = true
		verifier, err := standard.NewWebhook(secret('n'))
		require.NoError(t, err)
		require.NoError(t, verifier.Verify(far.lastBody(), far.last().Header))
	}
	require.Len(t, ids, 1)
}

func gunzip(t *testing.T, data []byte) []byte {
	t.Helper()
	reader, err := gzip.NewReader(bytes.NewReader(data))
	require.NoError(t, err)
	body, err := io.ReadAll(reader)
	require.NoError(t, err)
	return body
}

// What is signed is the body before its compression.
func TestSignatureOfACompressedBody(t *testing.T) {
	far := capturing(t)
	sink := sinkWith(t, func(c *webhook.Config) {
		c.URL, c.Compression = setting.NewURL(far.url), "gzip"
		c.Signing.Secrets = []setting.Secret{setting.NewSecret(secret('n'))}
	})
	m := message("1")
	m.Body = bytes.Repeat([]byte("0123456789"), 1000)
	requireDelivered(t, deliver(t, sink, m))
	h := far.last().Header
	require.Equal(t, "gzip", h.Get("Content-Encoding"))
	require.Less(t, len(far.lastBody()), 1000)
	body := gunzip(t, far.lastBody())
	require.Equal(t, m.Body, body)
	verifier, err := standard.NewWebhook(secret('n'))
	require.NoError(t, err)
	require.NoError(t, verifier.Verify(body, h))
}

// A secret's file is read again; what is no secret does not replace one.
func TestSecretsFollowTheirFiles(t *testing.T) {
	far := capturing(t)
	dir := t.TempDir()
	signing, token := filepath.Join(dir, "signing"), filepath.Join(dir, "token")
	write := func(path, text string) { require.NoError(t, os.WriteFile(path, []byte(text+"\n"), 0o600)) }
	write(signing, secret('a'))
	write(token, "first")
	sink := sinkWith(t, func(c *webhook.Config) {
		c.URL = setting.NewURL(far.url)
		c.Signing.Secrets = []setting.Secret{setting.FileSecret(secret('a'), signing)}
		c.BearerToken = setting.FileSecret("first", token)
	})
	verified := func(of byte) bool {
		requireDelivered(t, deliver(t, sink, message("1")))
		verifier, err := standard.NewWebhook(secret(of))
		require.NoError(t, err)
		return verifier.Verify(far.lastBody(), far.last().Header) == nil
	}
	require.True(t, verified('a'))
	require.Equal(t, "Bearer first", far.last().Header.Get("Authorization"))
	write(signing, secret('b'))
	write(token, "second")
	require.Eventually(t, func() bool {
		return verified('b') && far.last().Header.Get("Authorization") == "Bearer second"
	}, 5*time.Second, 50*time.Millisecond)
	write(signing, "junk")
	require.NoError(t, os.Remove(token)) // the last one stays in use, not the first
	<-time.After(1100 * time.Millisecond)
	require.True(t, verified('b'))
	require.Equal(t, "Bearer second", far.last().Header.Get("Authorization"))
	require.NoError(t, os.Remove(signing))
	<-time.After(1100 * time.Millisecond)
	require.True(t, verified('b'))
	write(token, "third")
	require.Eventually(t, func() bool {
		return verified('b') && far.last().Header.Get("Authorization") == "Bearer third"
	}, 5*time.Second, 50*time.Millisecond)
}

func TestAuthorization(t *testing.T) {
	far := capturing(t)
	for name, c := range map[string]struct {
		change func(*webhook.Config)
		want   string
	}{
		"none":   {func(*webhook.Config) {}, ""},
		"bearer": {func(c *webhook.Config) { c.BearerToken = setting.NewSecret("t") }, "Bearer t"},
		"basic": {func(c *webhook.Config) {
			c.Username, c.Password = "us er", setting.NewSecret("p:w")
		}, "Basic " + base64.StdEncoding.EncodeToString([]byte("us er:p:w"))},
		"header": {func(c *webhook.Config) {
			c.Headers = map[string]setting.Secret{"authorization": setting.NewSecret("Custom {{ id }}")}
		}, "Custom 1"},
	} {
		t.Run(name, func(t *testing.T) {
			sink := sinkWith(t, func(config *webhook.Config) {
				config.URL = setting.NewURL(far.url)
				c.change(config)
			})
			requireDelivered(t, deliver(t, sink, message("1")))
			require.Equal(t, c.want, far.last().Header.Get("Authorization"))
		})
	}
}

// A route cannot send another authorization beside that of the sink.
func TestAuthorizationOfARoute(t *testing.T) {
	endpoint := open(t, func(c *webhook.Config) {
		c.URL, c.BearerToken = setting.NewURL("https://hooks.example.com/"), setting.NewSecret("t")
	})
	run(t, endpoint)
	_, err := endpoint.Bind(func(settings any) error {
		settings.(*webhook.Settings).Headers = map[string]setting.Secret{"Authorization": setting.NewSecret("x")}
		return nil
	})
	require.ErrorContains(t, err, "headers.Authorization: the sink sends an authorization of its own")
}

func TestMethods(t *testing.T) {
	far := capturing(t)
	for _, method := range []string{"POST", "PUT", "PATCH"} {
		sink := sinkWith(t, func(c *webhook.Config) { c.URL, c.Method = setting.NewURL(far.url), method })
		requireDelivered(t, deliver(t, sink, message("1")))
		require.Equal(t, method, far.last().Method)
		require.JSONEq(t, `{"id":"1"}`, string(far.lastBody()))
	}
}

// Each way in which a captured request is not one of ours is told apart.
func TestVerify(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	key, err := webhook.ParseKey(secret('k'))
	require.NoError(t, err)
	verifier, err := standard.NewWebhook(secret('k'))
	require.NoError(t, err)
	body := []byte(`{"a":1}`)
	signed := func(change func(h http.Header)) http.Header {
		signature, err := verifier.Sign("id", now, body)
		require.NoError(t, err)
		h := http.Header{}
		h.Set("webhook-id", "id")
		h.Set("webhook-timestamp", "1700000000")
		h.Set("webhook-signature", signature)
		change(h)
		return h
	}
	for name, c := range map[string]struct {
		h    http.Header
		body string
		at   time.Time
		want string
	}{
		"as signed":     {signed(func(http.Header) {}), `{"a":1}`, now.Add(4 * time.Minute), ""},
		"two":           {signed(func(h http.Header) { h.Set("webhook-signature", "v1,x v1a,y "+h.Get("webhook-signature")) }), `{"a":1}`, now, ""},
		"body":          {signed(func(http.Header) {}), `{"a":2}`, now, "no signature is by one of the secrets"},
		"id":            {signed(func(h http.Header) { h.Set("webhook-id", "other") }), `{"a":1}`, now, "no signature is by one of the secrets"},
		"late":          {signed(func(http.Header) {}), `{"a":1}`, now.Add(6 * time.Minute), "it was signed 6m0s ago; 5m0s are tolerated"},
		"early":         {signed(func(http.Header) {}), `{"a":1}`, now.Add(-6 * time.Minute), "it was signed 6m0s in the future"},
		"no signature":  {signed(func(h http.Header) { h.Del("webhook-signature") }), `{"a":1}`, now, "the header webhook-signature is missing"},
		"no id":         {signed(func(h http.Header) { h.Del("webhook-id") }), `{"a":1}`, now, "the header webhook-id is missing"},
		"no timestamp":  {signed(func(h http.Header) { h.Del("webhook-timestamp") }), `{"a":1}`, now, "the header webhook-timestamp is missing"},
		"no number":     {signed(func(h http.Header) { h.Set("webhook-timestamp", "now") }), `{"a":1}`, now, "is not a number of seconds"},
		"other version": {signed(func(h http.Header) { h.Set("webhook-signature", "v1a,x") }), `{"a":1}`, now, "no signature of the version v1"},
	} {
		t.Run(name, func(t *testing.T) {
			err := webhook.Verify([]webhook.Key{key}, c.h, []byte(c.body), c.at, 5*time.Minute)
			if c.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, c.want)
		})
	}
}
