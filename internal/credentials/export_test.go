package credentials

// PoolRefresher makes a refresher of the pool's with another provider.
func PoolRefresher(p *Pool, provider Provider, c *Config, deps Deps) *Refresher {
	return p.refresher("x", provider, c, deps)
}
