package docs_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v4"

	"mnsrelay/configs"
	"mnsrelay/internal/config"
	"mnsrelay/internal/dryrun"
	"mnsrelay/test/certs"
)

// Every block is what it says it is.
func TestBlocks(t *testing.T) {
	t.Parallel()
	blocks := 0
	for _, p := range pages(t) {
		blocks += len(p.blocks)
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			for _, b := range p.blocks {
				if err := check(t, b); err != nil {
					t.Errorf("%s: %v", b, err)
				}
			}
			for _, c := range p.code {
				if err := checkInline(t, c.text); err != nil {
					t.Errorf("%s:%d: `%s`: %v", p.name, c.line, c.text, err)
				}
			}
		})
	}
	require.Greater(t, blocks, 60)
}

// What is wrong is found, whatever kind of block it is in.
func TestWhatIsWrongIsFound(t *testing.T) {
	t.Parallel()
	for _, wrong := range []struct {
		language, hint, text, says string
	}{
		{"yaml", "", "sources:\n  a: {queue: Alicom-Queue-1-SmsUp, qeue: b, to: c}", "qeue"},
		{"yaml", "", "sources:\n  a: {queue: Alicom-Queue-1-SmsUp, to: b}\nsinks:\n  c: {type: file, path: '-'}", `there is no sink "b"`},
		{"yaml", "", "sinks:\n  a: {type: webhook, url: 'https://a', timeout: 5}", "timeout"},
		{"yaml", "", "routes:\n  - {name: a, from: b, when: 'body.', to: c}", "when"},
		{"yaml", "", "drain_timeout: soon", "drain_timeout"},
		{"yaml", "part of webhook", "retires: 3", "retires"},
		{"yaml", "part of nothing", "a: 3", "no sink of type"},
		{"yaml", "", "rrsa: {roleAm: acs:ram::1:role/a}", "roleAm"},
		{"yaml", "", "replicas: many", "replicas"},
		{"yaml", "", "apiVersion: v1\nmetadata: {name: a}", "without kind"},
		{"yaml", "", "source: sms\nbdy: {}", "keys [bdy source]"},
		{"yaml", "", "source: sms\nbody: {}\nattempts: 2", "attempts"},
		{"yaml", "", "tests:\n  - {name: a, mesage: {}}", "mesage"},
		{"yaml", "", "a: [", "flow node"},
		{"json", "", `{"a": }`, "invalid character"},
		{"go", "", "package a\n\nvar b = c\n", "undefined: c"},
		{"sh", "", "mnsrelay chekc --config a", "chekc"},
		{"sh", "", "mnsrelay queue sned", "sned"},
		{"sh", "", "mnsrelay check --confg a", "--confg"},
		{"sh", "", "docker compose exec relay mnsrelay check --timeout soon", "soon"},
		{"sh", "", "FOO=1 mnsrelay run --watch && true", "--watch"},
		{"sh", "", "make dmeo", "dmeo"},
		{"sh", "", "make fuzz FUZTIME=1s", "FUZTIME"},
		{"sh", "", "crul http://127.0.0.1", "crul"},
		{"sh", "", "echo 'a", "quote"},
		{"console", "", "$ mnsrelay demo --mesages 3\n...", "--mesages"},
		{"console", "", "mnsrelay demo", "without a command"},
		{"text", "", "a", "nothing reads"},
		{"toml", "", "a = 1", "toml"},
		{"", "", "a", "without a language"},
	} {
		err := check(t, block{page: "wrong.md", language: wrong.language, hint: wrong.hint, text: wrong.text + "\n"})
		if assertf(t, err != nil, "nothing is wrong with %s", wrong.text) {
			assertf(t, strings.Contains(err.Error(), wrong.says), "of %s it says %v, and not %s", wrong.text, err, wrong.says)
		}
	}
	require.Error(t, checkInline(t, "mnsrelay check --confg FILE"))
	require.Error(t, checkInline(t, "make tset"))
}

func check(t *testing.T, b block) error {
	t.Helper()
	switch b.language {
	case "yaml":
		return checkYAML(t, b)
	case "json":
		return checkJSON(b.text)
	case "sh", "console":
		return checkShell(t, b)
	case "go":
		return checkGo(t, b)
	case "promql":
		return checkQuery(b.text)
	case "text":
		if _, isFile := b.asks("file"); isFile {
			return nil // whatever is run with it reads it
		}
		return errors.New("text that nothing reads: say what it is, or that it is a file")
	case "":
		return errors.New("a block without a language: write yaml, json, sh, console, go or promql after its fence")
	default:
		return fmt.Errorf("nothing reads blocks of %s", b.language)
	}
}

func checkJSON(text string) error {
	decoder := json.NewDecoder(strings.NewReader(text))
	for {
		var value any
		if err := decoder.Decode(&value); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func checkYAML(t *testing.T, b block) error {
	t.Helper()
	decoder, err := yaml.NewLoader(strings.NewReader(b.text))
	if err != nil {
		return err
	}
	for {
		var document map[string]any
		if err := decoder.Load(&document); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if len(document) == 0 {
			continue // nothing but comments
		}
		text, err := yaml.Marshal(document)
		if err != nil {
			return err
		}
		if strings.Count("\n"+b.text, "\n---\n") == 0 {
			text = []byte(b.text)
		}
		if err := checkDocument(t, b, document, text); err != nil {
			return err
		}
	}
}

// checkDocument reads a document of YAML as what reads it in earnest.
func checkDocument(t *testing.T, b block, document map[string]any, text []byte) error {
	t.Helper()
	has := func(keys ...string) bool {
		return slices.ContainsFunc(keys, func(key string) bool { _, found := document[key]; return found })
	}
	if kind, found := b.asks("part of"); found {
		return checkSettings(t, kind, document)
	}
	switch {
	case has("apiVersion"):
		if !has("kind") || !has("metadata") {
			return errors.New("an object of Kubernetes without kind or metadata")
		}
		return nil
	case has("tests"):
		file := filepath.Join(t.TempDir(), "routes_test.yaml")
		if err := os.WriteFile(file, text, 0o600); err != nil {
			return err
		}
		_, err := dryrun.ReadFixtures(file)
		return err
	case has("message", "body", "body_base64", "raw") && !has("sources"):
		_, err := dryrun.ReadMessage(text)
		return err
	case has("jobs"):
		return checkWorkflow(t, document)
	case has("services"):
		return nil // of docker compose, which reads docker-compose.yaml in its own test
	case onlyOf(document, blocksOfTheConfiguration(t)):
		return checkConfiguration(t, document, string(text))
	case onlyOf(document, chartValues(t)):
		return checkValues(t, document)
	default:
		return fmt.Errorf("nothing reads YAML with the keys %v: is it part of a sink, <!-- test: part of TYPE -->?", slices.Sorted(maps.Keys(document)))
	}
}

func onlyOf(document map[string]any, known []string) bool {
	for key := range document {
		if !slices.Contains(known, key) {
			return false
		}
	}
	return len(document) > 0
}

func blocksOfTheConfiguration(t *testing.T) []string {
	t.Helper()
	var schema struct{ Properties map[string]any }
	require.NoError(t, json.Unmarshal(configs.Schema, &schema))
	return slices.Collect(maps.Keys(schema.Properties))
}

// pair is the certificate and the key that stand in for those of examples.
var pair struct {
	once             sync.Once
	certificate, key []byte
}

// placeholders stand in for the variables and files of examples.
func placeholders(t *testing.T) config.Environment {
	t.Helper()
	pair.once.Do(func() {
		files := certs.New(t)
		var err error
		pair.certificate, err = os.ReadFile(files.ServerCert)
		require.NoError(t, err)
		pair.key, err = os.ReadFile(files.ServerKey)
		require.NoError(t, err)
	})
	return config.Environment{
		Lookup: func(name string) (string, bool) {
			if value, found := os.LookupEnv(name); found {
				return value, true
			}
			return "value-of-" + strings.ToLower(name), true
		},
		ReadFile: func(path string) ([]byte, error) {
			switch {
			case strings.Contains(path, "hook"):
				return []byte("whsec_" + base64.StdEncoding.EncodeToString(make([]byte, 32))), nil
			case strings.HasSuffix(path, "tls.crt"):
				return pair.certificate, nil
			case strings.HasSuffix(path, "tls.key"):
				return pair.key, nil
			}
			return []byte("content-of-the-file"), nil
		},
	}
}

// checkConfiguration loads a configuration. One that is only a part, which has no sources or
// no sinks, gets those that it names.
func checkConfiguration(t *testing.T, document map[string]any, text string) error {
	t.Helper()
	if document["sources"] == nil || document["sinks"] == nil {
		text += "\n" + completion(document)
	}
	_, _, err := config.Parse("snippet", []byte(text), placeholders(t))
	if err != nil {
		return fmt.Errorf("%w\nof\n%s", err, text)
	}
	return nil
}

// completion is what a part of a configuration lacks.
func completion(document map[string]any) string {
	sources, _ := document["sources"].(map[string]any)
	sinks, _ := document["sinks"].(map[string]any)
	routes, _ := document["routes"].([]any)
	// The sink of an audit is there for it alone.
	audit, _ := document["audit"].(map[string]any)
	lines, _ := audit["to"].(string)
	var text strings.Builder
	var from, to, routed []string // the sources and sinks that are named
	for _, item := range routes {
		route, _ := item.(map[string]any)
		from, to = append(from, names(route["from"])...), append(to, names(route["to"])...)
	}
	routed = from
	for name, item := range sources {
		source, _ := item.(map[string]any)
		if source["to"] != nil {
			routed = append(routed, name)
		}
		to = append(append(to, names(source["to"])...), names(source["dead_letter"])...)
	}
	if len(sinks) > 0 {
		to = slices.DeleteFunc(slices.Collect(maps.Keys(sinks)), func(name string) bool { return name == lines })
	} else {
		to = append(to, "placeholder")
		text.WriteString("sinks:\n")
		slices.Sort(to)
		for _, name := range slices.Compact(to) {
			text.WriteString("  " + name + ": {type: webhook, url: 'https://example.com'}\n")
		}
		if lines != "" && lines != "log" {
			text.WriteString("  " + lines + ": {type: file, path: lines.jsonl}\n")
		}
	}
	if len(sources) == 0 {
		text.WriteString("sources:\n")
		for _, name := range append(from, "placeholder") {
			text.WriteString("  " + name + ": {queue: Alicom-Queue-100-SmsReport, unmatched: retain")
			if name == "placeholder" {
				text.WriteString(", to: [" + strings.Join(to, ", ") + "]")
			}
			text.WriteString("}\n")
		}
	}
	var missing []string
	for name := range sources {
		if !slices.Contains(routed, name) {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		text.WriteString("routes:\n  - {name: placeholder, from: [" + strings.Join(missing, ", ") + "], to: placeholder}\n")
	}
	return text.String()
}

// names are those of a value that is a name, a target or a list of these.
func names(value any) []string {
	switch value := value.(type) {
	case string:
		return []string{value}
	case map[string]any:
		return names(value["sink"])
	case []any:
		var all []string
		for _, item := range value {
			all = append(all, names(item)...)
		}
		return all
	}
	return nil
}

// checkSettings loads settings as part of a sink.
func checkSettings(t *testing.T, kind string, settings map[string]any) error {
	t.Helper()
	sinks := map[string]map[string]any{
		"amqp091": {"type": kind, "url": "amqps://host", "exchange": "e"},
		"amqp10":  {"type": kind, "url": "amqps://host", "address": "a"},
		"webhook": {"type": kind, "url": "https://example.com"},
	}
	sink, found := sinks[kind]
	if !found {
		return fmt.Errorf("there is no sink of type %q to be a part of", kind)
	}
	maps.Copy(sink, settings)
	document := map[string]any{"sinks": map[string]any{"sink": sink}}
	text, err := yaml.Marshal(document)
	if err != nil {
		return err
	}
	return checkConfiguration(t, document, string(text))
}

const chart = "helm/mnsrelay/"

func readValues(t *testing.T, name string) map[string]any {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, chart, name))
	require.NoError(t, err)
	var values map[string]any
	require.NoError(t, yaml.Unmarshal(text, &values))
	return values
}

func chartValues(t *testing.T) []string {
	t.Helper()
	return slices.Collect(maps.Keys(readValues(t, "values.yaml")))
}

// checkValues holds values against the chart's schema, on top of its own.
func checkValues(t *testing.T, values map[string]any) error {
	t.Helper()
	all := merge(merge(readValues(t, "values.yaml"), map[string]any{"config": readValues(t, "ci/default-values.yaml")["config"]}), values)
	text, err := json.Marshal(all)
	if err != nil {
		return err
	}
	document, err := jsonschema.UnmarshalJSON(strings.NewReader(string(text)))
	if err != nil {
		return err
	}
	schema, err := jsonschema.NewCompiler().Compile(filepath.Join(root, chart, "values.schema.json"))
	if err != nil {
		return err
	}
	return schema.Validate(document)
}

// merge puts the values of one mapping over those of another, as Helm does.
func merge(under, over map[string]any) map[string]any {
	merged := maps.Clone(under)
	for key, value := range over {
		below, isBelow := merged[key].(map[string]any)
		above, isAbove := value.(map[string]any)
		if isBelow && isAbove {
			value = merge(below, above)
		}
		merged[key] = value
	}
	return merged
}

// checkWorkflow reads the commands of a workflow of GitHub.
func checkWorkflow(t *testing.T, document map[string]any) error {
	t.Helper()
	jobs, _ := document["jobs"].(map[string]any)
	commands := 0
	for _, item := range jobs {
		job, _ := item.(map[string]any)
		steps, _ := job["steps"].([]any)
		for _, item := range steps {
			step, _ := item.(map[string]any)
			text, is := step["run"].(string)
			if !is {
				continue
			}
			commands++
			if err := checkCommands(t, text); err != nil {
				return err
			}
		}
	}
	if commands == 0 {
		return errors.New("a workflow that runs nothing")
	}
	return nil
}

// checkGo compiles a file of Go. What it imports is the standard library, or in go.mod.
func checkGo(t *testing.T, b block) error {
	t.Helper()
	file := filepath.Join(t.TempDir(), "snippet_test.go")
	if err := os.WriteFile(file, []byte(b.text), 0o600); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	vet := exec.CommandContext(ctx, "go", "vet", file)
	vet.Dir = root
	if out, err := vet.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}
