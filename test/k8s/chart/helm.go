package chart

import (
	"context"
	"os/exec"
	"path/filepath"

	"mnsrelay/test/k8s/cluster"
)

// Versions are the programs of Helm, as make leaves them.
func Versions() []string { return []string{"helm3", "helm4"} }

// Kube is the Kubernetes that charts are rendered for.
const Kube = "1.36.0"

// Helm is a command of one of the Versions.
func Helm(ctx context.Context, version string, args ...string) (*exec.Cmd, error) {
	bin, err := cluster.Bin()
	if err != nil {
		return nil, err
	}
	return exec.CommandContext(ctx, filepath.Join(bin, version), args...), nil //nolint:gosec // A program that make has built.
}

// Render gives what a release of the chart called release would install into a namespace,
// with the values of files and whatever further flags say.
func Render(ctx context.Context, version, release, namespace string, files []string, flags ...string) (string, error) {
	folder, err := Folder()
	if err != nil {
		return "", err
	}
	args := []string{"template", release, folder, "--namespace", namespace, "--kube-version", Kube}
	for _, file := range files {
		args = append(args, "--values", file)
	}
	cmd, err := Helm(ctx, version, append(args, flags...)...)
	if err != nil {
		return "", err
	}
	return cluster.Output(cmd)
}
