// Command image packs binaries of mnsrelay into a container image, an index of one image
// for each architecture, without a daemon and without a base image. The same input gives
// the same bytes.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "image:", err)
		}
		os.Exit(1)
	}
}

func run(args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	binaries := flags.String("binaries", "", "the `FOLDER` that holds linux/ARCHITECTURE/mnsrelay")
	out := flags.String("o", "", "the `FILE` to write, a tar archive of an OCI layout")
	version := flags.String("version", "", "the version, which is the tag too")
	revision := flags.String("revision", "", "the commit")
	created := flags.String("created", "", "the `TIME` of the commit, RFC 3339")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 || *binaries == "" || *out == "" || *version == "" || *revision == "" || *created == "" {
		return errors.New("every flag is needed, and nothing else: see -h")
	}
	at, err := time.Parse(time.RFC3339, *created)
	if err != nil {
		return fmt.Errorf("read -created: %w", err)
	}
	b := build{binaries: *binaries, version: *version, revision: *revision, created: at.UTC()}
	index, err := b.index()
	if err != nil {
		return err
	}
	if err := write(*out, index, b.version); err != nil {
		return err
	}
	digest, err := index.Digest()
	if err != nil {
		return fmt.Errorf("compute the digest: %w", err)
	}
	_, err = fmt.Fprintf(stdout, "%s: %s, %s\n", *out, name(b.version), digest)
	return err
}
