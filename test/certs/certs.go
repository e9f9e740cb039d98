// Package certs makes throwaway certificates for tests: an authority, a server's for
// localhost and 127.0.0.1, and a client's.
package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// ClientName is the common name of the client's certificate.
const ClientName = "relay-client"

// Files are paths of PEM files. They stay the same when Renew writes other ones.
type Files struct {
	CA, ServerCert, ServerKey, ClientCert, ClientKey string
}

// New makes an authority and what it issues in a folder of the test's.
func New(tb testing.TB) *Files {
	tb.Helper()
	return In(tb, tb.TempDir())
}

// In is New in a folder of the caller's.
func In(tb testing.TB, dir string) *Files {
	tb.Helper()
	in := func(name string) string { return filepath.Join(dir, name) }
	f := &Files{
		CA: in("ca.pem"), ServerCert: in("server.pem"), ServerKey: in("server.key"),
		ClientCert: in("client.pem"), ClientKey: in("client.key"),
	}
	f.Renew(tb)
	return f
}

// Renew makes another authority, and what it issues, in the place of all that was there.
func (f *Files) Renew(tb testing.TB) {
	tb.Helper()
	key, template := newKey(tb), certificate("mnsrelay tests")
	template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
	ca := sign(tb, template, template, key, key)
	write(tb, f.CA, "CERTIFICATE", ca)
	authority, err := x509.ParseCertificate(ca)
	if err != nil {
		tb.Fatal(err)
	}
	issue := func(name string, usage x509.ExtKeyUsage, certFile, keyFile string) {
		template := certificate(name)
		template.ExtKeyUsage = []x509.ExtKeyUsage{usage}
		template.DNSNames, template.IPAddresses = []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}
		own := newKey(tb)
		write(tb, certFile, "CERTIFICATE", sign(tb, template, authority, own, key))
		der, err := x509.MarshalPKCS8PrivateKey(own)
		if err != nil {
			tb.Fatal(err)
		}
		write(tb, keyFile, "PRIVATE KEY", der)
	}
	issue("localhost", x509.ExtKeyUsageServerAuth, f.ServerCert, f.ServerKey)
	issue(ClientName, x509.ExtKeyUsageClientAuth, f.ClientCert, f.ClientKey)
}

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func certificate(name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
}

func sign(tb testing.TB, template, parent *x509.Certificate, own, by *ecdsa.PrivateKey) []byte {
	tb.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, own.Public(), by)
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

func write(tb testing.TB, path, kind string, der []byte) {
	tb.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		tb.Fatal(err)
	}
}
