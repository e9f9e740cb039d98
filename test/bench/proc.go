package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// processorTime is what the threads of a process have used so far, in nanoseconds exact
// (proc(5), schedstat): its times in stat count ticks of 10 ms. Threads that have ended are
// missing; neither Go nor Erlang ends those that it works with.
func processorTime(pid int) (time.Duration, error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		return 0, err
	}
	var total time.Duration
	for _, path := range threads {
		text, err := os.ReadFile(path) //nolint:gosec // The kernel made the path.
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, err
		}
		used, _, _ := strings.Cut(string(text), " ")
		ns, err := strconv.ParseInt(used, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read %s: %w", path, err)
		}
		total += time.Duration(ns)
	}
	if total == 0 {
		return 0, fmt.Errorf("process %d has used no processor time: it is gone, or the kernel keeps no schedstat", pid)
	}
	return total, nil
}

// memory is what a process has in memory, in MiB (proc(5), status).
type memory struct {
	// peak is the most that it had resident, anonymous what no file backs.
	peak, resident, anonymous float64
}

func memoryOf(pid int) (m memory, err error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return m, err
	}
	for line := range bytes.Lines(status) {
		fields := strings.Fields(string(line))
		if len(fields) != 3 || fields[2] != "kB" {
			continue
		}
		kib, err := strconv.ParseFloat(fields[1], 64)
		if err != nil {
			return m, fmt.Errorf("read the memory of process %d: %w", pid, err)
		}
		switch fields[0] {
		case "VmHWM:":
			m.peak = kib / 1024
		case "VmRSS:":
			m.resident = kib / 1024
		case "RssAnon:":
			m.anonymous = kib / 1024
		}
	}
	return m, nil
}
