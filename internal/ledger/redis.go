package ledger

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/redis/go-redis/v9/maintnotifications"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

// Keys are prefix and 43 characters of hash. Whoever restricts the user by ACL grants
// EXISTS, SET and DEL on mnsrelay:ledger:*.
const prefix = "mnsrelay:ledger:"

const (
	// callTimeout bounds a call, connecting included. Within a data centre one takes a
	// millisecond; a sink waits that long at most for a ledger that hangs.
	callTimeout = 250 * time.Millisecond
	// dialTimeout bounds a connection with its TLS handshake. A call does not wait that
	// long: a later one finds the connection.
	dialTimeout = 2 * time.Second
	// connections is how many calls run at once: one for each batch that is settling,
	// for about a millisecond.
	connections = 16
	// idle is how many of them stay where they are not needed. The client looks at the age of
	// those that it takes only, so that without a limit a peak would leave all for good.
	idle        = 4
	idleTimeout = 5 * time.Minute
	// buffer is for reading and for writing, of each connection: some 40 commands, or the
	// replies to a thousand. With the 32 KiB that the client takes by itself the pool holds
	// 1 MiB once each connection was needed, for commands of 2 KiB.
	buffer = 4 << 10

	defaultPort = "6379"
)

// Redis is a ledger in a Redis, Valkey or anything that speaks like one, version 6 or
// later. Each call is one pipeline of commands on one key each, so that a proxy before a
// cluster can spread them; a node of a cluster itself is not enough.
type Redis struct {
	client *redis.Client
	ttl    time.Duration
}

var (
	_ relay.Ledger = (*Redis)(nil)
	_ io.Closer    = (*Redis)(nil)
)

// NewRedis makes a ledger at cfg.URL. It connects when first called. Its calls fail while
// the server does: put it behind a Guard.
func NewRedis(cfg Config, deps Deps) (*Redis, error) {
	return newRedis(cfg, deps, func(*redis.Options) {})
}

// newRedis is NewRedis with options that are set otherwise.
func newRedis(cfg Config, deps Deps, otherwise func(*redis.Options)) (*Redis, error) {
	options, err := optionsOf(cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("open the ledger at %v: %w", cfg.URL, err)
	}
	if options.TLSConfig != nil {
		options.TLSConfig.RootCAs = deps.RootCAs
	}
	otherwise(options)
	// The client writes to standard error, for the whole process, what it returns as
	// errors too.
	logging.Disable()
	return &Redis{client: redis.NewClient(options), ttl: cfg.TTL}, nil
}

// Confirmed is part of relay.Ledger.
func (r *Redis) Confirmed(ctx context.Context, keys []relay.LedgerKey) ([]bool, error) {
	found := make([]*redis.IntCmd, len(keys))
	err := r.exec(ctx, keys, func(p redis.Pipeliner, i int, name string) { found[i] = p.Exists(ctx, name) })
	if err != nil {
		return nil, fmt.Errorf("ask the ledger: %w", err)
	}
	confirmed := make([]bool, len(keys))
	for i, f := range found {
		confirmed[i] = f.Val() == 1
	}
	return confirmed, nil
}

// Record is part of relay.Ledger.
func (r *Redis) Record(ctx context.Context, keys []relay.LedgerKey) error {
	err := r.exec(ctx, keys, func(p redis.Pipeliner, _ int, name string) { p.Set(ctx, name, "", r.ttl) })
	if err != nil {
		return fmt.Errorf("record in the ledger: %w", err)
	}
	return nil
}

// Forget is part of relay.Ledger.
func (r *Redis) Forget(ctx context.Context, keys []relay.LedgerKey) error {
	err := r.exec(ctx, keys, func(p redis.Pipeliner, _ int, name string) { p.Del(ctx, name) })
	if err != nil {
		return fmt.Errorf("forget in the ledger: %w", err)
	}
	return nil
}

// exec sends one command for each key in one round trip and gives the first error.
func (r *Redis) exec(ctx context.Context, keys []relay.LedgerKey, command func(p redis.Pipeliner, i int, name string)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(keys) == 0 {
		return nil
	}
	p := r.client.Pipeline()
	var scratch []byte
	for i := range keys {
		var name string
		name, scratch = nameOf(&keys[i], scratch)
		command(p, i, name)
	}
	_, err := p.Exec(ctx)
	if _, moved := redis.IsMovedError(err); moved {
		return fmt.Errorf("the server is a node of a cluster; name the cluster's proxy, or a server of its own: %w", err)
	}
	return err
}

// Close closes the connections. While the server is away, the client may go on connecting
// for dialTimeout and a second; what comes of it is closed.
func (r *Redis) Close() error {
	if err := r.client.Close(); err != nil && !errors.Is(err, redis.ErrClosed) {
		return fmt.Errorf("close the ledger: %w", err)
	}
	return nil
}

// nameOf is the name of key in Redis: of bounded length whatever the fields hold, and
// different for different keys. scratch is reused.
func nameOf(key *relay.LedgerKey, scratch []byte) (name string, used []byte) {
	used = scratch[:0]
	for _, field := range [...]string{key.Source, key.Message, key.Route, key.Sink} {
		used = binary.AppendUvarint(used, uint64(len(field)))
		used = append(used, field...)
	}
	sum := sha256.Sum256(used)
	used = base64.RawURLEncoding.AppendEncode(append(used[:0], prefix...), sum[:])
	return string(used), used
}

// optionsOf reads u. No error of it quotes u.
func optionsOf(u setting.URL) (*redis.Options, error) {
	parsed, err := u.Parse()
	if err != nil {
		return nil, err
	}
	host, port := parsed.Hostname(), parsed.Port()
	if port == "" {
		port = defaultPort
	}
	options := &redis.Options{
		Addr: net.JoinHostPort(host, port),
		// RESP2 has all that is needed, and every proxy speaks it.
		Protocol: 2,
		// CLIENT SETINFO would be one more command to grant.
		DisableIdentity:          true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		MaxRetries:               -1,
		DialTimeout:              dialTimeout,
		DialerRetries:            1,
		ReadTimeout:              callTimeout,
		WriteTimeout:             callTimeout,
		PoolTimeout:              callTimeout,
		ContextTimeoutEnabled:    true,
		PoolSize:                 connections,
		MaxIdleConns:             idle,
		PipelinePoolSize:         -1,
		ConnMaxIdleTime:          idleTimeout,
		ReadBufferSize:           buffer,
		WriteBufferSize:          buffer,
	}
	switch parsed.Scheme {
	case "redis":
	case "rediss":
		options.TLSConfig = &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}
	default:
		return nil, errors.New("must begin with redis:// or, with TLS, rediss://")
	}
	if host == "" {
		return nil, errors.New("names no host: write redis://host:6379/0")
	}
	options.Username, options.Password = userOf(parsed)
	if database := strings.Trim(parsed.Path, "/"); database != "" {
		if options.DB, err = strconv.Atoi(database); err != nil || options.DB < 0 {
			return nil, errors.New("has a path that is not the number of a database: write redis://host:6379/0")
		}
	}
	if parsed.RawQuery != "" || parsed.Fragment != "" {
		return nil, errors.New("takes no settings after the database: remove what follows ? or #")
	}
	return options, nil
}

func userOf(u *url.URL) (username, password string) {
	password, _ = u.User.Password()
	return u.User.Username(), password
}
