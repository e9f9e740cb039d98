package credentials

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"time"

	"mnsrelay/internal/relay"
)

// Check fetches the keys, which Current gives from then on, and tells what they are and
// whose. c is what the refresher was made of. sts, if it is not nil, is asked for their owner
// where c does not say. It is for a refresher that does not run.
func (r *Refresher) Check(ctx context.Context, c *Config, sts *url.URL) relay.Finding {
	const what = "credential"
	if err := r.turns.wait(ctx, atStake); err != nil {
		return relay.Failing(what, fmt.Errorf("not asked for in time: %w", err))
	}
	begun := time.Now()
	keys, err := r.provider.Retrieve(ctx)
	r.settle(keys, err, begun)
	if keys, err = r.Current(); err != nil {
		r.mu.Lock()
		if r.failure != nil { // Current says no more than that there are none
			err = r.failure
		}
		r.mu.Unlock()
		return relay.Failing(what, err)
	}
	f := relay.Finding{What: what, Verdict: relay.OK}
	var words []string
	add := func(name string, value any, text string) {
		f.Details = append(f.Details, relay.Field{Name: name, Value: value})
		words = append(words, text)
	}
	kinds, owner := c.describe()
	add("type", string(c.Type), strings.Join(kinds, " by "))
	if len(kinds) > 1 {
		f.Details = append(f.Details, relay.Field{Name: "by", Value: kinds[1:]})
	}
	unknown := "account not known"
	if owner == (Owner{}) && sts != nil {
		var err error
		if owner, err = r.owner(ctx, keys, sts); err != nil {
			unknown += ": STS does not tell: " + err.Error()
		}
	}
	if owner.Account != "" {
		add("account", owner.Account, "account "+owner.Account)
	}
	if owner.Name != "" {
		add("owner", owner.Name, owner.Name)
	}
	if owner == (Owner{}) {
		words = append(words, unknown)
	}
	add("access_key_id", keys.ShortID(), "access key "+keys.ShortID())
	if keys.Expires.IsZero() {
		words = append(words, "without an end")
	} else {
		utc, here := keys.Expires.UTC(), keys.Expires.Local()
		add("expires", utc.Truncate(time.Second), fmt.Sprintf("until %s, here %s, in %v", utc.Format(time.DateTime+" MST"),
			here.Format(time.DateTime+" MST"), time.Until(keys.Expires).Round(time.Second)))
	}
	f.Text = strings.Join(words, ", ")
	return f
}

// Owner is whose keys they are.
type Owner struct {
	// Account is the number of the account.
	Account string
	// Name is the ARN of the user or role, or the name of a role alone.
	Name string
}

// describe tells the types that lead to the keys, and whose they are as far as the
// configuration says.
func (c *Config) describe() (kinds []string, owner Owner) {
	kinds = []string{string(c.Type)}
	if c.Type == TypeDefault {
		if found, err := configured(); err == nil && found != nil {
			more, owner := found.describe()
			return append(kinds, more...), owner
		}
	}
	if c.Type == TypeMNSToken && c.Base != nil {
		// The token itself is Alicom's.
		more, owner := c.Base.describe()
		return append(kinds, more...), owner
	}
	if c.Type == TypeRAMRoleARN && c.Base != nil {
		more, _ := c.Base.describe()
		kinds = append(kinds, more...)
	}
	if c.RoleARN != "" {
		return kinds, ownerOf(c.RoleARN)
	}
	return kinds, Owner{Name: c.RoleName}
}

// ownerOf reads an ARN, as in acs:ram::1234567890123456:role/mnsrelay.
func ownerOf(arn string) Owner {
	owner := Owner{Name: arn}
	if m := regexp.MustCompile(`^acs:(?:ram|sts)::([0-9]+):`).FindStringSubmatch(arn); m != nil {
		owner.Account = m[1]
	}
	return owner
}

const (
	opCallerIdentity = "GetCallerIdentity"
	// identityTimeout bounds that call, which nothing depends on.
	identityTimeout = 3 * time.Second
)

// owner asks STS whose the keys are, those of the base for a token of Alicom's.
func (r *Refresher) owner(ctx context.Context, keys Keys, sts *url.URL) (Owner, error) {
	ctx, cancel := context.WithTimeout(ctx, identityTimeout)
	defer cancel()
	if token, is := r.provider.(*mnsToken); is {
		var err error
		if keys, err = token.base.Retrieve(ctx); err != nil {
			return Owner{}, err
		}
	}
	answer, err := newOpenAPI("STS", stsVersion, Presets()[0].Region, sts, nil).call(ctx, keys, opCallerIdentity, nil)
	if err != nil {
		return Owner{}, err
	}
	var identity struct {
		Account string `json:"AccountId"`
		ARN     string `json:"Arn"`
	}
	if json.Unmarshal(answer.body, &identity) != nil {
		return Owner{}, errors.New(notOf("STS"))
	}
	return Owner{Account: identifier(identity.Account), Name: oneLine(identity.ARN)}, nil
}
