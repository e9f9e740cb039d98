// Package contract holds answers of the API against api/openapi.yaml.
package contract

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v4"

	"mnsrelay/api"
)

// Contract is openapi.yaml as a validator of answers. It is safe for concurrent use.
type Contract struct {
	doc     map[string]any
	schemas map[string]*jsonschema.Schema
}

// New reads the document.
func New() (*Contract, error) {
	c := &Contract{schemas: make(map[string]*jsonschema.Schema)}
	if err := yaml.Unmarshal(api.OpenAPI, &c.doc); err != nil {
		return nil, fmt.Errorf("read openapi.yaml: %w", err)
	}
	// The validator wants numbers as it reads them itself.
	text, err := json.Marshal(c.doc)
	if err != nil {
		return nil, fmt.Errorf("read openapi.yaml: %w", err)
	}
	resource, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("read openapi.yaml: %w", err)
	}
	compiler := jsonschema.NewCompiler()
	compiler.DefaultDraft(jsonschema.Draft2020)
	compiler.AssertFormat()
	if err := compiler.AddResource("openapi.json", resource); err != nil {
		return nil, fmt.Errorf("read openapi.yaml: %w", err)
	}
	schemas, _ := c.at("components", "schemas")
	for name := range schemas {
		ref := "#/components/schemas/" + name
		if c.schemas[ref], err = compiler.Compile("openapi.json" + ref); err != nil {
			return nil, fmt.Errorf("compile %s: %w", ref, err)
		}
	}
	return c, nil
}

// Operations are the methods of each path, in lower case, and whether they need the
// operator's token.
func (c *Contract) Operations() map[string]map[string]bool {
	out := make(map[string]map[string]bool)
	for path, item := range c.doc["paths"].(map[string]any) {
		out[path] = make(map[string]bool)
		for method, operation := range item.(map[string]any) {
			_, secured := operation.(map[string]any)["security"]
			out[path][method] = secured
		}
	}
	return out
}

// Check holds an answer to a request of url, a path with or without a query, against what
// the document says of it. A path that it does not have gets problem documents.
func (c *Contract) Check(method, url string, code int, header http.Header, body []byte) error {
	if err := c.check(strings.ToLower(method), url, code, header, body); err != nil {
		return fmt.Errorf("the answer %d to %s %s is not that of openapi.yaml: %w: %.1000s", code, method, url, err, body)
	}
	return nil
}

func (c *Contract) check(method, url string, code int, header http.Header, body []byte) error {
	response, found := c.at("components", "responses", "Problem")
	path, _, _ := strings.Cut(url, "?")
	if template, described := c.template(path); described {
		if responses, has := c.at("paths", template, method, "responses"); has {
			status := strconv.Itoa(code)
			if _, has := responses[status]; !has {
				status = "default"
				if code < 400 {
					return errors.New("it has no such status")
				}
			}
			response, found = c.at("paths", template, method, "responses", status)
		}
	}
	if !found {
		return errors.New("it has no such answer")
	}
	for name := range response["headers"].(map[string]any) {
		if header.Get(name) == "" {
			return fmt.Errorf("the header %s is missing", name)
		}
	}
	mediaType, _, err := mime.ParseMediaType(header.Get("Content-Type"))
	if err != nil {
		return fmt.Errorf("read Content-Type: %w", err)
	}
	media, has := response["content"].(map[string]any)[mediaType].(map[string]any)
	if !has {
		return fmt.Errorf("it does not have the type %s", mediaType)
	}
	ref, isRef := media["schema"].(map[string]any)["$ref"].(string)
	if !isRef {
		return nil // text
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("read the body: %w", err)
	}
	if err := c.schemas[ref].Validate(value); err != nil {
		return fmt.Errorf("validate the body: %w", err)
	}
	return nil
}

// template gives the path of the document that a path of a request is of.
func (c *Contract) template(path string) (template string, found bool) {
	asked := strings.Split(path, "/")
	for candidate := range c.doc["paths"].(map[string]any) {
		parts := strings.Split(candidate, "/")
		same := len(parts) == len(asked)
		for i := 0; same && i < len(parts); i++ {
			same = parts[i] == asked[i] || strings.HasPrefix(parts[i], "{") && asked[i] != ""
		}
		if same {
			return candidate, true
		}
	}
	return "", false
}

// at follows path through the document, and a $ref wherever there is one.
func (c *Contract) at(path ...string) (node map[string]any, found bool) {
	node = c.doc
	for _, key := range path {
		next, ok := node[key].(map[string]any)
		if !ok {
			return nil, false
		}
		node = next
		if ref, ok := node["$ref"].(string); ok {
			if node, ok = c.at(strings.Split(ref, "/")[1:]...); !ok {
				return nil, false
			}
		}
	}
	return node, true
}
