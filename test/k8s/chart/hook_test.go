package chart_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"mnsrelay/test/k8s/chart"
	"mnsrelay/test/k8s/cluster"
)

// What the pod of `helm test` runs asks /readyz of the release's Service, passes when the
// answer is yes and fails when it is no.
func TestHook(t *testing.T) {
	program := relayProgram(t)
	for _, set := range []string{"default", "reload", "extras"} {
		text := render(t, chart.Versions()[0], valueSets(t)[set])
		service := find[corev1.Service](t, text, "Service", nil)
		hook := find(t, text, "Pod", func(p corev1.Pod) bool { return p.Annotations["helm.sh/hook"] == "test" }).Spec.Containers[0]
		require.Empty(t, hook.Command)
		for _, status := range []int{http.StatusOK, http.StatusServiceUnavailable} {
			var asked []string
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked = append(asked, r.Method+" "+r.URL.String())
				w.WriteHeader(status)
			}))
			// The server stands where the Service is.
			address := fmt.Sprintf("http://%s.%s.svc:%d", service.Name, service.Namespace, service.Spec.Ports[0].Port)
			var args []string
			replaced := 0
			for _, arg := range hook.Args {
				replaced += strings.Count(arg, address)
				args = append(args, strings.ReplaceAll(arg, address, server.URL))
			}
			require.Equal(t, 1, replaced, "%s: %q does not ask %s", set, hook.Args, address)
			_, err := cluster.Output(exec.CommandContext(t.Context(), program, args...))
			server.Close()
			require.Equal(t, []string{"GET /readyz"}, asked, set)
			if status == http.StatusOK {
				require.NoError(t, err, set)
			} else {
				require.Error(t, err, set)
			}
		}
	}
}

// The notes that an installation ends with name what has been installed. Helm 3 shows them
// only where there is a cluster.
func TestNotes(t *testing.T) {
	for _, set := range []string{"default", "extras", "keda", "persistence", "reload", "rrsa-webhook", "tls"} {
		path := valueSets(t)[set]
		cmd, err := chart.Helm(t.Context(), "helm4", "install", release, folder(t), "--namespace", namespace,
			"--dry-run=client", "--output", "json", "--values", path)
		require.NoError(t, err)
		cmd.Env = append(cmd.Environ(), "KUBECONFIG="+filepath.Join(t.TempDir(), "none"))
		out, err := cluster.Output(cmd)
		require.NoError(t, err)
		var installed struct{ Info struct{ Notes string } }
		require.NoError(t, json.Unmarshal([]byte(out), &installed))
		notes := installed.Info.Notes
		current(t, filepath.Join("testdata", "notes", set+".txt"), []byte(notes))

		text := render(t, chart.Versions()[0], path)
		service := find[corev1.Service](t, text, "Service", nil)
		deployment := find[appsv1.Deployment](t, text, "Deployment", nil)
		all := func(pattern string) (found []string) {
			for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(notes, -1) {
				found = append(found, m[1])
			}
			require.NotEmpty(t, found, "%s: %s", set, pattern)
			return found
		}
		for _, name := range all(`deployment/(\S+)`) {
			require.Equal(t, deployment.Name, name, set)
		}
		for _, forward := range all(`port-forward (\S+ \S+)`) {
			if strings.HasPrefix(forward, "deployment/") {
				require.Equal(t, fmt.Sprintf("deployment/%s %d", deployment.Name, deployment.Spec.Template.Spec.Containers[0].Ports[1].ContainerPort), forward, set)
				continue
			}
			require.Equal(t, fmt.Sprintf("service/%s 8080:%d", service.Name, service.Spec.Ports[0].Port), forward, set)
		}
		for _, space := range all(`(?m)^  (?:kubectl|helm) (?:-n|label namespace) (\S+)`) {
			require.Equal(t, namespace, space, set)
		}
		for _, selector := range all(`logs -l (\S+)`) {
			for pair := range strings.SplitSeq(selector, ",") {
				key, value, _ := strings.Cut(pair, "=")
				require.Equal(t, deployment.Spec.Template.Labels[key], value, set)
			}
		}
		require.Equal(t, []string{release}, all(`helm -n \S+ test (\S+)`), set)
	}
}
