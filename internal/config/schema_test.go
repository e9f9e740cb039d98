package config_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v4"

	"mnsrelay/configs"
	"mnsrelay/internal/config"
)

var schema = sync.OnceValue(func() *jsonschema.Schema {
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(configs.Schema))
	if err != nil {
		panic(err)
	}
	compiler := jsonschema.NewCompiler() // as Helm has it
	if err := compiler.AddResource("schema.json", document); err != nil {
		panic(err)
	}
	return compiler.MustCompile("schema.json")
})

// refused is what the schema finds wrong with a document: messages by path, in which a list's
// index is a key like any other.
func refused(document any) map[string]string {
	invalid, is := errors.AsType[*jsonschema.ValidationError](schema().Validate(document))
	if !is {
		return nil
	}
	found := map[string]string{}
	var walk func(err *jsonschema.ValidationError)
	walk = func(err *jsonschema.ValidationError) {
		keys := []string{""}
		switch wrong := err.ErrorKind.(type) {
		case *kind.AdditionalProperties:
			keys = wrong.Properties
		case *kind.Required:
			keys = wrong.Missing
		default:
			for _, cause := range err.Causes {
				walk(cause)
			}
			if len(err.Causes) > 0 {
				return
			}
		}
		for _, key := range keys {
			path := strings.Trim(strings.Join(err.InstanceLocation, ".")+"."+key, ".")
			if !strings.HasPrefix(found[path], oneOf) { // beside which it says that it is no variable either
				_, found[path], _ = strings.Cut(err.Error(), ": ") // behind where it is
			}
		}
	}
	walk(invalid)
	return found
}

// oneOf begins what the schema says of what is none of the values there are.
const oneOf = "value must be one of "

// document reads YAML as editors and Helm do; false: they could not.
func document(text string) (any, bool) {
	var value any
	if yaml.Load([]byte(text), &value) != nil {
		return nil, false
	}
	return plain(value), true
}

// plain has only what JSON has.
func plain(value any) any {
	switch value := value.(type) {
	case map[string]any:
		members := map[string]any{}
		for key, member := range value {
			members[key] = plain(member)
		}
		return members
	case map[any]any:
		members := map[string]any{}
		for key, member := range value {
			members[fmt.Sprint(key)] = plain(member)
		}
		return members
	case []any:
		items := make([]any, len(value))
		for i := range value {
			items[i] = plain(value[i])
		}
		return items
	case time.Time:
		return value.Format(time.RFC3339)
	}
	return value
}

// dotted writes a problem's path as refused does.
func dotted(path string) string {
	return regexp.MustCompile(`\[(\d+)\]`).ReplaceAllString(path, ".$1")
}

// inSchema are beginnings of what problems say that a schema can say too.
var inSchema = []string{
	"unknown key: ",
	"must be a mapping",
	"must be a list",
	"must be a whole number, as in",
	"must be a number, as in",
	"must be a duration with its unit",
	"must be a size",
	"must be a URL, not",
	"must be true or false",
	"must be text",
	"must be longer than 0s",
	"must be 0, for never",
	"must be debug",
	"must be json",
	"must be auto",
	"must be alicom-cn",
	"must be amqp091",
	"must be mns",
	"must be delete",
	"must be memory",
	"must be at_least_once",
	"must not be negative",
	"not a size",
	"a name is up to",
	"has no value",
	"no such type: ",
	"has no meaning for type ",
	"has no meaning in a base",
}

// sameInSchema requires that the schema refuses what the decoder does, as far as it can, and
// at the same place.
func sameInSchema(t *testing.T, text string, problems []config.Problem) {
	t.Helper()
	value, is := document(text)
	if !is {
		return
	}
	found := refused(value)
	for _, p := range problems {
		if canSay(p) {
			require.True(t, isRefused(found, p.Path), "the schema accepts it: %s\n%s\n%v", p, text, found)
		}
	}
}

// canSay tells whether a schema can say what a problem says.
func canSay(p config.Problem) bool {
	return slices.ContainsFunc(inSchema, func(beginning string) bool { return strings.HasPrefix(p.Message, beginning) }) &&
		!strings.Contains(p.Message, "what came from") && // a variable's value
		!strings.HasPrefix(p.Message, "unknown key: a sink of type") && // another sink's
		!strings.Contains(p.Path, `\`) // a path that cannot be printed
}

// isRefused tells whether the schema has found something at path, or below it.
func isRefused(found map[string]string, path string) bool {
	withoutBrackets := regexp.MustCompile(`\.(to|from)\[0\]`).ReplaceAllString(path, ".$1")
	for at := range found {
		for _, path := range []string{dotted(path), dotted(withoutBrackets)} {
			if at == path || strings.HasPrefix(at, path+".") {
				return true
			}
		}
	}
	// Without a type it is not known which keys there are.
	around := dotted(path)[:max(0, strings.LastIndexByte(dotted(path), '.'))]
	return strings.Contains(found[around+".type"], "missing")
}

// owners of credentials, one of each type; everything.yaml has the rest of all keys.
const allCredentials = `sources:
  static: {queue: a, endpoint: "https://a.example", to: out, credentials: {type: static, access_key_id: a, access_key_secret: b, security_token: c}}
  token:
    queue: Alicom-Queue-1-SmsUp
    to: out
    credentials: {base: {type: static, access_key_id: a, access_key_secret: b, security_token: c}}
  role:
    queue: b
    endpoint: "https://b.example"
    to: out
    credentials:
      type: ram_role_arn
      role_arn: acs:ram::1:role/a
      session_name: ab
      external_id: c
      policy: "{}"
      duration: 1h
      region: cn-hangzhou
      endpoint: https://sts.aliyuncs.com
      refresh_before: 2m
      base:
        type: ram_role_arn
        role_arn: acs:ram::1:role/b
        session_name: ab
        external_id: c
        policy: "{}"
        duration: 1h
        region: cn-hangzhou
        endpoint: https://sts.aliyuncs.com
        base: {type: ecs_ram_role, role_name: a, endpoint: "http://127.0.0.1"}
  oidc:
    queue: c
    endpoint: "https://c.example"
    to: out
    credentials: {type: oidc_role_arn, role_arn: "acs:ram::1:role/a", oidc_provider_arn: a, oidc_token_file: b, session_name: ab, policy: "{}", duration: 1h, region: cn-hangzhou, endpoint: "https://sts.aliyuncs.com", refresh_before: 2m}
  ecs: {queue: d, endpoint: "https://d.example", to: out, credentials: {type: ecs_ram_role, role_name: a, endpoint: "http://127.0.0.1", refresh_before: 2m}}
  uri: {queue: e, endpoint: "https://e.example", to: out, credentials: {type: credentials_uri, uri: "http://127.0.0.1/", refresh_before: 2m}}
  chain: {queue: f, endpoint: "https://f.example", to: [{sink: out, required: true, with: {format: raw}}], credentials: {type: default, refresh_before: 2m}}
sinks:
  out:
    type: mns
    endpoint: https://g.example
    queue: g
    credentials: {type: mns_token, message_type: A, access_key_id: a, access_key_secret: b, region: cn-hangzhou, endpoint: "https://dybaseapi.aliyuncs.com", owner_id: 1, refresh_before: 2m}
`

// change is a document of which one node is changed.
type change struct {
	path string
	node yaml.Node // as it was
	text string
}

// renamed gives a document once for each key in it, with an x behind the key.
func renamed(t *testing.T, text string) []change {
	t.Helper()
	return changes(t, text, func(key, _ *yaml.Node) []yaml.Node {
		if key == nil {
			return nil
		}
		return []yaml.Node{{Kind: yaml.ScalarNode, Value: key.Value + "x"}}
	})
}

// replaced gives a document several times for each value in it, with what by makes of the value.
func replaced(t *testing.T, text string, by func(value *yaml.Node) []string) []change {
	t.Helper()
	return changes(t, text, func(_, value *yaml.Node) []yaml.Node {
		if value == nil {
			return nil
		}
		var nodes []yaml.Node
		for _, text := range by(value) {
			var document yaml.Node
			require.NoError(t, yaml.Load([]byte(text), &document))
			nodes = append(nodes, *document.Content[0])
		}
		return nodes
	})
}

// changes calls by with each key and with each value of a document.
func changes(t *testing.T, text string, by func(key, value *yaml.Node) []yaml.Node) []change {
	t.Helper()
	var root yaml.Node
	require.NoError(t, yaml.Load([]byte(text), &root))
	var all []change
	try := func(n *yaml.Node, path string, others []yaml.Node) {
		before := *n
		for _, other := range others {
			*n = other
			changed, err := yaml.Dump(clone(&root)) // whose tags it takes away
			require.NoError(t, err)
			all = append(all, change{path, before, string(changed)})
		}
		*n = before
	}
	var walk func(n *yaml.Node, path string)
	walk = func(n *yaml.Node, path string) {
		for i, child := range n.Content {
			at := path
			switch {
			case n.Kind == yaml.SequenceNode:
				at += fmt.Sprintf("[%d]", i)
			case n.Kind == yaml.MappingNode && i%2 == 0:
				try(child, strings.TrimPrefix(path+"."+child.Value, "."), by(child, nil))
				continue
			case n.Kind == yaml.MappingNode:
				at = strings.TrimPrefix(path+"."+n.Content[i-1].Value, ".")
			}
			if n.Kind != yaml.DocumentNode {
				try(child, at, by(nil, child))
			}
			walk(child, at)
		}
	}
	walk(&root, "")
	return all
}

func clone(n *yaml.Node) *yaml.Node {
	c := *n
	c.Content = make([]*yaml.Node, len(n.Content))
	for i := range n.Content {
		c.Content[i] = clone(n.Content[i])
	}
	return &c
}

// everything are documents that have every key: everything.yaml in parts, one for each sink and
// one for the rest, as a change of each value takes its time; and allCredentials. They have no
// templates, which take long to compile.
func everything(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("../../configs/everything.yaml")
	require.NoError(t, err)
	plain := regexp.MustCompile(`\{\{.*?\}\}`).ReplaceAllString(string(text), "x")
	plain = strings.Replace(plain, "  key: 'x'", "  key: '{{ id }}'", 1) // that of the audit needs one
	before, rest, found := strings.Cut(plain, "\nsinks:\n")
	require.True(t, found)
	sinks, after, found := strings.Cut(rest, "\nroutes: ")
	require.True(t, found)

	var few strings.Builder
	documents := []string{allCredentials}
	heads := regexp.MustCompile(`(?m)^  ([a-z-]+):`).FindAllStringSubmatchIndex(sinks, -1)
	for i, head := range heads {
		end := len(sinks)
		if i+1 < len(heads) {
			end = heads[i+1][0]
		}
		name := sinks[head[2]:head[3]]
		documents = append(documents, "sources: {s: {queue: Alicom-Queue-1-SmsUp, to: "+name+", dead_letter: dead}}\nsinks:\n"+
			sinks[head[0]:end]+"\n  dead: {type: file, path: dead}\n")
		if name == "audit-lines" { // the audit goes to a file only
			few.WriteString("  audit-lines: {type: file, path: lines}\n")
			continue
		}
		fmt.Fprintf(&few, "  %s: {type: webhook, url: https://%s.example}\n", name, name)
	}
	return append(documents, before+"\nsinks:\n"+few.String()+"\nroutes: "+after)
}

func decode(text string, env config.Environment) []config.Problem {
	_, _, err := config.Parse("relay.yaml", []byte(text), env)
	invalid, is := errors.AsType[*config.Error](err)
	if !is {
		return nil
	}
	return invalid.Problems
}

func TestTheSchemaRefusesEveryMisspeltKey(t *testing.T) {
	t.Parallel()
	misspelt := 0
	for _, text := range everything(t) {
		parse(t, text, usual(), "http://", "no keys are set")
		for _, c := range renamed(t, text) {
			isUnknown := slices.ContainsFunc(decode(c.text, usual()), func(p config.Problem) bool {
				return p.Path == c.path+"x" && strings.HasPrefix(p.Message, "unknown key: ")
			})
			value, _ := document(c.text)
			found := refused(value)
			if c.node.Value == "type" && strings.Contains(found[dotted(c.path)], "missing") {
				misspelt++ // and which keys there are is not known without it
				continue
			}
			require.Equal(t, isUnknown, strings.Contains(found[dotted(c.path)+"x"], "not allowed"), "%s: %v", c.path, found)
			if isUnknown {
				misspelt++
			}
		}
	}
	require.Greater(t, misspelt, 250)
}

// What is put in the place of a value is refused by both, or by none, where a schema can tell.
// It cannot where a text has rules of its own (URLs, conditions, templates, names of sinks),
// where two settings belong together, and of how long a duration and how large a size is.
func TestTheSchemaJudgesValuesAsTheDecoderDoes(t *testing.T) {
	t.Parallel()
	wrong := []string{"{a: b}", "[x]", "null", "no such value", "-1", "1.5", "true", "''"}
	units := []string{"-1s", "0", "0s", "1.5h", "1 s", "64 MiB", "64MB"}
	// On both sides of every bound there is, and some.
	numbers := []string{
		"0", "1", "2", "15", "16", "17", "20", "21", "100", "255", "256", "257", "1000", "4096", "4097", "65535", "65536",
		"1000000", "1000001", "99999999999",
	}
	// What is wrong only beside another setting.
	ofTwo := []string{"batch_size", "at least min", "a queue of type ", "only a quorum queue", "what 16 messages", "per_second too"}
	enumerations, bounds := 0, 0
	for _, text := range everything(t) {
		for _, c := range replaced(t, text, func(value *yaml.Node) []string {
			switch {
			case value.Tag == "!!int":
				return slices.Concat(wrong, numbers)
			case regexp.MustCompile(`^[0-9]+(ms|s|m|h|[KMG]iB)$`).MatchString(value.Value):
				return slices.Concat(wrong, units)
			}
			return wrong
		}) {
			problems := decode(c.text, usual())
			value, _ := document(c.text)
			found := refused(value)
			if len(problems) == 0 {
				assert.Empty(t, found, "only the schema refuses it: %s\n%s", c.path, c.text)
			}
			for _, p := range problems {
				isSimple := slices.Contains([]string{"!!int", "!!float", "!!bool"}, c.node.Tag) && p.Path == c.path &&
					!slices.ContainsFunc(ofTwo, func(part string) bool { return strings.Contains(p.Message, part) })
				if canSay(p) || isSimple {
					assert.True(t, isRefused(found, p.Path), "only the decoder refuses it: %s", p)
				}
				if isSimple {
					bounds++
				}
				if said, isEnumeration := strings.CutPrefix(found[dotted(p.Path)], oneOf); isEnumeration && p.Path == c.path && strings.Contains(p.Message, `"no such value"`) && !strings.Contains(p.Path, ".with.") {
					enumerations++
					require.ElementsMatch(t, words(p.Message), strings.Fields(strings.NewReplacer("'", "", ",", "").Replace(said)), "%s: %s", p.Path, said)
				}
			}
		}
	}
	require.Greater(t, enumerations, 25)
	require.Greater(t, bounds, 250)
}

// words are the values that a problem says there are.
func words(problem string) []string {
	found := regexp.MustCompile(`(?:must be|write) ((?:[\w-]+, )*[\w-]+(?: or [\w-]+)?)`).FindStringSubmatch(problem)
	if found == nil {
		return nil
	}
	return strings.Split(strings.ReplaceAll(found[1], " or ", ", "), ", ")
}

// Any value may come from a variable.
func TestTheSchemaAcceptsAVariableInThePlaceOfEveryValue(t *testing.T) {
	t.Parallel()
	tried := 0
	for _, text := range everything(t) {
		for _, c := range replaced(t, text, func(value *yaml.Node) []string {
			if value.Kind != yaml.ScalarNode || strings.Contains(value.Value, "${") {
				return nil
			}
			return []string{"${VALUE}"}
		}) {
			env := usual()
			others := env.Lookup
			env.Lookup = func(name string) (string, bool) {
				if name == "VALUE" {
					return c.node.Value, true
				}
				return others(name)
			}
			require.Empty(t, decode(c.text, env), c.path)
			value, _ := document(c.text)
			require.Empty(t, refused(value), c.path)
			tried++
		}
	}
	require.Greater(t, tried, 200)
}
