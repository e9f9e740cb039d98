package main

import (
	"fmt"
	"syscall"
)

// endWithParent asks for SIGTERM when the parent dies: "go run" and make do not
// hand on a signal that was meant for them.
func endWithParent() error {
	if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, syscall.PR_SET_PDEATHSIG, uintptr(syscall.SIGTERM), 0); errno != 0 {
		return fmt.Errorf("ask for a signal at the parent's death: %w", errno)
	}
	return nil
}
