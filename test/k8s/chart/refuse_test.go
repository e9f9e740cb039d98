package chart_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"

	"mnsrelay/test/k8s/chart"
)

// with renders a value set with more values.
func with(t *testing.T, version, set, more string) (string, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "more.yaml")
	require.NoError(t, os.WriteFile(path, []byte(more), 0o600))
	return chart.Render(t.Context(), version, release, namespace, []string{valueSets(t)[set], path})
}

// What would be installed and then not do what was meant is not rendered, and the reason
// says which values are wrong and what to write.
func TestRefused(t *testing.T) {
	tests := map[string]struct{ set, more, want string }{
		"a grace that is too short": {
			"default", "terminationGracePeriodSeconds: 54",
			"terminationGracePeriodSeconds is 54, and 55 are needed: preStopSleepSeconds (0), config.drain_timeout (45s) and 10 to settle",
		},
		"a drain that is too long": {
			"default", "config: {drain_timeout: 1m}",
			"terminationGracePeriodSeconds is 60, and 70 are needed: preStopSleepSeconds (0), config.drain_timeout (1m)",
		},
		"a preStop that leaves too little": {
			"default", "preStopSleepSeconds: 6",
			"terminationGracePeriodSeconds is 60, and 61 are needed: preStopSleepSeconds (6), config.drain_timeout (45s)",
		},
		"a part of a second counts": {
			"default", "config: {drain_timeout: 50.5s}",
			"terminationGracePeriodSeconds is 60, and 61 are needed",
		},
		"a drain that the chart cannot know": {
			"default", "config: {drain_timeout: '${DRAIN}'}",
			`config.drain_timeout is "${DRAIN}": the chart checks it, so write a duration out`,
		},
		"an address that probes do not reach": {
			"default", "config: {server: {listen: '127.0.0.1:8080'}}",
			`config.server.listen is "127.0.0.1:8080": the kubelet's probes have to reach it`,
		},
		"a port that nobody knows": {
			"default", "config: {server: {listen: ':0'}}",
			`config.server.listen is ":0"`,
		},
		"whether it reloads is not known": {
			"default", "config: {reload: {watch: '${WATCH:-false}'}}",
			`config.reload.watch is "${WATCH:-false}": the chart decides by it whether pods are replaced, so write true or false`,
		},
		"more room than memory": {
			"default", "resources: {limits: {memory: 256Mi}}",
			"resources.limits.memory is 256Mi, and config.in_flight.bytes lets 256MiB of messages into it beside the 64Mi of the process",
		},
		"a limit in units of its own": {
			"default", "resources: {limits: {memory: 1e9}}",
			"",
		},
		"a limit that cannot be read": {
			"default", "resources: {limits: {memory: 1Ei}}",
			`resources.limits.memory is "1Ei": the chart reckons with it, so write it as 512Mi or 1Gi`,
		},
		"two autoscalers": {
			"autoscaling", "keda: {enabled: true, prometheusAddress: 'http://prometheus:9090'}",
			"autoscaling.enabled and keda.enabled are both true",
		},
		"more at least than at most": {
			"autoscaling", "autoscaling: {minReplicas: 10}",
			"autoscaling.minReplicas is 10, more than autoscaling.maxReplicas, 9",
		},
		"KEDA without Prometheus": {
			"default", "keda: {enabled: true}",
			"keda.prometheusAddress is empty",
		},
		"a provider without a role": {
			"rrsa", "rrsa: {roleArn: ''}",
			"rrsa.oidcProviderArn is set and rrsa.roleArn is not",
		},
		"a role for an account of others": {
			"rrsa-webhook", "serviceAccount: {create: false}",
			"annotate yours with pod-identity.alibabacloud.com/role-name: mnsrelay",
		},
		"dead letters in a file without a volume": {
			"persistence", "persistence: {enabled: false}",
			"config.sinks.given-up takes dead letters in the file /var/lib/mnsrelay/dead.jsonl, which ends with its pod: set persistence.enabled",
		},
		"dead letters beside the volume": {
			"persistence", "config: {sinks: {given-up: {path: /var/lib/mnsrelay-dead.jsonl}}}",
			"config.sinks.given-up takes dead letters in the file /var/lib/mnsrelay-dead.jsonl",
		},
		"dead letters on a volume that ends with the pod": {
			"existing-claim", "config: {sinks: {given-up: {path: /scratch/dead.jsonl}}}",
			"config.sinks.given-up takes dead letters in the file /scratch/dead.jsonl",
		},
		"dead letters of several replicas": {
			"persistence", "replicas: 2",
			"persistence.enabled takes replicas: 1 and neither autoscaling nor keda",
		},
		"dead letters of replicas that grow": {
			"persistence", "autoscaling: {enabled: true}",
			"persistence.enabled takes replicas: 1 and neither autoscaling nor keda",
		},
		"a file where nothing can be written": {
			"existing-claim", "extraVolumeMounts: []",
			"config.sinks.copy writes the file /scratch/orders.jsonl, and the container's file system cannot be written to",
		},
		"a port that a policy cannot name": {
			"network-policy", "config: {sinks: {hook: {url: 'https://hooks.example.com:${PORT}/orders'}}}",
			"networkPolicy.enabled: the port of https://hooks.example.com:x in config is not written there",
		},
	}
	for name, test := range tests {
		for _, version := range chart.Versions() {
			t.Run(name+"/"+version, func(t *testing.T) {
				_, err := with(t, version, test.set, test.more)
				if test.want == "" {
					require.NoError(t, err)
					return
				}
				require.ErrorContains(t, err, test.want)
			})
		}
	}
}

// A change of the configuration replaces the pods; with reload.watch, only one that a
// running relay refuses.
func TestChecksum(t *testing.T) {
	sum := func(set, more string) string {
		text, err := with(t, chart.Versions()[0], set, more)
		require.NoError(t, err)
		return find[appsv1.Deployment](t, text, "Deployment", nil).Spec.Template.Annotations["checksum/config"]
	}
	const (
		sink   = "config: {sinks: {events: {exchange: others}}}"
		server = "config: {server: {admin_token: '${file:/run/secrets/admin/other}'}}"
	)
	require.NotEmpty(t, sum("default", ""))
	require.NotEqual(t, sum("default", ""), sum("default", sink))
	require.Equal(t, sum("reload", ""), sum("reload", sink))
	for _, more := range []string{
		server, "config: {ledger: {ttl: 1h}}", "config: {tracing: {otlp_endpoint: 'http://otel:4318'}}", "config: {reload: {watch: false}}",
	} {
		require.NotEqual(t, sum("reload", ""), sum("reload", more), more)
	}
}

// A mapping that is written without anything in it is one that is left out.
func TestNull(t *testing.T) {
	for _, version := range chart.Versions() {
		_, err := with(t, version, "default", "config: {server: null, reload: null, in_flight: null, ledger: null, tracing: null, routes: null}")
		require.NoError(t, err)
	}
}

// As a part of another chart it takes what that passes down.
func TestSubchart(t *testing.T) {
	parent := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(parent, "charts"), 0o750))
	require.NoError(t, os.Symlink(folder(t), filepath.Join(parent, "charts", "mnsrelay")))
	require.NoError(t, os.WriteFile(filepath.Join(parent, "Chart.yaml"), []byte(
		"apiVersion: v2\nname: parent\nversion: 0.1.0\ndependencies: [{name: mnsrelay, version: 0.1.0, condition: mnsrelay.enabled}]\n"), 0o600))
	own, err := os.ReadFile(valueSets(t)["default"])
	require.NoError(t, err)
	var text strings.Builder
	text.WriteString("global: {region: cn-hangzhou}\nmnsrelay:\n  enabled: true\n")
	for line := range strings.Lines(string(own)) {
		text.WriteString("  " + line)
	}
	require.NoError(t, os.WriteFile(filepath.Join(parent, "values.yaml"), []byte(text.String()), 0o600))
	for _, version := range chart.Versions() {
		cmd, err := chart.Helm(t.Context(), version, "template", release, parent, "--kube-version", chart.Kube)
		require.NoError(t, err)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
		require.Contains(t, string(out), "kind: Deployment")
	}
}
