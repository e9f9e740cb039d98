package emulator

import (
	"errors"
	"net/http"
	"slices"
	"time"

	"go.uber.org/zap"

	"mnsrelay/internal/setting"
)

// The access key that a Config without AccessKeys accepts. They are meant to be
// known: the emulator guards nothing.
const (
	DemoAccessKeyID     = "emulator"
	DemoAccessKeySecret = "emulator-secret"
)

// Defaults of a Config.
const (
	DefaultAccountID = "1234567890123456"
	DefaultTokenLife = time.Hour
)

// region is what HostId names.
const region = "cn-hangzhou"

// AccessKey is a key pair that does not expire.
type AccessKey struct {
	ID     string
	Secret setting.Secret
}

// Policy is what a credential may do.
type Policy string

const (
	// PolicyFull allows every operation.
	PolicyFull Policy = "full"
	// PolicyReceiveDelete allows receive and delete; everything else of MNS is
	// answered 403 AccessDenied. Tokens of Dybaseapi may be like that.
	PolicyReceiveDelete Policy = "receive-and-delete"
)

func (p Policy) valid() bool { return p == PolicyFull || p == PolicyReceiveDelete }

func (p Policy) allows(op Op) bool {
	return p != PolicyReceiveDelete || op == OpReceive || op == OpDelete
}

// stricter gives the one of two policies that allows less.
func (p Policy) stricter(other Policy) Policy {
	if p == PolicyReceiveDelete {
		return p
	}
	return other
}

// Config says what a Server is. The zero value is usable: one demo key, no queue,
// tokens of an hour, everything allowed.
type Config struct {
	// AccessKeys may sign every request. None: the demo key.
	AccessKeys []AccessKey
	// AccountID is the owner of the queues, in the names that AlicomQueue makes and
	// in role ARNs. Empty: DefaultAccountID.
	AccountID string
	// Queues exist from the start, by name.
	Queues map[string]QueueConfig
	// TokenLife is how long a token lives: whole seconds, at least 2. It also caps
	// every other credential that is issued, a session's DurationSeconds among them.
	// Zero: DefaultTokenLife. Times on the wire have whole seconds and are cut, so
	// that a token lives up to a second less.
	TokenLife time.Duration
	// Policy binds every request to MNS; TokenPolicy binds those with a token that
	// QueryTokenForMnsQueue issued while it was set. Empty: PolicyFull.
	Policy      Policy
	TokenPolicy Policy
	// IssuedPolicies bind requests to MNS with a credential by what issued it:
	// OpToken, OpSTS, OpOIDC, OpMetadata or OpURI. Absent: PolicyFull.
	IssuedPolicies map[Op]Policy
	// Roles are the RAM roles of the account, by name. Nil: every role exists and
	// trusts everybody.
	Roles map[string]Role
	// OIDC is the provider whose tokens AssumeRoleWithOIDC takes.
	OIDC OIDCProvider
	// InstanceRole is the role of the ECS instance whose metadata is served. Empty: it
	// has none.
	InstanceRole string
	// MetadataTokenRequired is ECS's security hardening mode: metadata is for those
	// who bring a token, IMDSv2 only.
	MetadataTokenRequired bool
	// MaxLongPolls is how many receives may wait at one queue at the same time. One
	// more gets its empty answer at once. Zero: no limit.
	MaxLongPolls int
	// HideCounts makes the message counts among a queue's attributes always 0, as
	// Alibaba documents them for its newer API.
	HideCounts bool
	// Issued is told of what is secret in each credential that is issued: secret and
	// token. Tests look for it where it must not be. It is called concurrently.
	Issued func(secrets ...string)
	// Log gets what changes by the controls at info and every request at debug,
	// never a secret or a body. Nil: no log.
	Log *zap.Logger
}

func (c *Config) setDefaults() {
	if len(c.AccessKeys) == 0 {
		c.AccessKeys = []AccessKey{{ID: DemoAccessKeyID, Secret: setting.NewSecret(DemoAccessKeySecret)}}
	}
	if c.AccountID == "" {
		c.AccountID = DefaultAccountID
	}
	if c.TokenLife == 0 {
		c.TokenLife = DefaultTokenLife
	}
	if c.Policy == "" {
		c.Policy = PolicyFull
	}
	if c.TokenPolicy == "" {
		c.TokenPolicy = PolicyFull
	}
	c.OIDC.setDefaults()
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
}

// Validate reports everything that is wrong with the configuration, joined, each a
// *setting.Problem. What is unset is right.
func (c *Config) Validate() error {
	var problems []error
	seen := map[string]bool{}
	for _, key := range c.AccessKeys {
		switch {
		case key.ID == "" || key.Secret.IsZero():
			problems = append(problems, setting.Problemf("access_keys", "an access key needs an id and a secret"))
		case seen[key.ID]:
			problems = append(problems, setting.Problemf("access_keys", "access key id %q is there twice", key.ID))
		}
		seen[key.ID] = true
	}
	if c.TokenLife != 0 && (c.TokenLife < 2*time.Second || c.TokenLife%time.Second != 0) {
		problems = append(problems, setting.Problemf("token_life", "%v is not a life a token can have: write whole seconds, at least 2s", c.TokenLife))
	}
	for path, policy := range map[string]Policy{"policy": c.Policy, "token_policy": c.TokenPolicy} {
		if policy != "" && !policy.valid() {
			problems = append(problems, setting.Problemf(path, "there is no policy %q: write %s or %s", policy, PolicyFull, PolicyReceiveDelete))
		}
	}
	for op, policy := range c.IssuedPolicies {
		if !slices.Contains(issuers(), op) {
			problems = append(problems, setting.Problemf("issued_policies", "%q issues no credentials: write one of %v", op, issuers()))
		} else if !policy.valid() {
			problems = append(problems, setting.Problemf("issued_policies."+string(op), "there is no policy %q: write %s or %s", policy, PolicyFull, PolicyReceiveDelete))
		}
	}
	for name, role := range c.Roles {
		problems = append(problems, role.validate(name))
	}
	if _, found := c.Roles[c.InstanceRole]; c.InstanceRole != "" && (c.Roles != nil && !found || !hasForm(roleNameForm, c.InstanceRole)) {
		problems = append(problems, setting.Problemf("instance_role", "there is no role %q", c.InstanceRole))
	}
	problems = append(problems, c.OIDC.validate())
	if c.MaxLongPolls < 0 {
		problems = append(problems, setting.Problemf("max_long_polls", "must not be negative; 0 is no limit"))
	}
	for name, queue := range c.Queues {
		if err := validQueueName(name); err != nil {
			problems = append(problems, setting.Problemf("queues", "%q: %v", name, err))
		}
		queue.setDefaults()
		if err := queue.validate(); err != nil {
			problems = append(problems, setting.Problemf("queues."+name, "%v", err))
		}
	}
	return errors.Join(problems...)
}

// QueueConfig holds the attributes of a queue, each in whole seconds. A zero field
// has the default that MNS gives it.
type QueueConfig struct {
	// VisibilityTimeout is the lease of a receive: 1 s to 12 h; 30 s by default.
	VisibilityTimeout time.Duration
	// Delay is how long a message sent without a delay of its own stays invisible:
	// 0 to 7 days.
	Delay time.Duration
	// MaximumMessageSize is in bytes of the body: 1024 to 65536, the default.
	MaximumMessageSize int
	// MessageRetentionPeriod is how long a message is kept, consumed or not: 60 s to
	// 7 days; 4 days by default.
	MessageRetentionPeriod time.Duration
	// PollingWait is how long a receive without waitseconds waits: 0 to 30 s.
	PollingWait time.Duration
	// LoggingEnabled is kept and given back; it does nothing.
	LoggingEnabled bool
	// DeadLetterQueue and MaxReceives are the queue's own dead-letter policy, which is
	// given back with the attributes and does nothing; 0: there is none.
	DeadLetterQueue string
	MaxReceives     int
}

// Limits of MNS.
const (
	maxVisibility  = 12 * time.Hour
	maxDelay       = 7 * 24 * time.Hour
	maxWait        = 30 * time.Second
	minRetention   = time.Minute
	maxRetention   = 7 * 24 * time.Hour
	minMessageSize = 1024
	maxMessageSize = 65536
	maxBatch       = 16
	maxQueueName   = 256
	lowestPriority = 16
	usualPriority  = 8
)

func (c *QueueConfig) setDefaults() {
	if c.VisibilityTimeout == 0 {
		c.VisibilityTimeout = 30 * time.Second
	}
	if c.MaximumMessageSize == 0 {
		c.MaximumMessageSize = maxMessageSize
	}
	if c.MessageRetentionPeriod == 0 {
		c.MessageRetentionPeriod = 4 * 24 * time.Hour
	}
}

// validate gives the wire error of the first attribute that is out of range.
func (c *QueueConfig) validate() *wireError {
	for _, a := range []struct {
		name      string
		value     time.Duration
		low, high time.Duration
	}{
		{"VisibilityTimeout", c.VisibilityTimeout, time.Second, maxVisibility},
		{"DelaySeconds", c.Delay, 0, maxDelay},
		{"MessageRetentionPeriod", c.MessageRetentionPeriod, minRetention, maxRetention},
		{"PollingWaitSeconds", c.PollingWait, 0, maxWait},
	} {
		if a.value%time.Second != 0 {
			return invalidArgument("The value of %s should be whole seconds, not %v.", a.name, a.value)
		}
		if a.value < a.low || a.value > a.high {
			return outOfRange(a.name, int64(a.low/time.Second), int64(a.high/time.Second), "seconds")
		}
	}
	if c.MaximumMessageSize < minMessageSize || c.MaximumMessageSize > maxMessageSize {
		return outOfRange("MaximumMessageSize", minMessageSize, maxMessageSize, "bytes")
	}
	return nil
}

// validQueueName checks the form that MNS documents: letters, digits and hyphens, a
// letter or digit first.
func validQueueName(name string) *wireError {
	if name == "" || len(name) > maxQueueName {
		return wireErrorf(http.StatusBadRequest, "QueueNameLengthError", "Queue name length should between 1 and %d.", maxQueueName)
	}
	for i := range len(name) {
		c := name[i]
		alphanumeric := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !alphanumeric && (c != '-' || i == 0) {
			return wireErrorf(http.StatusBadRequest, "InvalidQueueName", "The queue name you provided is invalid. QueueName should start with letter or digit, and contain only letters, digits and hyphens.")
		}
	}
	return nil
}
