package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Root is the folder of the whole project, found from the working directory, which in a
// test is the package's.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the project: %w", err)
	}
	for at := dir; ; at = filepath.Dir(at) {
		mod, err := os.ReadFile(filepath.Join(at, "go.mod")) //nolint:gosec // A file of the project.
		if err == nil && bytes.HasPrefix(mod, []byte("module mnsrelay\n")) {
			return at, nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("find the project: %w", err)
		}
		if at == filepath.Dir(at) {
			return "", fmt.Errorf("find the project: neither %s nor a folder above it has its go.mod", dir)
		}
	}
}

// Bin is the folder in which make leaves the programs of Kubernetes and both versions of
// Helm.
func Bin() (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	bin := filepath.Join(root, "bin", "k8s")
	if _, err := os.Stat(bin); err != nil {
		return "", fmt.Errorf("find the programs of Kubernetes: %w: run make test-k8s, which builds them", err)
	}
	return bin, nil
}

// Output runs a command and gives its standard output. The error holds what the command
// wrote to standard error.
func Output(cmd *exec.Cmd) (string, error) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("run %s: %w: %s",
			strings.Join(append([]string{filepath.Base(cmd.Path)}, cmd.Args[1:]...), " "), err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}
