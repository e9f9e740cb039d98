package config

import (
	"slices"
	"strings"
)

// minConcealed is how long, in bytes, what came from a file has to be to be found in a
// text: a shorter one would be found everywhere.
const minConcealed = 4

// Conceal replaces in a text what came into the configuration from files by ***.
func (c *Config) Conceal(text string) string {
	var secrets []string
	for _, values := range c.hidden {
		for _, value := range values {
			if len(value) >= minConcealed {
				secrets = append(secrets, value)
			}
		}
	}
	// A longer one may hold a shorter.
	slices.SortFunc(secrets, func(a, b string) int { return len(b) - len(a) })
	for _, secret := range secrets {
		text = strings.ReplaceAll(text, secret, "***")
	}
	return text
}
