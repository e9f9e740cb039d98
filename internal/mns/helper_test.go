package mns_test

import (
	"sync"
	"testing"

	"go.uber.org/goleak"

	"mnsrelay/internal/credentials"
	"mnsrelay/internal/setting"
)

// TestMain checks for goroutines that are left. The one of fasthttp.Client, which the
// SDK owns, ends by itself a second after the last request.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*Client).mCleaner"))
}

// keyring is Credentials whose keys a test changes.
type keyring struct {
	mu      sync.Mutex
	keys    credentials.Keys
	err     error
	refused []credentials.Keys
}

func static(id, secret string) *keyring {
	return &keyring{keys: credentials.Keys{AccessKeyID: id, AccessKeySecret: setting.NewSecret(secret)}}
}

func (k *keyring) Current() (credentials.Keys, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.keys, k.err
}

func (k *keyring) Refused(keys credentials.Keys) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.refused = append(k.refused, keys)
}

func (k *keyring) set(keys credentials.Keys, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys, k.err = keys, err
}

func (k *keyring) refusals() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.refused)
}
