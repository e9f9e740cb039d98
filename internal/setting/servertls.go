package setting

import (
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
)

// ServerTLS is the certificate that a server of ours shows. Both are set, or neither: then
// there is no TLS.
type ServerTLS struct {
	// CertFile is the certificate as PEM, those that issued it behind it.
	CertFile string `yaml:"cert_file"`
	// KeyFile is its key as PEM, not encrypted.
	KeyFile string `yaml:"key_file"`
}

// IsZero tells whether there is no TLS.
func (t ServerTLS) IsZero() bool { return t == ServerTLS{} }

// ServerPair makes a certificate of what the files hold. Its errors quote none of it.
func ServerPair(cert, key []byte) (*tls.Certificate, error) {
	if block, _ := pem.Decode(key); block != nil && (block.Type == "ENCRYPTED PRIVATE KEY" || strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED")) {
		return nil, errors.New("the key is encrypted, and nobody is there to type its password: openssl pkey writes it without")
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("%w: write a certificate and the key that belongs to it, both as PEM", err)
	}
	return &pair, nil
}
