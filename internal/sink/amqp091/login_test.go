package amqp091_test

import (
	"crypto/x509"
	"encoding/pem"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/youmark/pkcs8"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/relaytest"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink/amqp091"
	"mnsrelay/test/broker"
	"mnsrelay/test/certs"
)

// secured is a broker that asks for client certificates, an inbox on it, and a sink that
// reaches it by TLS.
func secured(t *testing.T) (*broker.Node, *inbox, *certs.Files, *amqp091.Config) {
	t.Helper()
	b := nodes.Borrow(t)
	files := b.Certificates()
	in := newInbox(t, b.URL())
	c := in.config()
	c.URL = setting.NewURL(b.TLSURL())
	c.TLS = setting.TLS{CAFile: files.CA, CertFile: files.ClientCert, KeyFile: files.ClientKey}
	return b, in, files, c
}

// The broker takes the user from the client certificate; one that it does not know is
// refused, said in words, and used as soon as it exists.
func TestSASLExternal(t *testing.T) {
	t.Parallel()
	b, in, _, c := secured(t)
	c.SASL = amqp091.SASLExternal
	r := run(t, c)
	health := r.AwaitReason(relay.Down, "client certificate")
	require.Contains(t, health.Reason, "no user of that name")

	_, err := b.Ctl(bounded(t), "add_user", certs.ClientName, "unused")
	require.NoError(t, err)
	_, err = b.Ctl(bounded(t), "set_permissions", certs.ClientName, ".*", ".*", ".*")
	require.NoError(t, err)
	second := run(t, c)
	second.Await(relay.Up)
	relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, second.Sink, relaytest.Messages("m", 16, 10)))
	require.Len(t, in.ids(), 16)

	plain, err := broker.Start(bounded(t), broker.Config{Dir: t.TempDir(), Conf: "auth_mechanisms.1 = AMQPLAIN"})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, plain.Close()) })
	other := in.config()
	other.URL = setting.NewURL(plain.URL())
	run(t, other).AwaitReason(relay.Down, "does not offer the mechanism PLAIN")
}

// A key of the client certificate may be encrypted, in the form of PKCS #8 and in the older
// one of OpenSSL.
func TestEncryptedKeys(t *testing.T) {
	t.Parallel()
	_, _, files, c := secured(t)
	text, err := os.ReadFile(files.ClientKey)
	require.NoError(t, err)
	block, _ := pem.Decode(text)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	require.NoError(t, err)
	modern, err := pkcs8.MarshalPrivateKey(key, []byte(secret), nil)
	require.NoError(t, err)
	older, err := x509.EncryptPEMBlock(zeroes{}, "PRIVATE KEY", block.Bytes, []byte(secret), x509.PEMCipherAES256) //nolint:staticcheck // What older OpenSSL writes.
	require.NoError(t, err)
	passwordFile := filepath.Join(t.TempDir(), "key-password")
	for name, block := range map[string]*pem.Block{"pkcs8": {Type: "ENCRYPTED PRIVATE KEY", Bytes: modern}, "legacy": older} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "key.pem")
			require.NoError(t, os.WriteFile(path, pem.EncodeToMemory(block), 0o600))
			encrypted := *c
			encrypted.TLS.KeyFile = path
			encrypted.Username, encrypted.Password = "guest", setting.NewSecret("guest")
			r := run(t, &encrypted)
			r.AwaitReason(relay.Down, "the key is encrypted: set tls.key_password")

			require.NoError(t, os.WriteFile(passwordFile, []byte("wrong"), 0o600))
			encrypted.TLS.KeyPassword = setting.FileSecret("wrong", passwordFile)
			r = run(t, &encrypted)
			r.AwaitReason(relay.Down, "tls.key_password does not decrypt the key")
			// Read again on each connect.
			require.NoError(t, os.WriteFile(passwordFile, []byte(secret+"\n"), 0o600))
			r.Await(relay.Up)
			relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 16, 10)))
			require.NotContains(t, r.Logged(), secret)
		})
	}
}

// zeroes are as good as random numbers for a test.
type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// What goes wrong with TLS is said with what to do, and nothing is ever sent in the clear.
func TestTLSAdvice(t *testing.T) {
	t.Parallel()
	_, in, files, c := secured(t)
	for name, change := range map[string]struct {
		tls  setting.TLS
		want string
	}{
		"no authority":          {setting.TLS{CertFile: files.ClientCert, KeyFile: files.ClientKey}, "set tls.ca_file"},
		"another name":          {setting.TLS{CAFile: files.CA, CertFile: files.ClientCert, KeyFile: files.ClientKey, ServerName: "elsewhere"}, "set tls.server_name"},
		"no client certificate": {setting.TLS{CAFile: files.CA}, "set tls.cert_file and tls.key_file"},
		"another certificate": {func() setting.TLS {
			other := certs.New(t)
			return setting.TLS{CAFile: files.CA, CertFile: other.ClientCert, KeyFile: other.ClientKey}
		}(), "check tls.cert_file and tls.key_file"},
	} {
		t.Run(name, func(t *testing.T) {
			refused := *c
			refused.TLS = change.tls
			r := run(t, &refused)
			r.AwaitReason(relay.Down, change.want)
			relaytest.RequireReason(t, "not_connected", relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 1, 10))[0])
		})
	}
	require.Zero(t, in.count())
}

// Certificates and password are read again on each connect: ones that were replaced are
// used without a restart, and ones that ended are no reason for a crash.
func TestCertificatesAndPasswordsAreReplaced(t *testing.T) {
	t.Parallel()
	b, in, files, c := secured(t)
	_, err := b.Ctl(bounded(t), "add_user", "relay", "first")
	require.NoError(t, err)
	_, err = b.Ctl(bounded(t), "set_permissions", "relay", ".*", ".*", ".*")
	require.NoError(t, err)
	password := filepath.Join(t.TempDir(), "password")
	require.NoError(t, os.WriteFile(password, []byte("first\n"), 0o600))
	c.Username, c.Password = "relay", setting.FileSecret("first", password)
	r := run(t, c)
	r.Await(relay.Up)
	relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 16, 10)))

	files.Renew(t) // authority, server and client
	_, err = b.Ctl(bounded(t), "change_password", "relay", "second")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(password, []byte("second\n"), 0o600))
	require.NoError(t, b.Stop(bounded(t)))
	r.Await(relay.Down)
	require.NoError(t, b.Start(bounded(t)))
	r.Await(relay.Up)
	relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("n", 16, 10)))
	require.Len(t, in.ids(), 32)
}

// A permission, and the vhost itself, that are lost and given back: the status says so, the
// tries are apart, and it works again without a restart.
func TestVhostLostAndGivenBack(t *testing.T) {
	t.Parallel()
	b := nodes.Borrow(t)
	vhost := func() *inbox {
		_, err := b.Ctl(bounded(t), "add_vhost", "prod")
		require.NoError(t, err)
		_, err = b.Ctl(bounded(t), "set_permissions", "-p", "prod", "guest", ".*", ".*", ".*")
		require.NoError(t, err)
		return newInbox(t, b.URL()+"prod")
	}
	in := vhost()
	c := in.config()
	c.URL, c.Vhost = setting.NewURL(b.URL()), "prod"
	r := run(t, c)
	r.Await(relay.Up)
	_, err := b.Ctl(bounded(t), "delete_vhost", "prod")
	require.NoError(t, err)
	r.AwaitReason(relay.Down, `open vhost "prod"`)
	before := r.Log.Len()
	quiet := time.NewTimer(2 * time.Second)
	<-quiet.C
	require.LessOrEqual(t, r.Log.Len()-before, 1, "said once: %s", r.Logged())
	back := vhost()
	c.Exchange.Name = back.exchange
	again := run(t, c)
	again.Await(relay.Up)
	relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, again.Sink, relaytest.Messages("m", 16, 10)))
	r.AwaitReason(relay.Down, "does not exist") // connected again: the old exchange is gone with its vhost
}

// What names us to the broker is ours to choose.
func TestConnectionName(t *testing.T) {
	t.Parallel()
	b := nodes.Borrow(t)
	in := newInbox(t, b.URL())
	c := in.config()
	c.ConnectionName = "billing relay"
	c.Heartbeat = 7 * time.Second
	r := run(t, c)
	r.Await(relay.Up)
	listed, err := b.Ctl(bounded(t), "list_connections", "client_properties", "timeout")
	require.NoError(t, err)
	require.Contains(t, listed, `{"connection_name","billing relay"}`)
	require.Contains(t, listed, "\t7")
}

// A host that does not answer takes no longer than the time that is set for it, and the
// next one is tried.
func TestTheTimeToConnectIsBounded(t *testing.T) {
	in := newInbox(t, broker.URL(t))
	silent := relaytest.NewProxy(t, address(t, in.url))
	silent.Hang()
	c := in.config()
	c.URL = setting.URL{}
	c.ConnectTimeout = 500 * time.Millisecond
	u, err := url.Parse(in.url)
	require.NoError(t, err)
	for range 3 {
		u.Host = silent.Addr()
		c.URLs = append(c.URLs, setting.NewURL(u.String()))
	}
	r := run(t, c)
	began := time.Now()
	r.AwaitReason(relay.Down, "no answer within 500ms")
	require.Less(t, time.Since(began), 2*time.Second)
	silent.Mend()
	r.Await(relay.Up)
}
