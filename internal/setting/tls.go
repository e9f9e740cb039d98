package setting

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"reflect"

	"github.com/youmark/pkcs8"
)

// TLS says whom to trust and who we are. The files are read by Config, so that what
// was renewed is used with the next connection, without a restart.
type TLS struct {
	// CAFile holds the certificates to trust, as PEM; none: the system's.
	CAFile string `yaml:"ca_file"`
	// CertFile and KeyFile are the client certificate, as PEM.
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
	// KeyPassword decrypts KeyFile, of PKCS #8 (RFC 5958) or of the older form of
	// OpenSSL (RFC 1421).
	KeyPassword Secret `yaml:"key_password"`
	// ServerName is the name the server's certificate must have; none: the URL's host.
	ServerName string `yaml:"server_name"`
}

// Validate reports every problem at once, joined, each a *Problem with path as the place
// of t. It does not read the files: they may be mounted later.
func (t *TLS) Validate(path string) error {
	var problems []error
	if (t.CertFile == "") != (t.KeyFile == "") {
		problems = append(problems, Problemf(path, "cert_file and key_file belong together: write both"))
	}
	if !t.KeyPassword.IsZero() && t.KeyFile == "" {
		problems = append(problems, Problemf(path+".key_password", "there is no key to decrypt: write key_file and cert_file too"))
	}
	return errors.Join(problems...)
}

// Config reads the files. It is for a client of the given host, of TLS 1.2 at least. Its
// errors name the setting and the file and quote neither key nor password.
func (t *TLS) Config(host string) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: cmp.Or(t.ServerName, host)}
	if t.CAFile != "" {
		roots, err := os.ReadFile(t.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read tls.ca_file: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(roots) {
			return nil, fmt.Errorf("read tls.ca_file: %s holds no certificate", t.CAFile)
		}
	}
	if t.CertFile != "" {
		pair, err := t.pair()
		if err != nil {
			return nil, fmt.Errorf("read tls.cert_file and tls.key_file: %w", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// pair reads certificate and key.
func (t *TLS) pair() (tls.Certificate, error) {
	certificate, err := os.ReadFile(t.CertFile)
	if err != nil {
		return tls.Certificate{}, err
	}
	key, err := os.ReadFile(t.KeyFile)
	if err != nil {
		return tls.Certificate{}, err
	}
	if key, err = decrypt(key, t.KeyPassword); err != nil {
		return tls.Certificate{}, fmt.Errorf("%s: %w", t.KeyFile, err)
	}
	return tls.X509KeyPair(certificate, key)
}

// errKeyPassword is all that is said of a key that a password does not open: a wrong one
// cannot always be told from a broken key.
var errKeyPassword = errors.New("tls.key_password does not decrypt the key")

// decrypt gives a key in PEM without its encryption.
func decrypt(key []byte, password Secret) ([]byte, error) {
	block, _ := pem.Decode(key)
	if block == nil {
		return key, nil // the error of X509KeyPair is good
	}
	encrypted := block.Type == "ENCRYPTED PRIVATE KEY"
	legacy := x509.IsEncryptedPEMBlock(block) //nolint:staticcheck // What OpenSSL before 3 writes; users have such keys.
	switch {
	case !encrypted && !legacy:
		return key, nil
	case password.IsZero():
		return nil, errors.New("the key is encrypted: set tls.key_password")
	case legacy:
		der, err := x509.DecryptPEMBlock(block, []byte(password.Current())) //nolint:staticcheck // As above.
		if err != nil {
			return nil, errKeyPassword
		}
		return pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: der}), nil
	}
	parsed, err := pkcs8.ParsePKCS8PrivateKey(block.Bytes, []byte(password.Current()))
	if err != nil {
		return nil, errKeyPassword
	}
	der, err := x509.MarshalPKCS8PrivateKey(parsed)
	if err != nil {
		return nil, errKeyPassword
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// The TLS alerts by which a server refuses the client's certificate (RFC 8446: 6.2).
const (
	alertBadCertificate      = 42
	alertUnknownCA           = 48
	alertCertificateRequired = 116
)

// AdviseTLS adds to an error of TLS with a server what to do about it, by the settings of
// TLS. Any other error it gives as it is.
func AdviseTLS(err error) error {
	var (
		authority x509.UnknownAuthorityError
		name      x509.HostnameError
	)
	alert, alerted := alertOf(err)
	switch {
	case errors.As(err, &authority):
		return fmt.Errorf("%w: set tls.ca_file to the authority that issued the server's certificate", err)
	case errors.As(err, &name):
		return fmt.Errorf("%w: correct the host in the URL, or set tls.server_name", err)
	case alerted && alert == alertCertificateRequired:
		return fmt.Errorf("%w: the server asks for a client certificate: set tls.cert_file and tls.key_file", err)
	case alerted && (alert == alertBadCertificate || alert == alertUnknownCA):
		return fmt.Errorf("%w: the server asks for a client certificate that it trusts: check tls.cert_file and tls.key_file", err)
	}
	return err
}

// alertOf gives the number of the alert that the other side has sent. crypto/tls has no
// exported type for it outside of QUIC, only an integer of its own in a net.OpError.
func alertOf(err error) (alert uint64, found bool) {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" {
		return 0, false
	}
	v := reflect.ValueOf(op.Err)
	if v.Kind() != reflect.Uint8 {
		return 0, false
	}
	return v.Uint(), true
}
