package main

import (
	"context"
	"errors"
	"os"
	"runtime/debug"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"go.uber.org/zap"
)

// collectorPercent is Go's GOGC unless the environment has one. The heap of a relay at full
// speed is some 5 MiB, which by Go's own 100 would be gone through ten times a second: a tenth
// of all its work. At rest the heap stays below 12 MiB with it.
const collectorPercent = 300

// fitContainer keeps the memory below the limit of the container, which may change until ctx
// ends: the collector works harder before the kernel ends the process. Go itself follows the
// limit of processors. GOMEMLIMIT and GOGC go before.
func fitContainer(ctx context.Context, log *zap.Logger) {
	const share, lookAgain = 0.9, time.Minute // what is not heap needs the rest
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(collectorPercent)
	}
	_, err := memlimit.Set(memlimit.WithRatio(share), memlimit.WithRefreshInterval(ctx, lookAgain))
	switch {
	case errors.Is(err, memlimit.ErrCgroupsNotSupported), errors.Is(err, memlimit.ErrNoCgroup), errors.Is(err, os.ErrNotExist):
		// There is no container.
	case err != nil:
		log.Warn("the memory limit of the container is not known: set GOMEMLIMIT to 90% of it, if it has one", zap.Error(err))
	}
}
