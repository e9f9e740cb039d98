package main

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/credentials"
	"mnsrelay/internal/emulator"
	"mnsrelay/internal/mns"
	"mnsrelay/internal/redrive"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

// deadRig is a server with dead letters.
type deadRig struct {
	*emulator.Server
	url string
}

func newDeadRig(t *testing.T, from emulator.QueueConfig) *deadRig {
	t.Helper()
	server, err := emulator.New(emulator.Config{Queues: map[string]emulator.QueueConfig{"orders-dead": from, "orders": {}}})
	require.NoError(t, err)
	url, err := server.Start(t.Context(), "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Close()) })
	setKeys(t, emulator.DemoAccessKeyID, emulator.DemoAccessKeySecret)
	return &deadRig{Server: server, url: url}
}

// fill puts n dead letters into the queue.
func (r *deadRig) fill(t *testing.T, n int) {
	t.Helper()
	ms := make([]emulator.Message, n)
	for i := range ms {
		text, err := mns.Wrap(&relay.Message{
			ID: fmt.Sprintf("original-%d", i), Source: "orders", Body: fmt.Appendf(nil, "order %d", i), Attempt: 16,
			Dead: &relay.DeadLetter{Reason: "max_receives", Sink: "hook", Last: time.UnixMilli(0)},
		}).Text()
		require.NoError(t, err)
		ms[i].Body = text
	}
	_, err := r.SendAll("orders-dead", ms)
	require.NoError(t, err)
}

func (r *deadRig) stats(t *testing.T, queue string) emulator.QueueStats {
	t.Helper()
	s, found := r.QueueStats(queue)
	require.True(t, found)
	return s
}

func (r *deadRig) reader(t *testing.T, name string) *mns.Queue {
	t.Helper()
	queue, err := mns.NewQueue(mns.Config{Name: "reader", Endpoint: r.url, Queue: name}, mns.Deps{Credentials: fixedKeys{credentials.Keys{AccessKeyID: emulator.DemoAccessKeyID, AccessKeySecret: setting.NewSecret(emulator.DemoAccessKeySecret)}}})
	require.NoError(t, err)
	t.Cleanup(queue.Close)
	return queue
}

// arrived counts what is in orders, by body.
func (r *deadRig) arrived(t *testing.T) map[string]int {
	t.Helper()
	queue := r.reader(t, "orders")
	got := map[string]int{}
	for {
		ds, err := queue.BatchReceive(t.Context(), mns.MaxBatch, 0)
		require.NoError(t, err)
		if len(ds) == 0 {
			return got
		}
		for _, d := range ds {
			got[string(d.Body)]++
		}
	}
}

func (r *deadRig) requireOrders(t *testing.T, n int) (twice int) {
	t.Helper()
	got := r.arrived(t)
	for i := range n {
		times := got[fmt.Sprintf("order %d", i)]
		require.Positive(t, times, "order %d", i)
		twice += times - 1
	}
	require.Len(t, got, n)
	s := r.stats(t, "orders-dead")
	require.Zero(t, s.Active+s.Inactive+s.Delayed)
	return twice
}

func (r *deadRig) args(more ...string) []string {
	return append([]string{"queue", "redrive", "--endpoint", r.url, "--from", "orders-dead", "--to", "orders", "--wait", "1s"}, more...)
}

func TestRedrive(t *testing.T) {
	r := newDeadRig(t, emulator.QueueConfig{})
	r.fill(t, 50)

	got := command(t, "", r.args("--dry-run")...)
	require.Equal(t, exitDone, got.code, got.stderr)
	require.Contains(t, got.stdout, "would move about 50 messages from orders-dead to orders; the first 16:\n")
	require.Regexp(t, `original-3 +orders +max_receives +16 +hook +1970-01-01T00:00:00.000Z\n`, got.stdout)
	require.Zero(t, r.stats(t, "orders-dead").Received)

	got = command(t, "", r.args("--max", "20")...)
	require.Equal(t, exitDone, got.code, got.stderr)
	require.Regexp(t, `^moved 20 messages from orders-dead to orders in [0-9.]+m?s, 20 unwrapped\n$`, got.stdout)
	got = command(t, "", r.args()...)
	require.Equal(t, exitDone, got.code, got.stderr)
	require.Contains(t, got.stdout, "moved 30 messages")
	require.Empty(t, got.stderr)
	require.Zero(t, r.requireOrders(t, 50))

	got = command(t, "", r.args("--dry-run")...)
	require.Equal(t, exitDone, got.code, got.stderr)
	require.Equal(t, "there is no visible message in orders-dead\n", got.stdout)
}

func TestRedriveNamesWhatStays(t *testing.T) {
	r := newDeadRig(t, emulator.QueueConfig{})
	r.fill(t, 3)
	id, err := r.Send("orders-dead", []byte(`{"envelope":"mnsrelay/7"}`))
	require.NoError(t, err)
	_, err = r.Send("orders-dead", []byte("by hand"))
	require.NoError(t, err)

	got := command(t, "", r.args("--dry-run")...)
	require.Contains(t, got.stdout, "moved as it is\n")
	require.Contains(t, got.stdout, "stays: read envelope: its version is \"mnsrelay/7\"")

	got = command(t, "", r.args()...)
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stdout, "moved 4 messages from orders-dead to orders in ")
	require.Contains(t, got.stdout, ", 3 unwrapped\n1 message stayed in orders-dead: standard error says why\n")
	require.Equal(t, "message "+id+` stays: read envelope: its version is "mnsrelay/7", and this program knows "mnsrelay/1": use a newer one`+"\n", got.stderr)
	require.Equal(t, map[string]int{"order 0": 1, "order 1": 1, "order 2": 1, "by hand": 1}, r.arrived(t))
}

func TestRedriveSaysWhatIsWrongBeforeItTakesAnything(t *testing.T) {
	r := newDeadRig(t, emulator.QueueConfig{})
	r.fill(t, 3)
	got := command(t, "", "queue", "redrive", "--endpoint", r.url, "--from", "orders-dead", "--to", "order")
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, "look at order: attributes: 404 QueueNotExist")
	require.Contains(t, got.stderr, "check the endpoint and the name")
	got = command(t, "", "queue", "redrive", "--endpoint", r.url, "--from", "orders-ded", "--to", "orders", "--wait", "1s")
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, "receive: 404 QueueNotExist")
	require.Contains(t, got.stdout, "moved 0 messages")
	setKeys(t, "other", "key")
	got = command(t, "", r.args()...)
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, "check the access key's id and secret")
	setKeys(t, "", "")
	got = command(t, "", r.args()...)
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, "ALIBABA_CLOUD_ACCESS_KEY_ID")
	require.Zero(t, r.stats(t, "orders-dead").Received)
}

// What a configuration says of a source is enough to bring its dead letters back.
func TestRedriveOfAConfiguration(t *testing.T) {
	r := newDeadRig(t, emulator.QueueConfig{})
	r.fill(t, 20)
	require.NoError(t, r.CreateQueue("parking-lot", emulator.QueueConfig{}))
	file := filepath.Join(t.TempDir(), "mnsrelay.yaml")
	write := func(deadLetter string) {
		text := fmt.Sprintf(`
sources:
  orders:
    endpoint: %[1]s
    queue: orders
    credentials: &keys {type: static, access_key_id: %[2]s, access_key_secret: %[3]s}
    to: copy
    dead_letter: %[4]s
  others:
    endpoint: %[1]s
    queue: others
    credentials: *keys
    to: copy
sinks:
  copy: {type: file, path: "-"}
  parked: {type: file, path: "-"}
  dead-letters: {type: mns, endpoint: %[1]s, queue: orders-dead, credentials: *keys}
`, r.url, emulator.DemoAccessKeyID, emulator.DemoAccessKeySecret, deadLetter)
		if deadLetter != "dead-letters" {
			text, _, _ = strings.Cut(text, "  dead-letters: {")
		}
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	}
	setKeys(t, "", "") // those of the file are used
	write("dead-letters")
	do := func(more ...string) outcome {
		return command(t, "", append([]string{"queue", "redrive", "--config", file, "--wait", "1s"}, more...)...)
	}
	got := do("--source", "orders")
	require.Equal(t, exitDone, got.code, got.stderr)
	require.Contains(t, got.stdout, "moved 20 messages from orders-dead to orders")
	require.Zero(t, r.requireOrders(t, 20))

	_, err := r.Send("parking-lot", []byte("parked"))
	require.NoError(t, err)
	got = do("--source", "orders", "--from", "parking-lot", "--to", "orders-dead")
	require.Equal(t, exitDone, got.code, got.stderr)
	require.Contains(t, got.stdout, "moved 1 message from parking-lot to orders-dead")

	got = do("--source", "others")
	require.Equal(t, exitUsage, got.code)
	require.Contains(t, got.stderr, "the source others has no dead_letter: write --from")
	write("parked")
	got = do("--source", "orders")
	require.Equal(t, exitUsage, got.code)
	require.Contains(t, got.stderr, "are in the sink parked, which is no queue of MNS: write --from")
}

func TestRedriveWrongUsage(t *testing.T) {
	for name, tt := range map[string]struct {
		args []string
		want string
	}{
		"nothing":          {nil, "which queues?"},
		"no destination":   {[]string{"--endpoint", "http://localhost", "--from", "a"}, "where to? write --to NAME"},
		"no origin":        {[]string{"--endpoint", "http://localhost", "--to", "a"}, "which queues?"},
		"into itself":      {[]string{"--endpoint", "http://localhost", "--from", "a", "--to", "a"}, "cannot be moved into itself"},
		"no name":          {[]string{"--endpoint", "http://localhost", "--from", "a/b", "--to", "a"}, "--from no queue's name"},
		"no other name":    {[]string{"--endpoint", "http://localhost", "--from", "a", "--to", "a/b"}, "--to no queue's name"},
		"no URL":           {[]string{"--endpoint", "localhost", "--from", "a", "--to", "b"}, "--endpoint "},
		"no other URL":     {[]string{"--endpoint", "http://localhost", "--from", "a", "--to", "b", "--to-endpoint", "x"}, "--to-endpoint "},
		"a negative rate":  {[]string{"--rate", "-1"}, "--rate must not be negative"},
		"no wait":          {[]string{"--wait", "0s"}, "--wait must be from 1s to 30s"},
		"a negative count": {[]string{"--max", "-1"}, "--max must not be negative"},
		"two sources":      {[]string{"--config", "x", "--endpoint", "http://localhost"}, "write --config or --endpoint, not both"},
		"a source alone":   {[]string{"--source", "x", "--from", "a", "--to", "b"}, "write --config FILE too"},
	} {
		t.Run(name, func(t *testing.T) {
			got := command(t, "", append([]string{"queue", "redrive"}, tt.args...)...)
			require.Equal(t, exitUsage, got.code, got.stderr)
			require.Contains(t, got.stderr, tt.want)
		})
	}
}

// redriveEnv makes the test's own binary run the command, so that a signal meets a whole
// process.
const redriveEnv = "MNSRELAY_TEST_REDRIVE"

func TestRedriveProcess(t *testing.T) {
	if args := os.Getenv(redriveEnv); args != "" {
		os.Exit(execute(t.Context(), strings.Split(args, " "), os.Stdin, os.Stdout, os.Stderr))
	}
	// One request in the middle takes so long that the signal meets it.
	slow := emulator.Fault{Queue: "orders", Operation: emulator.OpSend, AnswerDelay: emulator.Duration(20 * time.Millisecond)}

	t.Run("an interrupt finishes what is in hand", func(t *testing.T) {
		r := newDeadRig(t, emulator.QueueConfig{VisibilityTimeout: time.Minute})
		r.fill(t, 300)
		_, err := r.AddFault(slow)
		require.NoError(t, err)
		p := startRedrive(t, r)
		r.awaitMoved(t, 40)
		require.NoError(t, p.cmd.Process.Signal(syscall.SIGINT))
		require.Error(t, p.cmd.Wait())
		require.Equal(t, exitFailed, p.cmd.ProcessState.ExitCode(), p.stderr.String())
		require.Contains(t, p.stderr.String(), "stopped: received the signal interrupt; run the command again to go on")
		s := r.stats(t, "orders-dead")
		require.Positive(t, s.Active, "the interrupt came in the middle")
		require.Zero(t, s.Inactive, "nothing is left under lease")
		require.Contains(t, p.stdout.String(), fmt.Sprintf("moved %d messages", s.Deleted))

		got := command(t, "", r.args()...)
		require.Equal(t, exitDone, got.code, got.stderr)
		require.Zero(t, r.requireOrders(t, 300), "second copies")
	})

	t.Run("a kill loses nothing", func(t *testing.T) {
		r := newDeadRig(t, emulator.QueueConfig{VisibilityTimeout: 2 * time.Second})
		r.fill(t, 300)
		_, err := r.AddFault(slow)
		require.NoError(t, err)
		for kill := 1; kill <= 3; kill++ {
			p := startRedrive(t, r)
			r.awaitMoved(t, 60*int64(kill))
			require.NoError(t, p.cmd.Process.Kill())
			require.Error(t, p.cmd.Wait())
		}
		got := command(t, "", r.args("--wait", "3s")...) // longer than the leases that the kills have left
		require.Equal(t, exitDone, got.code, got.stderr)
		require.LessOrEqual(t, r.requireOrders(t, 300), 3*mns.MaxBatch, "second copies")
	})
}

type process struct {
	cmd            *exec.Cmd
	stdout, stderr bytes.Buffer
}

func startRedrive(t *testing.T, r *deadRig) *process {
	t.Helper()
	p := &process{cmd: exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestRedriveProcess$")}
	p.cmd.Env = append(os.Environ(), redriveEnv+"="+strings.Join(r.args(), " "))
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	require.NoError(t, p.cmd.Start())
	t.Cleanup(func() { _ = p.cmd.Process.Kill() })
	return p
}

// awaitMoved waits until so many messages have been deleted.
func (r *deadRig) awaitMoved(t *testing.T, n int64) {
	t.Helper()
	require.Eventually(t, func() bool { return r.stats(t, "orders-dead").Deleted >= n }, 30*time.Second, time.Millisecond)
}

// A move that was killed leaves leases behind: an empty queue is not the whole truth.
func TestRedriveTellsOfWhatIsUnderLease(t *testing.T) {
	r := newDeadRig(t, emulator.QueueConfig{VisibilityTimeout: time.Hour})
	r.fill(t, 3)
	taken, err := r.reader(t, "orders-dead").BatchReceive(t.Context(), mns.MaxBatch, 0)
	require.NoError(t, err)
	require.Len(t, taken, 3)
	got := command(t, "", r.args()...)
	require.Equal(t, exitDone, got.code, got.stderr)
	require.Contains(t, got.stdout, "moved 0 messages")
	require.Contains(t, got.stderr, "note: about 3 messages in orders-dead were under lease or not visible yet, and are still there; leases last 1h0m0s\n")
}

func TestRedriveWithKeysThatMayNotAskForAttributes(t *testing.T) {
	r := newDeadRig(t, emulator.QueueConfig{})
	r.fill(t, 3)
	_, err := r.AddFault(emulator.Fault{Operation: emulator.OpAttributes, Status: http.StatusForbidden, Code: "AccessDenied"})
	require.NoError(t, err)
	got := command(t, "", r.args()...)
	require.Equal(t, exitDone, got.code, got.stderr)
	require.Zero(t, r.requireOrders(t, 3))
}

func TestProgress(t *testing.T) {
	const trouble = "send: 503 InternalError"
	steps := func(t *testing.T, terminal bool, total int) string {
		t.Helper()
		var out bytes.Buffer
		synctest.Test(t, func(t *testing.T) {
			t.Helper()
			p := newProgress(&out, total)
			p.terminal = terminal
			for i := range 100 {
				<-time.After(60 * time.Millisecond)
				step := redrive.Progress{Moved: i * 10}
				if i == 91 || i == 92 || i == 95 {
					step.Trouble = trouble
				}
				if i == 99 {
					step.Stayed = 2
				}
				p.show(step)
			}
			p.clear()
		})
		return out.String()
	}

	const troubles = "trying again: " + trouble + "\n"
	require.Equal(t, "830 moved of about 1000, 165/s\n"+troubles+troubles, steps(t, false, 1000), "trouble is told of at once, and once")
	require.Equal(t, "830 moved, 165/s\n"+troubles+troubles, steps(t, false, 0))

	bar := steps(t, true, 1000)
	require.Equal(t, 2, strings.Count(bar, "\r\x1b[K"+troubles), "a line has the bar's place")
	require.Equal(t, 2, strings.Count(bar, "\n"))
	lines := strings.Split(bar, "\r\x1b[K")
	require.Equal(t, "[                    ]   1%  10 moved of about 1000", lines[1])
	require.Contains(t, lines, "[==========          ]  51%  510 moved of about 1000, 163/s")
	require.Equal(t, "[=================== ]  99%  990 moved of about 1000, 165/s, 2 stay", lines[len(lines)-2])
	require.Empty(t, lines[len(lines)-1], "the line is clear for the summary")
	for _, line := range lines {
		require.Less(t, len(line), 80)
	}

	require.Contains(t, steps(t, true, 0), "510 moved, 163/s")
	require.NotContains(t, steps(t, true, 0), "%")
}
