package main

import (
	"bytes"
	"context"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/dockerfile2llb"
	"github.com/moby/buildkit/frontend/subrequests/lint"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

// bases notes which images a Dockerfile asks a registry for, and gives an empty one for each.
type bases []string

func (b *bases) ResolveImageConfig(_ context.Context, reference string, _ sourceresolver.Opt) (string, digest.Digest, []byte, error) {
	*b = append(*b, reference)
	config := []byte(`{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin"]},"rootfs":{"type":"layers","diff_ids":[]}}`)
	return reference, digest.FromBytes(config), config, nil
}

// examine runs BuildKit's linter, `docker build --check`, and gives the base images too.
func examine(t *testing.T, dockerfile []byte) (*lint.LintResults, []string) {
	t.Helper()
	var asked bases
	source := llb.NewSourceMap(nil, "Dockerfile", "Dockerfile", dockerfile)
	source.Definition = &llb.Definition{}
	results, err := dockerfile2llb.DockerfileLint(t.Context(), dockerfile, dockerfile2llb.ConvertOpt{MetaResolver: &asked, SourceMap: source})
	require.NoError(t, err)
	return results, asked
}

func readDockerfile(t *testing.T) []byte {
	t.Helper()
	dockerfile, err := os.ReadFile(filepath.Join(repository, "Dockerfile"))
	require.NoError(t, err)
	return dockerfile
}

func TestDockerfileLint(t *testing.T) {
	t.Parallel()
	dockerfile := readDockerfile(t)
	results, asked := examine(t, dockerfile)
	require.Nil(t, results.Error)
	require.Empty(t, results.Warnings)
	require.Len(t, asked, 1, "one image comes from a registry: the one to build in")

	// The linter finds what there is to find.
	worse := bytes.Replace(dockerfile, []byte("\nUSER "), []byte("\nMAINTAINER somebody\nUSER "), 1)
	results, _ = examine(t, worse)
	require.Len(t, results.Warnings, 1)
	require.Equal(t, "MaintainerDeprecated", results.Warnings[0].RuleName)
}

// The image of the Dockerfile is that of make image: the same settings, and the same bytes
// in every file.
func TestDockerfileBuild(t *testing.T) {
	t.Parallel()
	m := openMade(t)
	archive := buildDockerfile(t, m.labels)
	image, err := tarball.ImageFromPath(archive, nil)
	require.NoError(t, err)
	expected := m.image(t, runtime.GOARCH)
	requireImage(t, image, runtime.GOARCH, map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[runtime.GOARCH], m.labels)
	one, two := contentsOf(t, expected), contentsOf(t, image)
	for name, file := range one {
		require.Equal(t, file.digest, two[name].digest, "%s is another one in the image of the Dockerfile", name)
		require.Equal(t, file.mode, two[name].mode&0o7777, name)
	}
	requireRuns(t, image, m.labels["org.opencontainers.image.version"])
}

// buildDockerfile builds with buildah, which needs no daemon, on a base image that has what
// the build stage needs of the one it names: Debian, and Go. It gives a docker-archive.
func buildDockerfile(t *testing.T, labels map[string]string) string {
	t.Helper()
	_, asked := examine(t, readDockerfile(t))
	require.Len(t, asked, 1)
	suite := asked[0][strings.LastIndex(asked[0], "-")+1:]
	folder := t.TempDir()
	buildah := func(args ...string) string {
		t.Helper()
		options := []string{"--root", folder + "/images", "--runroot", folder + "/run", "--storage-driver", "vfs"}
		cmd := exec.CommandContext(t.Context(), "buildah", append(options, args...)...)
		cmd.Dir = repository
		cmd.Env = append(os.Environ(), "TMPDIR="+folder) // what RUN --mount=type=cache keeps is there too
		var output, problems strings.Builder
		cmd.Stdout, cmd.Stderr = &output, &problems
		require.NoError(t, cmd.Run(), "buildah %s: %s%s", args[0], &output, &problems)
		return strings.TrimSpace(output.String())
	}
	goEnv := func(name string) string {
		t.Helper()
		value, err := exec.CommandContext(t.Context(), "go", "env", name).Output()
		require.NoError(t, err)
		return strings.TrimSpace(string(value))
	}

	base := buildah("from", "scratch")
	root := buildah("mount", base)
	// Unpacked and not configured, Debian has the shell and the tools that RUN needs, in half the time.
	output, err := exec.CommandContext(t.Context(), "debootstrap", "--variant=minbase", "--foreign", suite, root).CombinedOutput()
	require.NoError(t, err, string(output))
	// It leaves a link to itself there, and no runtime mounts onto that.
	require.NoError(t, os.RemoveAll(root+"/proc"))
	require.NoError(t, os.Mkdir(root+"/proc", 0o755))
	// Modules and compiled packages are those of make image, so that this test loads and compiles
	// little. They lie elsewhere than the Dockerfile's own caches, which would hide them.
	buildah("config",
		"--env", "PATH=/usr/local/go/bin:/usr/bin:/bin", "--env", "GOTOOLCHAIN=local",
		"--env", "GOMODCACHE=/host/modules", "--env", "GOCACHE=/host/compiled", "--env", "GOPROXY=off", base)
	buildah("commit", "--quiet", "--disable-compression", "--rm", base, asked[0])
	buildah("bud", "--isolation", "chroot", "--pull-never", "--format", "docker", "--quiet",
		"--volume", goEnv("GOROOT")+":/usr/local/go:ro",
		"--volume", goEnv("GOMODCACHE")+":/host/modules",
		"--volume", goEnv("GOCACHE")+":/host/compiled",
		"--build-arg", "VERSION="+labels["org.opencontainers.image.version"],
		"--build-arg", "REVISION="+labels["org.opencontainers.image.revision"],
		"--build-arg", "CREATED="+labels["org.opencontainers.image.created"],
		"--platform", "linux/"+runtime.GOARCH, "--tag", "localhost/mnsrelay", ".")
	archive := filepath.Join(folder, "image.tar")
	buildah("push", "--quiet", "localhost/mnsrelay", "docker-archive:"+archive)
	return archive
}
