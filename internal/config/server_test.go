package config_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/config"
	"mnsrelay/internal/setting"
)

type pair struct{ cert, key string }

// pairs are a certificate that lasts and one that has ended, with their keys.
var pairs = sync.OnceValue(func() (all [2]pair) {
	for i, end := range []time.Time{time.Now().Add(time.Hour), time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			panic(err)
		}
		template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: end.Add(-2 * time.Hour), NotAfter: end}
		cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			panic(err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			panic(err)
		}
		all[i] = pair{
			cert: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})),
			key:  string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
		}
	}
	return all
})

// certificates is an environment with files of certificates, good and bad.
func certificates() config.Environment {
	return environment(map[string]string{"CERT": "/none"}, map[string]string{
		"/crt": pairs()[0].cert, "/key": pairs()[0].key, "/old.crt": pairs()[1].cert, "/old.key": pairs()[1].key,
		"/empty": "", "/locked": "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAA=\n-----END ENCRYPTED PRIVATE KEY-----\n",
		"/legacy": "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nMAA=\n-----END EC PRIVATE KEY-----\n",
	})
}

func TestTheServer(t *testing.T) {
	t.Parallel()
	c := parse(t, `server: {listen: ":8443", admin_listen: ":8444", admin_token: 0123456789abcdef, tls: {cert_file: /crt, key_file: /key}}
`+with("sources:", "sources:"), certificates())
	require.Equal(t, setting.ServerTLS{CertFile: "/crt", KeyFile: "/key"}, c.Server.TLS)
	require.Equal(t, ":8444", c.Server.AdminListen)
	require.NotContains(t, string(c.YAML()), "BEGIN")
}

func TestProblemsOfTheServer(t *testing.T) {
	t.Parallel()
	const mend = ": write a certificate and the key that belongs to it, both as PEM"
	for text, want := range map[string]string{
		`{listen: "8080"}`:                                `1:18: server.listen: must be an address with a port, as in ":8080" or "127.0.0.1:8080", not "8080"`,
		`{admin_listen: "8081"}`:                          `1:24: server.admin_listen: must be an address with a port, as in ":8080" or "127.0.0.1:8080", not "8081"`,
		`{admin_listen: ":99999"}`:                        `1:24: server.admin_listen: must end in a port from 0 to 65535, as in ":8080", not ":99999"`,
		`{admin_listen: ":8080"}`:                         `1:24: server.admin_listen: has the port of server.listen: write another, or remove the line to serve everything there`,
		`{admin_listen: "127.0.0.1:8080"}`:                `1:24: server.admin_listen: has the port of server.listen: write another, or remove the line to serve everything there`,
		`{listen: "127.0.0.1:1", admin_listen: "[::]:1"}`: `1:47: server.admin_listen: has the port of server.listen: write another, or remove the line to serve everything there`,
		`{tls: {cert_file: /crt}}`:                        `1:10: server.tls: cert_file and key_file belong together: write both`,
		`{tls: {key_file: /key}}`:                         `1:10: server.tls: cert_file and key_file belong together: write both`,
		`{tls: {cert_file: /crt, key_file: /old.key}}`:    `1:10: server.tls: tls: private key does not match public key` + mend,
		`{tls: {cert_file: /empty, key_file: /key}}`:      `1:10: server.tls: tls: failed to find any PEM data in certificate input` + mend,
		`{tls: {cert_file: /key, key_file: /crt}}`:        `1:10: server.tls: tls: failed to find certificate PEM data in certificate input, but did find a private key; PEM inputs may have been switched` + mend,
		`{tls: {cert_file: /crt, key_file: /locked}}`:     `1:10: server.tls: the key is encrypted, and nobody is there to type its password: openssl pkey writes it without`,
		`{tls: {cert_file: /crt, key_file: /legacy}}`:     `1:10: server.tls: the key is encrypted, and nobody is there to type its password: openssl pkey writes it without`,
	} {
		require.Equal(t, []string{want}, problems(t, "server: "+text+"\n"+with("sources:", "sources:"), certificates()), text)
	}
}

// A relay does not start without the files of server.tls; who serves nothing has no need of them.
func TestARelayThatIsToRunNeedsItsCertificate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path, cert, key := filepath.Join(dir, "relay.yaml"), filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	text := "server: {tls: {cert_file: " + cert + ", key_file: " + key + "}}\n" + with("sources:", "sources:")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	of := func(list []config.Problem) (at []string) {
		for _, p := range list {
			require.Contains(t, p.Message, "there is no such file")
			at = append(at, fmt.Sprintf("%d:%s", p.Line, p.Path))
		}
		return at
	}
	both := []string{"1:server.tls.cert_file", "1:server.tls.key_file"}
	_, warnings, err := config.LoadToRun(path)
	var wrong *config.Error
	require.ErrorAs(t, err, &wrong)
	require.Equal(t, both, of(wrong.Problems))
	require.Empty(t, warnings)
	_, warnings, err = config.Load(path)
	require.NoError(t, err)
	require.Len(t, warnings, 2)
	require.Equal(t, both, of([]config.Problem{config.Problem(warnings[0]), config.Problem(warnings[1])}))

	require.NoError(t, os.WriteFile(cert, []byte(pairs()[0].cert), 0o600))
	_, _, err = config.LoadToRun(path)
	require.ErrorAs(t, err, &wrong)
	require.Equal(t, both[1:], of(wrong.Problems))
	require.NoError(t, os.WriteFile(key, []byte(pairs()[0].key), 0o600))
	_, warnings, err = config.LoadToRun(path)
	require.NoError(t, err)
	require.Empty(t, warnings)
}

func TestWarningsOfTheServer(t *testing.T) {
	t.Parallel()
	const bare = `server.admin_token: crosses the network unencrypted: write server.tls, or server.admin_listen: "127.0.0.1:8081", which only this machine reaches`
	const token = "admin_token: 0123456789abcdef"
	for text, want := range map[string]string{
		`{` + token + `}`:                                                     "1:23: " + bare,
		`{` + token + `, listen: "10.0.0.1:8080"}`:                            "1:23: " + bare,
		`{` + token + `, listen: "127.0.0.1:8080", admin_listen: ":8081"}`:    "1:23: " + bare,
		`{` + token + `, listen: "127.0.0.1:8080"}`:                           "",
		`{` + token + `, admin_listen: "localhost:8081"}`:                     "",
		`{` + token + `, admin_listen: "[::1]:8081"}`:                         "",
		`{` + token + `, listen: "127.0.0.1:1", admin_listen: "127.0.0.2:1"}`: "",
		`{` + token + `, tls: {cert_file: /crt, key_file: /key}}`:             "",
		`{` + token + `, listen: "127.0.0.1:0", admin_listen: "127.0.0.1:0"}`: "port 0",
		`{admin_listen: ":8081"}`:                                             "1:24: server.admin_listen: has nothing to serve that server.listen has not: write server.admin_token, too",
		`{tls: {cert_file: /none, key_file: /key}}`:                           `1:27: server.tls.cert_file: "/none": there is no such file: create or mount it, or mend the path; the relay does not start without it`,
		`{tls: {cert_file: "${CERT}", key_file: /key}}`:                       `1:27: server.tls.cert_file: what came from environment CERT: there is no such file: create or mount it, or mend the path; the relay does not start without it`,
		`{tls: {cert_file: /crt, key_file: /none}}`:                           `1:43: server.tls.key_file: "/none": there is no such file: create or mount it, or mend the path; the relay does not start without it`,
		`{tls: {cert_file: /old.crt, key_file: /old.key}}`:                    "1:27: server.tls.cert_file: ended at 2026-01-02 03:04:05: who asks will refuse it; have it renewed",
	} {
		_, warnings, err := config.Parse("relay.yaml", []byte("server: "+text+"\n"+with("sources:", "sources:")), certificates())
		require.NoError(t, err, text)
		if want == "" {
			require.Empty(t, warnings, text)
			continue
		}
		require.NotEmpty(t, warnings, text)
		require.Contains(t, strings.TrimPrefix(warnings[0].String(), "relay.yaml:"), want, text)
	}
}
