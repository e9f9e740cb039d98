// Command pause is what a pod's sandbox runs: it holds the pod's namespaces and waits to
// be ended.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ended := make(chan os.Signal, 1) // A signal that comes before we wait is kept.
	signal.Notify(ended, os.Interrupt, syscall.SIGTERM)
	<-ended
}
