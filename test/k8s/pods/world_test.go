// Package pods_test runs the relay as pods: installed by the chart, from its image, on two
// kubelets with containerd, between an emulated MNS and a real RabbitMQ. It takes away
// pods and nodes under load as a cluster does, and counts messages.
//
// It runs in a sandbox: make test-k8s-pods.
package pods_test

import (
	"bufio"
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"mnsrelay/api"
	"mnsrelay/internal/emulator"
	"mnsrelay/test/broker"
	"mnsrelay/test/k8s/cluster"
)

const (
	namespace = "relay"
	// release names the Deployment too.
	release = "mnsrelay"
	// outside is where pods reach what is no pod: the first node's address.
	outside = "10.88.0.1"
	// exchange and queue, at RabbitMQ.
	exchange = "reports"

	// visibility is the lease of a message: what a pod that is killed held comes back
	// after it, and what a pod that ends in order held comes back at once.
	visibility = 20 * time.Second
	// rate is the load, in messages a second.
	rate = 300
	// patience bounds what a cluster does in seconds.
	patience = 2 * time.Minute
)

// becomes waits until check is true, and tells whether it became so in time.
func becomes(within time.Duration, check func() bool) bool {
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for !check() {
		select {
		case <-tick.C:
		case <-deadline.C:
			return false
		}
	}
	return true
}

// eventually requires that check becomes true.
func eventually(t *testing.T, within time.Duration, what string, check func() bool) {
	t.Helper()
	require.True(t, becomes(within, check), "not within %v: %s", within, what)
}

// world is a cluster with two nodes, MNS and RabbitMQ beside it, and the chart installed.
type world struct {
	t       *testing.T
	cluster *cluster.Cluster
	server  *emulator.Server
	queue   string
	inbox   *inbox
	http    *http.Client
	nodes   []*node

	sent map[string]bool // ids of messages
}

func newWorld(t *testing.T) *world {
	t.Helper()
	require.NotEmpty(t, os.Getenv("MNSRELAY_CGROUP"), "kubelets run in a sandbox only: make test-k8s-pods")
	bin, err := cluster.Bin()
	require.NoError(t, err)
	root, err := cluster.Root()
	require.NoError(t, err)
	w := &world{t: t, sent: make(map[string]bool), http: &http.Client{Timeout: 5 * time.Second}}
	w.cluster, err = cluster.Start(t.Context(), "")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, w.cluster.Close()) })
	pause := filepath.Join(t.TempDir(), "pause.tar")
	writePauseImage(t, pause, filepath.Join(bin, "pause"))
	for number := range 2 {
		w.nodes = append(w.nodes, startNode(t, w.cluster, number+1, pause, filepath.Join(root, "bin", "mnsrelay-image.tar")))
	}
	w.inbox = newInbox(t)
	w.kubectl("wait", "--for=create", "--timeout=60s", "node/node-1", "node/node-2")
	w.kubectl("wait", "--for=condition=Ready", "--timeout=60s", "node/node-1", "node/node-2")

	w.server, err = emulator.New(emulator.Config{
		// What the kubelet projects is checked with the cluster's own key, and the role
		// trusts the chart's service account alone: RRSA, from end to end.
		OIDC:  emulator.OIDCProvider{Issuer: cluster.Issuer, Keys: []crypto.PublicKey{w.cluster.AccountKey()}},
		Roles: map[string]emulator.Role{"relay": {Trusts: []string{"system:serviceaccount:" + namespace + ":" + release}}},
	})
	require.NoError(t, err)
	w.queue = "reports"
	require.NoError(t, w.server.CreateQueue(w.queue, emulator.QueueConfig{VisibilityTimeout: visibility}))
	url, err := w.server.Start(t.Context(), outside+":0")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, w.server.Close()) })
	w.install(url)
	return w
}

// install installs the chart, with the password of RabbitMQ in a Secret.
func (w *world) install(url string) {
	w.t.Helper()
	w.kubectl("create", "namespace", namespace)
	w.kubectl("create", "secret", "generic", "rabbitmq", "--from-literal=password="+password)
	values := filepath.Join(w.t.TempDir(), "values.yaml")
	require.NoError(w.t, os.WriteFile(values, fmt.Appendf(nil, `
image: {tag: %q, pullPolicy: Never}
terminationGracePeriodSeconds: 40
preStopSleepSeconds: 2
secretFiles: [{secretName: rabbitmq}]
rrsa: {roleArn: %q, oidcProviderArn: %q}
validate: {enabled: true}
config:
  drain_timeout: 20s
  sources:
    reports:
      queue: %s
      endpoint: %s
      credentials: {type: oidc_role_arn, endpoint: %[5]s}
      to: events
  sinks:
    events:
      type: amqp091
      url: amqp://%s/
      username: %s
      password: ${file:/run/secrets/rabbitmq/password}
      exchange: %s
      routing_key: 'reports.{{ body.kind }}'
`, w.nodes[0].tag("docker.io/library/mnsrelay"), w.server.RoleARN("relay"), w.server.OIDCProviderARN(), w.queue, url, w.inbox.address, user, exchange), 0o600))
	w.helm("install", "--values", values)
	w.rolledOut()
}

// kubectl acts on the namespace of the release.
func (w *world) kubectl(args ...string) string {
	w.t.Helper()
	out, err := w.cluster.Kubectl(w.t.Context(), append([]string{"--namespace", namespace}, args...)...)
	require.NoError(w.t, err)
	return out
}

// helm installs or upgrades the release.
func (w *world) helm(verb string, args ...string) {
	w.t.Helper()
	root, err := cluster.Root()
	require.NoError(w.t, err)
	_, err = cluster.Output(w.cluster.Command(w.t.Context(), "helm4",
		append([]string{verb, release, filepath.Join(root, "helm", "mnsrelay"), "--namespace", namespace}, args...)...))
	require.NoError(w.t, err)
}

// upgrade changes values of the release, as --set has them.
func (w *world) upgrade(values ...string) {
	w.t.Helper()
	args := []string{"--reuse-values"}
	for _, value := range values {
		args = append(args, "--set", value)
	}
	w.helm("upgrade", args...)
}

// rolledOut waits until all pods are new and ready.
func (w *world) rolledOut() {
	w.t.Helper()
	w.kubectl("rollout", "status", "deployment/"+release, "--timeout="+patience.String())
}

// pods are those of the release that are not about to end, by name.
func (w *world) pods() map[string]corev1.Pod {
	w.t.Helper()
	var list corev1.PodList
	require.NoError(w.t, json.Unmarshal([]byte(w.kubectl("get", "pods", "--output=json", "--selector=app.kubernetes.io/component=relay")), &list))
	pods := make(map[string]corev1.Pod)
	for _, pod := range list.Items {
		if pod.DeletionTimestamp == nil {
			pods[pod.Name] = pod
		}
	}
	return pods
}

// leastReady tells, when called, the fewest pods that were ready at any time since.
func (w *world) leastReady() func() int {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	cmd := w.cluster.Command(ctx, "kubectl", "--namespace", namespace, "get", "deployment", release, "--watch", "--output=jsonpath={.status.readyReplicas}{\"\\n\"}")
	out, err := cmd.StdoutPipe()
	require.NoError(w.t, err)
	require.NoError(w.t, cmd.Start())
	least := make(chan int, 1)
	first := make(chan struct{})
	go func() {
		fewest := -1
		for lines := bufio.NewScanner(out); lines.Scan(); {
			// Absent is none.
			ready, _ := strconv.Atoi(lines.Text())
			if fewest < 0 {
				close(first)
				fewest = ready
			}
			fewest = min(fewest, ready)
		}
		least <- fewest
	}()
	select {
	case <-first:
	case <-time.After(patience):
		require.Fail(w.t, "the Deployment is not watched")
	}
	return func() int {
		cancel()
		fewest := <-least
		_ = cmd.Wait() // It was killed.
		return fewest
	}
}

// underLoad sends messages all the while that a cluster does something, and then requires
// that each has come. It gives how many came twice.
func (w *world) underLoad(within time.Duration, do func()) (duplicates int) {
	w.t.Helper()
	before, twice := w.inbox.counts()
	ctx, stop := context.WithCancel(w.t.Context())
	var sender sync.WaitGroup
	sender.Go(func() { w.send(ctx) })
	eventually(w.t, patience, "messages flow", func() bool { now, _ := w.inbox.counts(); return now > before+rate })
	do()
	now, _ := w.inbox.counts()
	eventually(w.t, patience, "messages flow on", func() bool { later, _ := w.inbox.counts(); return later > now+rate })
	stop()
	sender.Wait()
	w.requireAll(within)
	after, duplicates := w.inbox.counts()
	w.t.Logf("%d messages, %d of them twice", after-before, duplicates-twice)
	return duplicates - twice
}

// send sends until ctx is done; nothing else looks at what was sent meanwhile.
func (w *world) send(ctx context.Context) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	begun := time.Now()
	for n := 0; ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		for due := int(time.Since(begun).Seconds() * rate); n < due; n++ {
			id, err := w.server.SendBase64(w.queue, fmt.Appendf(nil, `{"kind":"sms","number":%d}`, n))
			if err != nil {
				w.t.Errorf("send: %v", err)
				return
			}
			w.sent[id] = true
		}
	}
}

// requireAll requires that RabbitMQ gets what is missing, that MNS then holds nothing, and
// that each pod accounts for all that it received.
func (w *world) requireAll(within time.Duration) {
	w.t.Helper()
	require.True(w.t, becomes(within, func() bool { return w.inbox.missing(w.sent) == 0 }),
		"%d of %d messages have not come within %v", w.inbox.missing(w.sent), len(w.sent), within)
	eventually(w.t, visibility+patience, "the queue is empty", func() bool {
		stats, found := w.server.QueueStats(w.queue)
		return found && stats.Active+stats.Inactive+stats.Delayed == 0
	})
	stats, _ := w.server.QueueStats(w.queue)
	require.EqualValues(w.t, len(w.sent), stats.Deleted)
	require.Zero(w.t, stats.Expired)
	for name, pod := range w.pods() {
		if !ready(pod) {
			continue
		}
		eventually(w.t, patience, "the balance of "+name+" is exact with nothing in flight", func() bool {
			b := w.status(pod).Sources[0].Balance
			return b.Exact && b.InFlight == 0
		})
	}
}

func ready(pod corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// status asks a pod.
func (w *world) status(pod corev1.Pod) (status api.Status) {
	w.t.Helper()
	request, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, "http://"+net.JoinHostPort(pod.Status.PodIP, "8080")+"/api/v1/status", http.NoBody)
	require.NoError(w.t, err)
	response, err := w.http.Do(request)
	require.NoError(w.t, err)
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	require.NoError(w.t, err)
	require.Equal(w.t, http.StatusOK, response.StatusCode, "%s", body)
	require.NoError(w.t, json.Unmarshal(body, &status))
	return status
}

// The user at RabbitMQ that the relay is.
const (
	user     = "relay"
	password = "a password in a Secret"
)

// inbox is a queue of RabbitMQ, and what came out of it.
type inbox struct {
	address string // as pods reach RabbitMQ
	node    *broker.Node

	mu    sync.Mutex
	ids   map[string]bool
	total int
}

// newInbox starts RabbitMQ where pods reach it, and consumes.
func newInbox(t *testing.T) *inbox {
	t.Helper()
	b := &inbox{address: outside + ":5672", ids: make(map[string]bool)}
	node, err := broker.Start(t.Context(), broker.Config{Conf: "listeners.tcp.2 = " + b.address + "\n"})
	require.NoError(t, err)
	b.node = node
	t.Cleanup(func() { require.NoError(t, node.Close()) })
	for _, args := range [][]string{{"add_user", user, password}, {"set_permissions", user, "", ".*", ""}} {
		_, err := node.Ctl(t.Context(), args...)
		require.NoError(t, err)
	}
	conn, err := amqp.Dial(node.URL())
	require.NoError(t, err)
	ch, err := conn.Channel()
	require.NoError(t, err)
	require.NoError(t, ch.ExchangeDeclare(exchange, amqp.ExchangeTopic, true, false, false, false, nil))
	_, err = ch.QueueDeclare(exchange, true, false, false, false, nil)
	require.NoError(t, err)
	require.NoError(t, ch.QueueBind(exchange, "reports.sms", exchange, false, nil))
	deliveries, err := ch.Consume(exchange, "", true, false, false, false, nil)
	require.NoError(t, err)
	var reader sync.WaitGroup
	reader.Go(func() {
		for d := range deliveries {
			b.mu.Lock()
			b.ids[d.MessageId] = true
			b.total++
			b.mu.Unlock()
		}
	})
	t.Cleanup(func() {
		if err := conn.Close(); err != nil && !errors.Is(err, amqp.ErrClosed) {
			t.Errorf("close the consumer: %v", err)
		}
		reader.Wait()
	})
	return b
}

// counts gives how many different messages came, and how many came again.
func (b *inbox) counts() (messages, duplicates int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.ids), b.total - len(b.ids)
}

// missing counts what was sent and has not come.
func (b *inbox) missing(sent map[string]bool) (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id := range sent {
		if !b.ids[id] {
			n++
		}
	}
	return n
}
