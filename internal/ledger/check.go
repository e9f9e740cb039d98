package ledger

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

// Check asks the ledger of cfg, which must be valid, for a confirm that nobody has recorded,
// and so for what the relay is allowed to do there. A ledger in memory is not worth a word.
func Check(ctx context.Context, cfg Config, deps Deps) []relay.Finding {
	if cfg.Type != TypeRedis {
		return nil
	}
	r, err := newRedis(cfg, deps, func(options *redis.Options) {
		// The client goes on connecting where a call ends sooner.
		if deadline, limited := ctx.Deadline(); limited {
			within := max(time.Until(deadline), time.Millisecond)
			options.DialTimeout, options.PoolTimeout, options.ReadTimeout, options.WriteTimeout = within, within, within, within
		}
	})
	if err != nil {
		return []relay.Finding{relay.Failing("redis", err)}
	}
	defer r.Close() //nolint:errcheck // nothing is lost by it
	what := "redis at " + r.client.Options().Addr
	if _, err := r.Confirmed(ctx, []relay.LedgerKey{{Source: "mnsrelay check"}}); err != nil {
		return []relay.Finding{relay.Failing(what, advised(err))}
	}
	return []relay.Finding{{What: what, Verdict: relay.OK, Text: "answers, and lets the relay ask for confirms"}}
}

// advised says what to do about an error of Redis.
func advised(err error) error {
	var authority x509.UnknownAuthorityError
	switch {
	case redis.IsAuthError(err):
		return fmt.Errorf("%w: check user and password in ledger.url", err)
	case redis.IsPermissionError(err):
		return fmt.Errorf("%w: allow the user EXISTS, SET and DEL on %s*", err, prefix)
	case errors.As(err, &authority):
		return fmt.Errorf("%w: have this machine trust the authority that issued the server's certificate", err)
	}
	return setting.AdviseNetwork(err)
}
