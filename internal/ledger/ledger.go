// Package ledger implements relay.Ledger: the memory of which sink has confirmed which
// message, in this process or in a Redis that replicas share.
//
// A confirm is recorded before its message is deleted and forgotten after the delete, so
// in normal operation a ledger holds what is in flight and little more. What stays longer
// belongs to messages that some of their sinks have and others still refuse, or whose
// delete failed.
//
// A ledger never decides about loss. The one mistake that would lose a message is to take
// an unrecorded confirm for a recorded one, so keys are compared whole in memory, and in
// Redis by a SHA-256 over their fields with the lengths written before them. Every other
// mistake costs duplicates: a full memory that drops entries, a restart, a Redis that is
// down, slow or emptied. Guard keeps such a ledger from costing more than that.
package ledger

import (
	"crypto/x509"
	"errors"
	"time"

	"go.uber.org/zap"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

// Ledger is a ledger with what an operator sees of it.
type Ledger interface {
	relay.Ledger
	// Status tells how the ledger is, of one moment.
	Status() Status
	// Close gives back what the ledger holds. Nothing may be asked of it afterwards.
	Close() error
}

// Status is how a ledger is.
type Status struct {
	// Err is why calls fail; nil while they work.
	Err error
	// Since is when calls began to fail; zero while they work.
	Since time.Time
	// Failures counts, by the Operation constants, the calls that failed and those
	// that were left out because the ledger was failing. Each may cost duplicates.
	Failures map[string]uint64
	// Entries is how many confirms are remembered; Counted tells whether the ledger knows.
	Entries int
	Counted bool
	// Evicted counts the confirms that were dropped before their time for want of
	// room: each may cost a duplicate.
	Evicted uint64
}

// The operations of a ledger, as Status and metrics name them.
const (
	OperationConfirmed = "confirmed"
	OperationRecord    = "record"
	OperationForget    = "forget"
)

// The types of a ledger.
const (
	TypeMemory = "memory"
	TypeRedis  = "redis"
)

// Config says which ledger to open. Start from Defaults.
type Config struct {
	// Type is TypeMemory, of this process and gone with it, or TypeRedis, which
	// replicas share and which survives them.
	Type string `yaml:"type" schema:"enum=memory|redis"`
	// TTL is how long a confirm is remembered: 1s to 168h, the longest that MNS
	// keeps a message. It should outlast the longest pause between two deliveries
	// of a message, so the sources' redelivery.max.
	TTL time.Duration `yaml:"ttl" schema:"positive"`
	// URL is where Redis is: redis:// or rediss:// (TLS),
	// [user[:password]@]host[:port][/database]. For type TypeRedis only.
	URL setting.URL `yaml:"url"`
	// MaxEntries bounds a ledger in memory: 1 to 100,000,000 confirms, of 190 bytes
	// each (measured with the ids of MNS, which are 32 bytes long). The default of
	// 131,072 is 24 MiB when it is full, and that is four times what 4,096 messages in
	// flight to eight sinks need. From fifteen sixteenths on some may be dropped.
	MaxEntries int `yaml:"-"`
}

const (
	minTTL        = time.Second
	maxTTL        = 7 * 24 * time.Hour
	maxMaxEntries = 100_000_000
)

// Defaults gives the settings that apply where the configuration is silent.
func Defaults() Config {
	return Config{Type: TypeMemory, TTL: 24 * time.Hour, MaxEntries: 128 << 10}
}

// Validate reports every problem at once, each a *setting.Problem.
func (c *Config) Validate() error {
	var problems []error
	report := func(path, format string, args ...any) {
		problems = append(problems, setting.Problemf(path, format, args...))
	}
	switch c.Type {
	case TypeMemory:
		if !c.URL.IsZero() {
			report("url", "has a meaning for type: redis only: remove it")
		}
		if c.MaxEntries < 1 || c.MaxEntries > maxMaxEntries {
			report("max_entries", "is %d; write a number from 1 to %d", c.MaxEntries, maxMaxEntries)
		}
	case TypeRedis:
		if c.URL.IsZero() {
			report("url", "is missing; write where Redis is, as in rediss://user:password@redis:6379/0")
		} else if _, err := optionsOf(c.URL); err != nil {
			report("url", "%v", err)
		}
	default:
		report("type", "must be memory or redis, not %q", c.Type)
	}
	if c.TTL < minTTL || c.TTL > maxTTL {
		report("ttl", "is %v; write a time from %v to %v", c.TTL, minTTL, maxTTL)
	}
	return errors.Join(problems...)
}

// Deps are what a ledger is opened with.
type Deps struct {
	Log *zap.Logger
	// RootCAs are the certificates that a rediss:// server's is checked against;
	// nil: the system's.
	RootCAs *x509.CertPool
}

// Open makes the ledger that cfg describes, which must be valid. It connects to nothing:
// a Redis that is down is a ledger that fails, and recovers, in the hands of a Guard.
func Open(cfg Config, deps Deps) (Ledger, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Type == TypeRedis {
		redis, err := NewRedis(cfg, deps)
		if err != nil {
			return nil, err
		}
		return NewGuard(redis, deps.Log), nil
	}
	return NewMemory(cfg)
}
