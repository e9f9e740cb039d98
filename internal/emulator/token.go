package emulator

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// credential is a key pair, with a security token if it was issued.
type credential struct {
	id, secret, token string
	issuer            Op     // what issued it; empty: it is of the configuration
	role              string // whose session it is; empty: nobody's
	policy            Policy
	created           time.Time // by the wire's clock, as is expires
	expires           time.Time // zero: never
	revoked           atomic.Bool
}

// checkToken says whether the credential, signed with rightly, is still good. For a
// dead token MNS documents no code; these are the emulator's, with the status 403
// that MNS has for every refused credential. The RPC services have their own.
func (c *credential) checkToken(token string, now time.Time, status int) *wireError {
	if subtle.ConstantTimeCompare([]byte(c.token), []byte(token)) != 1 {
		if status == http.StatusBadRequest {
			return badRequest("InvalidSecurityToken.MismatchWithAccessKey", "Specified SecurityToken mismatch with the AccessKey.")
		}
		return &wireError{status, "InvalidSecurityToken", "The security token you provided does not belong to the access key id."}
	}
	if c.revoked.Load() || !c.expires.IsZero() && !now.Before(c.expires) {
		if status == http.StatusBadRequest {
			return badRequest("InvalidSecurityToken.Expired", "Specified SecurityToken is expired.")
		}
		return &wireError{status, "SecurityTokenExpired", "The security token you provided has expired."}
	}
	return nil
}

// credentialStore holds the credentials by access key id.
type credentialStore struct{ byID sync.Map }

func (s *credentialStore) add(c *credential) { s.byID.Store(c.id, c) }

func (s *credentialStore) get(id string) *credential {
	found, _ := s.byID.Load(id)
	c, _ := found.(*credential)
	return c
}

// forgetAfter is how long a dead token is still told from an unknown one.
const forgetAfter = 10 * time.Minute

// issue makes a temporary credential that lives from now, cut to whole seconds as
// the wire shows it, for life or as long as the configuration says, whichever is
// shorter.
func (s *Server) issue(issuer Op, role string, life time.Duration) *credential {
	now := s.wireTime()
	for c := range s.credentials.all {
		if c.expires.Add(forgetAfter).Before(now) {
			s.credentials.byID.Delete(c.id)
		}
	}
	created := now.Truncate(time.Second)
	c := &credential{
		id:      "STS." + rand.Text(),
		secret:  rand.Text(),
		token:   base64.StdEncoding.EncodeToString([]byte(rand.Text() + rand.Text() + rand.Text())),
		issuer:  issuer,
		role:    role,
		policy:  s.issuedPolicy(issuer),
		created: created,
		expires: created.Add(min(life, s.config.TokenLife)),
	}
	s.credentials.add(c)
	if s.config.Issued != nil {
		s.config.Issued(c.secret, c.token)
	}
	return c
}

// all yields the credentials that were issued.
func (s *credentialStore) all(yield func(*credential) bool) {
	for _, value := range s.byID.Range {
		if c := value.(*credential); c.issuer != "" && !yield(c) {
			return
		}
	}
}

// alive says whether the credential was good at now.
func (c *credential) alive(now time.Time) bool { return !c.revoked.Load() && now.Before(c.expires) }

func (s *credentialStore) revoke(now time.Time) int {
	n := 0
	for c := range s.all {
		if c.alive(now) && c.revoked.CompareAndSwap(false, true) {
			n++
		}
	}
	return n
}

// nonceStore remembers the nonces of signed RPC requests for as long as their
// timestamps would be accepted.
type nonceStore struct {
	mu   sync.Mutex
	seen map[string]time.Time
	// swept is when the old ones were last removed.
	swept time.Time
}

// use says whether nonce is new.
func (s *nonceStore) use(nonce string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen == nil {
		s.seen = map[string]time.Time{}
	}
	if now.Sub(s.swept).Abs() > maxSkew {
		s.swept = now
		for old, at := range s.seen {
			if now.Sub(at).Abs() > 2*maxSkew {
				delete(s.seen, old)
			}
		}
	}
	if _, found := s.seen[nonce]; found {
		return false
	}
	s.seen[nonce] = now
	return true
}
