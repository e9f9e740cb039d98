package chart_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"mnsrelay/test/k8s/chart"
	"mnsrelay/test/k8s/cluster"
)

// kinds are the Go types of what the chart makes, custom resources aside.
func kinds() map[string]any {
	return map[string]any{
		"ConfigMap": &corev1.ConfigMap{}, "Deployment": &appsv1.Deployment{}, "Service": &corev1.Service{},
		"ServiceAccount": &corev1.ServiceAccount{}, "Pod": &corev1.Pod{}, "PersistentVolumeClaim": &corev1.PersistentVolumeClaim{},
		"PodDisruptionBudget": &policyv1.PodDisruptionBudget{}, "NetworkPolicy": &networkingv1.NetworkPolicy{},
		"HorizontalPodAutoscaler": &autoscalingv2.HorizontalPodAutoscaler{},
	}
}

// Every object of every value set is one of its kind, without a field that is not known,
// missing or of another type: by the description that the API server publishes, by the
// definitions of the operators, and by the Go types.
func TestObjectsAreOfTheirKind(t *testing.T) {
	api, err := chart.Kubernetes(t.Context())
	require.NoError(t, err)
	definitions, err := cluster.Definitions(t.Context())
	require.NoError(t, err)
	require.NoError(t, api.Define(definitions))
	seen := map[string]bool{}
	// Names that YAML reads as something else are texts all the same.
	numbers := filepath.Join(t.TempDir(), "numbers.yaml")
	require.NoError(t, os.WriteFile(numbers, []byte(strings.Join([]string{
		"nameOverride: 'true'", "priorityClassName: 'null'", "imagePullSecrets: [{name: '1'}]",
		"serviceAccount: {name: '1'}", "persistence: {existingClaim: '2'}", "keda: {authenticationRef: 'off'}",
		"secretFiles: [{secretName: '01'}, {secretName: a.b}, {secretName: a-b}]",
		"secretEnv: [{name: 'NO', secretName: '1e3', key: '7'}, {name: 'Y', secretName: '0x1', key: 'null'}, {name: 'null', secretName: 'on', key: '~'}]",
	}, "\n")), 0o600))
	type renders struct{ release, namespace, set, more string }
	var all []renders
	for set := range valueSets(t) {
		all = append(all, renders{release, namespace, set, ""}, renders{"123", "456", set, ""})
	}
	for _, set := range []string{"default", "monitoring", "keda", "persistence", "autoscaling"} {
		all = append(all, renders{"123", "456", set, numbers})
	}
	for _, r := range all {
		files := []string{valueSets(t)[r.set]}
		if r.more != "" {
			files = append(files, r.more)
		}
		text, err := chart.Render(t.Context(), chart.Versions()[0], r.release, r.namespace, files)
		require.NoError(t, err)
		set := fmt.Sprintf("%+v", r)
		for _, document := range documents(text) {
			var head metav1.PartialObjectMetadata
			require.NoError(t, yaml.Unmarshal([]byte(document), &head), set)
			seen[head.Kind] = true
			require.NoError(t, api.Check([]byte(document)), set)
			require.Equal(t, r.namespace, head.Namespace, "%s of %s", head.Kind, set)
			require.Equal(t, r.release, head.Labels["app.kubernetes.io/instance"], "%s of %s", head.Kind, set)
			if strings.Contains(head.APIVersion, "coreos.com") || strings.Contains(head.APIVersion, "keda.sh") {
				continue
			}
			into, known := kinds()[head.Kind]
			require.True(t, known, "no Go type of %s is known here", head.Kind)
			require.NoError(t, yaml.UnmarshalStrict([]byte(document), into), set)
		}
	}
	for kind := range kinds() {
		require.True(t, seen[kind], "no value set makes a %s", kind)
	}
	for _, kind := range []string{"ServiceMonitor", "PrometheusRule", "ScaledObject"} {
		require.True(t, seen[kind], "no value set makes a %s", kind)
	}
}

// The check is one: it finds what a typing error would leave in a manifest.
func TestCheckFinds(t *testing.T) {
	api, err := chart.Kubernetes(t.Context())
	require.NoError(t, err)
	definitions, err := cluster.Definitions(t.Context())
	require.NoError(t, err)
	require.NoError(t, api.Define(definitions))
	const service = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n"
	const monitor = "apiVersion: monitoring.coreos.com/v1\nkind: ServiceMonitor\nmetadata: {name: a}\nspec: {selector: {}, endpoints: [{port: http}]}\n"
	require.NoError(t, api.Check([]byte(service)))
	require.NoError(t, api.Check([]byte(monitor)))
	for manifest, want := range map[string]string{
		strings.Replace(service, "{port:", "{prot:", 1):         "'prot' not allowed",
		strings.Replace(service, "80", `"80"`, 1):               "got string, want integer",
		strings.Replace(service, "port: 80", "name: a", 1):      "missing property 'port'",
		strings.Replace(service, "name: a", "nam: a", 1):        "'nam' not allowed",
		strings.Replace(service, "kind: Service", "kind: A", 1): `there is no kind "v1 A"`,
		service + "spec: {}\n":                                  "already set in map",
		strings.Replace(monitor, "{port:", "{prot:", 1):         "'prot' not allowed",
		strings.Replace(monitor, "name: a", "nam: a", 1):        "'nam' not allowed",
		strings.Replace(monitor, "selector: {}, ", "", 1):       "missing property 'selector'",
	} {
		require.ErrorContains(t, api.Check([]byte(manifest)), want, manifest)
	}
}
