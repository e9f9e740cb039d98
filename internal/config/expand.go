package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"regexp"
	"strings"
	"sync"
	"syscall"

	"mnsrelay/internal/setting"
)

// Environment is what the ${...} of a file are looked up in. Its zero value is the
// environment and the files of the process.
type Environment struct {
	// Lookup finds a variable; nil: os.LookupEnv.
	Lookup func(name string) (value string, found bool)
	// ReadFile gives the content of a file, a relative path being relative to the
	// working directory; nil: the file system, files of up to 1 MiB.
	ReadFile func(path string) ([]byte, error)
}

func (e Environment) lookup(name string) (string, bool) {
	if e.Lookup == nil {
		return os.LookupEnv(name)
	}
	return e.Lookup(name)
}

func (e Environment) readFile(path string) ([]byte, error) {
	if e.ReadFile == nil {
		return setting.ReadFile(path)
	}
	return e.ReadFile(path)
}

// once gives an Environment that looks everything up at most once, so that all of one
// configuration sees one value of a secret that is replaced meanwhile.
func (e Environment) once() Environment {
	type variable struct {
		value string
		found bool
	}
	type file struct {
		data []byte
		err  error
	}
	var (
		mu        sync.Mutex
		variables = map[string]variable{}
		files     = map[string]file{}
	)
	return Environment{
		Lookup: func(name string) (string, bool) {
			mu.Lock()
			defer mu.Unlock()
			v, known := variables[name]
			if !known {
				v.value, v.found = e.lookup(name)
				variables[name] = v
			}
			return v.value, v.found
		},
		ReadFile: func(path string) ([]byte, error) {
			mu.Lock()
			defer mu.Unlock()
			f, known := files[path]
			if !known {
				f.data, f.err = e.readFile(path)
				files[path] = f
			}
			return f.data, f.err
		},
	}
}

// cause is why a file could not be read, without its name, and what to do about it.
func cause(err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "there is no such file: create or mount it, or mend the path"
	case errors.Is(err, fs.ErrPermission):
		return "this process may not read it: give its user the permission"
	case errors.Is(err, syscall.EISDIR):
		return "it is a folder: write the path of a file"
	}
	if pathErr, is := errors.AsType[*fs.PathError](err); is {
		err = pathErr.Err
	}
	return err.Error()
}

// expansion is a scalar after its ${...} have been replaced.
type expansion struct {
	text string
	// from names what was put in, "environment NAME" or "file PATH"; empty: the text
	// is as it was written, and problems may quote it.
	from []string
	// values are what was put in: they are kept out of problems.
	values []string
	// secret says that a file was put in, which is never printed.
	secret bool
}

// variableName is what a shell accepts.
const variableName = `[A-Za-z_][A-Za-z0-9_]*`

// expand replaces each ${...} in text. In a URL what is put in before the @ is
// percent-encoded, so that a password with a / or a # does not end it early.
// It gives an error for each that cannot be replaced.
func (e Environment) expand(text string, isURL bool) (x expansion, errs []error) {
	var b strings.Builder
	userInfoEnd := -1
	if isURL {
		userInfoEnd = endOfUserInfo(text)
	}
	for at := 0; at < len(text); {
		rest := text[at:]
		next := strings.Index(rest, "${")
		if next < 0 {
			b.WriteString(rest)
			break
		}
		if next > 0 && rest[next-1] == '$' {
			b.WriteString(rest[:next-1] + "${")
			at += next + len("${")
			continue
		}
		b.WriteString(rest[:next])
		inner, _, closed := strings.Cut(rest[next+len("${"):], "}")
		if !closed {
			return x, append(errs, errors.New("${ is never closed: write ${NAME}, or $${ for a literal ${"))
		}
		value, from, err := e.substitute(inner)
		if err != nil {
			errs = append(errs, err)
		}
		x.secret = x.secret || strings.HasPrefix(from, "file ")
		if from != "" {
			x.from = append(x.from, from)
			x.values = append(x.values, value)
		}
		if at+next < userInfoEnd {
			value = encodeUserInfo(value)
		}
		b.WriteString(value)
		at += next + len("${") + len(inner) + len("}")
	}
	x.text = b.String()
	return x, errs
}

var (
	variablePattern  = regexp.MustCompile(`^(` + variableName + `)(:-(.*))?$`)
	referencePattern = regexp.MustCompile(`\$\{[^}]*\}`)
)

// substitute gives the value of what stands between ${ and }, and where it came from;
// a default that was used came from the file itself.
func (e Environment) substitute(inner string) (value, from string, err error) {
	if path, isFile := strings.CutPrefix(inner, "file:"); isFile {
		if path == "" {
			return "", "", errors.New("${file:} names no file: write ${file:/run/secrets/NAME}")
		}
		data, err := e.readFile(path)
		if err != nil {
			return "", "", fmt.Errorf("${file:%s}: %s", path, cause(err))
		}
		content, err := setting.FileText(data)
		if err != nil {
			return "", "", fmt.Errorf("${file:%s}: %w", path, err)
		}
		return content, "file " + path, nil
	}
	parts := variablePattern.FindStringSubmatch(inner)
	if parts == nil || strings.Contains(inner, "${") {
		return "", "", errors.New("${" + inner + "} is not understood: write ${NAME}, ${NAME:-default} or ${file:PATH}, one not inside another, or $${ for a literal ${")
	}
	name, hasDefault, fallback := parts[1], parts[2] != "", parts[3]
	value, found := e.lookup(name)
	switch {
	case hasDefault && value == "": // as a shell does: set but empty counts as unset
		return fallback, "", nil
	case !found:
		return "", "", fmt.Errorf("the variable %s is not set: set it in the environment, or write ${%s:-default}", name, name)
	}
	return value, "environment " + name, nil
}

// fileOnly gives the path of a text that is one ${file:PATH} and nothing else.
func fileOnly(text string) (path string, is bool) {
	if referencePattern.FindString(text) != text {
		return "", false
	}
	path, is = strings.CutPrefix(strings.TrimSuffix(text, "}"), "${file:")
	return path, is
}

// endOfUserInfo is the index of the @ that ends the user info in a URL whose ${...}
// have not been replaced yet; -1 if it has none.
func endOfUserInfo(text string) int {
	// What stands inside a ${...} is not part of the URL's structure.
	masked := referencePattern.ReplaceAllStringFunc(text, func(s string) string { return strings.Repeat("x", len(s)) })
	start := strings.Index(masked, "://")
	if start < 0 {
		return -1
	}
	start += len("://")
	end := len(masked)
	if i := strings.IndexAny(masked[start:], "/?#"); i >= 0 {
		end = start + i
	}
	i := strings.LastIndexByte(masked[start:end], '@')
	if i < 0 {
		return -1
	}
	return start + i
}

// encodeUserInfo percent-encodes all that RFC 3986 does not call unreserved.
func encodeUserInfo(s string) string {
	return strings.ReplaceAll(url.QueryEscape(s), "+", "%20")
}
