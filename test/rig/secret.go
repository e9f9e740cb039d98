package rig

import (
	"fmt"
	"strings"
	"sync"
)

// secrets are what no relay may write or answer.
type secrets struct {
	mu  sync.Mutex
	all []string
}

var known secrets //nolint:gochecknoglobals // every relay of the process is looked at for all of them

// Secret notes what no relay may show: the log is searched for it at the relay's end, and
// each answer of its API. It is safe for concurrent use.
func Secret(values ...string) {
	known.mu.Lock()
	defer known.mu.Unlock()
	known.all = append(known.all, values...)
}

// look fails where a text holds a secret. The error does not.
func (s *secrets) look(what, text string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, secret := range s.all {
		if at := strings.Index(text, secret); secret != "" && at >= 0 {
			return fmt.Errorf("%s holds secret %d of %d, %q..., at byte %d", what, i, len(s.all), secret[:min(3, len(secret))], at)
		}
	}
	return nil
}

// NoSecret fails where a text, which what names, holds what Secret has noted.
func NoSecret(what, text string) error { return known.look(what, text) }
