package credentials

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"weak"

	"go.uber.org/zap"
)

// Pool gives those that have the same credential the same refresher, and those whose
// credentials have the same base the same keys of that base, as long as anyone uses them. It
// is safe for concurrent use.
type Pool struct {
	log   *zap.Logger
	turns *turns

	refreshers shared[Refresher]
	bases      shared[cached]
}

// NewPool makes an empty pool.
func NewPool(log *zap.Logger) *Pool { return &Pool{log: log, turns: &turns{}} }

// Refresher gives the refresher of a validated Config; queue is what an mns_token is for.
func (p *Pool) Refresher(c *Config, queue string) (*Refresher, error) {
	return p.refreshers.get(c.identity(queue), func() (*Refresher, error) {
		provider, err := p.provider(c, queue)
		if err != nil {
			return nil, err
		}
		return p.refresher(provider, c), nil
	})
}

// refresher makes one that waits for its turn where its server counts the calls; a default
// chain asks others, which wait themselves.
func (p *Pool) refresher(provider Provider, c *Config) *Refresher {
	r := NewRefresher(provider, c, p.log)
	if c.counted() && c.Type != TypeDefault {
		r.turns = p.turns
	}
	return r
}

// counted tells whether a server counts the calls: not the configuration, and not the
// instance's own metadata server.
func (c *Config) counted() bool { return c.Type != TypeStatic && c.Type != TypeECSRAMRole }

// shared holds what those have in common that have the same identity; what nobody holds any
// more is forgotten. The zero value is empty.
type shared[T any] struct {
	mu  sync.Mutex
	all map[identity]weak.Pointer[T]
}

// get gives what id has, and makes it where there is none.
func (s *shared[T]) get(id identity, create func() (*T, error)) (*T, error) {
	s.mu.Lock()
	known := s.all[id].Value()
	s.mu.Unlock()
	if known != nil {
		return known, nil
	}
	created, err := create() // which may ask for a base of its own
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if known = s.all[id].Value(); known != nil {
		return known, nil
	}
	maps.DeleteFunc(s.all, func(_ identity, p weak.Pointer[T]) bool { return p.Value() == nil })
	if s.all == nil {
		s.all = make(map[identity]weak.Pointer[T])
	}
	s.all[id] = weak.Make(created)
	return created, nil
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
		return &chain{make: p.makeBase}, nil
	case TypeCredentialsURI:
		address, err := c.URI.Parse()
		if err != nil {
			return nil, fmt.Errorf("uri: %w", err)
		}
		return newURIKeys(address), nil
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
		return newOIDCRole(as, c, endpoint, p.turns), nil
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
		return &ramRole{role: as, externalID: c.ExternalID, api: newOpenAPI("STS", stsVersion, region, endpoint, p.turns), base: base}, nil
	}
	if queue == "" {
		return nil, errors.New("an mns_token is for a queue, and none is named")
	}
	return newMNSToken(c, queue, endpoint, base, p.turns), nil
}

// base gives the keys with which others are asked for, the same to all that have the same.
func (p *Pool) base(c *Config) (*cached, error) {
	of := c.Base
	if of == nil {
		of = &Config{Type: TypeStatic, AccessKeyID: c.AccessKeyID, AccessKeySecret: c.AccessKeySecret, SecurityToken: c.SecurityToken}
	}
	return p.bases.get(of.identity(""), func() (*cached, error) {
		provider, err := p.makeBase(of)
		if err != nil {
			return nil, fmt.Errorf("base: %w", err)
		}
		return &cached{provider: provider}, nil
	})
}

// makeBase makes what asks in the course of another's attempt, and waits for a turn of its
// own where its server counts the calls.
func (p *Pool) makeBase(c *Config) (Provider, error) {
	provider, err := p.make(c, "")
	if err != nil || !c.counted() || c.Type == TypeDefault {
		return provider, err
	}
	return paced{provider, p.turns}, nil
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
