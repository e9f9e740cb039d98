// Package install_test installs the chart on a real Kubernetes API as its users do, with
// both versions of Helm and in every value set of the chart. There is no node: what is
// shown is what the API server and its controllers make of the objects, not what pods do.
package install_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"mnsrelay/test/k8s/cluster"
)

var (
	shared *cluster.Cluster
	chart  string
	kinds  string // all that can be in a namespace, as kubectl get takes them
)

func TestMain(m *testing.M) {
	code, err := startAndRun(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func startAndRun(m *testing.M) (code int, err error) {
	root, err := cluster.Root()
	if err != nil {
		return 0, err
	}
	chart = filepath.Join(root, "helm", "mnsrelay")
	ctx := context.Background()
	if shared, err = cluster.Start(ctx, ""); err != nil {
		return 0, err
	}
	defer func() {
		if closing := shared.Close(); err == nil {
			err = closing
		}
	}()
	if err := shared.Define(ctx); err != nil {
		return 0, err
	}
	names, err := shared.Kubectl(ctx, "api-resources", "--namespaced", "--verbs=list,delete", "--output=name")
	if err != nil {
		return 0, err
	}
	kinds = strings.Join(strings.Fields(names), ",")
	return m.Run(), nil
}

// versions are the two of Helm, as make leaves them.
var versions = []string{"helm3", "helm4"}

// base is the value set that the others are upgraded from and to.
const base = "default-values.yaml"

// valueSets are the names of the chart's value sets.
func valueSets(t *testing.T) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(chart, "ci", "*-values.yaml"))
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(paths), 12, "%s/ci shows each feature of the chart in a value set", chart)
	var names []string
	for _, path := range paths {
		names = append(names, filepath.Base(path))
	}
	require.Contains(t, names, base)
	return names
}

func TestValueSets(t *testing.T) {
	t.Parallel()
	for _, version := range versions {
		for _, set := range valueSets(t) {
			t.Run(version+"/"+strings.TrimSuffix(set, "-values.yaml"), func(t *testing.T) {
				t.Parallel()
				r := newRelease(t, version)

				r.apply("install", base)
				objects := r.owned()
				before := r.manifest()
				r.apply("upgrade", set)
				r.createHooks()
				there := r.manifest()
				r.apply("upgrade", set)
				require.Equal(t, there, r.manifest(), "the same values twice make the same objects")
				r.diff(there)
				r.apply("upgrade", base)
				require.Equal(t, before, r.manifest())
				r.diff(before)
				require.Equal(t, objects, r.owned(), "only the objects of %s are left", base)
				// The third revision is the one that was applied twice.
				r.helm("rollback", r.name, "3")
				r.awaitPods()
				require.Equal(t, there, r.manifest())
				r.diff(there)
				r.uninstall()

				// Where an earlier release has left what it keeps.
				r.apply("install", set)
				require.Equal(t, there, r.manifest())
				r.diff(there)
				r.uninstall()
			})
		}
	}
}

// What those take who do not use Helm.
func TestPlainManifests(t *testing.T) {
	t.Parallel()
	r := &release{t: t, namespace: "mnsrelay"}
	_, err := shared.Kubectl(t.Context(), "create", "namespace", r.namespace)
	require.NoError(t, err)
	path := filepath.Join(chart, "..", "..", "configs", "kubernetes", "mnsrelay.yaml")
	_, err = r.kubectl("", "apply", "--filename="+path)
	require.NoError(t, err)
	r.awaitPods()
	manifest, err := os.ReadFile(path)
	require.NoError(t, err)
	r.diff(string(manifest))
	_, err = r.kubectl("", "delete", "--filename="+path)
	require.NoError(t, err)
	r.requireNothingLeft("kubectl delete")
}

// release is the chart installed in a namespace of its own.
type release struct {
	t         *testing.T
	version   string // of Helm: its program
	name      string
	namespace string
}

func newRelease(t *testing.T, version string) *release {
	t.Helper()
	r := &release{t: t, version: version, name: "relay", namespace: strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name()))}
	_, err := shared.Kubectl(t.Context(), "create", "namespace", r.namespace)
	require.NoError(t, err)
	return r
}

// known begins what Helm 4 warns of at each rollback to a volume that was kept meanwhile.
const known = `level=WARN msg="resource exists on cluster but not in original release`

// helm runs Helm, which must not warn: of a field that is deprecated or unknown, or of a
// pod that would not be let in.
func (r *release) helm(args ...string) string {
	r.t.Helper()
	cmd := shared.Command(r.t.Context(), r.version, append(args, "--namespace", r.namespace)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	require.NoError(r.t, err, "%s %s:\n%s", r.version, strings.Join(args, " "), &stderr)
	for line := range strings.Lines(stderr.String()) {
		require.True(r.t, strings.HasPrefix(line, known), "%s %s warns: %s", r.version, strings.Join(args, " "), line)
	}
	return stdout.String()
}

// kubectl runs kubectl with something to read, and gives what it wrote.
func (r *release) kubectl(stdin string, args ...string) (string, error) {
	cmd := shared.Command(r.t.Context(), "kubectl", append(args, "--namespace", r.namespace)...)
	cmd.Stdin = strings.NewReader(stdin)
	return cluster.Output(cmd)
}

// apply installs or upgrades to a value set, and waits until its pods are made.
func (r *release) apply(verb, set string) {
	r.t.Helper()
	r.helm(verb, r.name, chart, "--values", filepath.Join(chart, "ci", set))
	r.awaitPods()
}

func (r *release) manifest() string {
	r.t.Helper()
	return r.helm("get", "manifest", r.name)
}

// diff requires that the API server holds what a manifest says, field by field.
func (r *release) diff(manifest string) {
	r.t.Helper()
	out, err := r.kubectl(manifest, "diff", "-f-")
	require.NoError(r.t, err, "%s", out)
}

// createHooks lets the API server check what only `helm test` creates: pods, which are
// refused where they are not restricted.
func (r *release) createHooks() {
	r.t.Helper()
	hooks := r.helm("get", "hooks", r.name)
	require.Contains(r.t, hooks, "kind: Pod", "the chart has a pod for helm test")
	_, err := r.kubectl(hooks, "create", "--dry-run=server", "-f-")
	require.NoError(r.t, err)
}

// patience bounds how long controllers may take; they mostly take less than a second.
const patience = 2 * time.Minute

// eventually asks again until there is nothing to complain about.
func (r *release) eventually(complaint func() string) {
	r.t.Helper()
	timeout := time.After(patience)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		text := complaint()
		if text == "" {
			return
		}
		select {
		case <-tick.C:
		case <-timeout:
			require.Fail(r.t, text)
		}
	}
}

// awaitPods waits until the Deployment's new pods have been made: admission refuses a pod
// where it is made, not where a Deployment asks for it.
func (r *release) awaitPods() {
	r.t.Helper()
	r.eventually(func() string {
		out, err := r.kubectl("", "get", "deployments", "--output=json")
		require.NoError(r.t, err)
		var list appsv1.DeploymentList
		require.NoError(r.t, json.Unmarshal([]byte(out), &list))
		require.NotEmpty(r.t, list.Items, "the chart makes a Deployment")
		for _, d := range list.Items {
			for _, c := range d.Status.Conditions {
				require.False(r.t, c.Type == appsv1.DeploymentReplicaFailure && c.Status == corev1.ConditionTrue, "%s: %s", d.Name, c.Message)
			}
			if d.Status.ObservedGeneration < d.Generation || d.Status.UpdatedReplicas == 0 {
				return fmt.Sprintf("Deployment %s has no new pod: %+v", d.Name, d.Status)
			}
		}
		return ""
	})
}

// object is one of a namespace, whatever its kind.
type object struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
}

// objects are all of the namespace but those that Kubernetes itself puts into each.
func (r *release) objects() []object {
	r.t.Helper()
	var list struct{ Items []object }
	out, err := r.kubectl("", "get", kinds, "--output=json")
	require.NoError(r.t, err)
	require.NoError(r.t, json.Unmarshal([]byte(out), &list))
	return slices.DeleteFunc(list.Items, func(o object) bool {
		switch o.Kind {
		case "Event":
			return true
		case "ServiceAccount":
			return o.Name == "default"
		case "ConfigMap":
			return o.Name == "kube-root-ca.crt"
		}
		return false
	})
}

// kept tells whether the chart asks Helm to leave an object when the release goes: a volume
// with dead letters on it.
func (o object) kept() bool { return o.Annotations["helm.sh/resource-policy"] == "keep" }

// owned names the objects that Helm made for the release, but for those that are kept. A
// ReplicaSet has the annotations of its Deployment, and belongs to that.
func (r *release) owned() []string {
	r.t.Helper()
	var names []string
	for _, o := range r.objects() {
		if o.Annotations["meta.helm.sh/release-name"] == r.name && len(o.OwnerReferences) == 0 && !o.kept() {
			names = append(names, o.Kind+"/"+o.Name)
		}
	}
	require.NotEmpty(r.t, names)
	slices.Sort(names)
	return names
}

// uninstall removes the release and requires that it leaves nothing but what it keeps.
func (r *release) uninstall() {
	r.t.Helper()
	r.helm("uninstall", r.name)
	r.requireNothingLeft("helm uninstall")
}

func (r *release) requireNothingLeft(by string) {
	r.t.Helper()
	r.eventually(func() string {
		var left []string
		for _, o := range r.objects() {
			if !o.kept() {
				left = append(left, o.Kind+"/"+o.Name)
			}
		}
		if len(left) > 0 {
			return by + " leaves " + strings.Join(left, ", ")
		}
		return ""
	})
}
