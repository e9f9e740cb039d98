package pods_test

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"mnsrelay/test/k8s/cluster"
)

// soon is how long the last messages may take to arrive where nothing waits for a lease to
// end: much less than a lease.
const soon = visibility / 2

// One cluster for all of it: what is taken away is given back before the next.
func TestNoMessageIsLost(t *testing.T) {
	w := newWorld(t)
	run := func(name string, do func(w *world)) {
		if !t.Run(name, func(t *testing.T) { do(w.with(t)) }) {
			t.FailNow()
		}
	}

	run("as a pod, restricted", func(w *world) {
		pods := w.pods()
		require.Len(w.t, pods, 2)
		nodes := make(map[string]bool)
		for _, pod := range pods {
			nodes[pod.Spec.NodeName] = true
			require.Zero(w.t, pod.Status.ContainerStatuses[0].RestartCount)
		}
		require.Len(w.t, nodes, 2, "the pods are spread")
		require.Zero(w.t, w.underLoad(soon, func() {}))
	})

	run("rolling update", func(w *world) {
		old := names(w.pods())
		least := w.leastReady()
		require.Zero(w.t, w.underLoad(soon, func() {
			w.upgrade("podAnnotations.round=two")
			w.rolledOut()
		}))
		require.Equal(w.t, 2, least(), "no pod is missed")
		require.Len(w.t, w.pods(), 2)
		for _, name := range names(w.pods()) {
			require.NotContains(w.t, old, name)
		}
	})

	run("drain of the node that has both pods", func(w *world) {
		w.kubectl("cordon", "node-2")
		w.upgrade("podAnnotations.round=three")
		w.rolledOut()
		w.kubectl("uncordon", "node-2")
		for name, pod := range w.pods() {
			require.Equal(w.t, "node-1", pod.Spec.NodeName, name)
		}
		least := w.leastReady()
		require.Zero(w.t, w.underLoad(soon, func() {
			w.kubectl("drain", "node-1", "--timeout="+patience.String())
			w.rolledOut()
		}))
		require.Equal(w.t, 1, least(), "the disruption budget lets one go at a time")
		require.Len(w.t, w.pods(), 2)
		for name, pod := range w.pods() {
			require.Equal(w.t, "node-2", pod.Spec.NodeName, name)
		}
		w.kubectl("uncordon", "node-1")
	})

	run("pod killed without grace", func(w *world) {
		victim := names(w.pods())[0]
		// The kubelet gives it two seconds still. What it has not settled then comes back when its
		// leases end.
		w.underLoad(visibility+soon, func() {
			w.kubectl("delete", "pod", victim, "--grace-period=0", "--force")
			w.rolledOut()
		})
		require.NotContains(w.t, names(w.pods()), victim)
	})

	run("process killed", func(w *world) {
		victim := w.pods()[names(w.pods())[0]]
		w.underLoad(visibility+soon, func() {
			// RabbitMQ confirms nothing for a while, so that the pod has much in hand.
			require.NoError(w.t, w.inbox.node.Pause())
			eventually(w.t, patience, "much is in flight", func() bool {
				return w.status(victim).Sources[0].Balance.InFlight >= 100
			})
			w.kill(victim)
			require.NoError(w.t, w.inbox.node.Resume())
			eventually(w.t, patience, "it runs again", func() bool {
				now := w.pods()[victim.Name]
				return now.Status.ContainerStatuses[0].RestartCount == 1 && ready(now)
			})
		})
	})

	run("scale in", func(w *world) {
		require.Zero(w.t, w.underLoad(soon, func() {
			w.upgrade("replicas=1")
			w.kubectl("wait", "deployment/"+release, "--for=jsonpath={.status.replicas}=1", "--timeout="+patience.String())
			eventually(w.t, patience, "one pod has ended", func() bool {
				var list corev1.PodList
				require.NoError(w.t, json.Unmarshal([]byte(w.kubectl("get", "pods", "--output=json", "--selector=app.kubernetes.io/component=relay")), &list))
				return len(list.Items) == 1
			})
		}))
		w.upgrade("replicas=2")
		w.rolledOut()
	})

	// By the init container, and by the container itself where there is none.
	for container, validated := range map[string]string{"validate": "true", release: "false"} {
		run("configuration that "+container+" refuses", func(w *world) {
			before := w.pods()
			least := w.leastReady()
			require.Zero(w.t, w.underLoad(soon, func() {
				// The chart does not read expressions; the program does.
				w.upgrade("validate.enabled="+validated, `config.sinks.events.routing_key=\{\{ body.kind + \}\}`)
				refused := w.awaitRefused(before)
				require.Contains(w.t, w.kubectl("logs", refused, "--container="+container), "sinks.events.routing_key")
				_, err := w.cluster.Kubectl(w.t.Context(), "--namespace", namespace, "rollout", "status", "deployment/"+release, "--timeout=5s")
				require.Error(w.t, err, "the rollout stops")
				now := w.pods()
				for name := range before {
					require.True(w.t, ready(now[name]), "%s goes on", name)
				}
				w.rollback()
				w.rolledOut()
			}))
			require.Equal(w.t, 2, least())
			require.Equal(w.t, names(before), names(w.pods()), "the pods before it have noticed nothing")
		})
	}
}

// awaitRefused waits until a container of a new pod has ended with an error, and gives the
// name of the pod.
func (w *world) awaitRefused(before map[string]corev1.Pod) (refused string) {
	w.t.Helper()
	eventually(w.t, patience, "a new pod is refused", func() bool {
		for name, pod := range w.pods() {
			if _, old := before[name]; !old && failed(pod) {
				refused = name
				return true
			}
		}
		return false
	})
	return refused
}

func names(pods map[string]corev1.Pod) []string { return slices.Sorted(maps.Keys(pods)) }

// failed tells whether a container of the pod has ended with an error, an init container
// among them.
func failed(pod corev1.Pod) bool {
	for _, s := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		for _, state := range []corev1.ContainerState{s.State, s.LastTerminationState} {
			if state.Terminated != nil && state.Terminated.ExitCode != 0 {
				return true
			}
		}
	}
	return false
}

// with is the world as a subtest sees it.
func (w *world) with(t *testing.T) *world {
	t.Helper()
	return &world{t: t, cluster: w.cluster, server: w.server, queue: w.queue, inbox: w.inbox, http: w.http, nodes: w.nodes, sent: w.sent}
}

// kill ends the process of a pod's container as the kernel does that runs out of memory.
func (w *world) kill(pod corev1.Pod) {
	w.t.Helper()
	for _, n := range w.nodes {
		if n.name == pod.Spec.NodeName {
			id := strings.TrimPrefix(pod.Status.ContainerStatuses[0].ContainerID, "containerd://")
			require.NoError(w.t, n.ctr(w.t.Context(), "tasks", "kill", "--signal=SIGKILL", id).Run())
			return
		}
	}
	require.Fail(w.t, "no node runs "+pod.Name)
}

// rollback goes back to the revision before.
func (w *world) rollback() {
	w.t.Helper()
	_, err := cluster.Output(w.cluster.Command(w.t.Context(), "helm4", "rollback", release, "--namespace", namespace))
	require.NoError(w.t, err)
}
