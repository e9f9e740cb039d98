package demo_test

import (
	"bytes"
	"context"
	"net/http"
	"regexp"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"mnsrelay/internal/demo"
	"mnsrelay/internal/setting"
	"mnsrelay/test/broker"
)

func TestMain(m *testing.M) {
	// The SDK's HTTP client looks after its pool for a second after its last request.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*Client).mCleaner"))
}

func config() demo.Config {
	return demo.Config{Rate: 500, Listen: "127.0.0.1:0", TokenLife: 4 * time.Second, Version: "test"}
}

func TestItStopsByItselfWhenAllIsDeleted(t *testing.T) {
	t.Parallel()
	for name, url := range map[string]string{"webhook": "", "webhook and RabbitMQ": broker.URL(t)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := config()
			cfg.Messages = 1200
			cfg.AMQPURL = setting.NewURL(url)
			var out, logs bytes.Buffer
			require.NoError(t, demo.Run(t.Context(), t.Context(), cfg, &out, &logs), out.String()+logs.String())
			require.Contains(t, out.String(), "sent 1200, deleted 1200, left in the queue 0")
			require.Contains(t, out.String(), "webhook   1200 arrived, 0 of them twice")
			require.Contains(t, out.String(), "lost      0")
			if url != "" {
				require.Contains(t, out.String(), "rabbitmq  1200 arrived, 0 of them twice")
			}
			require.Empty(t, logs.String(), "nothing to warn of")
		})
	}
}

// The token that is printed pauses the source, as the page does with it.
func TestItsTokenPauses(t *testing.T) {
	t.Parallel()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	out := &watched{want: regexp.MustCompile(`deleted [1-9]`), seen: make(chan struct{})}
	var logs bytes.Buffer
	ended := make(chan error, 1)
	go func() { ended <- demo.Run(ctx, t.Context(), config(), out, &logs) }()
	<-out.seen
	page := regexp.MustCompile(`page +(\S+)/`).FindStringSubmatch(out.String())
	token := regexp.MustCompile(`token +([A-Z2-7]{26}) `).FindStringSubmatch(out.String())
	require.Len(t, page, 2)
	require.Len(t, token, 2)
	for shown, code := range map[string]int{"wrong": http.StatusUnauthorized, token[1]: http.StatusOK} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, page[1]+"/api/v1/sources/sms-report/pause", http.NoBody)
		require.NoError(t, err)
		req.Header.Set("Authorization", "Bearer "+shown)
		res, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		require.Equal(t, code, res.StatusCode)
	}
	stop()
	require.NoError(t, <-ended, out.String())
}

// Ctrl-C ends the sending, drains and still accounts for every message.
func TestItDrainsWhenItIsStopped(t *testing.T) {
	t.Parallel()
	ctx, stop := context.WithCancel(t.Context())
	out := &watched{want: regexp.MustCompile(`deleted [1-9]`), seen: make(chan struct{})}
	var logs bytes.Buffer
	ended := make(chan error, 1)
	cfg := config()
	cfg.Live = true
	go func() { ended <- demo.Run(ctx, t.Context(), cfg, out, &logs) }()
	<-out.seen
	stop()
	require.NoError(t, <-ended, out.String())
	require.Contains(t, out.String(), "draining")
	require.Regexp(t, `balance   received (\d+) = deleted (\d+) \+ returned 0 \+ lost leases 0 \+ in flight 0`, out.String())
	require.Contains(t, out.String(), "lost      0")
}

func TestABrokerThatIsNotThereIsSaidWithoutItsPassword(t *testing.T) {
	t.Parallel()
	cfg := config()
	cfg.AMQPURL = setting.NewURL("amqp://relay:swordfish@127.0.0.1:1/")
	var out, logs bytes.Buffer
	err := demo.Run(t.Context(), t.Context(), cfg, &out, &logs)
	require.ErrorContains(t, err, "connect to amqp://***@127.0.0.1:1/")
	require.NotContains(t, err.Error()+out.String()+logs.String(), "swordfish")
}

// watched is a writer that tells when something has been written.
type watched struct {
	want *regexp.Regexp
	seen chan struct{}
	once sync.Once

	mu  sync.Mutex
	buf bytes.Buffer
}

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf.Write(p)
	if w.want.Match(w.buf.Bytes()) {
		w.once.Do(func() { close(w.seen) })
	}
	return len(p), nil
}

func (w *watched) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}
