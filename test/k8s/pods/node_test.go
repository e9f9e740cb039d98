package pods_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/test/k8s/cluster"
	"mnsrelay/test/process"
)

// node is a kubelet with a container runtime and a network of pods of its own. Several run
// side by side: they share the network of the sandbox, where each has an address, and
// nothing else. They end with the sandbox.
type node struct {
	t    *testing.T
	name string
	ip   string
	dir  string
}

// startNode starts the number-th node, from 1, without waiting until it is ready.
func startNode(t *testing.T, c *cluster.Cluster, number int, images ...string) *node {
	t.Helper()
	n := &node{
		t: t, name: fmt.Sprintf("node-%d", number), ip: fmt.Sprintf("10.88.0.%d", number),
		dir: filepath.Join(os.TempDir(), fmt.Sprintf("node-%d", number)),
	}
	n.run("ip", "address", "add", n.ip+"/32", "dev", "lo")
	n.write("cni/pods.conflist", fmt.Sprintf(`{
  "cniVersion": "0.4.0",
  "name": %q,
  "plugins": [{
    "type": "ptp",
    "ipam": {
      "type": "host-local",
      "dataDir": %q,
      "ranges": [[{"subnet": "10.88.%d.0/24"}]],
      "routes": [{"dst": "0.0.0.0/0"}]
    }
  }]
}`, n.name, n.path("addresses"), number))
	n.write("containerd.toml", fmt.Sprintf(`version = 2
root = %q
state = %q
[grpc]
  address = %q
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %q
  restrict_oom_score_adj = true
  disable_tcp_service = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = %q
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
[plugins."io.containerd.internal.v1.opt"]
  path = %q
`, n.path("containerd"), n.path("state"), n.path("containerd.sock"), pauseImage, n.path("cni"), n.path("opt")))
	// Anonymous callers may do all: nobody but the API server reaches the sandbox's network.
	n.write("kubelet.yaml", fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: %[1]s
healthzPort: 0
readOnlyPort: 0
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
cgroupRoot: %[2]s
cgroupsPerQOS: false
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
containerRuntimeEndpoint: unix://%[3]s
podLogsDir: %[4]s
evictionHard: {memory.available: 100Mi}
imageGCHighThresholdPercent: 100
nodeStatusUpdateFrequency: 5s
`, n.ip, os.Getenv("MNSRELAY_CGROUP"), n.path("containerd.sock"), n.path("logs")))

	n.start("containerd", "--config", n.path("containerd.toml"))
	n.await("containerd", func(ctx context.Context) error {
		_, err := cluster.Output(n.ctr(ctx, "version"))
		return err
	})
	for _, image := range images {
		_, err := cluster.Output(n.ctr(t.Context(), "images", "import", image))
		require.NoError(t, err)
	}
	bin, err := cluster.Bin()
	require.NoError(t, err)
	n.start(filepath.Join(bin, "kubelet"), "--config="+n.path("kubelet.yaml"), "--kubeconfig="+c.Kubeconfig(),
		"--hostname-override="+n.name, "--node-ip="+n.ip, "--root-dir="+n.path("kubelet"), "--cert-dir="+n.path("certs"))
	return n
}

func (n *node) path(name string) string { return filepath.Join(n.dir, name) }

func (n *node) write(name, content string) {
	n.t.Helper()
	require.NoError(n.t, os.MkdirAll(filepath.Dir(n.path(name)), 0o755))
	require.NoError(n.t, os.WriteFile(n.path(name), []byte(content), 0o600))
}

func (n *node) run(name string, args ...string) {
	n.t.Helper()
	_, err := cluster.Output(exec.CommandContext(n.t.Context(), name, args...))
	require.NoError(n.t, err)
}

func (n *node) ctr(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "ctr", append([]string{"--address", n.path("containerd.sock"), "--namespace", "k8s.io"}, args...)...)
}

// start starts a program whose last lines are shown if the test fails.
func (n *node) start(program string, args ...string) {
	n.t.Helper()
	output := process.NewOutput("")
	started, err := process.Start(exec.Command(program, args...), output) //nolint:noctx // It lives as long as the sandbox.
	require.NoError(n.t, err)
	n.t.Cleanup(func() {
		select {
		case <-started.Done():
			n.t.Errorf("%s on %s: %v", filepath.Base(program), n.name, started.Outcome())
		default:
		}
		if n.t.Failed() {
			n.t.Logf("%s on %s wrote last:\n%s", filepath.Base(program), n.name, output.Tail())
		}
	})
}

// tag gives the tag of the one image of a repository that was imported.
func (n *node) tag(repository string) string {
	n.t.Helper()
	names, err := cluster.Output(n.ctr(n.t.Context(), "images", "list", "--quiet"))
	require.NoError(n.t, err)
	for name := range strings.Lines(names) {
		if tag, found := strings.CutPrefix(strings.TrimSpace(name), repository+":"); found {
			return tag
		}
	}
	require.Failf(n.t, "the image is not there", "%s has only\n%s", n.name, names)
	return ""
}

// await asks until there is no error.
func (n *node) await(what string, ask func(context.Context) error) {
	n.t.Helper()
	eventually(n.t, 30*time.Second, what+" answers on "+n.name, func() bool {
		ctx, cancel := context.WithTimeout(n.t.Context(), 5*time.Second)
		defer cancel()
		return ask(ctx) == nil
	})
}
