package file

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// maxOpen is how many files of a folder are open at once.
const maxOpen = 64

// folder holds the files that a template names.
type folder struct {
	path string
	// open are the files in use, the one last written to at the end.
	open []*disk
}

// openFolder makes sure of the folder, which is not made: see openDisk. Files are opened
// as messages come for them.
func openFolder(path string) (*folder, error) {
	if path == "" {
		path = "."
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("open %s: not a folder", path)
	}
	return &folder{path: path}, nil
}

func (f *folder) write(name string, lines []byte) error {
	d, err := f.file(filepath.Join(f.path, name))
	if err != nil {
		return err
	}
	return d.write(name, lines)
}

// file gives a file, opened if it is not yet, and closes another one for it.
func (f *folder) file(path string) (*disk, error) {
	if i := slices.IndexFunc(f.open, func(d *disk) bool { return d.path == path }); i >= 0 {
		d := f.open[i]
		f.open = append(slices.Delete(f.open, i, i+1), d)
		return d, nil
	}
	if len(f.open) == maxOpen {
		oldest := f.open[0]
		f.open = slices.Delete(f.open, 0, 1)
		if err := oldest.close(); err != nil {
			return nil, err
		}
	}
	d, err := openDisk(path)
	if err != nil {
		return nil, err
	}
	f.open = append(f.open, d)
	return d, nil
}

func (f *folder) close() error {
	var errs []error
	for _, d := range f.open {
		errs = append(errs, d.close())
	}
	f.open = nil
	return errors.Join(errs...)
}
