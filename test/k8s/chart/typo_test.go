package chart_test

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"mnsrelay/test/k8s/chart"
	"mnsrelay/test/k8s/cluster"
)

// free are mappings whose keys are the user's own, so that none can be wrong: by the last
// part of their path, or by the whole.
func free() map[string]bool {
	return map[string]bool{
		"annotations": true, "labels": true, "commonLabels": true, "podLabels": true, "podAnnotations": true,
		"deploymentAnnotations": true, "matchLabels": true, "nodeSelector": true, "global": true,
		"headers": true, "arguments": true,
		"config.sources": true, "config.sinks": true,
	}
}

// typo is a value set with one key that is wrong.
type typo struct {
	path   string // of the mapping, as a schema's error names it
	key    string
	values map[string]any
}

// typos makes one of each key of a value set that can be wrong.
func typos(t *testing.T, values map[string]any) (out []typo) {
	t.Helper()
	text, err := yaml.Marshal(values)
	require.NoError(t, err)
	// Each has values of its own: the same walk, and a change at the end of it.
	fresh := func(path []any) (root map[string]any, at map[string]any) {
		require.NoError(t, yaml.Unmarshal(text, &root))
		node := any(root)
		for _, step := range path {
			switch s := step.(type) {
			case string:
				node = node.(map[string]any)[s]
			case int:
				node = node.([]any)[s]
			}
		}
		return root, node.(map[string]any)
	}
	var walk func(node any, path []any)
	walk = func(node any, path []any) {
		switch n := node.(type) {
		case map[string]any:
			pointer, last := "", ""
			var dotted []string
			for _, step := range path {
				last = fmt.Sprint(step)
				dotted = append(dotted, last)
			}
			if len(dotted) > 0 {
				pointer = "/" + strings.Join(dotted, "/")
			}
			for _, key := range slices.Sorted(maps.Keys(n)) {
				walk(n[key], append(slices.Clone(path), key))
				if free()[last] || free()[strings.Join(dotted, ".")] {
					continue
				}
				root, at := fresh(path)
				at[key+"x"] = at[key]
				delete(at, key)
				out = append(out, typo{path: pointer, key: key + "x", values: root})
			}
		case []any:
			for i := range n {
				walk(n[i], append(slices.Clone(path), i))
			}
		}
	}
	walk(values, nil)
	return out
}

func schemaOf(t *testing.T) *jsonschema.Schema {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(folder(t), "values.schema.json"))
	require.NoError(t, err)
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	require.NoError(t, err)
	compiler := jsonschema.NewCompiler()
	require.NoError(t, compiler.AddResource("values.json", document))
	schema, err := compiler.Compile("values.json")
	require.NoError(t, err)
	return schema
}

// everything is values.yaml with the configuration of a value set.
func everything(t *testing.T) map[string]any {
	t.Helper()
	all := values(t, filepath.Join(folder(t), "values.yaml"))
	all["config"] = values(t, valueSets(t)["default"])["config"]
	return all
}

// A key with a letter too many is refused wherever it is, in any value set and in
// values.yaml itself, and the error names the mapping that it is in.
func TestTyposAreRefused(t *testing.T) {
	schema := schemaOf(t)
	sets := map[string]map[string]any{"values.yaml": everything(t)}
	for set, path := range valueSets(t) {
		sets[set] = values(t, path)
	}
	for set, values := range sets {
		require.NoError(t, schema.Validate(values), set)
		for _, typo := range typos(t, values) {
			err := schema.Validate(typo.values)
			require.Error(t, err, "%s: %s/%s", set, typo.path, typo.key)
			require.Contains(t, err.Error(), "at '"+typo.path+"'", "%s: %s/%s", set, typo.path, typo.key)
			if typo.key != "typex" { // without its type nothing is known of a sink
				require.Contains(t, err.Error(), "'"+typo.key+"'", "%s: %s/%s", set, typo.path, typo.key)
			}
		}
	}
}

// So is a word that Kubernetes does not know, and a resource that is called like none.
func TestWrongWordsAreRefused(t *testing.T) {
	schema := schemaOf(t)
	for more, at := range map[string]string{
		"podSecurityContext: {seccompProfile: {type: runtimeDefault}}":                                                                                                   "/podSecurityContext/seccompProfile/type",
		"securityContext: {seccompProfile: {type: RuntimeDefaults}}":                                                                                                     "/securityContext/seccompProfile/type",
		"podSecurityContext: {fsGroupChangePolicy: Never}":                                                                                                               "/podSecurityContext/fsGroupChangePolicy",
		"tolerations: [{key: a, operator: Exist}]":                                                                                                                       "/tolerations/0/operator",
		"tolerations: [{key: a, operator: Exists, effect: NoSchedul}]":                                                                                                   "/tolerations/0/effect",
		"topologySpreadConstraints: [{topologyKey: a, maxSkew: 1, whenUnsatisfiable: Ignore}]":                                                                           "/topologySpreadConstraints/0/whenUnsatisfiable",
		"topologySpreadConstraints: [{topologyKey: a, maxSkew: 1, whenUnsatisfiable: DoNotSchedule, nodeTaintsPolicy: honor}]":                                           "/topologySpreadConstraints/0/nodeTaintsPolicy",
		"affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: a, operator: Is}]}]}}}":                "/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms/0/matchExpressions/0/operator",
		"affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: a, labelSelector: {matchExpressions: [{key: a, operator: Gt}]}}]}}": "/affinity/podAntiAffinity/requiredDuringSchedulingIgnoredDuringExecution/0/labelSelector/matchExpressions/0/operator",
		"resources: {limits: {mem: 1Gi}}":                                                                                                                                "/resources/limits",
		"resources: {requests: {CPU: 1}}":                                                                                                                                "/resources/requests",
		"persistence: {accessModes: [ReadWriteMany]}":                                                                                                                    "/persistence/accessModes/0",
		"initContainers: [{name: a, image: b, resources: {limits: {ram: 1}}}]":                                                                                           "/initContainers/0/resources/limits",
	} {
		all := everything(t)
		require.NoError(t, yaml.Unmarshal([]byte(more), &all))
		err := schema.Validate(all)
		require.Error(t, err, more)
		require.Contains(t, err.Error(), "at '"+at+"'", more)
	}
	all := everything(t)
	require.NoError(t, yaml.Unmarshal([]byte(
		"resources: {limits: {memory: 1Gi, hugepages-2Mi: 2Mi, aliyun.com/gpu-mem: 1}}\ntolerations: [{operator: Exists, effect: ''}]\n"), &all))
	require.NoError(t, schema.Validate(all))
}

// lint runs `helm lint` on values.
func lint(t *testing.T, version string, values map[string]any) (string, error) {
	t.Helper()
	text, err := yaml.Marshal(values)
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "values.yaml")
	require.NoError(t, os.WriteFile(path, text, 0o600))
	cmd, err := chart.Helm(t.Context(), version, "lint", folder(t), "--kube-version", chart.Kube, "--values", path)
	require.NoError(t, err)
	return cluster.Output(cmd)
}

// Both versions of Helm say so: one run names every typo there is.
func TestLint(t *testing.T) {
	values := everything(t)
	possible := typos(t, values)
	var wrong []typo
	var add func(node any, pointer string)
	add = func(node any, pointer string) {
		switch n := node.(type) {
		case map[string]any:
			for _, key := range slices.Sorted(maps.Keys(n)) {
				add(n[key], pointer+"/"+key)
			}
			for _, typo := range possible {
				if typo.path == pointer {
					wrong = append(wrong, typo)
					n[typo.key] = true
				}
			}
		case []any:
			for i := range n {
				add(n[i], fmt.Sprintf("%s/%d", pointer, i))
			}
		}
	}
	changed := everything(t)
	add(changed, "")
	require.GreaterOrEqual(t, len(wrong), 100)
	for _, version := range chart.Versions() {
		out, err := lint(t, version, values)
		require.NoError(t, err, out)
		out, err = lint(t, version, changed)
		require.Error(t, err)
		for _, typo := range wrong {
			require.Regexp(t, "at '"+typo.path+"': additional properties .*'"+typo.key+"'", out, version)
		}
		// What has no values at all is told what is missing.
		out, err = lint(t, version, map[string]any{})
		require.Error(t, err)
		require.Contains(t, out, "at '/config': missing properties 'sources', 'sinks'")
	}
}

// Each value is in the schema, and each of the schema is a value.
func TestValuesAreThoseOfTheSchema(t *testing.T) {
	schema := schemaOf(t)
	written := everything(t)
	for name := range written {
		require.Contains(t, schema.Properties, name)
	}
	for name := range schema.Properties {
		if name != "global" && name != "enabled" { // what a parent chart may pass down
			require.Contains(t, written, name)
		}
	}
}
