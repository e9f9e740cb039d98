// Command print writes the certificate authorities of an image to standard output. The
// Dockerfile calls it, so that its image trusts whom that of make image trusts.
package main

import (
	"fmt"
	"os"

	"mnsrelay/image/certificates"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	text, err := certificates.PEM()
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(text)
	return err
}
