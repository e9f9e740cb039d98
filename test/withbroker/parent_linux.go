package main

import (
	"fmt"
	"syscall"
)

// attributes give the command a group of its own and kill it should we die.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// endWithParent asks for SIGTERM when the parent dies: "go run" and make do not
// hand on a signal that was meant for them.
func endWithParent() error {
	if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, syscall.PR_SET_PDEATHSIG, uintptr(syscall.SIGTERM), 0); errno != 0 {
		return fmt.Errorf("ask for a signal at the parent's death: %w", errno)
	}
	return nil
}
