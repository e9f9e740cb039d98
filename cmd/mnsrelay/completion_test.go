package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
)

// unfinished is a configuration that cannot run: it names variables, files and keys that are
// not there. A server it names would be asked in vain, for it is not there either.
const unfinished = `
sources:
  sms: {queue: Alicom-Queue-1-SmsReport, endpoint: "http://127.0.0.1:1", to: events}
  voice: {queue: "${VOICE_QUEUE}", nonsense: true}
sinks:
  events: {type: amqp091, url: "amqp://127.0.0.1:1", password: "${file:/nowhere}"}
  hook: {type: webhook}
`

// complete gives what a shell is offered for the last word.
func complete(t *testing.T, words ...string) (offered []string, directive string) {
	t.Helper()
	got := command(t, "", append([]string{cobra.ShellCompRequestCmd}, words...)...)
	require.Equal(t, exitDone, got.code, got.stderr)
	require.Regexp(t, `^Completion ended with directive: [A-Za-z, ]+\n$`, got.stderr, "and no error")
	lines := strings.Split(strings.TrimSuffix(got.stdout, "\n"), "\n")
	return lines[:len(lines)-1], lines[len(lines)-1]
}

func TestCompletion(t *testing.T) {
	const (
		nothing = ":4" // no file either
		files   = ":0"
		ofType  = ":8"
	)
	file := written(t, map[string]string{"mnsrelay.yaml": unfinished, "broken.yaml": "sources: {sms: ["})
	path, broken := file("mnsrelay.yaml"), file("broken.yaml")
	tests := []struct {
		name      string
		words     []string
		want      []string
		directive string
	}{
		{"commands of a group", []string{"queue", "s"}, []string{"send\tSend messages", "stats\tCount the messages of queues, as far as they tell"}, nothing},
		{"commands that help explains", []string{"help", "webhook", ""}, []string{"verify\tCheck the signature of a request that was captured"}, nothing},
		{"sources", []string{"queue", "peek", "--config", path, "--source", ""}, []string{"sms\tAlicom-Queue-1-SmsReport", "voice\t${VOICE_QUEUE}"}, nothing},
		{"sources that begin so", []string{"queue", "stats", "-c", path, "--source", "v"}, []string{"voice\t${VOICE_QUEUE}"}, nothing},
		{"sources after =", []string{"explain", "--config=" + path, "--source=s"}, []string{"sms\tAlicom-Queue-1-SmsReport"}, nothing},
		{"sources of a move", []string{"queue", "redrive", "--config", path, "--source", "s"}, []string{"sms\tAlicom-Queue-1-SmsReport"}, nothing},
		{"sinks", []string{"webhook", "verify", "--config", path, "--sink", ""}, []string{"events\tamqp091", "hook\twebhook"}, nothing},
		{"sources of no configuration", []string{"queue", "peek", "--source", ""}, nil, nothing},
		{"sources of a file that is not there", []string{"queue", "peek", "--config", "/nowhere", "--source", ""}, nil, nothing},
		{"sources of what is no YAML", []string{"queue", "peek", "--config", broken, "--source", ""}, nil, nothing},
		{"sources of standard input", []string{"queue", "peek", "--config", "-", "--source", ""}, nil, nothing},
		{"configurations", []string{"run", "--config", ""}, []string{"yaml", "yml"}, ofType},
		{"files of tests", []string{"test", ""}, []string{"yaml", "yml"}, ofType},
		{"a message", []string{"explain", "--message", ""}, nil, files},
		{"a body", []string{"explain", "--body", ""}, nil, files},
		{"a captured request", []string{"webhook", "verify", ""}, nil, files},
		{"encodings", []string{"queue", "peek", "--body", ""}, []string{"auto", "base64", "raw"}, nothing},
		{"policies", []string{"emulator", "--token-policy", ""}, []string{"full", "receive-and-delete"}, nothing},
		{"shells", []string{"completion", ""}, []string{"bash", "zsh", "fish", "powershell"}, nothing},
		{"a number", []string{"queue", "peek", "--max", ""}, nil, nothing},
		{"an argument that there is not", []string{"run", ""}, nil, nothing},
		{"flags", []string{"version", "--j"}, []string{"--json\tprint JSON"}, nothing},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			offered, directive := complete(t, tt.words...)
			require.Equal(t, tt.directive, directive)
			require.ElementsMatch(t, tt.want, offered)
		})
	}
}

// Whatever stands on the line, a shell gets nothing that is no word.
func TestCompletionOfWhatIsWrongOffersNothing(t *testing.T) {
	for _, words := range [][]string{{"nothing", ""}, {"run", "--nothing", ""}, {"queue", "peek", "--max", "x", "--source", ""}, {"check", "--timeout", "5", "--sts", ""}} {
		got := command(t, "", append([]string{cobra.ShellCompRequestCmd}, words...)...)
		require.Regexp(t, `^:\d+\n$`, got.stdout, words)
	}
}

// A flag whose value nothing completes would offer the files of the folder.
func TestEveryFlagIsCompleted(t *testing.T) {
	var check func(cmd *cobra.Command)
	check = func(cmd *cobra.Command) {
		cmd.Flags().VisitAll(func(flag *pflag.Flag) {
			_, found := cmd.GetFlagCompletionFunc(flag.Name)
			require.True(t, found, "%s --%s", cmd.CommandPath(), flag.Name)
		})
		for _, sub := range cmd.Commands() {
			check(sub)
		}
	}
	check(newRoot())
}

func TestCompletionScripts(t *testing.T) {
	for shell, want := range map[string]string{
		"bash": "complete -o default -F __start_mnsrelay mnsrelay", "zsh": "#compdef mnsrelay",
		"fish": "complete -c mnsrelay", "powershell": "Register-ArgumentCompleter -CommandName 'mnsrelay'",
	} {
		got := command(t, "", "completion", shell)
		require.Equal(t, exitDone, got.code, got.stderr)
		require.Contains(t, got.stdout, want)
		require.Empty(t, got.stderr)
	}
}

// A real bash asks the program and gets words.
func TestBashCompletes(t *testing.T) {
	bash, err := exec.LookPath("bash")
	require.NoError(t, err, "bash is needed")
	folder := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(folder, "mnsrelay"), []byte("#!/bin/sh\nexec "+program(t)+" \"$@\"\n"), 0o700))
	path := written(t, map[string]string{"mnsrelay.yaml": unfinished})("mnsrelay.yaml")
	script := `# what the package bash-completion has, for words without = and :
_get_comp_words_by_ref() {
	words=("${COMP_WORDS[@]}") cword=$COMP_CWORD cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}
}
source <(mnsrelay completion bash)
complete_words() {
	COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${#COMP_LINE} COMPREPLY=()
	__start_mnsrelay
	printf '%s|' "${COMPREPLY[@]}"
	echo
}
complete_words mnsrelay queue red
complete_words mnsrelay queue peek --config "$1" --source v
complete_words mnsrelay queue peek --config "$1" --source x
`
	cmd := exec.CommandContext(t.Context(), bash, "--norc", "-c", script, "bash", path)
	cmd.Env = append(os.Environ(), "PATH="+folder+":"+os.Getenv("PATH"), actAsProgram+"=1")
	out, err := cmd.Output() // bash itself complains that this is no completion
	require.NoError(t, err)
	require.Equal(t, "redrive|\nvoice|\n|\n", strings.ReplaceAll(string(out), " ", ""))
}
