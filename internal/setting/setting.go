// Package setting holds the types that configuration values have in every package
// that owns a Config: secrets that do not print, URLs that print without theirs,
// sizes, and the problems that Validate reports.
package setting

import (
	"errors"
	"fmt"
	"math"
	"net/url"
	"strconv"
	"strings"
	"unique"
)

const redacted = "***"

// hidden holds a string that fmt does not find: it prints the unexported fields of a
// struct without asking their methods, but not what a handle stands for. Equal strings
// are equal.
type hidden struct{ handle unique.Handle[string] }

func hide(s string) hidden {
	if s == "" {
		return hidden{}
	}
	return hidden{handle: unique.Make(s)}
}

func (h hidden) reveal() string {
	if h == (hidden{}) {
		return ""
	}
	return h.handle.Value()
}

// URL is an address whose user info and query print as ***. The zero value is unset.
type URL struct {
	raw     hidden
	written bool
}

// NewURL wraps raw without looking at it.
func NewURL(raw string) URL { return URL{raw: hide(raw)} }

// AsWritten notes that the URL stands in the configuration itself, as Secret.AsWritten does.
func (u URL) AsWritten() URL {
	u.written = true
	return u
}

// Written tells whether AsWritten was noted.
func (u URL) Written() bool { return u.written }

// Reveal gives the URL as it was written, credentials included: for a dialer only.
func (u URL) Reveal() string { return u.raw.reveal() }

// IsZero reports whether the URL is unset.
func (u URL) IsZero() bool { return u.raw == hidden{} }

// Parse reads the URL. Its error names what is wrong and never quotes the text,
// which may hold a password.
func (u URL) Parse() (*url.URL, error) {
	parsed, err := url.Parse(u.Reveal())
	if err != nil {
		return nil, errors.New("not a URL; special characters in a user name or password must be percent-encoded, or use the username and password settings")
	}
	if parsed.Scheme == "" || parsed.Host == "" {
		return nil, errors.New("not a complete URL: write scheme://host")
	}
	return parsed, nil
}

// String shows the URL with user info and query replaced.
func (u URL) String() string {
	if u.IsZero() {
		return ""
	}
	parsed, err := u.Parse()
	if err != nil {
		return redacted
	}
	shown := parsed.Scheme + "://"
	if parsed.User != nil {
		shown += redacted + "@"
	}
	shown += parsed.Host + parsed.EscapedPath()
	if parsed.RawQuery != "" {
		shown += "?" + redacted
	}
	return shown
}

// GoString keeps %#v from printing the raw URL.
func (u URL) GoString() string { return strconv.Quote(u.String()) }

// Format keeps every other verb from printing the raw URL.
func (u URL) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(u.String())) }

// MarshalText is what JSON and YAML show.
func (u URL) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// UnmarshalText sets the URL without looking at it; Validate of the setting's owner
// does that.
func (u *URL) UnmarshalText(text []byte) error {
	*u = NewURL(string(text))
	return nil
}

// Size is a number of bytes, written as 512, 64KiB, 256MiB or 1GiB.
type Size int64

// The units.
const (
	KiB Size = 1 << 10
	MiB Size = 1 << 20
	GiB Size = 1 << 30
)

// UnmarshalText reads a whole number with an optional unit.
func (s *Size) UnmarshalText(text []byte) error {
	number, unit := string(text), Size(1)
	for suffix, u := range map[string]Size{"KiB": KiB, "MiB": MiB, "GiB": GiB} {
		if n, found := strings.CutSuffix(number, suffix); found {
			number, unit = n, u
			break
		}
	}
	n, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/int64(unit) {
		return errors.New("not a size: write a whole number with KiB, MiB or GiB, as in 64MiB")
	}
	*s = Size(n) * unit
	return nil
}

// MarshalText writes the size in its largest exact unit.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

func (s Size) String() string {
	switch {
	case s >= GiB && s%GiB == 0:
		return strconv.FormatInt(int64(s/GiB), 10) + "GiB"
	case s >= MiB && s%MiB == 0:
		return strconv.FormatInt(int64(s/MiB), 10) + "MiB"
	case s >= KiB && s%KiB == 0:
		return strconv.FormatInt(int64(s/KiB), 10) + "KiB"
	}
	return strconv.FormatInt(int64(s), 10)
}

// Problem is one thing wrong with a setting. A Validate method returns its problems
// joined by errors.Join; the configuration adds file, line and the path of the
// owner.
type Problem struct {
	// Path is the setting's path below its owner, dotted, list indexes in
	// brackets: "exchange.type", "urls[1]". Empty: the owner itself.
	Path string
	// Message says what is wrong and what to write instead.
	Message string
	cause   error
}

// Problemf makes a problem of the setting at path. With %w it wraps an error, which
// may know of a place within the setting.
func Problemf(path, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return &Problem{Path: path, Message: err.Error(), cause: errors.Unwrap(err)}
}

// Unwrap gives what the problem comes from, if it was made of an error.
func (p *Problem) Unwrap() error { return p.cause }

func (p *Problem) Error() string {
	if p.Path == "" {
		return p.Message
	}
	return p.Path + ": " + p.Message
}
