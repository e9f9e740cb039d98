//go:build !linux

package main

import "syscall"

func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// endWithParent does nothing: only Linux tells a child of its parent's death.
func endWithParent() error { return nil }
