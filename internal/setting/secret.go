package setting

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"unicode/utf8"
)

// Secret is a value that prints as *** in every format. The zero value is unset.
type Secret struct {
	value hidden
	// file is where the value comes from; empty: it was written out.
	file string
	// written says that it stands in the configuration itself.
	written bool
}

// NewSecret wraps s.
func NewSecret(s string) Secret { return Secret{value: hide(s)} }

// FileSecret wraps s, the whole text of the file at path, which Current reads again.
func FileSecret(s, path string) Secret { return Secret{value: hide(s), file: path} }

// AsWritten notes that the value stands in the configuration itself, and was not brought
// into it from the environment or a file.
func (s Secret) AsWritten() Secret {
	s.written = true
	return s
}

// Written tells whether AsWritten was noted: who may read the configuration knows the value.
func (s Secret) Written() bool { return s.written }

// Reveal gives the value itself: for the wire only, never for an error or a log.
func (s Secret) Reveal() string { return s.value.reveal() }

// Current gives what the secret's file holds now, so that one that was replaced is used
// with the next connection. A secret without a file, or whose file cannot be read, gives
// the value it was made with.
func (s Secret) Current() string {
	text, err := s.Read()
	if err != nil {
		return s.Reveal()
	}
	return text
}

// Read is Current for those who keep the last value that was good: it fails where the
// secret's file cannot be read. Its error names the file.
func (s Secret) Read() (string, error) {
	if s.file == "" {
		return s.Reveal(), nil
	}
	data, err := ReadAgain(s.file)
	if err != nil {
		return "", err
	}
	text, err := FileText(data)
	if err != nil {
		return "", fmt.Errorf("%s: %w", s.file, err)
	}
	return text, nil
}

// FromFile tells whether the secret is the text of a file, which Read reads again.
func (s Secret) FromFile() bool { return s.file != "" }

// File is the path of that file; empty: it is none.
func (s Secret) File() string { return s.file }

// IsZero reports whether the secret is unset.
func (s Secret) IsZero() bool { return s.value == hidden{} }

// String gives *** or, unset, nothing.
func (s Secret) String() string {
	if s.IsZero() {
		return ""
	}
	return redacted
}

// GoString keeps %#v from printing the value.
func (s Secret) GoString() string { return strconv.Quote(s.String()) }

// Format keeps every other verb from printing the value.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(s.String())) }

// MarshalText is what JSON and YAML show.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText sets the value.
func (s *Secret) UnmarshalText(text []byte) error {
	*s = NewSecret(string(text))
	return nil
}

// MaxFile bounds what is read of one file of the configuration: as much as Kubernetes
// lets a ConfigMap or a Secret hold.
const MaxFile = 1 << 20

// ErrTooLarge says that there is more than MaxFile.
var ErrTooLarge = errors.New("it is larger than 1 MiB")

// ReadFile reads a file of up to MaxFile.
func ReadFile(path string) ([]byte, error) {
	f, err := os.Open(path) //nolint:gosec // the path is the user's own configuration
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return ReadBounded(f)
}

// ReadAgain is ReadFile for what is read again and again: a pipe, which gives its text once
// and has a reader wait, is refused.
func ReadAgain(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) //nolint:gosec // the path is the user's own configuration
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	switch info, err := f.Stat(); {
	case err != nil:
		return nil, err
	case info.Mode()&os.ModeNamedPipe != 0:
		return nil, &os.PathError{Op: "read", Path: path, Err: errors.New("it is a pipe, which cannot be read again: write its text to a file")}
	}
	return ReadBounded(f)
}

// ReadBounded reads up to MaxFile.
func ReadBounded(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, MaxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > MaxFile {
		return nil, ErrTooLarge
	}
	return data, nil
}

// FileText gives the content of a file less one line end, which editors put there.
func FileText(data []byte) (string, error) {
	if !utf8.Valid(data) {
		return "", errors.New("it is not UTF-8 text")
	}
	text, found := strings.CutSuffix(string(data), "\n")
	if found {
		text = strings.TrimSuffix(text, "\r")
	}
	return text, nil
}

// Credentials reports the problems of user name and password beside a URL.
func Credentials(username string, password Secret) error {
	switch {
	case username == "" && !password.IsZero():
		return Problemf("username", "required where password is set")
	case username != "" && password.IsZero():
		return Problemf("password", "required where username is set")
	}
	return nil
}
