package chart_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"mnsrelay/test/certs"
	"mnsrelay/test/k8s/chart"
	"mnsrelay/test/k8s/cluster"
)

// find decodes the first object of a kind that has what is asked for.
func find[T any](t *testing.T, text, kind string, want func(T) bool) T {
	t.Helper()
	for _, document := range documents(text) {
		var head struct{ Kind string }
		require.NoError(t, yaml.Unmarshal([]byte(document), &head))
		if head.Kind != kind {
			continue
		}
		var out T
		require.NoError(t, yaml.Unmarshal([]byte(document), &out))
		if want == nil || want(out) {
			return out
		}
	}
	require.Fail(t, "the render has no such "+kind)
	panic("not reached")
}

const file = "mnsrelay.yaml"

// configuration is the file's text.
func configuration(t *testing.T, text string) string {
	t.Helper()
	return find(t, text, "ConfigMap", func(m corev1.ConfigMap) bool { return m.Data[file] != "" }).Data[file]
}

// What is written under config arrives in the pod as it was written, {{ }} and all, and the
// relay takes it, with the files and variables that the chart says it has.
func TestConfigurationArrives(t *testing.T) {
	program := relayProgram(t)
	for set, path := range valueSets(t) {
		t.Run(set, func(t *testing.T) {
			rendered := render(t, chart.Versions()[0], path)
			text := configuration(t, rendered)
			var arrived any
			require.NoError(t, yaml.Unmarshal([]byte(text), &arrived))
			require.Equal(t, values(t, path)["config"], arrived)

			secrets := t.TempDir()
			text = strings.ReplaceAll(text, secretsFolder, secrets)
			path := filepath.Join(secrets, file)
			require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
			pod := find[appsv1.Deployment](t, rendered, "Deployment", nil).Spec.Template.Spec
			makeSecrets(t, secrets, pod, text)
			cmd := exec.CommandContext(t.Context(), program, "validate", "--config", path)
			cmd.Env = variables(pod)
			if strings.Contains(rendered, "pod-identity.alibabacloud.com/role-name") {
				// What ACK's add-on brings into the pod.
				cmd.Env = append(cmd.Env, "ALIBABA_CLOUD_ROLE_ARN=acs:ram::1:role/a",
					"ALIBABA_CLOUD_OIDC_PROVIDER_ARN=acs:ram::1:oidc-provider/a", "ALIBABA_CLOUD_OIDC_TOKEN_FILE=/token")
			}
			out, err := cluster.Output(cmd)
			require.NoError(t, err)
			require.Contains(t, out, "is valid")
		})
	}
}

// Whatever the relay takes the chart takes: the example that has every key is within its schema.
func TestEveryKeyIsWithinTheSchema(t *testing.T) {
	root, err := cluster.Root()
	require.NoError(t, err)
	text, err := os.ReadFile(filepath.Join(root, "configs", "everything.yaml"))
	require.NoError(t, err)
	set := filepath.Join(t.TempDir(), "values.yaml")
	indented := "config:\n  " + strings.ReplaceAll(string(text), "\n", "\n  ")
	require.NoError(t, os.WriteFile(set, []byte(indented), 0o600))
	for _, version := range chart.Versions() {
		_, err := chart.Render(t.Context(), version, release, namespace, []string{set})
		if err != nil {
			// What the chart itself asks for is not the schema's business.
			require.NotContains(t, err.Error(), "schema")
			require.NotContains(t, err.Error(), "not allowed")
		}
	}
}

const secretsFolder = "/run/secrets"

// variables are those that the container has.
func variables(pod corev1.PodSpec) (env []string) {
	for _, v := range pod.Containers[0].Env {
		if v.ValueFrom != nil {
			v.Value = "a-secret-of-some-length"
		}
		env = append(env, v.Name+"="+v.Value)
	}
	return env
}

// makeSecrets makes below folder the files that the text names, where the container has a
// Secret at their place, and the keys are taken from it.
func makeSecrets(t *testing.T, folder string, pod corev1.PodSpec, text string) {
	t.Helper()
	for _, mount := range pod.Containers[0].VolumeMounts {
		if name, ok := strings.CutPrefix(mount.MountPath, secretsFolder+"/"); ok {
			require.NoError(t, os.Mkdir(filepath.Join(folder, name), 0o700))
		}
	}
	pair := certs.New(t)
	pem := map[string]string{"ca.crt": pair.CA, "tls.crt": pair.ClientCert, "tls.key": pair.ClientKey}
	for _, path := range regexp.MustCompile(regexp.QuoteMeta(folder)+`/[^}\s]+`).FindAllString(text, -1) {
		content := []byte("a-secret-of-some-length")
		if file, ok := pem[filepath.Base(path)]; ok {
			var err error
			content, err = os.ReadFile(file)
			require.NoError(t, err)
		}
		require.NoError(t, os.WriteFile(path, content, 0o600), "the container has no Secret there")
	}
}
