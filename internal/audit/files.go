package audit

import (
	"cmp"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Files gives the file at path and those that it was moved to by logrotate and the like,
// which begin with its name (audit.jsonl.1, audit.jsonl-20260101.gz), the oldest first. One
// that is being packed is taken as it was before.
func Files(path string) ([]string, error) {
	folder, name := filepath.Split(path)
	entries, err := os.ReadDir(filepath.Clean(folder))
	if err != nil {
		return nil, fmt.Errorf("look for the audit: %w", err)
	}
	type file struct {
		path    string
		changed int64
	}
	var files []file
	for _, entry := range entries {
		moved, found := strings.CutPrefix(entry.Name(), name)
		if !found || moved != "" && moved[0] != '.' && moved[0] != '-' {
			continue // of something else
		}
		info, err := os.Stat(folder + entry.Name()) // a link leads to it
		if err != nil || !info.Mode().IsRegular() {
			continue // gone meanwhile, or no file
		}
		files = append(files, file{folder + entry.Name(), info.ModTime().UnixNano()})
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("look for the audit: there is no file %s yet", path)
	}
	all := slices.Clone(files)
	files = slices.DeleteFunc(files, func(f file) bool {
		before, packed := strings.CutSuffix(f.path, ".gz")
		return packed && slices.ContainsFunc(all, func(f file) bool { return f.path == before })
	})
	slices.SortStableFunc(files, func(a, b file) int { return cmp.Compare(a.changed, b.changed) })
	paths := make([]string, len(files))
	for i := range files {
		paths[i] = files[i].path
	}
	return paths, nil
}

// Open opens a file of an audit. One whose name ends in .gz is unpacked.
func Open(path string) (io.ReadCloser, error) {
	file, err := os.Open(path) //nolint:gosec // G304: the user names it
	if err != nil {
		return nil, fmt.Errorf("open the audit: %w", err)
	}
	if !strings.HasSuffix(path, ".gz") {
		return file, nil
	}
	unpacked, err := gzip.NewReader(file)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the audit %s: %w", path, err), file.Close())
	}
	return &packed{unpacked, file}, nil
}

// packed is a file that is unpacked as it is read.
type packed struct {
	*gzip.Reader
	file *os.File
}

// Close is part of io.Closer.
func (p *packed) Close() error { return errors.Join(p.Reader.Close(), p.file.Close()) }
