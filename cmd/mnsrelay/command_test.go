package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// actAsProgram makes the test binary the program, for tests of a process.
const actAsProgram = "MNSRELAY_TEST_ACT_AS_PROGRAM"

// program is what to start, with actAsProgram set.
func program(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	require.NoError(t, err)
	return path
}

func TestMain(m *testing.M) {
	if os.Getenv(actAsProgram) != "" {
		main()
	}
	goleak.VerifyTestMain(m,
		// The HTTP client inside the SDK looks for idle hosts once a second, and ends
		// some seconds after its last request; it cannot be stopped.
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*Client).mCleaner"),
	)
}

// outcome is what a command line did.
type outcome struct {
	code           int
	stdout, stderr string
}

func command(t *testing.T, stdin string, args ...string) outcome {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code := execute(t.Context(), args, strings.NewReader(stdin), &stdout, &stderr)
	return outcome{code: code, stdout: stdout.String(), stderr: stderr.String()}
}

func TestWrongUsage(t *testing.T) {
	tests := []struct {
		name string
		args []string
		want string
	}{
		{"no command", nil, "mnsrelay: a command is missing\nSee 'mnsrelay --help'.\n"},
		{"no command of a group", []string{"queue"}, "mnsrelay: a command is missing\nSee 'mnsrelay queue --help'.\n"},
		{"unknown command", []string{"frobnicate"}, "there is no command \"frobnicate\"\n"},
		{"a command mistyped", []string{"validat"}, "there is no command \"validat\"; did you mean validate?"},
		{"a command of a group mistyped", []string{"queue", "sent"}, "there is no command \"queue sent\"; did you mean send?"},
		{"help about nothing", []string{"help", "nothing"}, "there is no command \"nothing\""},
		{"unknown flag", []string{"version", "--bogus"}, "unknown flag: --bogus\nSee 'mnsrelay version --help'.\n"},
		{"a flag mistyped", []string{"run", "--confg", "x"}, "unknown flag: --confg; did you mean --config?\n"},
		{"unknown letter", []string{"run", "-x"}, "unknown shorthand flag: 'x' in -x\n"},
		{"a flag without its value", []string{"run", "--config"}, "--config is without its value: write --config FILE\n"},
		{"a letter without its value", []string{"run", "-c"}, "--config is without its value: write --config FILE\n"},
		{"a time without its unit", []string{"check", "--timeout", "5"}, "--timeout \"5\" is wrong: write a time with its unit, as in --timeout 500ms, 10s or 2m\n"},
		{"no whole number", []string{"queue", "peek", "--max", "many"}, "--max \"many\" is wrong: write a whole number, as in --max 10\n"},
		{"no number", []string{"queue", "redrive", "--rate", "slow"}, "--rate \"slow\" is wrong: write a number, as in --rate 2.5\n"},
		{"no yes or no", []string{"check", "--json=maybe"}, "--json \"maybe\" is wrong: write --json, or --json=false\n"},
		{"completion for no shell", []string{"completion"}, "for which shell? write one of: bash, zsh, fish, powershell\n"},
		{"completion for another shell", []string{"completion", "tcsh"}, "there is no script for \"tcsh\": write one of: bash, zsh, fish, powershell\n"},
		{"completion for two", []string{"completion", "bash", "zsh"}, "for which shell?"},
		{"watch too often", []string{"queue", "stats", "--watch", "--interval", "10ms"}, "--interval 10ms is too short: write 1s or more"},
		{"an interval of nothing", []string{"queue", "stats", "--interval", "5s"}, "--interval needs --watch"},
		{"print and JSON", []string{"validate", "--config", "x", "--print", "--json"}, "write --print or --json, not both"},
		{"JSON of nothing", []string{"validate", "--json"}, "which configuration? write --config FILE"},
		{"test nothing", []string{"test"}, "name one file of tests or more"},
		{"explain nothing", []string{"explain", "--config", "x"}, "which message? write --message FILE, --body FILE, or --peek N"},
		{"an argument too many", []string{"version", "x"}, "version takes no argument, and there is \"x\""},
		{"validate nothing", []string{"validate"}, "write --config FILE"},
		{"run nothing", []string{"run"}, "write --config FILE"},
		{"healthcheck of no address", []string{"healthcheck", "--url", "livez"}, "--url is not an address"},
		{"healthcheck of another scheme", []string{"healthcheck", "--url", "ftp://x/livez"}, "--url is not an address"},
		{"healthcheck of two", []string{"healthcheck", "--url", "http://x/livez", "--config", "x"}, "write --url or --config, not both"},
		{"no queue", []string{"queue", "stats"}, "which queue?"},
		{"no endpoint", []string{"queue", "stats", "--queue", "orders"}, "where is the queue?"},
		{"no URL", []string{"queue", "stats", "--queue", "orders", "--endpoint", "localhost"}, "--endpoint "},
		{"no queue's name", []string{"queue", "stats", "--queue", "a/b", "--endpoint", "http://localhost"}, "--queue "},
		{"a source of nothing", []string{"queue", "stats", "--source", "sms"}, "write --config FILE too"},
		{"two queues", []string{"queue", "stats", "--config", "x", "--queue", "orders"}, "write --config or --queue, not both"},
		{"peek too many", []string{"queue", "peek", "--max", "17"}, "--max must be from 1 to 16"},
		{"peek in no encoding", []string{"queue", "peek", "--body", "hex"}, "there is no encoding \"hex\""},
		{"send before now", []string{"queue", "send", "--delay", "-1s", "x"}, "--delay must be"},
		{"demo of no broker", []string{"demo", "--amqp-url", "foo"}, "--amqp-url is not the address of a broker: write amqp://user:password@host:5672/\nSee"},
		{"demo of a page", []string{"demo", "--amqp-url", "http://foo"}, "write amqp://"},
		{"queue at no URL", []string{"queue", "stats", "--endpoint", "http://[::1", "--queue", "q"}, "--endpoint is not a URL: write https://"},
		{"emulator of half a key", []string{"emulator", "--access-key", "id"}, "--access-key wants ID:SECRET"},
		{"emulator of no policy", []string{"emulator", "--token-policy", "none"}, "mnsrelay: --token-policy \"none\" is none: write full or receive-and-delete\nSee"},
		{"emulator of short tokens", []string{"emulator", "--token-life", "1s"}, "token_life"},
		{"emulator of no queue's name", []string{"emulator", "--queue", "a/b"}, "a/b"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := command(t, "", tt.args...)
			require.Equal(t, exitUsage, got.code, got.stderr)
			require.Contains(t, got.stderr, tt.want)
			require.Contains(t, got.stderr, "--help'.\n")
			require.Empty(t, got.stdout)
		})
	}
}

func TestEveryCommandHasHelpAndAnExample(t *testing.T) {
	var check func(t *testing.T, cmd *cobra.Command)
	check = func(t *testing.T, cmd *cobra.Command) {
		t.Helper()
		require.NotEmpty(t, cmd.Short, cmd.CommandPath())
		require.Contains(t, cmd.Example, "  "+cmd.CommandPath(), "an example of %s", cmd.CommandPath())
		words := strings.Fields(cmd.CommandPath())[1:]
		for _, args := range [][]string{append(words, "--help"), append([]string{"help"}, words...)} {
			got := command(t, "", args...)
			require.Equal(t, exitDone, got.code, args)
			require.Contains(t, got.stdout, "Examples:", args)
			require.Empty(t, got.stderr)
		}
		for _, sub := range cmd.Commands() {
			if sub.Name() != "help" { // there is no help about help
				check(t, sub)
			}
		}
	}
	check(t, newRoot())
}

// pipe is standard output of a command that runs for long.
func pipe(t *testing.T) (lines <-chan string, w io.WriteCloser) {
	t.Helper()
	r, w := io.Pipe()
	out := make(chan string, 64) // more lines than any test reads
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(out)
		var rest string
		for b := make([]byte, 4096); ; {
			n, err := r.Read(b)
			rest += string(b[:n])
			for {
				line, after, found := strings.Cut(rest, "\n")
				if !found {
					break
				}
				out <- line
				rest = after
			}
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		require.NoError(t, w.Close())
		<-done
	})
	return out, w
}

// startEmulator runs the command for the length of a test and gives its address and
// what it said.
func startEmulator(t *testing.T, args ...string) (url, introduction string) {
	t.Helper()
	lines, stdout := pipe(t)
	ctx, cancel := context.WithCancel(context.Background())
	var stderr bytes.Buffer
	code := make(chan int, 1)
	go func() {
		code <- execute(ctx, append([]string{"emulator", "--listen", "127.0.0.1:0"}, args...), strings.NewReader(""), stdout, &stderr)
	}()
	t.Cleanup(func() {
		cancel()
		require.Equal(t, exitDone, <-code, stderr.String())
	})
	for {
		select {
		case line := <-lines:
			introduction += line + "\n"
			if rest, found := strings.CutPrefix(line, "The emulator is at "); found {
				url, _, _ = strings.Cut(rest, " ")
			}
			if strings.HasPrefix(line, "Faults and counts") {
				return url, introduction
			}
		case got := <-code:
			code <- got
			require.Fail(t, "the emulator ended", stderr.String())
		}
	}
}
