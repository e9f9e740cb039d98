package credentials

import (
	"context"
	"time"

	"mnsrelay/internal/setting"
)

// Keys sign requests until they end.
type Keys struct {
	AccessKeyID     string
	AccessKeySecret setting.Secret
	// SecurityToken goes along with temporary keys; unset for permanent ones.
	SecurityToken setting.Secret
	// Expires is when the keys end, with a monotonic reading where they came from a
	// server: it stays right when the wall clock is set. Zero: never.
	Expires time.Time
}

// Same tells whether k and other are the same keys, whenever they end.
func (k Keys) Same(other Keys) bool {
	return k.AccessKeyID == other.AccessKeyID &&
		k.AccessKeySecret == other.AccessKeySecret &&
		k.SecurityToken == other.SecurityToken
}

// ShortID is the access key id with its middle left out, for people to tell keys
// apart.
func (k Keys) ShortID() string { return shorten(k.AccessKeyID) }

func shorten(id string) string {
	const shown = 4
	if id == "" {
		return ""
	}
	if len(id) < 3*shown {
		return id[:min(len(id)/2, shown)] + "***"
	}
	return id[:shown] + "***" + id[len(id)-shown:]
}

// Provider fetches keys. It is safe for concurrent use.
type Provider interface {
	// Retrieve fetches keys now; it keeps none. It ends when ctx does. Its errors
	// say what to do and hold no secret; those that come from a server are an
	// *Error.
	Retrieve(ctx context.Context) (Keys, error)
}
