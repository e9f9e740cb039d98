package main

import (
	"archive/tar"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	reference "github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
)

// write puts the index into a tar archive of an OCI layout, and says its name there in the
// two ways that are understood: containerd reads the first annotation, skopeo, podman and
// buildah read the second. The file is there whole or not at all.
func write(file string, index v1.ImageIndex, version string) (err error) {
	if _, err := reference.NewTag(name(version)); err != nil {
		return fmt.Errorf("name the image: %w: give another -version", err)
	}
	folder, err := os.MkdirTemp("", "mnsrelay-image-")
	if err != nil {
		return fmt.Errorf("make a folder for the layout: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	at, err := layout.Write(folder, empty.Index)
	if err != nil {
		return fmt.Errorf("write the layout: %w", err)
	}
	err = at.AppendIndex(index, layout.WithAnnotations(map[string]string{
		"io.containerd.image.name":          name(version),
		"org.opencontainers.image.ref.name": version,
	}))
	if err != nil {
		return fmt.Errorf("write the layout: %w", err)
	}
	temporary := file + ".new"
	if err := archive(temporary, folder); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", file, err), os.RemoveAll(temporary))
	}
	if err := os.Rename(temporary, file); err != nil {
		return fmt.Errorf("put the archive in its place: %w", err)
	}
	return nil
}

// archive writes the files below folder, in the order of their names.
func archive(file, folder string) (err error) {
	out, err := os.Create(file) //nolint:gosec // The caller says where.
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	w := tar.NewWriter(out)
	err = filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(folder, path)
		if err != nil {
			return err
		}
		return addFile(w, filepath.ToSlash(name), path)
	})
	if err != nil {
		return err
	}
	return w.Close()
}

func addFile(w *tar.Writer, name, path string) error {
	content, err := os.Open(path) //nolint:gosec // It lies in the folder that was just written.
	if err != nil {
		return err
	}
	defer func() { _ = content.Close() }()
	info, err := content.Stat()
	if err != nil {
		return err
	}
	return add(w, name, 0o644, content, info.Size())
}
