//go:build unix

package file

import (
	"os"
	"syscall"
)

// writable tells whether files can be made in a folder; a read-only volume says so as well.
func writable(folder string) error {
	const access = 0x2 | 0x1 // W_OK and X_OK (POSIX: access)
	if err := syscall.Access(folder, access); err != nil {
		return &os.PathError{Op: "write to", Path: folder, Err: err}
	}
	return nil
}
