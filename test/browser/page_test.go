// Package browser_test looks at the status page as an operator does, in Chromium.
package browser_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/fetch"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"

	"mnsrelay/api"
	"mnsrelay/internal/emulator"
	"mnsrelay/internal/setting"
	"mnsrelay/test/rig"
)

var screenshots = flag.String("screenshots", "", "a folder to write pictures of the page to")

const (
	keyID     = "LTAI-browser-test"
	keySecret = "browser-secret"
	token     = "admin-token-of-the-browser"
)

// world is a relay with two sources, and a far side that can be broken.
type world struct {
	t      *testing.T
	relay  *rig.Relay
	mns    *emulator.Server
	broken atomic.Bool
}

// start runs the relay with a configuration of which parts may be replaced: old, new...
func start(t *testing.T, replace ...string) *world {
	t.Helper()
	rig.Secret(keySecret, token)
	w := &world{t: t}
	dir := t.TempDir()
	binary, err := rig.Build(dir)
	require.NoError(t, err)
	w.mns, err = emulator.New(emulator.Config{
		AccessKeys: []emulator.AccessKey{{ID: keyID, Secret: setting.NewSecret(keySecret)}}, Issued: rig.Secret,
	})
	require.NoError(t, err)
	mns, err := w.mns.Start(t.Context(), "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, w.mns.Close()) })
	for _, queue := range []string{"orders", "Alicom-Queue-1-SmsReport"} {
		require.NoError(t, w.mns.CreateQueue(queue, emulator.QueueConfig{}))
	}
	far := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		if w.broken.Load() && r.URL.Path == "/crm" {
			out.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(far.Close)
	path := filepath.Join(dir, "mnsrelay.yaml")
	configuration := fmt.Sprintf(`
server: {listen: "127.0.0.1:0", admin_token: %[1]s}
sources:
  sms: {queue: Alicom-Queue-1-SmsReport, endpoint: %[2]s, wait: 1s, credentials: {type: mns_token, endpoint: %[2]s, access_key_id: %[3]s, access_key_secret: %[4]s}}
  orders: {queue: orders, endpoint: %[2]s, wait: 1s, credentials: {type: static, access_key_id: %[3]s, access_key_secret: %[4]s}}
sinks:
  crm: {type: webhook, url: %[5]s/crm, network: {allow: ["127.0.0.1/32"]}}
  archive: {type: webhook, url: %[5]s/archive, network: {allow: ["127.0.0.1/32"]}}
routes:
  - {name: reports, from: [sms], to: [archive]}
  - {name: orders, from: [orders], to: [crm, {sink: archive, required: false}]}
`, token, mns, keyID, keySecret, far.URL)
	require.NoError(t, os.WriteFile(path, []byte(strings.NewReplacer(replace...).Replace(configuration)), 0o600))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	w.relay, err = rig.Start(ctx, binary, path)
	require.NoError(t, err)
	t.Cleanup(func() {
		_, err := w.relay.End(context.Background(), syscall.SIGKILL)
		require.NoError(t, err)
	})
	return w
}

// send keeps both queues fed until the test ends.
func (w *world) send() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var sending sync.WaitGroup
	for queue, every := range map[string]time.Duration{"orders": 20 * time.Millisecond, "Alicom-Queue-1-SmsReport": 40 * time.Millisecond} {
		sending.Go(func() {
			tick := time.NewTicker(every)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
					if _, err := w.mns.SendBase64(queue, []byte(`{"a": 1}`)); err != nil {
						w.t.Error(err)
						return
					}
				case <-ctx.Done():
					return
				}
			}
		})
	}
	return func() {
		cancel()
		sending.Wait()
	}
}

// browser opens the page, and fails the test for whatever the console says.
func browser(t *testing.T, url string) context.Context {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.NoSandbox, chromedp.WindowSize(1300, 1000))
	allocator, cancel := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(cancel)
	ctx, cancel := chromedp.NewContext(allocator)
	t.Cleanup(cancel)
	chromedp.ListenTarget(ctx, func(event any) {
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			t.Errorf("the page threw: %s", e.ExceptionDetails.Error())
		case *runtime.EventConsoleAPICalled:
			t.Errorf("the page wrote to the console: %s", e.Type)
		case *log.EventEntryAdded:
			t.Errorf("the console says: %s: %s (%s)", e.Entry.Level, e.Entry.Text, e.Entry.URL)
		}
	})
	ctx, cancel = context.WithTimeout(ctx, 2*time.Minute)
	t.Cleanup(cancel)
	require.NoError(t, chromedp.Run(ctx, log.Enable(), chromedp.Navigate(url)))
	return ctx
}

// ask gives what a JavaScript expression is in the page.
func ask[T any](t *testing.T, ctx context.Context, expression string) (value T) { //nolint:revive // the test comes first, as everywhere
	t.Helper()
	require.NoError(t, chromedp.Run(ctx, chromedp.Evaluate(expression, &value)), expression)
	return value
}

// shows waits until a part of the page has a text.
func shows(t *testing.T, ctx context.Context, within time.Duration, selector, text string) { //nolint:revive // as above
	t.Helper()
	quoted, err := json.Marshal(selector)
	require.NoError(t, err)
	var last string
	require.Eventually(t, func() bool {
		last = ask[string](t, ctx, "(document.querySelector("+string(quoted)+")||{innerText:'no such part'}).innerText")
		return strings.Contains(last, text)
	}, within, 50*time.Millisecond, "%s does not show %q", selector, text)
}

func picture(t *testing.T, ctx context.Context, name string) { //nolint:revive // as above
	t.Helper()
	if *screenshots == "" {
		return
	}
	var png []byte
	require.NoError(t, chromedp.Run(ctx, chromedp.FullScreenshot(&png, 100)))
	require.NoError(t, os.WriteFile(filepath.Join(*screenshots, name+".png"), png, 0o600))
}

// halfAnHour gives the page the history of a relay that has run for longer.
func halfAnHour(t *testing.T, ctx context.Context) { //nolint:revive // as above
	t.Helper()
	points := func(rate, swing float64) api.Points {
		all := make(api.Points, 180)
		for i := range all {
			all[i] = float32(rate + swing*math.Sin(float64(i)/9) + swing*math.Sin(float64(i)*2.3)/3)
		}
		return all
	}
	body, err := json.Marshal(api.History{
		Instance: "relay-0", End: time.Now().UTC(), IntervalSeconds: 10,
		Sources: map[string]api.Points{"orders": points(48, 4), "sms": points(24, 2)},
		Sinks:   map[string]api.Points{"crm": points(48, 4), "archive": points(72, 6)},
		Routes: map[string]map[string]api.Points{
			"orders": {"crm": points(48, 4), "archive": points(48, 4)}, "reports": {"archive": points(24, 2)},
		},
	})
	require.NoError(t, err)
	chromedp.ListenTarget(ctx, func(event any) {
		paused, ok := event.(*fetch.EventRequestPaused)
		if !ok {
			return
		}
		go func() { // what listens must not wait for the browser
			answer := fetch.FulfillRequest(paused.RequestID, http.StatusOK).WithBody(base64.StdEncoding.EncodeToString(body)).
				WithResponseHeaders([]*fetch.HeaderEntry{{Name: "Content-Type", Value: "application/json"}})
			// An error is one of the end of the test, or the page shows no such line.
			_ = answer.Do(cdp.WithExecutor(ctx, chromedp.FromContext(ctx).Target))
		}()
	})
	require.NoError(t, chromedp.Run(ctx, fetch.Enable().WithPatterns([]*fetch.RequestPattern{{URLPattern: "*/api/v1/history"}})))
}

func card(kind, name string) string { return fmt.Sprintf(`[data-kind=%q][data-name=%q]`, kind, name) }

func TestStatusPage(t *testing.T) {
	w := start(t)
	stop := w.send()
	defer stop()
	ctx := browser(t, w.relay.URL()+"/")

	// It flows.
	for _, part := range []struct{ selector, text string }{
		{card("source", "sms"), "running"},
		{card("source", "orders"), "running"},
		{card("source", "orders"), "never"}, // its keys end
		{card("sink", "crm"), "up"},
		{card("sink", "archive"), "up"},
		{card("route", "orders"), "to archive, optional"},
		{"#state", "running"},
		{"#no-failures", "None since"},
	} {
		shows(t, ctx, 20*time.Second, part.selector, part.text)
	}
	require.Empty(t, ask[string](t, ctx, "document.getElementById('problems').innerText"))
	require.Eventually(t, func() bool {
		return ask[int](t, ctx, "document.querySelectorAll('#lines path.flows').length") == 5
	}, 10*time.Second, 100*time.Millisecond, "every way flows")
	require.Eventually(t, func() bool { // a point of the history
		return strings.Contains(ask[string](t, ctx, "document.querySelector('"+card("source", "orders")+" svg path')?.getAttribute('d') || ''"), "L")
	}, 40*time.Second, 500*time.Millisecond, "the line of the rate is drawn")
	shows(t, ctx, time.Second, card("source", "orders"), "received, 5 min, at most ")
	shows(t, ctx, time.Second, card("source", "orders"), "received, last minute")
	shows(t, ctx, time.Second, card("route", "orders"), "to crm, 5 min, at most ")
	shows(t, ctx, time.Second, card("route", "orders"), "to crm, p50 / p99")
	require.Regexp(t, `to crm, p50 / p99\n\S+ m?s / `, ask[string](t, ctx, "document.querySelector('"+card("route", "orders")+"').innerText"))
	require.Equal(t, []string{"0/s", "<0.1/s", "0.1/s", "9.9/s", "10/s", "1,235/s"}, ask[[]string](t, ctx, "[0, 0.04, 0.1, 9.94, 9.96, 1234.6].map(rate)"))
	halfAnHour(t, ctx)
	shows(t, ctx, 20*time.Second, card("source", "orders"), "received, 30 min, at most 5")
	shows(t, ctx, time.Second, card("route", "reports"), "to archive, 30 min, at most 2")
	picture(t, ctx, "status-page")

	// A sink breaks: the page says which and why, within two seconds of the relay.
	w.broken.Store(true)
	require.Eventually(t, func() bool {
		status, err := w.relay.Status(t.Context())
		require.NoError(t, err)
		return status.Sinks[1].Name == "crm" && status.Sinks[1].State != "up"
	}, 20*time.Second, 20*time.Millisecond)
	told := time.Now()
	shows(t, ctx, 5*time.Second, "#problems", "Sink crm is")
	require.Less(t, time.Since(told), 2*time.Second)
	shows(t, ctx, 10*time.Second, card("source", "orders"), "waiting")
	shows(t, ctx, 5*time.Second, "#problems", "503")
	shows(t, ctx, 5*time.Second, "#failures tbody", "orders → crm")
	require.Regexp(t, `^\(\d+\) mnsrelay `, ask[string](t, ctx, "document.title"))
	require.Positive(t, ask[int](t, ctx, "document.querySelectorAll('#lines path.stuck').length"))
	shows(t, ctx, time.Second, card("source", "sms"), "running")
	picture(t, ctx, "status-page-broken")
	w.broken.Store(false)
	shows(t, ctx, 30*time.Second, card("sink", "crm"), "up")
	require.Eventually(t, func() bool { return ask[string](t, ctx, "document.getElementById('problems').innerText") == "" }, 10*time.Second, 100*time.Millisecond)

	// An operator pauses and resumes, by keyboard: without the token, with a wrong one, with the
	// right one.
	button := card("source", "sms") + " button"
	press := func() {
		require.NoError(t, chromedp.Run(ctx, chromedp.Focus(button, chromedp.ByQuery), chromedp.KeyEvent("\r")))
	}
	press()
	shows(t, ctx, 5*time.Second, "#said", "Write the admin token first.")
	require.Equal(t, "token", ask[string](t, ctx, "document.activeElement.id"))
	require.NoError(t, chromedp.Run(ctx, chromedp.SendKeys("#token", token, chromedp.ByQuery)))
	press()
	shows(t, ctx, 5*time.Second, "#said", "Paused sms.")
	shows(t, ctx, 5*time.Second, card("source", "sms"), "paused by an operator")
	shows(t, ctx, 5*time.Second, button, "Resume")
	press()
	shows(t, ctx, 5*time.Second, "#said", "Resumed sms.")
	shows(t, ctx, 5*time.Second, card("source", "sms"), "running")
	require.Contains(t, w.relay.Log(), "source paused by an operator")
	require.Contains(t, w.relay.Log(), "source resumed by an operator")

	// On a phone, in the dark.
	require.NoError(t, chromedp.Run(ctx, emulation.SetDeviceMetricsOverride(390, 844, 2, true),
		emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: "dark"}})))
	require.LessOrEqual(t, ask[int](t, ctx, "document.documentElement.scrollWidth"), 390)
	require.Equal(t, "rgb(13, 17, 23)", ask[string](t, ctx, "getComputedStyle(document.body).backgroundColor"))
	picture(t, ctx, "status-page-phone")

	// The relay goes: the page says so.
	stop()
	require.NoError(t, w.relay.Signal(syscall.SIGSTOP))
	defer func() { _ = w.relay.Signal(syscall.SIGCONT) }()
	shows(t, ctx, 20*time.Second, "#state", "no answer for")
}

// Where nothing can be paused, the page says why and offers no button.
func TestStatusPageWithoutAToken(t *testing.T) {
	w := start(t, ", admin_token: "+token, "")
	ctx := browser(t, w.relay.URL()+"/")
	shows(t, ctx, 20*time.Second, "#closed", "server.admin_token is not set")
	shows(t, ctx, 20*time.Second, card("source", "sms"), "running")
	const visible = "[...document.querySelectorAll('button, input')].filter((e) => e.checkVisibility()).length"
	require.Zero(t, ask[int](t, ctx, visible))
}

// A source in shadow mode says so, and what it would send; nothing about it is a problem.
func TestStatusPageOfASourceInShadowMode(t *testing.T) {
	w := start(t, "orders: {queue: orders,", "orders: {mode: shadow, queue: orders,")
	for range 3 {
		_, err := w.mns.SendBase64("orders", []byte(`{"a": 1}`))
		require.NoError(t, err)
	}
	ctx := browser(t, w.relay.URL()+"/")
	for _, part := range []struct{ selector, text string }{
		{card("source", "orders"), "shadow: would send 3 of 3 seen"},
		{card("source", "orders"), "nothing is received, sent or deleted"},
		{card("source", "orders"), "crm /crm, archive /archive"},
		{card("source", "orders"), "backlog\n3\n"}, // it is asked for after the first look
		{card("sink", "crm"), "idle"},
		{card("sink", "archive"), "up"},
		{"#state", "running"},
	} {
		shows(t, ctx, 25*time.Second, part.selector, part.text)
	}
	require.Empty(t, ask[string](t, ctx, "document.getElementById('problems').innerText"))
	require.NotContains(t, ask[string](t, ctx, "document.querySelector('"+card("source", "orders")+"').innerText"), "in flight")
	picture(t, ctx, "status-page-shadow")
}
