package app

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
	"go.uber.org/zap"
)

// watchSettle is how long a file has to be left alone before it is read: an editor and
// a ConfigMap each touch it several times.
const watchSettle = 500 * time.Millisecond

// Watch reloads whenever the file at path has other content, until ctx ends. It watches
// the directory: Kubernetes does not write a mounted file but swaps the link ..data
// beside it, and editors rename. Its error says why it cannot watch at all.
func (a *App) Watch(ctx context.Context, path string) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", path, err)
	}
	defer func() { _ = watcher.Close() }()
	if err := watcher.Add(filepath.Dir(path)); err != nil {
		return fmt.Errorf("watch %s: %w", filepath.Dir(path), err)
	}
	last := sumOf(path)
	quiet := time.NewTimer(watchSettle)
	quiet.Stop()
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-watcher.Events:
			if !ok {
				return nil
			}
			quiet.Reset(watchSettle)
		case err, ok := <-watcher.Errors:
			if !ok {
				return nil
			}
			// Events may have been lost: look.
			a.log.Warn("watching the configuration failed; it is read again", zap.Error(err))
			quiet.Reset(watchSettle)
		case <-quiet.C:
			// A file that is away for a moment is about to come back.
			if now := sumOf(path); now != last && now != (sum{}) {
				last = now
				_, _ = a.Reload(ctx) // it has logged and kept why it did not work
			}
		}
	}
}

type sum [sha256.Size]byte

// sumOf is zero where the file cannot be read.
func sumOf(path string) sum {
	text, err := os.ReadFile(path) //nolint:gosec // the path of our own configuration
	if err != nil {
		return sum{}
	}
	return sha256.Sum256(text)
}
