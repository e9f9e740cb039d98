package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"mnsrelay/image/certificates"
)

const (
	// binaryPath is below what PATH names, so that `kubectl exec POD -- mnsrelay queue stats`
	// needs no path.
	binaryPath = "usr/local/bin/mnsrelay"
	// bundlePath is where crypto/x509 looks first. It reads the files below /etc/ssl/certs and
	// /etc/pki/tls/certs, or SSL_CERT_DIR, beside it: that is how an operator adds authorities.
	bundlePath = "etc/ssl/certs/ca-certificates.crt"
)

// build is what an image is made of. The Dockerfile makes the same; a test compares them.
type build struct {
	binaries string // holds linux/ARCHITECTURE/mnsrelay
	version  string
	revision string
	created  time.Time
}

// index gives the image for every architecture.
func (b build) index() (v1.ImageIndex, error) {
	text, err := certificates.PEM()
	if err != nil {
		return nil, err
	}
	authorities, err := layer(bundlePath, 0o644, text)
	if err != nil {
		return nil, err
	}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, architecture := range []string{"amd64", "arm64"} {
		image, err := b.image(architecture, authorities)
		if err != nil {
			return nil, fmt.Errorf("make the image for %s: %w", architecture, err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add:        image,
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: architecture}},
		})
	}
	annotated, ok := mutate.Annotations(index, b.labels()).(v1.ImageIndex)
	if !ok {
		return nil, errors.New("annotate the index: the library gave something else")
	}
	return annotated, nil
}

func (b build) image(architecture string, authorities v1.Layer) (v1.Image, error) {
	program, err := os.ReadFile(filepath.Join(b.binaries, "linux", architecture, "mnsrelay")) //nolint:gosec // The caller says where.
	if err != nil {
		return nil, fmt.Errorf("read the binary: %w", err)
	}
	binary, err := layer(binaryPath, 0o755, program)
	if err != nil {
		return nil, err
	}
	image, err := mutate.ConfigFile(empty.Image, b.config(architecture))
	if err != nil {
		return nil, fmt.Errorf("set the configuration: %w", err)
	}
	image = mutate.ConfigMediaType(mutate.MediaType(image, types.OCIManifestSchema1), types.OCIConfigJSON)
	created := v1.Time{Time: b.created}
	// The authorities come first: they change less often than the binary, so a node or a
	// registry that has them keeps them.
	image, err = mutate.Append(image,
		mutate.Addendum{Layer: authorities, History: v1.History{Created: created, CreatedBy: "add /" + bundlePath}},
		mutate.Addendum{Layer: binary, History: v1.History{Created: created, CreatedBy: "add /" + binaryPath}})
	if err != nil {
		return nil, fmt.Errorf("add the layers: %w", err)
	}
	return image, nil
}

func (b build) config(architecture string) *v1.ConfigFile {
	return &v1.ConfigFile{
		OS:           "linux",
		Architecture: architecture,
		Created:      v1.Time{Time: b.created},
		RootFS:       v1.RootFS{Type: "layers"},
		Config: v1.Config{
			User:         "65532:65532", // a number, which runAsNonRoot can check
			Env:          []string{"PATH=/usr/local/bin"},
			Entrypoint:   []string{"/usr/local/bin/mnsrelay"},
			Cmd:          []string{"run", "--config", "/etc/mnsrelay/mnsrelay.yaml"},
			WorkingDir:   "/",
			ExposedPorts: map[string]struct{}{"8080/tcp": {}},
			Labels:       b.labels(),
			Healthcheck: &v1.HealthConfig{
				Test:        []string{"CMD", "/usr/local/bin/mnsrelay", "healthcheck"},
				Interval:    30 * time.Second,
				Timeout:     5 * time.Second,
				StartPeriod: 10 * time.Second,
				Retries:     3,
			},
		},
	}
}

// labels are those of the OCI image specification, which are the index's annotations too.
func (b build) labels() map[string]string {
	return map[string]string{
		"org.opencontainers.image.title":       "mnsrelay",
		"org.opencontainers.image.description": "Moves messages from Alibaba Cloud MNS queues to RabbitMQ, AMQP 1.0 brokers and webhooks",
		"org.opencontainers.image.licenses":    "Apache-2.0",
		"org.opencontainers.image.version":     b.version,
		"org.opencontainers.image.revision":    b.revision,
		"org.opencontainers.image.created":     b.created.Format(time.RFC3339),
	}
}

// layer has one file and the folders above it, all root's and of 1970, so that it depends
// on nothing but its content.
func layer(file string, mode int64, content []byte) (v1.Layer, error) {
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for i, r := range file {
		if r == '/' {
			folder := &tar.Header{Typeflag: tar.TypeDir, Name: file[:i+1], Mode: 0o755, ModTime: time.Unix(0, 0)}
			if err := w.WriteHeader(folder); err != nil {
				return nil, fmt.Errorf("write a layer: %w", err)
			}
		}
	}
	if err := add(w, file, mode, bytes.NewReader(content), int64(len(content))); err != nil {
		return nil, fmt.Errorf("write a layer: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("write a layer: %w", err)
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive.Bytes())), nil }
	made, err := tarball.LayerFromOpener(open, tarball.WithCompressionLevel(gzip.BestCompression),
		tarball.WithMediaType(types.OCILayer), tarball.WithCompressedCaching)
	if err != nil {
		return nil, fmt.Errorf("compress the layer of %s: %w", path.Base(file), err)
	}
	return made, nil
}

func add(w *tar.Writer, name string, mode int64, content io.Reader, size int64) error {
	header := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: size, ModTime: time.Unix(0, 0)}
	if err := w.WriteHeader(header); err != nil {
		return err
	}
	_, err := io.Copy(w, content)
	return err
}

// name is what container runtimes call the image: Kubernetes asks them for
// docker.io/library/mnsrelay:VERSION when a pod says mnsrelay:VERSION.
func name(version string) string { return "docker.io/library/mnsrelay:" + version }
