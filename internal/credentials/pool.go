package credentials

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/time/rate"
)

// callsPerSecond bounds how often all refreshers of a pool together ask for keys: STS and
// Dybaseapi refuse an account that asks more often.
const callsPerSecond = 10

// Pool gives those that have the same credential the same refresher, and those whose
// credentials have the same base the same keys of that base. It is safe for concurrent use.
type Pool struct {
	limit *rate.Limiter

	mu         sync.Mutex
	refreshers map[identity]*Refresher
	bases      map[identity]*cached
}

// NewPool makes an empty pool.
func NewPool() *Pool {
	return &Pool{
		limit:      rate.NewLimiter(callsPerSecond, 1),
		refreshers: make(map[identity]*Refresher), bases: make(map[identity]*cached),
	}
}

// Refresher gives the refresher of a validated Config; the first to ask for it names it.
func (p *Pool) Refresher(name string, c *Config, deps Deps) (*Refresher, error) {
	id := c.identity(deps.Queue)
	p.mu.Lock()
	r := p.refreshers[id]
	p.mu.Unlock()
	if r != nil {
		return r, nil
	}
	provider, err := p.provider(c, deps.Queue)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if r = p.refreshers[id]; r == nil {
		r = p.refresher(name, provider, c, deps)
		p.refreshers[id] = r
	}
	return r, nil
}

// refresher makes one that waits for its turn, unless it asks no server.
func (p *Pool) refresher(name string, provider Provider, c *Config, deps Deps) *Refresher {
	r := NewRefresher(name, provider, c, deps)
	if c.Type != TypeStatic {
		r.turn = p.limit.Wait
	}
	return r
}

// provider makes the provider of a validated Config.
func (p *Pool) provider(c *Config, queue string) (Provider, error) {
	provider, err := p.make(c, queue)
	if err != nil {
		return nil, fmt.Errorf("make credential provider: %w", err)
	}
	return provider, nil
}

func (p *Pool) make(c *Config, queue string) (Provider, error) {
	switch c.Type {
	case TypeStatic:
		return static{config: c}, nil
	case TypeDefault:
		return &chain{make: func(c *Config) (Provider, error) { return p.make(c, "") }}, nil
	case TypeCredentialsURI:
		return &uriKeys{address: c.URI.Reveal(), plain: newPlain("the credentials URI", http.ProxyFromEnvironment)}, nil
	case TypeMNSToken, TypeRAMRoleARN, TypeOIDCRoleARN, TypeECSRAMRole:
		endpoint, err := c.Endpoint.Parse()
		if err != nil {
			return nil, fmt.Errorf("endpoint: %w", err)
		}
		return p.makeRemote(c, queue, endpoint)
	}
	return nil, fmt.Errorf("there is no type %q", string(c.Type))
}

// makeRemote makes what asks a server of Alibaba Cloud's.
func (p *Pool) makeRemote(c *Config, queue string, endpoint *url.URL) (Provider, error) {
	as := role{arn: c.RoleARN, session: c.SessionName, policy: c.Policy, duration: c.Duration}
	if c.Type == TypeECSRAMRole {
		return newECSRole(c.RoleName, endpoint), nil
	}
	if c.Type == TypeOIDCRoleARN {
		return newOIDCRole(as, c, endpoint), nil
	}
	// The OpenAPI SDK prints every answer, the token included, to standard output
	// when the environment says so; it reads this once, before any code of ours.
	if slices.Contains(strings.Split(os.Getenv("DEBUG"), ","), "sdk") {
		return nil, errors.New("the environment variable DEBUG holds sdk, which makes the Alibaba Cloud SDK print secrets: unset it")
	}
	base, err := p.base(c)
	if err != nil {
		return nil, err
	}
	if c.Type == TypeRAMRoleARN {
		region := c.Region
		if region == "" {
			region = Presets()[0].Region // which the SDK asks for, and STS does not
		}
		return &ramRole{role: as, externalID: c.ExternalID, api: newOpenAPI("STS", stsVersion, region, endpoint), base: base}, nil
	}
	if queue == "" {
		return nil, errors.New("an mns_token is for a queue, and none is named")
	}
	return newMNSToken(c, queue, endpoint, base), nil
}

// base gives the keys with which others are asked for, the same to all that have the same.
func (p *Pool) base(c *Config) (Provider, error) {
	of := c.Base
	if of == nil {
		of = &Config{Type: TypeStatic, AccessKeyID: c.AccessKeyID, AccessKeySecret: c.AccessKeySecret, SecurityToken: c.SecurityToken}
	}
	id := of.identity("")
	p.mu.Lock()
	known := p.bases[id]
	p.mu.Unlock()
	if known != nil {
		return known, nil
	}
	provider, err := p.make(of, "")
	if err != nil {
		return nil, fmt.Errorf("base: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if known = p.bases[id]; known == nil {
		known = newCached(provider)
		p.bases[id] = known
	}
	return known, nil
}

// identity tells credentials apart: those that would be asked for alike are the same.
type identity [sha256.Size]byte

func (c *Config) identity(queue string) identity {
	if c.Type != TypeMNSToken {
		queue = ""
	}
	var base identity
	if c.Base != nil {
		base = c.Base.identity("")
	}
	return sha256.Sum256(fmt.Appendf(nil, "%q %q %q %q %q %q %q %q %q %q %q %d %q %q %q %q %d %q %q %q %q %d %x",
		queue, c.Type, c.MessageType,
		c.AccessKeyID.Reveal(), c.AccessKeyID.File(), c.AccessKeySecret.Reveal(), c.AccessKeySecret.File(),
		c.SecurityToken.Reveal(), c.SecurityToken.File(),
		c.Region, c.Endpoint.Reveal(), c.OwnerID, c.RoleARN, c.SessionName, c.ExternalID, c.Policy, c.Duration,
		c.OIDCProviderARN, c.OIDCTokenFile, c.RoleName, c.URI.Reveal(), c.RefreshBefore, base))
}

// noTurn lets everyone ask at once.
func noTurn(context.Context) error { return nil }
