package file

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"mnsrelay/internal/relay"
)

var _ relay.Checker = (*Endpoint)(nil)

// Check is part of relay.Checker. It makes no file.
func (e *Endpoint) Check(context.Context) []relay.Finding {
	if e.name == nil && e.path == Stdout {
		return []relay.Finding{{What: "standard output", Verdict: relay.OK, Text: "is written to without a file"}}
	}
	folder := e.path
	if e.name == nil {
		folder = filepath.Dir(e.path)
	}
	if folder == "" {
		folder = "."
	}
	what := "folder " + folder
	if err := checkFolder(folder); err != nil {
		return []relay.Finding{relay.Failing(what, err)}
	}
	findings := []relay.Finding{{What: what, Verdict: relay.OK, Text: "is there, and files can be made in it"}}
	if e.name == nil {
		findings = append(findings, checkFile(e.path))
	}
	return findings
}

func checkFolder(path string) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: make the folder, or mount it; it is not made", err)
	case err != nil:
		return err
	case !info.IsDir():
		return errors.New("is no folder: correct path")
	}
	if err := writable(path); err != nil {
		return fmt.Errorf("%w: let the user that the relay runs as write there", err)
	}
	return nil
}

// checkFile looks at a file that may be there already.
func checkFile(path string) relay.Finding {
	f := relay.Finding{What: "file " + path, Verdict: relay.OK, Text: "is there and can be written"}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		f.Text = "is not there yet: it is made at the start"
		return f
	case err != nil:
		return relay.Failing(f.What, err)
	case !info.Mode().IsRegular():
		return relay.Failing(f.What, errors.New("is no regular file: correct path"))
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND, 0) //nolint:gosec // G304: the configuration names it
	if err != nil {
		return relay.Failing(f.What, fmt.Errorf("%w: let the user that the relay runs as read and write it", err))
	}
	if err := file.Close(); err != nil {
		return relay.Failing(f.What, err)
	}
	return f
}
