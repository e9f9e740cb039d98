package file

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// mode is of a file that the sink makes: messages are not for everybody to read.
const mode = 0o640

// disk is a file that lines are appended to.
type disk struct {
	path string
	file *os.File
}

// openDisk opens or makes the file. A last line without its end, which a crash or a
// full disk left, gets one. The file's folder is not made: where a volume is missing,
// messages must not go to the place where it would be.
func openDisk(path string) (*disk, error) {
	_, err := os.Lstat(path)
	isNew := errors.Is(err, fs.ErrNotExist)
	// For reading too: to see how it ends, and because a FIFO opened for writing
	// only would block until somebody reads.
	file, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE, mode) //nolint:gosec // G302, G304: the configuration names it; the group may read it
	if err != nil {
		return nil, err
	}
	d := &disk{path: path, file: file}
	if err := d.prepare(isNew); err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

func (d *disk) prepare(isNew bool) error {
	info, err := d.file.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("open %s: not a regular file", d.path)
	}
	if err := d.lock(); err != nil {
		return err
	}
	if isNew {
		// The lines are safe only if the file's name is.
		if err := syncFolder(filepath.Dir(d.path)); err != nil {
			return err
		}
	}
	if info.Size() == 0 {
		return nil
	}
	last := make([]byte, 1)
	if _, err := d.file.ReadAt(last, info.Size()-1); err != nil {
		return err
	}
	if last[0] == '\n' {
		return nil
	}
	_, err = d.file.WriteString("\n")
	return err
}

// lock keeps others off while the file is open: a write that fails is cut off again, and must
// not take the lines of another with it. Where the file system knows no locks, there are none.
func (d *disk) lock() error {
	err := syscall.Flock(int(d.file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	switch {
	case errors.Is(err, syscall.EWOULDBLOCK):
		return fmt.Errorf("open %s: another sink or process writes to it: wait for its end, or write to another file", d.path)
	case errors.Is(err, syscall.ENOTSUP), errors.Is(err, syscall.ENOSYS), errors.Is(err, syscall.ENOLCK):
		return nil
	}
	return err
}

func syncFolder(path string) error {
	folder, err := os.Open(path) //nolint:gosec // G304: the configuration names it
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// write appends lines and waits until the disk has them. After an error they are cut
// off again, as far as that is possible: a message that is delivered again is then
// not there twice.
func (d *disk) write(_ string, lines []byte) error {
	before, err := d.follow()
	if err != nil {
		return err
	}
	if _, err = d.file.Write(lines); err == nil {
		err = d.file.Sync()
	}
	if err != nil {
		return errors.Join(err, d.file.Truncate(before))
	}
	return nil
}

// follow opens the path anew when another file, or none, is there by now, and gives
// the size of the file.
func (d *disk) follow() (int64, error) {
	mine, err := d.file.Stat()
	if err != nil {
		return 0, err
	}
	there, err := os.Stat(d.path)
	switch {
	case err == nil && os.SameFile(mine, there):
		return mine.Size(), nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return 0, err
	}
	anew, err := openDisk(d.path)
	if err != nil {
		return 0, err
	}
	old := d.file
	d.file = anew.file
	if err := old.Close(); err != nil {
		return 0, err
	}
	return d.file.Seek(0, io.SeekEnd)
}

func (d *disk) close() error { return d.file.Close() }
