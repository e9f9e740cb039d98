package main

import (
	"context"
	"os"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFirstSignalStopsSecondCuts(t *testing.T) {
	signals := make(chan os.Signal)
	unlistened := make(chan struct{})
	soft, hard, release := stopOn(t.Context(), signals, func() { close(unlistened) })
	defer release()
	require.NoError(t, soft.Err())

	signals <- syscall.SIGTERM
	<-soft.Done()
	require.ErrorContains(t, context.Cause(soft), "terminated")
	require.NoError(t, hard.Err())

	signals <- syscall.SIGINT
	<-hard.Done()
	require.ErrorContains(t, context.Cause(hard), "interrupt")
	// From now on a signal ends the process.
	<-unlistened
}

func TestSignalsAreReleased(t *testing.T) {
	unlistened := make(chan struct{})
	soft, hard, release := stopOn(t.Context(), make(chan os.Signal), func() { close(unlistened) })
	release()
	release()
	<-unlistened
	require.Error(t, soft.Err())
	require.Error(t, hard.Err())
}

func TestSoftEndsWithHardAndHardWithItsParent(t *testing.T) {
	parent, cancel := context.WithCancel(t.Context())
	soft, hard, release := stopOn(parent, make(chan os.Signal), func() {})
	defer release()
	cancel()
	<-hard.Done()
	<-soft.Done()
}

func TestARealSignalStops(t *testing.T) {
	soft, hard, release := stopOnSignals(t.Context())
	defer release()
	require.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGTERM))
	<-soft.Done()
	require.NoError(t, hard.Err())
}
