package main

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/stretchr/testify/require"
)

// container is the files of an image, and how its programs are run.
type container struct {
	t       *testing.T
	config  v1.Config
	root    string
	network string // as in inside
}

// newContainer unpacks an image. Files are put beside the image's before anything runs, as
// what a runtime mounts: a path and its content.
func newContainer(t *testing.T, image v1.Image, network string, files map[string]string) *container {
	t.Helper()
	file, err := image.ConfigFile()
	require.NoError(t, err)
	c := &container{t: t, config: file.Config, root: t.TempDir(), network: network}
	// t.TempDir makes folders that only root may enter.
	for folder := c.root; folder != os.TempDir() && folder != "/"; folder = filepath.Dir(folder) {
		require.NoError(t, os.Chmod(folder, 0o755))
	}
	each(t, image, func(header *tar.Header, content io.Reader) {
		at := filepath.Join(c.root, header.Name)
		switch header.Typeflag {
		case tar.TypeDir:
			require.NoError(t, os.MkdirAll(at, header.FileInfo().Mode().Perm()))
		case tar.TypeReg:
			out, err := os.OpenFile(at, os.O_CREATE|os.O_EXCL|os.O_WRONLY, header.FileInfo().Mode().Perm())
			require.NoError(t, err)
			_, err = io.Copy(out, content)
			require.NoError(t, errors.Join(err, out.Close()))
		default:
			require.Fail(t, "an image has files and folders only", "%s is of type %c", header.Name, header.Typeflag)
		}
	})
	for path, content := range files {
		at := filepath.Join(c.root, path)
		require.NoError(t, os.MkdirAll(filepath.Dir(at), 0o755))
		require.NoError(t, os.WriteFile(at, []byte(content), 0o644))
	}
	return c
}

// each calls visit for every file and folder of an image.
func each(t *testing.T, image v1.Image, visit func(*tar.Header, io.Reader)) {
	t.Helper()
	files := mutate.Extract(image)
	defer func() { require.NoError(t, files.Close()) }()
	for r := tar.NewReader(files); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		require.NoError(t, err)
		visit(header, r)
	}
}

// start runs the entrypoint with args, or with the image's own where there are none.
func (c *container) start(env []string, args ...string) *process {
	c.t.Helper()
	if len(args) == 0 {
		args = c.config.Cmd
	}
	return c.exec(env, append(slices.Clip(c.config.Entrypoint), args...)...)
}

// exec runs a program of the image, as its user.
func (c *container) exec(env []string, args ...string) *process {
	c.t.Helper()
	number, _, _ := strings.Cut(c.config.User, ":")
	user, err := strconv.Atoi(number)
	require.NoError(c.t, err)
	return start(c.t, inside{
		Network: c.network, Root: c.root, Dir: c.config.WorkingDir, User: user, Args: args,
		Env: append(slices.Clip(env), c.config.Env...),
	})
}

// run runs the entrypoint to its end and gives what it wrote and its exit code.
func (c *container) run(args ...string) (string, int) {
	c.t.Helper()
	return c.end(c.start(nil, args...))
}

func (c *container) end(p *process) (string, int) {
	c.t.Helper()
	<-p.done
	return p.text(), p.cmd.ProcessState.ExitCode()
}
