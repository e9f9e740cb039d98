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
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"mvdan.cc/sh/v3/syntax"

	"mnsrelay/test/rig"
)

// binary is the program, built once.
var binary string

// surroundings are the variables of the environment, and rrsa those that ACK sets in a pod:
// for configurations, not for what is run.
var (
	surroundings []string
	rrsa         = map[string]string{
		"ALIBABA_CLOUD_ROLE_ARN":          "acs:ram::1234567890123456:role/mnsrelay",
		"ALIBABA_CLOUD_OIDC_PROVIDER_ARN": "acs:ram::1234567890123456:oidc-provider/ack-rrsa-c0123456789",
		"ALIBABA_CLOUD_OIDC_TOKEN_FILE":   "/var/run/secrets/ack.alibabacloud.com/rrsa-tokens/token",
	}
)

// patience is how long one command may take on a busy machine.
const patience = 60 * time.Second

func TestMain(m *testing.M) {
	surroundings = os.Environ()
	for name, value := range rrsa {
		if err := os.Setenv(name, value); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(rig.BuildAndRun(m, &binary))
}

// others are the programs that pages call, beside mnsrelay and make. A name that is none of
// these is a slip.
var others = []string{
	"buildah", "cat", "cd", "ctr", "curl", "docker", "echo", "exec", "export", "git", "go", "helm", "jq", "kill", "kubectl", "openssl",
	"rabbitmqadmin", "skopeo", "trap", "wait", "aliyun",
}

// checkShell parses every command of a block, and holds those of mnsrelay and make against
// the program and the Makefile.
func checkShell(t *testing.T, b block) error {
	t.Helper()
	if b.language == "sh" {
		return checkCommands(t, b.text)
	}
	steps := session(b.text)
	if len(steps) == 0 {
		return errors.New("a session without a command: write $ before it")
	}
	for _, s := range steps {
		if err := checkCommands(t, s.command); err != nil {
			return err
		}
	}
	return nil
}

// step is a command of a session and what it prints.
type step struct {
	command string
	output  []string
}

// session takes a transcript apart. What stands before the first command is none of it.
func session(text string) []step {
	var steps []step
	continues := false
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		command, isCommand := strings.CutPrefix(line, "$ ")
		switch {
		case isCommand:
			steps = append(steps, step{command: command})
		case continues:
			steps[len(steps)-1].command += "\n" + line
		case len(steps) > 0:
			steps[len(steps)-1].output = append(steps[len(steps)-1].output, line)
		}
		continues = (isCommand || continues) && strings.HasSuffix(line, `\`)
	}
	return steps
}

func checkCommands(t *testing.T, text string) error {
	t.Helper()
	file, err := syntax.NewParser(syntax.Variant(syntax.LangPOSIX)).Parse(strings.NewReader(text), "")
	if err != nil {
		return fmt.Errorf("%w\nin\n%s", err, text)
	}
	var problems []error
	syntax.Walk(file, func(node syntax.Node) bool {
		call, is := node.(*syntax.CallExpr)
		if !is || len(call.Args) == 0 {
			return true
		}
		var words []string
		for _, word := range call.Args {
			words = append(words, literal(word))
		}
		if err := checkCommand(t, words); err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", strings.Join(words, " "), err))
		}
		return true
	})
	return errors.Join(problems...)
}

// literal is a word without its quotes; what the shell would put in is VALUE.
func literal(word *syntax.Word) string {
	var text strings.Builder
	var add func(parts []syntax.WordPart)
	add = func(parts []syntax.WordPart) {
		for _, part := range parts {
			switch part := part.(type) {
			case *syntax.Lit:
				text.WriteString(part.Value)
			case *syntax.SglQuoted:
				text.WriteString(part.Value)
			case *syntax.DblQuoted:
				add(part.Parts)
			default:
				text.WriteString("VALUE")
			}
		}
	}
	add(word.Parts)
	return text.String()
}

func checkCommand(t *testing.T, words []string) error {
	t.Helper()
	switch name := filepath.Base(words[0]); {
	case name == "mnsrelay":
		return checkProgram(t, words[1:])
	case name == "make":
		return checkMake(t, words[1:])
	case !slices.Contains(others, name):
		return fmt.Errorf("there is no program %s among those that pages call", name)
	}
	// docker compose exec SERVICE mnsrelay ..., kubectl exec POD -- /usr/local/bin/mnsrelay ...
	for i, word := range words[1:] {
		if strings.HasSuffix(word, "bin/mnsrelay") || word == "mnsrelay" && slices.Contains(words[:i], "exec") {
			return checkProgram(t, words[i+2:])
		}
	}
	return nil
}

var makeTarget = regexp.MustCompile(`(?m)^([a-z0-9-]+):`)

func checkMake(t *testing.T, words []string) error {
	t.Helper()
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	require.NoError(t, err)
	var targets []string
	for _, match := range makeTarget.FindAllStringSubmatch(string(makefile), -1) {
		targets = append(targets, match[1])
	}
	for _, word := range words {
		if name, _, is := strings.Cut(word, "="); is {
			if !strings.Contains(string(makefile), "$("+name) {
				return fmt.Errorf("the Makefile uses no variable %s", name)
			}
		} else if !strings.HasPrefix(word, "-") && !slices.Contains(targets, word) {
			return fmt.Errorf("the Makefile has no target %s", word)
		}
	}
	return nil
}

// asked are the command lines that the program was asked about, with its answers.
var asked sync.Map

// checkProgram has the program read a command line: with --help behind it, all flags are read
// with their values, and nothing is run.
func checkProgram(t *testing.T, words []string) error {
	t.Helper()
	if len(words) == 0 {
		return nil
	}
	// What is in capitals stands for a command.
	if slices.Contains([]string{"help", "__complete"}, words[0]) {
		words = slices.DeleteFunc(slices.Clone(words[1:]), func(word string) bool { return word == strings.ToUpper(word) })
	}
	if len(words) > 0 && words[0] == strings.ToUpper(words[0]) {
		return nil
	}
	key := strings.Join(words, "\x00")
	if answer, known := asked.Load(key); known {
		err, _ := answer.(error)
		return err
	}
	err := askProgram(t, words)
	asked.Store(key, err)
	return err
}

func askProgram(t *testing.T, words []string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, binary, append(slices.Clone(words), "--help")...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	// A command that does not exist is an argument of the one before it, whose help comes then.
	_, usage, found := strings.Cut("\n"+string(out), "\nUsage:\n  mnsrelay ")
	if !found {
		return errors.New("its help has no usage")
	}
	var shown []string
	for word := range strings.FieldsSeq(usage) {
		if strings.ContainsAny(word, "[]|-.") || word == strings.ToUpper(word) {
			break
		}
		shown = append(shown, word)
	}
	if len(words) < len(shown) || !slices.Equal(shown, words[:len(shown)]) {
		return fmt.Errorf("the help of %q came", strings.Join(shown, " "))
	}
	if strings.Contains(string(out), "Available Commands:") && len(words) > len(shown) && !strings.HasPrefix(words[len(shown)], "-") {
		return fmt.Errorf("mnsrelay %s has no command %s", strings.Join(shown, " "), words[len(shown)])
	}
	return nil
}

// checkInline reads what is said of a command within a sentence. Alternatives and what is
// left out are no command lines.
func checkInline(t *testing.T, text string) error {
	t.Helper()
	if strings.HasPrefix(text, "mnsrelay_") && !strings.HasSuffix(text, "_") {
		return checkMetrics(text)
	}
	name, rest, _ := strings.Cut(text, " ")
	if (name != "mnsrelay" && name != "make") || rest == "" || strings.ContainsAny(text, "|[]") || strings.Contains(text, "...") {
		return nil
	}
	return checkCommands(t, text)
}
