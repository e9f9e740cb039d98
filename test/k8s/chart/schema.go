// Package chart makes what is generated of the Helm chart, and its tests say when that is
// stale and what the chart renders: go test ./chart -update writes it.
package chart

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"sigs.k8s.io/yaml"

	"mnsrelay/test/k8s/cluster"
)

// Folder is the chart's.
func Folder() (string, error) {
	root, err := cluster.Root()
	if err != nil {
		return "", err
	}
	return filepath.Join(root, "helm", "mnsrelay"), nil
}

type object = map[string]any

// Schema makes values.schema.json: the chart's own part, descriptions from the comments of
// values.yaml, the relay's schema of its configuration, and what Kubernetes says of the
// types that are passed on to it.
func Schema(ctx context.Context) ([]byte, error) {
	folder, err := Folder()
	if err != nil {
		return nil, err
	}
	own, err := readYAML(filepath.Join(folder, "schema", "values.yaml"))
	if err != nil {
		return nil, err
	}
	values, err := readValues(filepath.Join(folder, "values.yaml"))
	if err != nil {
		return nil, err
	}
	describe(own, values)
	defs, ok := own["$defs"].(object)
	if !ok {
		return nil, errors.New("read schema/values.yaml: it has no $defs")
	}
	if defs["config"], err = configuration(ctx); err != nil {
		return nil, err
	}
	kubernetes, err := Kubernetes(ctx)
	if err != nil {
		return nil, err
	}
	if err := kubernetes.embed(own, defs); err != nil {
		return nil, err
	}
	patterns(own)
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", " ")
	if err := enc.Encode(own); err != nil {
		return nil, fmt.Errorf("write the schema: %w", err)
	}
	return out.Bytes(), nil
}

func readYAML(path string) (object, error) {
	text, err := os.ReadFile(path) //nolint:gosec // A file of the project or of a module.
	if err != nil {
		return nil, fmt.Errorf("read a schema: %w", err)
	}
	var out object
	if err := yaml.UnmarshalStrict(text, &out); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return out, nil
}

// describe puts the comments of values.yaml into the schema.
func describe(schema object, values []Value) {
	for _, v := range values {
		at := schema
		for _, key := range v.Path {
			properties, _ := at["properties"].(object)
			next, ok := properties[key].(object)
			if !ok {
				at = nil
				break
			}
			at = next
		}
		if at != nil && v.Description != "" {
			at["description"] = v.Description
		}
	}
}

// configuration asks the relay for the schema of its configuration, and moves it below
// $defs/config.
func configuration(ctx context.Context) (object, error) {
	root, err := cluster.Root()
	if err != nil {
		return nil, err
	}
	out, err := cluster.Output(exec.CommandContext(ctx, "go", "run", "-C", root, "./cmd/mnsrelay", "schema")) //nolint:gosec // Our own program.
	if err != nil {
		return nil, err
	}
	var schema object
	if err := json.Unmarshal([]byte(out), &schema); err != nil {
		return nil, fmt.Errorf("read what mnsrelay schema prints: %w", err)
	}
	delete(schema, "$schema")
	references(schema, func(ref string) string { return strings.Replace(ref, "#/", "#/$defs/config/", 1) })
	return schema, nil
}

// references changes each $ref below a node.
func references(node any, change func(string) string) {
	switch n := node.(type) {
	case object:
		if ref, ok := n["$ref"].(string); ok {
			n["$ref"] = change(ref)
		}
		for _, child := range n {
			references(child, change)
		}
	case []any:
		for _, child := range n {
			references(child, change)
		}
	}
}

// patterns writes a pattern of the names of properties as patternProperties, which means the
// same: of a name that does not match it, Helm's validator tells a wrong path.
func patterns(node any) {
	switch n := node.(type) {
	case object:
		if names, ok := n["propertyNames"].(object); ok && len(names) == 1 {
			if pattern, ok := names["pattern"].(string); ok {
				n["patternProperties"] = object{pattern: n["additionalProperties"]}
				n["additionalProperties"] = false
				delete(n, "propertyNames")
			}
		}
		for _, child := range n {
			patterns(child)
		}
	case []any:
		for _, child := range n {
			patterns(child)
		}
	}
}

// API is what Kubernetes says of its types: a JSON Schema for each, by its full name
// (io.k8s.api.core.v1.Pod), in which a mapping refuses what it does not name.
type API struct {
	definitions object
	kinds       map[string]string // the name of a type by "apiVersion kind"
	compiler    *jsonschema.Compiler
}

// Kubernetes reads the description of the Kubernetes that the tests run.
func Kubernetes(ctx context.Context) (*API, error) {
	root, err := cluster.Root()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", "k8s.io/kubernetes")
	cmd.Dir = filepath.Join(root, "test", "k8s", "kubernetes")
	out, err := cluster.Output(cmd)
	if err != nil {
		return nil, err
	}
	var module struct{ Dir string }
	if err := json.Unmarshal([]byte(out), &module); err != nil {
		return nil, fmt.Errorf("read where Kubernetes is: %w", err)
	}
	text, err := os.ReadFile(filepath.Join(module.Dir, "api", "openapi-spec", "swagger.json"))
	if err != nil {
		return nil, fmt.Errorf("read Kubernetes' API: %w", err)
	}
	var swagger struct {
		Definitions object `json:"definitions"`
	}
	if err := json.Unmarshal(text, &swagger); err != nil {
		return nil, fmt.Errorf("read Kubernetes' API: %w", err)
	}
	a := &API{swagger.Definitions, map[string]string{}, nil}
	for name, definition := range a.definitions {
		a.name(name, definition)
		harden(definition)
	}
	if quantity, ok := a.definitions[quantity].(object); ok {
		quantity["type"] = []any{"string", "number"}
	}
	if err := a.narrow(); err != nil {
		return nil, err
	}
	return a, nil
}

// words are the values of properties that Kubernetes' description names in prose only. An
// empty one is left where it means something.
func words() map[string][]any {
	const core, meta = "io.k8s.api.core.v1.", "io.k8s.apimachinery.pkg.apis.meta.v1."
	return map[string][]any{
		core + "SeccompProfile type":                         {"RuntimeDefault", "Localhost", "Unconfined"},
		core + "AppArmorProfile type":                        {"RuntimeDefault", "Localhost", "Unconfined"},
		core + "PodSecurityContext fsGroupChangePolicy":      {"OnRootMismatch", "Always"},
		core + "Toleration operator":                         {"", "Exists", "Equal", "Lt", "Gt"},
		core + "Toleration effect":                           {"", "NoSchedule", "PreferNoSchedule", "NoExecute"},
		core + "TopologySpreadConstraint whenUnsatisfiable":  {"DoNotSchedule", "ScheduleAnyway"},
		core + "TopologySpreadConstraint nodeAffinityPolicy": {"Honor", "Ignore"},
		core + "TopologySpreadConstraint nodeTaintsPolicy":   {"Honor", "Ignore"},
		core + "NodeSelectorRequirement operator":            {"In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"},
		meta + "LabelSelectorRequirement operator":           {"In", "NotIn", "Exists", "DoesNotExist"},
	}
}

// narrow adds what the API server checks of what is often written by hand, and its
// description does not say: words, and the names of resources.
func (a *API) narrow() error {
	property := func(definition, name string) (object, error) {
		d, _ := a.definitions[definition].(object)
		properties, _ := d["properties"].(object)
		p, ok := properties[name].(object)
		if !ok {
			return nil, fmt.Errorf("narrow Kubernetes' types: %s has no %s", definition, name)
		}
		return p, nil
	}
	for path, values := range words() {
		definition, name, _ := strings.Cut(path, " ")
		p, err := property(definition, name)
		if err != nil {
			return err
		}
		p["enum"] = values
	}
	for _, name := range []string{"requests", "limits"} {
		p, err := property("io.k8s.api.core.v1.ResourceRequirements", name)
		if err != nil {
			return err
		}
		p["propertyNames"] = object{"pattern": `^(cpu|memory|ephemeral-storage|hugepages-.+|.+/.+)$`}
	}
	return nil
}

// name notes which kinds of object a type is of.
func (a *API) name(name string, definition any) {
	d, _ := definition.(object)
	kinds, _ := d["x-kubernetes-group-version-kind"].([]any)
	if len(kinds) != 1 {
		return // a type of every group, such as DeleteOptions
	}
	kind, _ := kinds[0].(object)
	version := fmt.Sprint(kind["version"])
	if group, _ := kind["group"].(string); group != "" {
		version = group + "/" + version
	}
	a.kinds[version+" "+fmt.Sprint(kind["kind"])] = name
}

const objectMeta = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"

// Define adds the custom resources of the files of CustomResourceDefinitions.
func (a *API) Define(paths []string) error {
	for _, path := range paths {
		text, err := os.ReadFile(path) //nolint:gosec // A file of a module.
		if err != nil {
			return fmt.Errorf("read a definition: %w", err)
		}
		var definition struct {
			Spec struct {
				Group    string
				Names    struct{ Kind string }
				Versions []struct {
					Name   string
					Schema struct{ OpenAPIV3Schema object }
				}
			}
		}
		if err := yaml.Unmarshal(text, &definition); err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		spec := definition.Spec
		for _, version := range spec.Versions {
			schema := version.Schema.OpenAPIV3Schema
			harden(schema)
			properties, ok := schema["properties"].(object)
			if !ok {
				return fmt.Errorf("read %s: version %s has no properties", path, version.Name)
			}
			properties["metadata"] = object{"$ref": apiPrefix + objectMeta}
			kind := spec.Group + "/" + version.Name + " " + spec.Names.Kind
			a.definitions[kind] = schema
			a.kinds[kind] = kind
		}
	}
	return nil
}

// Check tells whether an object is one of its kind: no field is unknown, none that is
// required is missing, each has its type. What Define adds has to be added before.
func (a *API) Check(manifest []byte) error {
	var head struct{ APIVersion, Kind string }
	if err := yaml.Unmarshal(manifest, &head); err != nil {
		return fmt.Errorf("read an object: %w", err)
	}
	kind := head.APIVersion + " " + head.Kind
	name, ok := a.kinds[kind]
	if !ok {
		return fmt.Errorf("there is no kind %q", kind)
	}
	strict, err := yaml.YAMLToJSONStrict(manifest)
	if err != nil {
		return fmt.Errorf("read the %s: %w", head.Kind, err)
	}
	instance, err := jsonschema.UnmarshalJSON(bytes.NewReader(strict))
	if err != nil {
		return fmt.Errorf("read the %s: %w", head.Kind, err)
	}
	if a.compiler == nil {
		a.compiler = jsonschema.NewCompiler()
		if err := a.compiler.AddResource("kubernetes.json", object{"definitions": a.definitions}); err != nil {
			return fmt.Errorf("read Kubernetes' types: %w", err)
		}
	}
	schema, err := a.compiler.Compile("kubernetes.json" + apiPrefix + strings.NewReplacer("/", "~1", " ", "%20").Replace(name))
	if err != nil {
		return fmt.Errorf("read the type %s: %w", name, err)
	}
	if err := schema.Validate(instance); err != nil {
		return fmt.Errorf("check the %s: %w", head.Kind, err)
	}
	return nil
}

// keywords are those of OpenAPI that JSON Schema has too, and that say what is valid.
func keywords() map[string]bool {
	return map[string]bool{
		"type": true, "properties": true, "required": true, "items": true, "additionalProperties": true,
		"enum": true, "$ref": true, "minimum": true, "maximum": true, "pattern": true, "minLength": true,
		"maxLength": true, "minItems": true, "maxItems": true, "anyOf": true, "oneOf": true, "allOf": true, "not": true,
	}
}

// harden turns a schema of OpenAPI into one of JSON Schema that refuses unknown keys.
func harden(node any) {
	n, ok := node.(object)
	if !ok {
		return
	}
	intOrString := n["format"] == "int-or-string" || n["x-kubernetes-int-or-string"] == true
	open := n["x-kubernetes-preserve-unknown-fields"] == true
	known := keywords()
	for key := range n {
		if !known[key] {
			delete(n, key)
		}
	}
	if intOrString {
		n["type"] = []any{"integer", "string"}
	}
	if properties, ok := n["properties"].(object); ok {
		for _, property := range properties {
			harden(property)
		}
		if _, said := n["additionalProperties"]; !said && !open {
			n["additionalProperties"] = false
		}
	}
	harden(n["items"])
	harden(n["additionalProperties"])
}

const apiPrefix = "#/definitions/"

// embed replaces each $ref of the form kubernetes#NAME, and puts the definitions that are
// named, and those that they name, into defs.
func (a *API) embed(schema, defs object) error {
	var (
		wanted []string
		faults []error
	)
	seen := map[string]string{}
	name := func(full string) string {
		short := "kubernetes." + full[strings.LastIndex(full, ".")+1:]
		switch other, ok := seen[short]; {
		case !ok:
			seen[short] = full
			wanted = append(wanted, full)
		case other != full:
			faults = append(faults, fmt.Errorf("%s and %s have one name", full, other))
		}
		return "#/$defs/" + short
	}
	references(schema, func(ref string) string {
		if full, ok := strings.CutPrefix(ref, "kubernetes#"); ok {
			return name(full)
		}
		return ref
	})
	for len(wanted) > 0 {
		full := wanted[0]
		wanted = wanted[1:]
		definition, ok := a.definitions[full].(object)
		if !ok {
			faults = append(faults, fmt.Errorf("kubernetes has no type %s", full))
			continue
		}
		references(definition, func(ref string) string {
			if full, ok := strings.CutPrefix(ref, apiPrefix); ok {
				return name(full)
			}
			return ref
		})
		defs["kubernetes."+full[strings.LastIndex(full, ".")+1:]] = definition
	}
	return errors.Join(faults...)
}

// quantity may be written as a number in YAML, though Kubernetes answers with text.
const quantity = "io.k8s.apimachinery.pkg.api.resource.Quantity"
