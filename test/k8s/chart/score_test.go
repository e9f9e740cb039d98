package chart_test

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"mnsrelay/test/k8s/chart"
	"mnsrelay/test/k8s/cluster"
)

// exceptions are checks of kube-score that the chart does not meet on purpose, with the
// object and the reason. One that is met after all is to be removed: the test says so.
func exceptions() map[string]string {
	const (
		policy = "whether a policy is enforced, and who may reach what, is the cluster's: networkPolicy.enabled makes one"
		pull   = "a tag of ours is never moved, and with Always a registry that is down keeps a pod from starting again; image.pullPolicy"
	)
	const ephemeral = "logs count, and a pod over the limit is killed after one second: it has a request alone"
	return map[string]string{
		"Deployment container-ephemeral-storage-request-and-limit": ephemeral,
		"Pod container-ephemeral-storage-request-and-limit":        ephemeral,
		"Deployment pod-networkpolicy":                             policy,
		"Pod pod-networkpolicy":                                    "the pod of helm test lives for a second and asks one Service; it reaches what the namespace lets it",
		"Deployment container-image-pull-policy":                   pull,
		"Pod container-image-pull-policy":                          pull,
	}
}

// kube-score finds nothing critical in any value set. A limit of CPU is not asked for: it
// would slow the renewal of leases when there is most to do.
func TestScore(t *testing.T) {
	bin, err := cluster.Bin()
	require.NoError(t, err)
	used := map[string]bool{}
	for set, path := range valueSets(t) {
		var stdout, stderr bytes.Buffer
		cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "kube-score"), "score", "--kubernetes-version", "v1.36",
			"--ignore-container-cpu-limit", "--output-format", "json", "-")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(render(t, chart.Versions()[0], path)), &stdout, &stderr
		err := cmd.Run()
		if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 1 { //nolint:errorlint // It is what Run gives; 1: something is critical.
			require.NoError(t, err, stderr.String())
		}
		var scored []struct {
			ObjectName string                `json:"object_name"`
			TypeMeta   struct{ Kind string } `json:"type_meta"`
			Checks     []struct {
				Check    struct{ ID string }
				Grade    int
				Skipped  bool
				Comments []struct{ Summary, Path string }
			}
		}
		require.NoError(t, json.Unmarshal(stdout.Bytes(), &scored), stderr.String())
		require.NotEmpty(t, scored)
		for _, object := range scored {
			for _, c := range object.Checks {
				if c.Skipped || c.Grade > 1 {
					continue
				}
				name := object.TypeMeta.Kind + " " + c.Check.ID
				require.Contains(t, exceptions(), name, "%s: %s: %+v", set, object.ObjectName, c.Comments)
				used[name] = true
			}
		}
	}
	for name := range exceptions() {
		require.True(t, used[name], "kube-score has no objection called %q: remove the exception", name)
	}
}
