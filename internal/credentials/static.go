package credentials

import (
	"context"
	"errors"
	"os"

	"mnsrelay/internal/setting"
)

// static gives the keys that it was made with. It points to them, so that it prints
// as an address: format verbs reach into unexported fields past every method.
type static struct{ keys *Keys }

func (s static) Retrieve(context.Context) (Keys, error) { return *s.keys, nil }

// environment gives the keys that the usual variables hold, by the names that all of
// Alibaba Cloud's tools read.
type environment struct{}

func (environment) Retrieve(context.Context) (Keys, error) {
	keys := Keys{
		AccessKeyID:     os.Getenv("ALIBABA_CLOUD_ACCESS_KEY_ID"),
		AccessKeySecret: setting.NewSecret(os.Getenv("ALIBABA_CLOUD_ACCESS_KEY_SECRET")),
		SecurityToken:   setting.NewSecret(os.Getenv("ALIBABA_CLOUD_SECURITY_TOKEN")),
	}
	if keys.AccessKeyID == "" || keys.AccessKeySecret.IsZero() {
		return Keys{}, errors.New("find keys in the environment: set ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET, or write access_key_id and access_key_secret")
	}
	return keys, nil
}
