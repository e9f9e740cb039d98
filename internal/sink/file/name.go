package file

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"mnsrelay/internal/expr"
	"mnsrelay/internal/relay"
)

// maxName is how many bytes the name of a file may have (Linux: NAME_MAX).
const maxName = 255

// nameFor gives the name of the file in the folder that a message goes to; nothing where
// there is one file. Its error holds nothing of the message.
func (e *Endpoint) nameFor(m *relay.Message) (string, error) {
	if e.name == nil {
		return "", nil
	}
	name, err := e.name.RenderEscaped(expr.Of(m), func(_ []byte, value string) string { return escape(value) })
	switch {
	case err != nil:
		return "", fmt.Errorf("work out the path: %w", err)
	case name == "", name == ".", name == "..":
		return "", relay.Fail(reasonInvalid, errors.New("the file's name gets empty, or . or .., which is a folder"))
	case len(name) > maxName:
		return "", relay.Fail(reasonInvalid, fmt.Errorf("the file's name gets %d bytes long, and %d is the limit", len(name), maxName))
	}
	return name, nil
}

// escape makes a part of a file's name of a value, another one of each: separators, what
// shells and other systems take for something else, and what cannot be seen become %XX.
func escape(value string) string {
	var b strings.Builder
	for len(value) > 0 {
		r, size := utf8.DecodeRuneInString(value)
		char := value[:size]
		value = value[size:]
		invalid := r == utf8.RuneError && size == 1
		if !invalid && unicode.IsPrint(r) && !strings.ContainsRune(` %/\:*?"<>|`, r) {
			b.WriteString(char)
			continue
		}
		for _, c := range []byte(char) {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}
