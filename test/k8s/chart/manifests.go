package chart

import (
	"context"
	"errors"
	"path/filepath"
	"regexp"
	"strings"
)

// Manifests makes configs/kubernetes/mnsrelay.yaml: what the chart renders of its default
// value set, without what is Helm's alone.
func Manifests(ctx context.Context) ([]byte, error) {
	folder, err := Folder()
	if err != nil {
		return nil, err
	}
	text, err := Render(ctx, Versions()[0], "mnsrelay", "mnsrelay", []string{filepath.Join(folder, "ci", "default-values.yaml")}, "--skip-tests")
	if err != nil {
		return nil, err
	}
	text = regexp.MustCompile(`(?m)^ +(helm\.sh/chart|app\.kubernetes\.io/managed-by): .*\n|^# Source: .*\n`).ReplaceAllString(text, "")
	text = regexp.MustCompile(` +annotations:\n +checksum/config: .*\n`).ReplaceAllString(text, "")
	text = strings.TrimPrefix(text, "---\n")
	if strings.Contains(text, "Helm") || strings.Contains(text, "helm") {
		return nil, errors.New("make the manifests: something of Helm is left in them")
	}
	return []byte(manifestsHead + text), nil
}

const manifestsHead = `# mnsrelay on Kubernetes without Helm: SMS reports into RabbitMQ. Made from the chart by: make chart
#
#   kubectl create namespace mnsrelay
#   kubectl -n mnsrelay create secret generic rabbitmq --from-literal=password=...
#   kubectl -n mnsrelay create secret generic aliyun --from-literal=access-key-id=... --from-literal=access-key-secret=...
#   kubectl apply -f mnsrelay.yaml
#
# After a change of the ConfigMap: kubectl -n mnsrelay rollout restart deployment/mnsrelay
`
