//go:build !linux

package process

import "syscall"

// attributes do without a death signal, which only Linux has; the servers of tests come
// from Debian's packages anyway.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// awaitStopped does without what only Linux tells.
func (p *Process) awaitStopped() error { return nil }
