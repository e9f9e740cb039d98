package httpapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"mnsrelay/internal/setting"
)

// certificateTick is how often the certificate's files are looked at. They are read from
// beginning to end: Kubernetes swaps a link above them, which no date of theirs tells.
const certificateTick = 5 * time.Second

// certificate is what the server shows: the last pair of its files that was good. A
// handshake reads no file, so that a file system that hangs holds up no probe.
type certificate struct {
	files setting.ServerTLS
	log   *zap.Logger
	pair  atomic.Pointer[tls.Certificate]

	readFile func(path string) ([]byte, error)

	// What follows is watch's.
	cert, key []byte
	failure   string
}

// newCertificate reads the files, which have to be good at the start.
func newCertificate(files setting.ServerTLS, log *zap.Logger) (*certificate, error) {
	c := &certificate{files: files, log: log, readFile: setting.ReadAgain}
	if _, err := c.read(); err != nil {
		return nil, err
	}
	return c, nil
}

// read takes up what the files hold and tells whether that is new.
func (c *certificate) read() (changed bool, err error) {
	cert, err := c.readFile(c.files.CertFile)
	if err != nil {
		return false, fmt.Errorf("read server.tls.cert_file: %w", err)
	}
	key, err := c.readFile(c.files.KeyFile)
	if err != nil {
		return false, fmt.Errorf("read server.tls.key_file: %w", err)
	}
	if bytes.Equal(cert, c.cert) && bytes.Equal(key, c.key) {
		return false, nil
	}
	pair, err := setting.ServerPair(cert, key)
	if err != nil {
		return false, fmt.Errorf("read server.tls: %w", err)
	}
	c.pair.Store(pair)
	c.cert, c.key = cert, key
	return true, nil
}

// watch takes up what is renewed until ctx ends. What is broken is said once, and the
// pair before it stays.
func (c *certificate) watch(ctx context.Context) {
	ticker := time.NewTicker(certificateTick)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		looked := make(chan struct{})
		go func() {
			defer close(looked)
			c.look()
		}()
		select {
		case <-looked:
		case <-ctx.Done():
			return // A read that hangs does not hold up the end of the process.
		}
	}
}

// look takes up what is new, and says it.
func (c *certificate) look() {
	changed, err := c.read()
	if err != nil {
		changed, err = c.read() // The files may have been swapped between one and the other.
	}
	switch {
	case err != nil:
		if text := err.Error(); text != c.failure {
			c.failure = text
			c.log.Error("the certificate files cannot be used; the previous certificate stays in use", zap.Error(err), zap.Time("until", c.pair.Load().Leaf.NotAfter))
		}
	case changed:
		c.failure = ""
		c.log.Info("the certificate was renewed", zap.Time("until", c.pair.Load().Leaf.NotAfter))
	case c.failure != "":
		c.failure = ""
		c.log.Info("the certificate files match the certificate in use again")
	}
}

// config is that of the server. A connection keeps the certificate that it began with.
func (c *certificate) config() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.pair.Load(), nil },
	}
}
