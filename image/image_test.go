package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"debug/elf"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/stretchr/testify/require"
)

// repository is where the Makefile and the Dockerfile are.
const repository = ".."

// maxCompressed is what a node pulls at most, in bytes.
const maxCompressed = 30 << 20

// made is what make image wrote.
type made struct {
	index      v1.ImageIndex
	descriptor v1.Descriptor // of the index, with the image's names
	labels     map[string]string
}

// open reads the archive that make image writes.
func open(t *testing.T, archive string) made {
	t.Helper()
	folder := t.TempDir()
	file, err := os.Open(archive)
	require.NoError(t, err, "make image writes the archive, and make test-image calls it")
	defer func() { require.NoError(t, file.Close()) }()
	for r := tar.NewReader(file); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		at := filepath.Join(folder, filepath.Clean("/"+header.Name))
		require.NoError(t, os.MkdirAll(filepath.Dir(at), 0o755))
		content, err := io.ReadAll(r)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(at, content, 0o600))
	}
	top, err := layout.ImageIndexFromPath(folder)
	require.NoError(t, err)
	manifest, err := top.IndexManifest()
	require.NoError(t, err)
	require.Len(t, manifest.Manifests, 1, "the layout holds one thing: the index")
	index, err := top.ImageIndex(manifest.Manifests[0].Digest)
	require.NoError(t, err)
	inner, err := index.IndexManifest()
	require.NoError(t, err)
	return made{index: index, descriptor: manifest.Manifests[0], labels: inner.Annotations}
}

func openMade(t *testing.T) made {
	t.Helper()
	return open(t, filepath.Join(repository, "bin", "mnsrelay-image.tar"))
}

// image gives that of one architecture.
func (m made) image(t *testing.T, architecture string) v1.Image {
	t.Helper()
	manifest, err := m.index.IndexManifest()
	require.NoError(t, err)
	for _, d := range manifest.Manifests {
		if d.Platform.Architecture == architecture && d.Platform.OS == "linux" {
			image, err := m.index.Image(d.Digest)
			require.NoError(t, err)
			return image
		}
	}
	require.Fail(t, "the index has no image for "+architecture)
	return nil
}

func TestImage(t *testing.T) {
	t.Parallel()
	m := openMade(t)
	manifest, err := m.index.IndexManifest()
	require.NoError(t, err)
	require.Len(t, manifest.Manifests, 2)

	version := m.labels["org.opencontainers.image.version"]
	require.Equal(t, map[string]string{
		"io.containerd.image.name":          "docker.io/library/mnsrelay:" + version,
		"org.opencontainers.image.ref.name": version,
	}, m.descriptor.Annotations)
	for architecture, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		t.Run(architecture, func(t *testing.T) {
			t.Parallel()
			requireImage(t, m.image(t, architecture), architecture, machine, m.labels)
		})
	}
}

// requireImage checks what is promised of an image, from make image or from the Dockerfile.
func requireImage(t *testing.T, image v1.Image, architecture string, machine elf.Machine, labels map[string]string) {
	t.Helper()
	file, err := image.ConfigFile()
	require.NoError(t, err)
	require.Equal(t, "linux", file.OS)
	require.Equal(t, architecture, file.Architecture)
	config := file.Config
	require.Equal(t, "65532:65532", config.User)
	require.Equal(t, []string{"/usr/local/bin/mnsrelay"}, config.Entrypoint)
	require.Equal(t, []string{"run", "--config", "/etc/mnsrelay/mnsrelay.yaml"}, config.Cmd)
	require.Equal(t, []string{"PATH=/usr/local/bin"}, config.Env)
	require.Equal(t, "/", config.WorkingDir)
	require.Equal(t, map[string]struct{}{"8080/tcp": {}}, config.ExposedPorts)
	require.Empty(t, config.Volumes)
	require.Equal(t, &v1.HealthConfig{
		Test:     []string{"CMD", "/usr/local/bin/mnsrelay", "healthcheck"},
		Interval: 30 * time.Second, Timeout: 5 * time.Second, StartPeriod: 10 * time.Second, Retries: 3,
	}, config.Healthcheck)

	requireLabels(t, config.Labels)
	require.Subset(t, config.Labels, labels)

	layers, err := image.Layers()
	require.NoError(t, err)
	var compressed int64
	for _, layer := range layers {
		size, err := layer.Size()
		require.NoError(t, err)
		compressed += size
	}
	require.LessOrEqual(t, compressed, int64(maxCompressed), "bytes to pull")

	contents := contentsOf(t, image)
	var names []string
	for name := range contents {
		names = append(names, name)
	}
	// This is all: no shell, no package manager, no list of users, nothing that may be written.
	require.ElementsMatch(t, []string{
		"etc/", "etc/ssl/", "etc/ssl/certs/", "etc/ssl/certs/ca-certificates.crt",
		"usr/", "usr/local/", "usr/local/bin/", "usr/local/bin/mnsrelay",
	}, names)
	requireStatic(t, contents["usr/local/bin/mnsrelay"].data, machine)
	requireAuthorities(t, contents["etc/ssl/certs/ca-certificates.crt"].data)
}

func requireLabels(t *testing.T, labels map[string]string) {
	t.Helper()
	for _, name := range []string{"title", "description", "licenses", "version", "revision", "created"} {
		require.NotEmpty(t, labels["org.opencontainers.image."+name], name)
	}
	_, err := time.Parse(time.RFC3339, labels["org.opencontainers.image.created"])
	require.NoError(t, err)
}

// content is a file or a folder of an image.
type content struct {
	digest string
	mode   int64
	data   []byte
}

// contentsOf gives all that is in an image, and requires that it is root's, and that nobody
// else can write it.
func contentsOf(t *testing.T, image v1.Image) map[string]content {
	t.Helper()
	contents := map[string]content{}
	each(t, image, func(header *tar.Header, r io.Reader) {
		name := strings.TrimPrefix(header.Name, "/")
		require.Zero(t, header.Uid, name)
		require.Zero(t, header.Gid, name)
		require.Zero(t, header.Mode&0o7022, "%s has mode %o", name, header.Mode)
		data, err := io.ReadAll(r)
		require.NoError(t, err)
		if header.Typeflag == tar.TypeDir {
			name = strings.TrimSuffix(name, "/") + "/"
		}
		sum := sha256.Sum256(data)
		contents[name] = content{digest: hex.EncodeToString(sum[:]), mode: header.Mode, data: data}
	})
	return contents
}

// requireStatic requires a program that needs no loader and no library.
func requireStatic(t *testing.T, program []byte, machine elf.Machine) {
	t.Helper()
	binary, err := elf.NewFile(bytes.NewReader(program))
	require.NoError(t, err)
	require.Equal(t, machine, binary.Machine)
	for _, part := range binary.Progs {
		require.NotEqual(t, elf.PT_INTERP, part.Type, "the binary asks for a loader")
	}
}

func requireAuthorities(t *testing.T, bundle []byte) {
	t.Helper()
	authorities := 0
	for {
		var block *pem.Block
		if block, bundle = pem.Decode(bundle); block == nil {
			break
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		require.NoError(t, err)
		require.True(t, certificate.IsCA, certificate.Subject)
		authorities++
	}
	require.Greater(t, authorities, 100)
}

// The same commit gives the same image, wherever it lies and whatever lies about.
func TestTwoBuildsGiveTheSameImage(t *testing.T) {
	t.Parallel()
	first := openMade(t)
	elsewhere := copySources(t)
	labels := first.labels
	cmd := exec.CommandContext(t.Context(), "make", "-C", elsewhere, "image",
		"VERSION="+labels["org.opencontainers.image.version"],
		"REVISION="+labels["org.opencontainers.image.revision"],
		"CREATED="+labels["org.opencontainers.image.created"])
	output, err := cmd.CombinedOutput()
	require.NoError(t, err, string(output))
	second := open(t, filepath.Join(elsewhere, "bin", "mnsrelay-image.tar"))
	require.Equal(t, first.descriptor, second.descriptor)

	one, err := os.ReadFile(filepath.Join(repository, "bin", "mnsrelay-image.tar"))
	require.NoError(t, err)
	two, err := os.ReadFile(filepath.Join(elsewhere, "bin", "mnsrelay-image.tar"))
	require.NoError(t, err)
	require.Equal(t, sha256.Sum256(one), sha256.Sum256(two), "the archives differ")
}

// copySources copies what the image is made of to another folder, without the repository's
// history.
func copySources(t *testing.T) string {
	t.Helper()
	to := t.TempDir()
	for _, name := range []string{"Makefile", "go.mod", "go.sum", "api", "cmd", "configs", "internal", "image"} {
		from := filepath.Join(repository, name)
		info, err := os.Stat(from)
		require.NoError(t, err)
		if info.IsDir() {
			require.NoError(t, os.CopyFS(filepath.Join(to, name), os.DirFS(from)))
			continue
		}
		text, err := os.ReadFile(from)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(to, name), text, 0o600))
	}
	return to
}
