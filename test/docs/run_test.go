package docs_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"mnsrelay/test/broker"
	"mnsrelay/test/process"
)

// Pages that say so are followed from top to bottom, in a folder of their own.
func TestPagesAreFollowed(t *testing.T) {
	t.Parallel()
	afterwards := map[string]func(*testing.T){
		"docs/getting-started.md": func(t *testing.T) {
			t.Helper()
			takesFromRabbitMQ(t, "sms.reports", `"biz_id":"1000^0"`)
		},
	}
	followed := 0
	for _, p := range pages(t) {
		if !runs(p) {
			continue
		}
		followed++
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			r := newReader(t)
			if p.name == "docs/getting-started.md" {
				removeFromRabbitMQ(t, "sms.reports", "sms.events")
			}
			for _, b := range p.blocks {
				r.follow(t, b)
			}
			if look := afterwards[p.name]; look != nil {
				look(t)
			}
			r.endAll(t)
		})
	}
	require.GreaterOrEqual(t, followed, len(afterwards)+2)
}

func runs(p *page) bool {
	for _, b := range p.blocks {
		if _, found := b.asks("run"); found {
			return true
		}
	}
	return false
}

// reader does what a page says.
type reader struct {
	folder string
	// instead has what is written on the page, and what is used in its place: addresses that
	// are free here, and the tests' RabbitMQ.
	instead     *strings.Replacer
	environment []string
	running     []*background
}

type background struct {
	block   block
	process *process.Process
	output  *transcript
}

const rabbitMQ = "amqp://guest:guest@localhost:5672/"

func newReader(t *testing.T) *reader {
	t.Helper()
	ports, err := process.FreePorts(t.Context(), 3)
	require.NoError(t, err)
	r := &reader{folder: t.TempDir()}
	r.instead = strings.NewReplacer(
		"127.0.0.1:8090", "127.0.0.1:"+strconv.Itoa(ports[0]),
		"127.0.0.1:8080", "127.0.0.1:"+strconv.Itoa(ports[1]),
		"127.0.0.1:8091", "127.0.0.1:"+strconv.Itoa(ports[2]),
		rabbitMQ, broker.URL(t),
	)
	r.environment = append(slices.Clone(surroundings), "PATH="+filepath.Dir(binary)+string(os.PathListSeparator)+os.Getenv("PATH"), "PWD="+r.folder)
	t.Cleanup(func() {
		for _, b := range r.running {
			_ = b.process.End(context.WithoutCancel(t.Context()), syscall.SIGKILL)
		}
	})
	return r
}

// follow writes the file that the block is, or runs what it says.
func (r *reader) follow(t *testing.T, b block) {
	t.Helper()
	if name, found := b.asks("file"); found {
		require.NoError(t, os.WriteFile(filepath.Join(r.folder, name), []byte(r.instead.Replace(b.text)), 0o600))
		return
	}
	if _, found := b.asks("run in the background"); found {
		steps := session(b.text)
		require.Len(t, steps, 1, "%s: what runs in the background is one command", b)
		r.start(t, b, steps[0])
		return
	}
	how, found := b.asks("run")
	if !found {
		return
	}
	require.Contains(t, []string{"", "and fail"}, how, "%s: a hint that is not known", b)
	switch b.language {
	case "sh":
		r.run(t, b, step{command: b.text, output: []string{leftOut}})
		return
	case "go":
		r.test(t, b)
		return
	}
	for _, s := range session(b.text) {
		r.run(t, b, s)
	}
}

func (r *reader) command(text string) *exec.Cmd {
	cmd := exec.Command("sh", "-ec", r.instead.Replace(text)) //nolint:noctx // It is ended by its number.
	cmd.Dir, cmd.Env = r.folder, r.environment
	return cmd
}

// test runs a file of tests, in this module, whose go.mod has what it imports.
func (r *reader) test(t *testing.T, b block) {
	t.Helper()
	file := filepath.Join(r.folder, "snippet_test.go")
	require.NoError(t, os.WriteFile(file, []byte(r.instead.Replace(b.text)), 0o600))
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "test", "-count=1", file)
	cmd.Dir, cmd.Env = root, r.environment
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s: %s", b, out)
}

// run runs a command to its end and compares what it prints. It has to succeed, unless the
// page says that it fails. At a line ^C it is interrupted.
func (r *reader) run(t *testing.T, b block, s step) {
	t.Helper()
	if export, is := strings.CutPrefix(s.command, "export "); is {
		r.environment = append(r.environment, strings.Fields(export)...)
		return
	}
	command := s.command
	if command == "make demo" {
		command = r.recipe(t, "demo")
	}
	out := newTranscript()
	p, err := process.Start(r.command(command), out)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	before, after, interrupted := cutAt(s.output, "^C")
	if interrupted {
		require.NoError(t, out.await(ctx, shapes(before)), "%s: %s", b, command)
		require.NoError(t, p.Signal(syscall.SIGINT))
	}
	select {
	case <-p.Done():
	case <-ctx.Done():
		_ = p.End(context.WithoutCancel(ctx), syscall.SIGKILL)
		t.Fatalf("%s: %s does not end; it prints\n%s", b, command, out)
	}
	require.Equal(t, b.hint != "run and fail", p.ExitCode() == 0, "%s: %s ends with %d and prints\n%s", b, command, p.ExitCode(), out)
	want := shapes(append(append([]string{}, before...), after...))
	require.True(t, matches(want, out.shapes()), "%s: %s prints\n%s\nwhich has the shape\n%s\nand not\n%s",
		b, command, out, strings.Join(out.shapes(), "\n"), strings.Join(want, "\n"))
}

// recipe is what a target of the Makefile runs in the end, with the tests' program.
func (r *reader) recipe(t *testing.T, name string) string {
	t.Helper()
	dry := exec.CommandContext(t.Context(), "make", "--no-print-directory", "-n", name)
	dry.Dir = root
	out, err := dry.Output()
	require.NoError(t, err)
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	command, found := strings.CutPrefix(lines[len(lines)-1], "exec bin/mnsrelay ")
	require.True(t, found, "%s", out)
	return "exec mnsrelay " + command
}

// start runs a command until the page ends, and returns when it has printed what the page
// says.
func (r *reader) start(t *testing.T, b block, s step) {
	t.Helper()
	out := newTranscript()
	p, err := process.Start(r.command("exec "+s.command), out)
	require.NoError(t, err)
	r.running = append(r.running, &background{b, p, out})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	require.NoError(t, out.await(ctx, shapes(s.output)), "%s: %s", b, s.command)
}

// endAll ends what runs, the last first, and looks that it ends well.
func (r *reader) endAll(t *testing.T) {
	t.Helper()
	for _, b := range slices.Backward(r.running) {
		require.NoError(t, b.process.End(t.Context(), syscall.SIGTERM))
		require.Zero(t, b.process.ExitCode(), "%s prints\n%s", b.block, b.output)
	}
}

// takesFromRabbitMQ looks whether a message is in a queue.
func takesFromRabbitMQ(t *testing.T, queue, part string) {
	t.Helper()
	connection, err := amqp.Dial(broker.URL(t))
	require.NoError(t, err)
	t.Cleanup(func() { _ = connection.Close() })
	channel, err := connection.Channel()
	require.NoError(t, err)
	// It was sent a moment ago; the relay is on its way.
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(patience); ; {
		message, found, err := channel.Get(queue, true)
		require.NoError(t, err)
		if found {
			require.Contains(t, string(message.Body), part)
			return
		}
		select {
		case <-tick.C:
		case <-late:
			require.Fail(t, "nothing is in "+queue)
		}
	}
}

// removeFromRabbitMQ removes what the page makes there when the test ends, however it ends.
func removeFromRabbitMQ(t *testing.T, queue, exchange string) {
	t.Helper()
	t.Cleanup(func() {
		connection, err := amqp.Dial(broker.URL(t))
		require.NoError(t, err)
		channel, err := connection.Channel()
		require.NoError(t, err)
		// Neither is an error where it is not there.
		_, err = channel.QueueDelete(queue, false, false, false)
		require.NoError(t, err)
		require.NoError(t, channel.ExchangeDelete(exchange, false, false))
		require.NoError(t, connection.Close())
	})
}

// transcript is what a command prints.
type transcript struct {
	mu      sync.Mutex
	text    strings.Builder
	changed chan struct{} // holds a note that there is more
}

func newTranscript() *transcript { return &transcript{changed: make(chan struct{}, 1)} }

// Write is part of io.Writer.
func (o *transcript) Write(p []byte) (int, error) {
	o.mu.Lock()
	o.text.Write(p)
	o.mu.Unlock()
	select {
	case o.changed <- struct{}{}:
	default:
	}
	return len(p), nil
}

func (o *transcript) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

func (o *transcript) shapes() []string {
	return shapes(strings.Split(strings.TrimSuffix(o.String(), "\n"), "\n"))
}

// await returns when the lines were printed, in their order, with others between them.
func (o *transcript) await(ctx context.Context, want []string) error {
	for {
		rest := want
		for _, line := range o.shapes() {
			for len(rest) > 0 && rest[0] == leftOut {
				rest = rest[1:]
			}
			if len(rest) > 0 && line == rest[0] {
				rest = rest[1:]
			}
		}
		if len(rest) == 0 || len(rest) == 1 && rest[0] == leftOut {
			return nil
		}
		select {
		case <-o.changed:
		case <-ctx.Done():
			return errors.Join(ctx.Err(), fmt.Errorf("it has not printed\n%s\nbut\n%s", strings.Join(rest, "\n"), o))
		}
	}
}

func cutAt(lines []string, at string) (before, after []string, found bool) {
	for i, line := range lines {
		if line == at {
			return lines[:i], lines[i+1:], true
		}
	}
	return lines, nil, false
}

// leftOut stands for any lines, or none.
const leftOut = "..."

// variable is what differs from one run to the next.
var variable = []struct {
	pattern *regexp.Regexp
	shape   string
}{
	{regexp.MustCompile(`\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?( ?(Z|UTC|[+-]\d\d:?\d\d))?`), "TIME"},
	{regexp.MustCompile(`\b[0-9A-F]{16}(-[0-9A-Z]+)+\b`), "ID"},
	{regexp.MustCompile(`\b[0-9A-Fa-f]{8,}(-[0-9A-Fa-f]{4,})*\b`), "ID"},
	{regexp.MustCompile(`\b(LTAI|STS\.)\*\*\*\w+`), "KEY"},
	{regexp.MustCompile(`\b[a-z0-9.-]+:\d{4,5}\b`), "ADDRESS"},
	{regexp.MustCompile(`logged in as \S+, vhost \S+`), "logged in"},
	{regexp.MustCompile(`"version":"[^"]*"`), `"version":"NAME"`},
	{regexp.MustCompile(`"instance":"[^"]*"`), `"instance":"NAME"`},
	{regexp.MustCompile(`^token +[A-Z2-7]{26}\b`), "token TOKEN"},
	{regexp.MustCompile(`(\d+(\.\d+)?(ns|µs|ms|s|m|h))+\b`), "DURATION"},
	{regexp.MustCompile(`\d+(\.\d+)?`), "N"},
	{regexp.MustCompile(`\s+`), " "},
}

// shapes are lines without what differs from one run to the next. Neighbours of the same shape
// are one: there may be more or fewer of them.
func shapes(lines []string) []string {
	var all []string
	for _, line := range lines {
		line = strings.TrimSpace(line)
		if line != leftOut {
			for _, v := range variable {
				line = v.pattern.ReplaceAllString(line, v.shape)
			}
		}
		if len(all) == 0 || all[len(all)-1] != line {
			all = append(all, line)
		}
	}
	return all
}

// matches tells whether the lines are those that are wanted.
func matches(want, lines []string) bool {
	if len(want) == 0 {
		return len(lines) == 0 || len(lines) == 1 && lines[0] == ""
	}
	if want[0] == leftOut {
		for i := range len(lines) + 1 {
			if matches(want[1:], lines[i:]) {
				return true
			}
		}
		return false
	}
	return len(lines) > 0 && want[0] == lines[0] && matches(want[1:], lines[1:])
}

func TestShapes(t *testing.T) {
	t.Parallel()
	shaped := func(lines ...string) []string { return shapes(lines) }
	require.Equal(t,
		[]string{"DURATION sent N", "ID at TIME", "http://ADDRESS/x in DURATION"},
		shaped("2s sent 190", "4s  sent 391", "5F290C926D472878-2-14D9529A8FA-200000001 at 2026-03-10T08:00:00.123Z", "http://127.0.0.1:1234/x in 59m59s"))
	require.True(t, matches(shaped("a", "...", "z"), shaped("a", "b", "c", "z")))
	require.True(t, matches(shaped("a", "..."), shaped("a")))
	require.False(t, matches(shaped("a", "z"), shaped("a", "b", "z")))
	require.False(t, matches(shaped("a"), shaped("a", "b")))
	require.False(t, matches(shaped("a 1 ms"), shaped("b 1 ms")))
}
