package config

import (
	"bytes"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
)

// minConcealed is how long, in bytes, what came from a file has to be to be found in a
// text: a shorter one would be found everywhere.
const minConcealed = 4

// Conceal replaces by *** what came into the configuration from files, also where the text
// holds it as a string of JSON or of CEL. What came from the environment is replaced where
// its setting took something from a file, too. JSON may not be JSON any more after it, if it
// is no string: conceal before encoding.
func (c *Config) Conceal(text string) string {
	var secrets []string
	for _, values := range c.hidden {
		for _, value := range values {
			if len(value) >= minConcealed {
				secrets = append(secrets, writings(value)...)
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

// writings are how a secret can stand in a text: as it is, and as a part of a string.
func writings(secret string) []string {
	all := []string{secret, unquoted([]byte(strconv.Quote(secret)))}
	for _, escapeHTML := range []bool{false, true} {
		var b bytes.Buffer
		encoder := json.NewEncoder(&b)
		encoder.SetEscapeHTML(escapeHTML)
		if encoder.Encode(secret) == nil {
			all = append(all, unquoted(bytes.TrimSuffix(b.Bytes(), []byte{'\n'})))
		}
	}
	return all
}

func unquoted(text []byte) string { return string(text[1 : len(text)-1]) }
