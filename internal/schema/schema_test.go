package schema_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"mnsrelay/configs"
	"mnsrelay/internal/config"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/schema"
	"mnsrelay/internal/setting"
	"mnsrelay/test/certs"
)

func TestTheSchemaIsThatOfTheSource(t *testing.T) {
	t.Parallel()
	want, err := schema.Generate("../..")
	require.NoError(t, err)
	require.Equal(t, string(want), string(configs.Schema), "configs/mnsrelay.schema.json is stale: run go generate ./configs")
}

func TestTheReferenceIsThatOfTheSource(t *testing.T) {
	t.Parallel()
	want, err := schema.Reference("../..")
	require.NoError(t, err)
	text, err := os.ReadFile("../../docs/configuration.md")
	require.NoError(t, err)
	require.Equal(t, string(want), string(text), "docs/configuration.md is stale: run make generate")
}

// A template is whole, so that it can be copied, and a value is as it is written.
func TestTheReferenceKeepsTemplatesAndValues(t *testing.T) {
	t.Parallel()
	page, err := schema.Reference("../..")
	require.NoError(t, err)
	for _, template := range regexp.MustCompile(`\{\{.*?\}\}`).FindAllString(string(page), -1) {
		require.NotContains(t, template, "`")
	}
	for key, want := range map[string]string{
		"audit.key":             "`{{ body.biz_id }}`",
		"audit.to":              "`log`, or the name",
		"amqp091.exchange.type": "`topic`, `direct`, `fanout`, `headers` or",
	} {
		_, row, found := strings.Cut(string(page), `<a id="`+key+`">`)
		require.True(t, found, key)
		row, _, _ = strings.Cut(row, "\n")
		require.Contains(t, row, want)
	}
}

// A sink without a section, and a name that is none, are said.
func TestTheReferenceIsWhole(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"<< rest >>":              `docs/configuration.md.in has no << endpoint "amqp091" >>`,
		"<< endpoint \"file\" >>": `docs/configuration.md.in has no << settings "webhook" >>`,
		"<< endpoint \"fax\" >>":  `there is no sink of type "fax"`,
		"<< keys \"fax\" >>":      `the schema defines no "fax"`,
	} {
		root := t.TempDir()
		module, err := filepath.Abs("../..")
		require.NoError(t, err)
		for _, folder := range []string{"internal", "configs"} {
			require.NoError(t, os.Symlink(filepath.Join(module, folder), filepath.Join(root, folder)))
		}
		require.NoError(t, os.Mkdir(filepath.Join(root, "docs"), 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(root, "docs", "configuration.md.in"), []byte(text), 0o600))
		_, err = schema.Reference(root)
		require.ErrorContains(t, err, want)
	}
}

// Whoever puts the schema into another one moves its definitions along.
func TestTheSchemaRefersToItsDefinitionsOnly(t *testing.T) {
	t.Parallel()
	var root map[string]any
	require.NoError(t, json.Unmarshal(configs.Schema, &root))
	definitions, _ := root["$defs"].(map[string]any)
	used := map[string]bool{}
	var walk func(value any, isRoot bool)
	walk = func(value any, isRoot bool) {
		switch value := value.(type) {
		case map[string]any:
			for key, member := range value {
				if target, is := member.(string); is && key == "$ref" {
					name, found := strings.CutPrefix(target, "#/$defs/")
					require.True(t, found, target)
					require.Contains(t, definitions, name)
					used[name] = true
				}
				require.NotContains(t, []string{"$id", "$anchor", "$dynamicRef", "$dynamicAnchor"}, key)
				require.True(t, isRoot || key != "$defs" && key != "$schema", key)
				walk(member, false)
			}
		case []any:
			for _, item := range value {
				walk(item, false)
			}
		}
	}
	walk(root, true)
	require.Len(t, used, len(definitions), "every definition is used")
}

// As a part of the values of a chart the schema says the same, by the path there.
func TestTheSchemaCanBeAPartOfAnother(t *testing.T) {
	t.Parallel()
	moved := strings.ReplaceAll(string(configs.Schema), `"#/$defs/`, `"#/properties/config/$defs/`)
	document, err := jsonschema.UnmarshalJSON(strings.NewReader(`{"properties": {"config": ` + moved + `}}`))
	require.NoError(t, err)
	compiler := jsonschema.NewCompiler()
	require.NoError(t, compiler.AddResource("values.schema.json", document))
	compiled, err := compiler.Compile("values.schema.json")
	require.NoError(t, err)

	values := func(sink string) any {
		value, err := jsonschema.UnmarshalJSON(strings.NewReader(`{"config": {
			"sources": {"sms": {"queue": "Alicom-Queue-1-SmsUp", "to": "events"}},
			"sinks": {"events": {"type": "amqp091", "url": "amqps://host", "exchange": "e"` + sink + `}}}}`))
		require.NoError(t, err)
		return value
	}
	require.NoError(t, compiled.Validate(values("")))
	for sink, want := range map[string]string{
		`, "rotuing_key": "a"`:               `- at '/config/sinks/events': additional properties 'rotuing_key' not allowed`,
		`, "timeout": 30`:                    `- at '/config/sinks/events/timeout': got number, want string`,
		`, "unroutable": "lose"`:             `- at '/config/sinks/events/unroutable': value must be one of 'retry', 'dead_letter', 'drop'`,
		`, "reply": {"in_flight": 0}`:        `- at '/config/sinks/events/reply/in_flight': minimum: got 0, want 1`,
		`, "queues": [{"name": "q", "x":1}]`: `- at '/config/sinks/events/queues/0': additional properties 'x' not allowed`,
	} {
		err := compiled.Validate(values(sink))
		require.Error(t, err)
		t.Log(err)
		require.Contains(t, err.Error(), want)
	}
}

// What a route may set otherwise is what the sink's endpoint binds.
func TestEverySinkBindsItsSettings(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../configs/everything.yaml")
	require.NoError(t, err)
	pair := certs.New(t)
	c, _, err := config.Parse("everything.yaml", text, config.Environment{
		Lookup: func(name string) (string, bool) { return "value-of-" + name, true },
		ReadFile: func(path string) ([]byte, error) {
			switch filepath.Base(path) {
			case "tls.crt":
				return os.ReadFile(pair.ServerCert)
			case "tls.key":
				return os.ReadFile(pair.ServerKey)
			}
			return []byte("0123456789abcdef"), nil
		},
	})
	require.NoError(t, err)
	types := map[string]bool{}
	for _, s := range c.Sinks {
		endpoint, err := s.Settings.Open(relay.SinkDeps{Name: s.Name, Log: zap.NewNop()})
		require.NoError(t, err)
		var bound []setting.Field
		_, err = endpoint.Bind(func(settings any) error {
			bound = setting.Fields(reflect.TypeOf(settings).Elem())
			return nil
		})
		require.NoError(t, err)
		require.Equal(t, keys(bound), keys(schema.Overridable(s.Settings)), s.Type)
		types[s.Type] = true
	}
	require.Len(t, types, len(config.SinkTypes()), "everything.yaml has a sink of each type")
}

func keys(fields []setting.Field) []string {
	keys := []string{}
	for _, f := range fields {
		keys = append(keys, f.Key)
	}
	return keys
}
