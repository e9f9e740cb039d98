package cluster_test

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"mnsrelay/test/k8s/cluster"
)

// deployment is one that says nothing about security, but for what is filled in.
const deployment = `apiVersion: apps/v1
kind: Deployment
metadata: {name: NAME}
spec:
  selector: {matchLabels: {app: NAME}}
  template:
    metadata: {labels: {app: NAME}}
    spec:
      containers: [{name: it, image: localhost/none:1, SECURITY}]
`

func TestPodsAreMadeOnlyWhereTheyAreRestricted(t *testing.T) {
	t.Parallel()
	c, err := cluster.Start(t.Context(), t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })

	for name, security := range map[string]string{
		"loose": `securityContext: {runAsNonRoot: false}`,
		"tight": `securityContext: {runAsNonRoot: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}, seccompProfile: {type: RuntimeDefault}}`,
	} {
		apply := c.Command(t.Context(), "kubectl", "apply", "-f-")
		apply.Stdin = strings.NewReader(strings.NewReplacer("NAME", name, "SECURITY", security).Replace(deployment))
		_, err := cluster.Output(apply)
		require.NoError(t, err, "the API server takes both: only its pods are refused")
	}

	_, err = c.Kubectl(t.Context(), "wait", "--for=create", "--timeout=60s", "pod", "-l", "app=tight")
	require.NoError(t, err)
	_, err = c.Kubectl(t.Context(), "wait", "--for=jsonpath={.status.conditions[?(@.type=='ReplicaFailure')].reason}=FailedCreate", "--timeout=60s", "deployment/loose")
	require.NoError(t, err)
	pods, err := c.Kubectl(t.Context(), "get", "pods", "-l", "app=loose", "-o", "name")
	require.NoError(t, err)
	require.Empty(t, pods)
}

func TestCommandsSayWhatTheyWrote(t *testing.T) {
	t.Parallel()
	_, err := cluster.Output(exec.CommandContext(t.Context(), "ls", "/there-is-no-such-folder"))
	require.ErrorContains(t, err, "run ls /there-is-no-such-folder: exit status 2")
	require.ErrorContains(t, err, "No such file or directory")
}
