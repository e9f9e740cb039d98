//go:build !linux

package broker

import "syscall"

// attributes do without a death signal, which only Linux has; a Node starts only
// where Debian's packages are anyway.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
