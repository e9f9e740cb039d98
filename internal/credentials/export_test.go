package credentials

// PoolRefresher makes a refresher of the pool's with another provider.
func PoolRefresher(p *Pool, provider Provider, c *Config) *Refresher {
	return p.refresher(provider, c)
}

// Cached keeps the keys of p as a pool does those of a base.
func Cached(p Provider) Provider { return &cached{provider: p} }

// Sizes tells how many refreshers and bases a pool knows.
func (p *Pool) Sizes() (refreshers, bases int) { return p.refreshers.size(), p.bases.size() }

func (s *shared[T]) size() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.all {
		if p.Value() != nil {
			n++
		}
	}
	return n
}
