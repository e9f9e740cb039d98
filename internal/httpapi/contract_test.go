package httpapi_test

import (
	"bytes"
	"encoding/json"
	"mime"
	"strconv"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v4"

	"mnsrelay/api"
)

// contract is openapi.yaml as a validator of answers.
type contract struct {
	doc      map[string]any
	compiler *jsonschema.Compiler
}

func newContract(t *testing.T) *contract {
	t.Helper()
	var c contract
	require.NoError(t, yaml.Unmarshal(api.OpenAPI, &c.doc))
	// The validator wants numbers as it reads them itself.
	text, err := json.Marshal(c.doc)
	require.NoError(t, err)
	resource, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	require.NoError(t, err)
	c.compiler = jsonschema.NewCompiler()
	c.compiler.DefaultDraft(jsonschema.Draft2020)
	c.compiler.AssertFormat()
	require.NoError(t, c.compiler.AddResource("openapi.json", resource))
	return &c
}

// paths lists what the document describes, all of it or what answers GET.
func (c *contract) paths(get bool) []string {
	var out []string
	for path, methods := range c.doc["paths"].(map[string]any) {
		if _, answers := methods.(map[string]any)["get"]; answers || !get {
			out = append(out, path)
		}
	}
	return out
}

// at follows path through the document, and a $ref where it ends on one.
func (c *contract) at(path ...string) (node map[string]any, found bool) {
	node = c.doc
	for _, key := range path {
		next, ok := node[key].(map[string]any)
		if !ok {
			return nil, false
		}
		node = next
		if ref, ok := node["$ref"].(string); ok {
			var end []string
			for _, part := range bytes.Split([]byte(ref), []byte("/"))[1:] {
				end = append(end, string(part))
			}
			node, ok = c.at(end...)
			if !ok {
				return nil, false
			}
		}
	}
	return node, true
}

// require holds an answer against what the document says of path; a path that it
// does not have gets the default answer of another.
func (c *contract) require(t *testing.T, path string, got answer) {
	t.Helper()
	c.requireMethod(t, "get", path, got)
}

func (c *contract) requireMethod(t *testing.T, method, path string, got answer) {
	t.Helper()
	responses, described := c.at("paths", path, method, "responses")
	if !described {
		responses, _ = c.at("paths", "/livez", "get", "responses")
	}
	code := strconv.Itoa(got.code)
	if _, found := responses[code]; !found {
		code = "default"
		require.GreaterOrEqual(t, got.code, 400, "%s answers a code that openapi.yaml does not have", path)
	}
	base := []string{"paths", path, method, "responses", code}
	if !described {
		base = []string{"components", "responses", "Problem"}
	}
	response, found := c.at(base...)
	require.True(t, found, "no answer %s of %s in openapi.yaml", code, path)

	for name := range response["headers"].(map[string]any) {
		require.NotEmpty(t, got.header.Get(name), "header %s", name)
	}
	mediaType, _, err := mime.ParseMediaType(got.header.Get("Content-Type"))
	require.NoError(t, err)
	content, _ := c.at(append(base, "content")...)
	require.Contains(t, content, mediaType)
	media := content[mediaType].(map[string]any)
	ref, isRef := media["schema"].(map[string]any)["$ref"].(string)
	if !isRef {
		return // text
	}
	schema, err := c.compiler.Compile("openapi.json" + ref)
	require.NoError(t, err)
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(got.body))
	require.NoError(t, err)
	require.NoError(t, schema.Validate(value), "%s", got.body)
}
