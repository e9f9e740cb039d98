package config

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// minConcealed is how long, in bytes, what came from outside has to be to be found in a
// text: a shorter one would be found everywhere.
const minConcealed = 4

// Conceal replaces by *** what came into the configuration from files and from the environment,
// also where the text holds it as a part of a string of JSON or CEL, percent-encoded or as
// base64. What is short stays, and what the environment has that is a number or a boolean: it
// would be found everywhere. JSON in which something else than a part of a string is replaced
// is no JSON: conceal before encoding.
func (c *Config) Conceal(text string) string {
	var secrets []string
	for _, value := range c.concealed {
		secrets = append(secrets, writings(value)...)
	}
	// A longer one may hold a shorter.
	slices.SortFunc(secrets, func(a, b string) int { return len(b) - len(a) })
	for _, secret := range secrets {
		text = strings.ReplaceAll(text, secret, redacted)
	}
	return text
}

// isCommon tells whether a value is in many texts.
func isCommon(value string) bool {
	_, err := strconv.ParseFloat(value, 64)
	return err == nil || slices.Contains([]string{"true", "false", "null"}, strings.ToLower(value))
}

// writings are how a secret can stand in a text: as it is, as a part of a string, in a URL, and
// as base64.
func writings(secret string) []string {
	raw := []byte(secret)
	all := []string{
		secret, unquoted([]byte(strconv.Quote(secret))), url.PathEscape(secret), url.QueryEscape(secret), encodeUserInfo(secret),
		base64.StdEncoding.EncodeToString(raw), base64.RawStdEncoding.EncodeToString(raw),
		base64.URLEncoding.EncodeToString(raw), base64.RawURLEncoding.EncodeToString(raw),
	}
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
