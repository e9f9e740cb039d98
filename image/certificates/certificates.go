// Package certificates has the certificate authorities of an image: those that Mozilla
// trusts, as golang.org/x/crypto/x509roots carries them. Their version is that of the
// module, so the same commit makes the same image on every machine.
package certificates

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"

	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// PEM gives the authorities as a file that crypto/x509 and others read. An authority that
// Mozilla trusts with a condition is left out: PEM cannot say the condition, so it would be
// trusted without.
func PEM() ([]byte, error) {
	var text bytes.Buffer
	for root := range bundle.Roots() {
		if root.Constraint != nil {
			continue
		}
		certificate, err := x509.ParseCertificate(root.Certificate)
		if err != nil {
			return nil, fmt.Errorf("read an authority: %w", err)
		}
		fmt.Fprintf(&text, "# %s\n", certificate.Subject)
		if err := pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate}); err != nil {
			return nil, fmt.Errorf("write an authority: %w", err)
		}
	}
	return text.Bytes(), nil
}
