package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
)

// definitions are the custom resources that the chart can make, by the module that defines
// them. Only their files are taken: the modules are downloaded, never built.
func definitions() map[string][]string {
	return map[string][]string{
		"github.com/kedacore/keda/v2@v2.21.0": {
			"config/crd/bases/keda.sh_scaledobjects.yaml",
			"config/crd/bases/keda.sh_triggerauthentications.yaml",
		},
		"github.com/prometheus-operator/prometheus-operator@v0.85.0": {
			"example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
			"example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml",
		},
	}
}

// Definitions gives the paths of the CustomResourceDefinitions of KEDA and of the
// Prometheus operator that the chart makes objects of.
func Definitions(ctx context.Context) ([]string, error) {
	var paths []string
	for module, files := range definitions() {
		out, err := Output(exec.CommandContext(ctx, "go", "mod", "download", "-json", module)) //nolint:gosec // A module named above.
		if err != nil {
			return nil, err
		}
		var downloaded struct{ Dir string }
		if err := json.Unmarshal([]byte(out), &downloaded); err != nil {
			return nil, fmt.Errorf("read where %s is: %w", module, err)
		}
		for _, file := range files {
			paths = append(paths, filepath.Join(downloaded.Dir, file))
		}
	}
	return paths, nil
}

// Define makes what Definitions names known to the cluster.
func (c *Cluster) Define(ctx context.Context) error {
	paths, err := Definitions(ctx)
	if err != nil {
		return err
	}
	var files []string
	for _, path := range paths {
		files = append(files, "-f", path)
	}
	// On the server's side: they are too long for the annotation that kubectl would make.
	if _, err := c.Kubectl(ctx, append([]string{"apply", "--server-side"}, files...)...); err != nil {
		return err
	}
	_, err = c.Kubectl(ctx, append([]string{"wait", "--for=condition=Established", "--timeout=60s"}, files...)...)
	return err
}
