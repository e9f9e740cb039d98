package webhook

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"mnsrelay/internal/setting"
)

// The headers of Standard Webhooks 1.0.0 (github.com/standard-webhooks/standard-webhooks,
// "Webhook Metadata"). The id names the message, not the try: it is the same on each
// redelivery and from each replica. The timestamp, in seconds, is that of the try.
const (
	HeaderID        = "webhook-id"
	HeaderTimestamp = "webhook-timestamp"
	HeaderSignature = "webhook-signature"
)

const (
	secretPrefix    = "whsec_"
	signatureScheme = "v1" // HMAC-SHA256
	// How many bytes a secret has ("Signature scheme", symmetric).
	minSecret = 24
	maxSecret = 64
)

// Key is a secret of Standard Webhooks, decoded.
type Key []byte

// ParseKey reads a secret as the specification writes it: base64, with or without whsec_
// before it. Its error does not quote it.
func ParseKey(text string) (Key, error) {
	encoded := strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(text), secretPrefix))
	if strings.HasPrefix(encoded, "whsk_") || strings.HasPrefix(encoded, "whpk_") {
		return nil, errors.New("is a key of asymmetric signatures (v1a); write one of symmetric signatures, whsec_ and base64")
	}
	key, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		key, err = base64.RawStdEncoding.DecodeString(encoded)
	}
	switch {
	case err != nil:
		return nil, errors.New("is not base64; write whsec_ and the secret in base64, as `echo whsec_$(openssl rand -base64 32)` makes one")
	case len(key) < minSecret || len(key) > maxSecret:
		return nil, fmt.Errorf("has %d bytes; a secret has %d to %d, as `echo whsec_$(openssl rand -base64 32)` makes one", len(key), minSecret, maxSecret)
	}
	return key, nil
}

// sign gives the signature of a request, with its version.
func (k Key) sign(id, timestamp string, body []byte) string {
	mac := hmac.New(sha256.New, k)
	mac.Write([]byte(id + "." + timestamp + "."))
	mac.Write(body)
	return signatureScheme + "," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// Verify tells whether one of the keys has signed a request, whose body it is given
// without content encoding. A timestamp further from now than tolerance is refused; 0 is
// no limit. The error says what is wrong in words for the receiver's developer.
func Verify(keys []Key, h http.Header, body []byte, now time.Time, tolerance time.Duration) error {
	id, timestamp, signatures := h.Get(HeaderID), h.Get(HeaderTimestamp), strings.Fields(h.Get(HeaderSignature))
	switch {
	case len(signatures) == 0:
		return fmt.Errorf("the header %s is missing: the request is not signed", HeaderSignature)
	case id == "":
		return fmt.Errorf("the header %s is missing", HeaderID)
	case timestamp == "":
		return fmt.Errorf("the header %s is missing", HeaderTimestamp)
	}
	seconds, err := strconv.ParseInt(timestamp, 10, 64)
	if err != nil {
		return fmt.Errorf("the header %s is not a number of seconds", HeaderTimestamp)
	}
	if age := now.Sub(time.Unix(seconds, 0)); tolerance > 0 && age.Abs() > tolerance {
		if age < 0 {
			return fmt.Errorf("it was signed %v in the future; %v are tolerated: check the clocks", -age.Round(time.Second), tolerance)
		}
		return fmt.Errorf("it was signed %v ago; %v are tolerated", age.Round(time.Second), tolerance)
	}
	known := 0
	for _, signature := range signatures {
		if !strings.HasPrefix(signature, signatureScheme+",") {
			continue
		}
		known++
		for _, key := range keys {
			if hmac.Equal([]byte(signature), []byte(key.sign(id, timestamp, body))) {
				return nil
			}
		}
	}
	if known == 0 {
		return fmt.Errorf("the header %s has no signature of the version %s", HeaderSignature, signatureScheme)
	}
	return errors.New("no signature is by one of the secrets: the secret is another one, or id, timestamp or body are not as they were sent")
}

// signer signs requests with every secret, so that the receiver may know either while they
// are rotated.
type signer struct{ keys []*renewed[Key] }

// newSigner makes one of secrets that have been validated; nil for none.
func newSigner(secrets []setting.Secret, log *zap.Logger) (*signer, error) {
	if len(secrets) == 0 {
		return nil, nil //nolint:nilnil // No secrets, no signer.
	}
	s := &signer{}
	for i, secret := range secrets {
		key, err := newRenewed("signing.secrets["+strconv.Itoa(i)+"]", secret, ParseKey, log)
		if err != nil {
			return nil, err
		}
		s.keys = append(s.keys, key)
	}
	return s, nil
}

// sign sets the three headers. The body is signed as it is before a content encoding.
func (s *signer) sign(h http.Header, id string, body []byte, now time.Time) {
	timestamp := strconv.FormatInt(now.Unix(), 10)
	signatures := make([]string, len(s.keys))
	for i, key := range s.keys {
		signatures[i] = key.current().sign(id, timestamp, body)
	}
	h.Set(HeaderTimestamp, timestamp)
	h.Set(HeaderSignature, strings.Join(signatures, " "))
}
