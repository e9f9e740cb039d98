package chart_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"

	"mnsrelay/test/k8s/chart"
)

// with renders a value set with more values.
func with(t *testing.T, version, set, more string) (string, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "more.yaml")
	require.NoError(t, os.WriteFile(path, []byte(more), 0o600))
	base, ok := valueSets(t)[set]
	if !ok {
		base = filepath.Join("testdata", "refused", set+"-values.yaml")
	}
	return chart.Render(t.Context(), version, release, namespace, []string{base, path})
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
		"an operator's address that is no port": {
			"default", "config: {server: {admin_listen: '10.0.0.1:8081'}}",
			`config.server.admin_listen is "10.0.0.1:8081": the chart makes a port of it`,
		},
		"an operator's address on loopback": {
			"default", "config: {server: {admin_listen: '127.0.0.1:8081'}}",
			"",
		},
		"whether probes speak TLS is not known": {
			"default", "config: {server: {tls: {cert_file: '${CERT:-}', key_file: /key}}}",
			`config.server.tls.cert_file is "${CERT:-}": the chart decides by it whether probes speak TLS`,
		},
		"whether it reloads is not known": {
			"default", "config: {reload: {watch: '${WATCH:-false}'}}",
			`config.reload.watch is "${WATCH:-false}": the chart decides by it whether pods are replaced, so write true or false`,
		},
		"more room than memory": {
			"default", "resources: {limits: {memory: 256Mi}}",
			"resources.limits.memory is 256Mi, and config.in_flight.bytes lets 256MiB of messages into it beside the 64Mi of the process",
		},
		"room for sinks that are not required": {
			"default", "config: {sources: {sms: {to: [events, {sink: hook, required: false}]}}}\nresources: {limits: {memory: 400Mi}}",
			"resources.limits.memory is 400Mi, and config.in_flight.bytes lets 256MiB of messages into it, and half as much again on their way to sinks that are not required, beside the 64Mi of the process",
		},
		"enough room for sinks that are not required": {
			"default", "config: {sources: {sms: {to: [events, {sink: hook, required: false}]}}}\nresources: {limits: {memory: 448Mi}}",
			"",
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
			"config.sinks.dead-letters takes dead letters in the file /var/lib/mnsrelay/dead.jsonl, which ends with its pod: set persistence.enabled",
		},
		"dead letters beside the volume": {
			"persistence", "config: {sinks: {dead-letters: {path: /var/lib/mnsrelay-dead.jsonl}}}",
			"config.sinks.dead-letters takes dead letters in the file /var/lib/mnsrelay-dead.jsonl",
		},
		"dead letters on a volume that ends with the pod": {
			"existing-claim", "config: {sinks: {dead-letters: {path: /scratch/dead.jsonl}}}",
			"config.sinks.dead-letters takes dead letters in the file /scratch/dead.jsonl",
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
			"networkPolicy.enabled: the port of config.sinks.hook.url is not written there, so the chart cannot allow it: write the number",
		},
		"a port in the default of a variable": {
			"network-policy", "config: {sinks: {events: {urls: ['amqps://${RABBIT_HOST:-rabbit.mq:5673}/prod']}}}",
			"networkPolicy.enabled: the port of config.sinks.events.urls[0] is not written there",
		},
		"a scheme that is a variable": {
			"network-policy", "config: {ledger: {url: '${SCHEME}://redis.cache/0'}}",
			"networkPolicy.enabled: the port of config.ledger.url is not written there",
		},
		"a port that is none": {
			"network-policy", "config: {tracing: {otlp_endpoint: 'http://otel.monitoring:65536'}}",
			"networkPolicy.enabled: the port of config.tracing.otlp_endpoint is not one: write a number from 1 to 65535",
		},
		"a port that is far too large": {
			"network-policy", "config: {sinks: {events: {url: 'amqps://rabbit.mq:99999999999999999999'}}}",
			"networkPolicy.enabled: the port of config.sinks.events.url is not one",
		},
		"port 0": {
			"network-policy", "config: {sources: {orders: {endpoint: 'http://mns.example.com:0'}}}",
			"networkPolicy.enabled: the port of config.sources.orders.endpoint is not one",
		},
		"a port of credentials": {
			"network-policy", "config: {sources: {orders: {credentials: {type: ram_role_arn, base: {type: credentials_uri, uri: 'http://keys.example.com:${PORT}/'}}}}}",
			"networkPolicy.enabled: the port of config.sources.orders.credentials.base.uri is not written there",
		},
		"dead letters of several replicas on a claim of others": {
			"shared-claim", "config: {sources: {orders: {dead_letter: copy}}}",
			"config.sinks.copy takes dead letters in the file /shared/orders.jsonl, which takes replicas: 1 and neither autoscaling nor keda",
		},
		"a file of several replicas on a claim": {
			"shared-claim", "{}",
			"config.sinks.copy writes the file /shared/orders.jsonl to the volume shared, which several pods would have together",
		},
		"a file of several replicas on the node": {
			"shared-claim", "extraVolumes: [{name: shared, hostPath: {path: /var/lib/orders}}]",
			"config.sinks.copy writes the file /shared/orders.jsonl to the volume shared, which several pods would have together",
		},
		"a file of several replicas with a volume each": {
			"shared-claim", "extraVolumes: [{name: shared, emptyDir: {}}]",
			"",
		},
		"a file of several replicas with a folder each": {
			"shared-claim", "extraVolumeMounts: [{name: shared, mountPath: /shared, subPathExpr: $(POD)}]",
			"",
		},
		"a file of one replica on a claim": {
			"shared-claim", "replicas: 1",
			"",
		},
		"a type that is not known": {
			"persistence", "config: {sinks: {dead-letters: {type: '${T:-file}'}}}",
			`config.sinks.dead-letters.type is "${T:-file}": the chart decides by it whether the sink needs a volume, so write the type`,
		},
		"a dead letter that is not known": {
			"persistence", "config: {sources: {orders: {dead_letter: '${D:-dead-letters}'}}}",
			`config.sources.orders.dead_letter is "${D:-dead-letters}": the chart decides by it which files need a volume, so write the sink's name`,
		},
		"an HPA without a request": {
			"autoscaling", "resources: {requests: {cpu: null}}",
			"autoscaling.enabled goes by the part that is used of resources.requests.cpu, which is not set",
		},
		"an HPA with a limit which is the request": {
			"autoscaling", "resources: {requests: {cpu: null}, limits: {cpu: 2}}",
			"",
		},
		"a target that KEDA's query cannot name": {
			"keda", "config: {sources: {returns: {to: '${SINK}'}}}",
			`keda.enabled: a route goes to sink "${SINK}" with required "true": no pod is added while`,
		},
		"a target of which it is not known whether it is required": {
			"keda", "config: {sources: {returns: {to: [{sink: events, required: '${R}'}]}}}",
			`keda.enabled: a route goes to sink "events" with required "${R}"`,
		},
		"a label of the chart's own for every object": {
			"default", "commonLabels: {app.kubernetes.io/instance: other}",
			"commonLabels has the label app.kubernetes.io/instance, which is the chart's own",
		},
		"a label of the chart's own for pods": {
			"default", "podLabels: {app.kubernetes.io/component: other}",
			"podLabels has the label app.kubernetes.io/component, which is the chart's own",
		},
		"a label of the chart's own for a dashboard": {
			"monitoring", "dashboard: {labels: {helm.sh/chart: other}}",
			"dashboard.labels has the label helm.sh/chart, which is the chart's own",
		},
		"an annotation of the chart's own for pods": {
			"default", "podAnnotations: {checksum/config: a}",
			"podAnnotations has checksum/config",
		},
		"an annotation of the chart's own for the claim": {
			"persistence", "persistence: {annotations: {helm.sh/resource-policy: delete}}",
			"persistence.annotations helm.sh/resource-policy, which are the chart's own",
		},
		"a file of several replicas on a volume within another": {
			"shared-claim", `
extraVolumes: [{name: own, emptyDir: {}}, {name: shared, persistentVolumeClaim: {claimName: shared}}]
extraVolumeMounts: [{name: own, mountPath: /shared/}, {name: shared, mountPath: /}]`,
			"",
		},
		"two Secrets in one folder": {
			"default", "secretFiles: [{secretName: rabbitmq}, {name: rabbitmq, secretName: other}]",
			"secretFiles has two for the folder /run/secrets/rabbitmq",
		},
		"a variable that is set twice": {
			"default", "extraEnv: [{name: ALIBABA_CLOUD_ACCESS_KEY_ID, value: a}]",
			"the variable ALIBABA_CLOUD_ACCESS_KEY_ID is set twice, by rrsa, secretEnv or extraEnv",
		},
		"a variable of RRSA that is set twice": {
			"rrsa", "extraEnv: [{name: ALIBABA_CLOUD_ROLE_ARN, value: a}]",
			"the variable ALIBABA_CLOUD_ROLE_ARN is set twice",
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

// A password is in no error: where it makes an address unreadable, the error says where that is.
func TestNoPasswordInErrors(t *testing.T) {
	for _, password := range []string{"a,secret", "a/secret", "secret:${PORT}", "a?secret", "a#secret@", "${FIRST}secret"} {
		for _, host := range []string{"rabbit.mq:x", "rabbit.mq:99999", "${HOST}", "rabbit.mq:5673"} {
			more, err := yaml.Marshal(map[string]any{"config": map[string]any{"sinks": map[string]any{
				"events": map[string]any{"urls": []string{"amqps://relay:" + password + "@" + host + "/prod"}},
			}}})
			require.NoError(t, err)
			_, err = with(t, chart.Versions()[0], "network-policy", string(more))
			if host != "rabbit.mq:5673" {
				require.ErrorContains(t, err, "the port of config.sinks.events.urls[0] is not")
			}
			if err != nil {
				require.NotContains(t, err.Error(), "secret", password)
			}
		}
	}
}

// The ports of a policy are those of the configuration's addresses, however these are
// written, and what only looks like an address opens nothing and is not refused.
func TestPolicyPorts(t *testing.T) {
	for more, want := range map[string][]int{
		"{}": {443, 5671, 5673, 6380, 8443},
		"config: {sinks: {events: {urls: ['AMQPS://rabbit.mq/prod', 'Amqp://rabbit.mq']}}}":                        {443, 5671, 5672, 6380, 8443},
		"config: {sinks: {events: {urls: ['amqps://relay:a,b:c@rabbit.mq:5675/prod']}}}":                           {443, 5675, 6380, 8443},
		"config: {sinks: {events: {urls: ['amqps://relay:${P:-a:1/@2}@rabbit.mq:5675/prod']}}}":                    {443, 5675, 6380, 8443},
		"config: {sinks: {events: {urls: ['amqps://${HOST:-rabbit.mq:1}:5675/prod', 'amqps://${HOST}.mq/prod']}}}": {443, 5671, 5675, 6380, 8443},
		"config: {sinks: {events: {urls: ['${RABBIT:-amqps://rabbit.mq:5675}']}}}":                                 {443, 6380, 8443},
		"config: {sinks: {events: {urls: ['amqps://[fd00::1]/a', 'amqps://[fd00::1]:05674/a']}}}":                  {443, 5671, 5674, 6380, 8443},
		"config: {sinks: {hook: {url: 'https://hooks.example.com/a?next=http://x:99999/{{ id }}@b:1'}}}":           {443, 5671, 5673, 6380},
		"config: {tracing: {otlp_endpoint: 'http://otel.monitoring:4318'}}":                                        {443, 4318, 5671, 5673, 6380, 8443},
		"config: {sources: {orders: {credentials: {type: credentials_uri, uri: 'http://keys.local:6666/a'}}}}":     {443, 5671, 5673, 6380, 6666, 8443},
		"config: {sources: {orders: {credentials: {type: ecs_ram_role}}}}":                                         {80, 443, 5671, 5673, 6380, 8443},
		"config: {sources: {orders: {credentials: {type: ram_role_arn, role_arn: 'acs:ram::1:role/a', base: {type: ram_role_arn, role_arn: 'acs:ram::1:role/b', endpoint: 'http://sts.local:7777', base: {type: ecs_ram_role}}}}}}": {80, 443, 5671, 5673, 6380, 7777, 8443},
		`config:
  sinks:
    hook:
      format: cloudevents
      cloudevents: {source: 'mns://queues.example.com:x/{{ queue }}'}
      headers: {x-from: 'see http://wiki.example.com:99999, or amqp://old', x-type: "a\ntype: ecs_ram_role"}
  routes:
    - {name: some, from: orders, when: 'text.contains("ftp://a:b@c:d")', to: hook}
`: {443, 5671, 5673, 6380, 8443},
	} {
		for _, version := range chart.Versions() {
			text, err := with(t, version, "network-policy", more)
			require.NoError(t, err, more)
			policy := find[networkingv1.NetworkPolicy](t, text, "NetworkPolicy", nil)
			var got []int
			for _, port := range policy.Spec.Egress[1].Ports {
				got = append(got, port.Port.IntValue())
			}
			require.ElementsMatch(t, want, got, more)
			except := policy.Spec.Egress[1].To[0].IPBlock.Except
			require.Equal(t, slices.Contains(want, 80), len(except) == 0, more)
		}
	}
}

// What the chart sets itself stands once: a value of the user's takes its place.
func TestOnce(t *testing.T) {
	text, err := with(t, chart.Versions()[0], "extras", `
extraEnv: [{name: GOMEMLIMIT, value: 64MiB}]
podLabels: {example.com/team: pods}
secretFiles: [{secretName: a.b}, {secretName: a-b}]
`)
	require.NoError(t, err)
	template := find[appsv1.Deployment](t, text, "Deployment", nil).Spec.Template
	require.Equal(t, []corev1.EnvVar{{Name: "GOMEMLIMIT", Value: "64MiB"}}, template.Spec.Containers[0].Env)
	require.Equal(t, "pods", template.Labels["example.com/team"])
	names := map[string]bool{}
	for _, volume := range template.Spec.Volumes {
		require.False(t, names[volume.Name], volume.Name)
		names[volume.Name] = true
	}
	for _, document := range documents(text) {
		require.NoError(t, yaml.UnmarshalStrict([]byte(document), &map[string]any{}), document)
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
	require.Equal(t, sum("reload", ""), sum("reload", "config: {log: {level: debug}}"))
	for _, more := range []string{
		server, "config: {ledger: {ttl: 1h}}", "config: {tracing: {otlp_endpoint: 'http://otel:4318'}}", "config: {reload: {watch: false}}",
		"config: {log: {format: console}}",
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
