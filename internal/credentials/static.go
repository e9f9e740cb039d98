package credentials

import (
	"context"
	"errors"
	"fmt"

	"mnsrelay/internal/setting"
)

// static gives the keys of the configuration, those from files as the files are now. It
// points to its settings, so that it prints as an address: format verbs reach into
// unexported fields past every method.
type static struct{ config *Config }

// Retrieve reads the keys.
func (s static) Retrieve(context.Context) (Keys, error) {
	keys := make([]setting.Secret, 0, 3)
	for _, secret := range []setting.Secret{s.config.AccessKeyID, s.config.AccessKeySecret, s.config.SecurityToken} {
		text, err := secret.Read()
		if err != nil {
			return Keys{}, fmt.Errorf("read keys: %w", err)
		}
		keys = append(keys, setting.NewSecret(text))
	}
	read := Keys{AccessKeyID: keys[0].Reveal(), AccessKeySecret: keys[1], SecurityToken: keys[2]}
	switch {
	case read.AccessKeyID == "" || read.AccessKeySecret.IsZero():
		return Keys{}, errors.New("read keys: the file of access_key_id or access_key_secret is empty")
	case read.SecurityToken.IsZero() && !s.config.SecurityToken.IsZero():
		return Keys{}, errors.New("read keys: the file of security_token is empty")
	case !isKey(read.AccessKeyID) || !isKey(read.AccessKeySecret.Reveal()) || !isKey(read.SecurityToken.Reveal()):
		return Keys{}, errors.New("read keys: the file of a key holds a space or a line break")
	}
	return read, nil
}

// changes tells whether the keys may be others the next time.
func (s static) changes() bool {
	return s.config.AccessKeyID.FromFile() || s.config.AccessKeySecret.FromFile() || s.config.SecurityToken.FromFile()
}
