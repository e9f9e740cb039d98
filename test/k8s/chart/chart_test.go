package chart_test

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"mnsrelay/test/k8s/chart"
	"mnsrelay/test/k8s/cluster"
)

var update = flag.Bool("update", false, "write what is generated and the golden files")

// release and namespace are those of every render.
const (
	release   = "relay"
	namespace = "messaging"
)

func folder(t *testing.T) string {
	t.Helper()
	folder, err := chart.Folder()
	require.NoError(t, err)
	return folder
}

// valueSets gives the files of the chart's value sets by their names.
func valueSets(t *testing.T) map[string]string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(folder(t), "ci", "*-values.yaml"))
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(paths), 12)
	sets := map[string]string{}
	for _, path := range paths {
		sets[strings.TrimSuffix(filepath.Base(path), "-values.yaml")] = path
	}
	return sets
}

func values(t *testing.T, path string) map[string]any {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	var out map[string]any
	require.NoError(t, yaml.UnmarshalStrict(text, &out), path)
	return out
}

func render(t *testing.T, version, set string) string {
	t.Helper()
	text, err := chart.Render(t.Context(), version, release, namespace, []string{set})
	require.NoError(t, err)
	return text
}

// documents are the objects of a render, each as its text.
func documents(text string) []string {
	var out []string
	for document := range strings.SplitSeq("\n"+text, "\n---\n") {
		if document = strings.TrimSpace(document); document != "" {
			out = append(out, document)
		}
	}
	return out
}

// current requires that a file is what it is made from, or makes it so.
func current(t *testing.T, path string, want []byte) {
	t.Helper()
	if *update {
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o750))
		require.NoError(t, os.WriteFile(path, want, 0o600))
		return
	}
	got, err := os.ReadFile(path)
	require.NoError(t, err, "make chart writes it")
	require.Equal(t, string(want), string(got), "%s is stale: make chart writes it anew", path)
}

// What is made from something else is as if it were made now. The order is that of their use.
func TestGeneratedIsCurrent(t *testing.T) {
	schema, err := chart.Schema(t.Context())
	require.NoError(t, err)
	current(t, filepath.Join(folder(t), "values.schema.json"), schema)

	readme, err := chart.Readme()
	require.NoError(t, err)
	current(t, filepath.Join(folder(t), "README.md"), readme)

	manifests, err := chart.Manifests(t.Context())
	require.NoError(t, err)
	root, err := cluster.Root()
	require.NoError(t, err)
	current(t, filepath.Join(root, "configs", "kubernetes", "mnsrelay.yaml"), manifests)
}

// Both versions of Helm render each value set to its golden file.
func TestGolden(t *testing.T) {
	sets := valueSets(t)
	for set, path := range sets {
		golden := filepath.Join("testdata", set+".yaml")
		for _, version := range chart.Versions() {
			t.Run(set+"/"+version, func(t *testing.T) {
				// They differ in empty lines between objects.
				text := "---\n" + strings.Join(documents(render(t, version, path)), "\n---\n") + "\n"
				if *update && version != chart.Versions()[0] {
					t.Log("written from the render of " + chart.Versions()[0])
					*update = false
					defer func() { *update = true }()
				}
				current(t, golden, []byte(text))
			})
		}
	}
	files, err := filepath.Glob(filepath.Join("testdata", "*.yaml"))
	require.NoError(t, err)
	for _, file := range files {
		require.Contains(t, sets, strings.TrimSuffix(filepath.Base(file), ".yaml"), "a golden file without a value set: remove it")
	}
}

// relayProgram builds mnsrelay.
func relayProgram(t *testing.T) string {
	t.Helper()
	root, err := cluster.Root()
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "mnsrelay")
	_, err = cluster.Output(exec.CommandContext(t.Context(), "go", "build", "-C", root, "-o", path, "./cmd/mnsrelay"))
	require.NoError(t, err)
	return path
}
