package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/emulator"
	"mnsrelay/internal/mns"
)

// watched is a configuration of a queue with messages, one that is empty, and one that keys
// may not look at.
func watched(t *testing.T) (url, path string) {
	t.Helper()
	url, _ = startEmulator(t, "--queue", "orders", "--queue", "invoices", "--queue", alicomQueue, "--token-policy", "receive-and-delete")
	setKeys(t, emulator.DemoAccessKeyID, emulator.DemoAccessKeySecret)
	text := strings.NewReplacer("EMULATOR", url, "ALICOM", alicomQueue).Replace(`
sources:
  orders: {endpoint: EMULATOR, queue: orders, credentials: &keys {type: static, access_key_id: emulator, access_key_secret: emulator-secret}, to: out}
  invoices: {endpoint: EMULATOR, queue: invoices, credentials: *keys, to: out}
  sms: {preset: none, endpoint: EMULATOR, queue: ALICOM, credentials: {type: mns_token, message_type: SmsReport, endpoint: EMULATOR}, to: out}
sinks:
  out: {type: file, path: "-"}
`)
	return url, written(t, map[string]string{"mnsrelay.yaml": text})("mnsrelay.yaml")
}

func send(t *testing.T, url, queue string, bodies ...string) {
	t.Helper()
	got := command(t, strings.Join(bodies, "\n"), "queue", "send", "--endpoint", url, "--queue", queue)
	require.Equal(t, exitDone, got.code, got.stderr)
}

func TestStatsOfAllSources(t *testing.T) {
	url, path := watched(t)
	send(t, url, "orders", "1", "2", "3")

	got := command(t, "", "queue", "stats", "--config", path)
	require.Equal(t, exitFailed, got.code, "one cannot be asked")
	lines := strings.Split(strings.TrimSuffix(got.stdout, "\n"), "\n")
	require.Len(t, lines, 4)
	for i, want := range []string{"SOURCE QUEUE ACTIVE INACTIVE DELAYED", "orders orders 3 0 0", "invoices invoices - - -", "sms " + alicomQueue + " - - -"} {
		require.Equal(t, want, oneLine(lines[i]))
		require.Len(t, lines[i], len(lines[0]), "columns")
	}
	require.Contains(t, got.stderr, "note: - is where the server says 0 for all three")
	require.Contains(t, got.stderr, "mnsrelay: sms: attributes: 403 AccessDenied")
	require.NotContains(t, got.stdout+got.stderr, "\x1b")

	got = command(t, "", "queue", "stats", "--config", path, "--json")
	require.Equal(t, exitFailed, got.code)
	rows := statsLines(t, got.stdout)
	require.Len(t, rows, 3)
	require.Equal(t, "orders", rows[0]["source"])
	require.InDelta(t, 3, rows[0]["active"], 0)
	require.InDelta(t, 30, rows[0]["visibility_timeout_seconds"], 0)
	require.NotContains(t, rows[1], "active", "what is not known is not there")
	require.NotContains(t, rows[2], "active")
	require.Contains(t, rows[2]["error"], "AccessDenied")

	got = command(t, "", "queue", "stats", "--endpoint", url, "--queue", "orders", "--json")
	require.Equal(t, exitDone, got.code, got.stderr)
	require.NotContains(t, statsLines(t, got.stdout)[0], "source", "there is none")
}

func statsLines(t *testing.T, out string) (rows []map[string]any) {
	t.Helper()
	for line := range strings.Lines(out) {
		var row map[string]any
		require.NoError(t, json.Unmarshal([]byte(line), &row))
		rows = append(rows, row)
	}
	return rows
}

func TestStatsWatch(t *testing.T) {
	url, path := watched(t)
	send(t, url, "orders", "1")
	lines, stdout := pipe(t)
	ctx, cancel := context.WithCancel(t.Context())
	var stderr bytes.Buffer
	code := make(chan int, 1)
	go func() {
		code <- execute(ctx, []string{"queue", "stats", "--config", path, "--watch", "--interval", "1s"}, strings.NewReader(""), stdout, &stderr)
	}()
	// next gives a line without its time.
	next := func() string {
		select {
		case line := <-lines:
			_, rest, _ := strings.Cut(oneLine(line), " ")
			return rest
		case <-time.After(20 * time.Second):
			require.Fail(t, "no line comes")
			return ""
		}
	}
	require.Equal(t, "SOURCE QUEUE ACTIVE INACTIVE DELAYED CHANGE", next())
	require.Equal(t, "orders orders 1 0 0 -", next())
	require.Equal(t, "invoices invoices - - - -", next())
	require.Equal(t, "sms "+alicomQueue+" - - - -", next())
	send(t, url, "orders", "2", "3", "4", "5")
	send(t, url, "invoices", "1")
	for {
		row := next()
		require.True(t, strings.HasPrefix(row, "orders orders "), row)
		second := next()
		next()
		if strings.HasPrefix(row, "orders orders 5 0 0 +") {
			require.Equal(t, "invoices invoices 1 0 0 -", second, "before that it was not known")
			break
		}
	}
	require.Equal(t, "orders orders 5 0 0 0/s", next())
	require.Equal(t, "invoices invoices 1 0 0 0/s", next())

	cancel()
	require.Equal(t, exitDone, <-code)
	require.Equal(t, 1, strings.Count(stderr.String(), "mnsrelay: sms: "), "said once: %s", stderr.String())
	require.Equal(t, 1, strings.Count(stderr.String(), "note: "))
}

// Ctrl-C is how a watch ends: there is nothing wrong with it.
func TestCtrlCEndsAWatch(t *testing.T) {
	url, path := watched(t)
	send(t, url, "orders", "1")
	cmd := exec.CommandContext(t.Context(), program(t), "queue", "stats", "--config", path, "--source", "orders", "--watch", "--json")
	cmd.Env = append(os.Environ(), actAsProgram+"=1")
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	var row map[string]any
	require.NoError(t, json.NewDecoder(stdout).Decode(&row))
	require.InDelta(t, 1, row["active"], 0)
	require.NoError(t, cmd.Process.Signal(syscall.SIGINT))
	_, err = io.Copy(io.Discard, stdout)
	require.NoError(t, err)
	require.NoError(t, cmd.Wait(), "it ends with 0")
}

func TestScreenDrawsInPlace(t *testing.T) {
	var out bytes.Buffer
	width, height := 0, 0
	s := &screen{w: &out, size: func() (int, int) { return width, height }}
	drawn := func(p painter, lines ...string) string {
		out.Reset()
		painted := make([]paintedLine, len(lines))
		for i, l := range lines {
			painted[i] = paintedLine{l, red}
		}
		require.NoError(t, s.draw(painted, p))
		return out.String()
	}
	require.Equal(t, "\r\x1b[Ja\nb\n", drawn(painter{}, "a", "b"))
	require.Equal(t, "\x1b[2A\r\x1b[J\x1b[31mc\x1b[0m\n", drawn(painter{on: true}, "c"), "as many lines up as there were")
	width, height = 5, 4
	require.Equal(t, "\x1b[1A\r\x1b[Jüber\nlong…\nand …\n", drawn(painter{}, "über", "longer", "3", "4"), "no line goes on in the next, and none leaves the top")
	require.Equal(t, "\x1b[3A\r\x1b[Ja\ufffdb\n", drawn(painter{}, "a\x1bb"), "what others wrote does nothing")
}

func TestReporterOnATerminal(t *testing.T) {
	var out bytes.Buffer
	queues := []*countedQueue{{source: "sms", queue: "reports"}, {source: "voice", queue: "calls"}}
	r := newReporter(&out, io.Discard, queues, false)
	require.Nil(t, r.screen, "a buffer is no terminal")
	r.screen = &screen{w: &out, size: func() (int, int) { return 0, 0 }}
	change := -2.5
	now := []reading{
		{of: queues[0], at: time.Now(), attributes: mns.Attributes{Active: 7, Counted: true}, known: true, change: &change},
		{of: queues[1], at: time.Now(), err: errors.New("refused\nby \x1b[2Jmany")},
	}
	require.NoError(t, r.report(now, 2*time.Second))
	require.Regexp(t, `^\r\x1b\[Jevery 2s until Ctrl-C, at \d\d:\d\d:\d\d\n\n`+
		`SOURCE  QUEUE        ACTIVE    INACTIVE     DELAYED      CHANGE\n`+
		`sms     reports           7           0           0      -2\.5/s\n`+
		`voice   calls             -           -           -           -\n`+
		"voice: refused by \ufffd\\[2Jmany\n$", out.String())
}
