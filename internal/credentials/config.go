package credentials

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"

	"go.uber.org/zap"

	"mnsrelay/internal/setting"
)

// Type is a way to get keys.
type Type string

// The types. TypeDefault is the chain of the usual places; so far it is known only
// as the base of an mns_token, and looks into the environment only.
const (
	TypeStatic         Type = "static"
	TypeMNSToken       Type = "mns_token"
	TypeRAMRoleARN     Type = "ram_role_arn"
	TypeOIDCRoleARN    Type = "oidc_role_arn"
	TypeECSRAMRole     Type = "ecs_ram_role"
	TypeCredentialsURI Type = "credentials_uri"
	TypeDefault        Type = "default"
)

const (
	typeList     = "static, mns_token, ram_role_arn, oidc_role_arn, ecs_ram_role, credentials_uri or default"
	baseTypeList = "static, ram_role_arn, oidc_role_arn, ecs_ram_role, credentials_uri or default"
)

// DefaultRefreshBefore is how long before their end temporary keys are replaced
// where the configuration does not say.
const DefaultRefreshBefore = 2 * time.Minute

// Config is the credentials block of a source.
type Config struct {
	Type Type `yaml:"type"`
	// MessageType is what kind of messages the queue of an mns_token holds: one of
	// MessageTypes or a newer one.
	MessageType string `yaml:"message_type"`
	// AccessKeyID and the two below are the keys of type static and, for an
	// mns_token, a short form of a static base.
	AccessKeyID     string         `yaml:"access_key_id"`
	AccessKeySecret setting.Secret `yaml:"access_key_secret"`
	SecurityToken   setting.Secret `yaml:"security_token"`
	// Region and Endpoint are where the tokens come from. The endpoint is a URL of
	// a host alone, https or http.
	Region   string      `yaml:"region"`
	Endpoint setting.URL `yaml:"endpoint"`
	// OwnerID is the account that a partner's mns_token is asked for; 0: the
	// caller's own.
	OwnerID int64 `yaml:"owner_id"`
	// RefreshBefore is how long before their end temporary keys are replaced, at
	// most a third of their life.
	RefreshBefore time.Duration `yaml:"refresh_before"`
	// Base gets the keys with which an mns_token is asked for. Nil, and no keys
	// above: the default chain.
	Base *Config `yaml:"base"`
}

// Defaults sets what the configuration left out and what has a default.
func (c *Config) Defaults() {
	if c.Type != TypeMNSToken {
		return
	}
	if c.Region == "" {
		c.Region = Presets()[0].Region
	}
	if c.Endpoint.IsZero() {
		for _, p := range Presets() {
			if p.Region == c.Region {
				c.Endpoint = setting.NewURL(p.TokenEndpoint)
			}
		}
	}
	if c.RefreshBefore == 0 {
		c.RefreshBefore = DefaultRefreshBefore
	}
	if c.Base == nil && c.AccessKeyID == "" && c.AccessKeySecret.IsZero() && c.SecurityToken.IsZero() {
		c.Base = &Config{Type: TypeDefault}
	}
	if c.Base != nil {
		c.Base.Defaults()
	}
}

// Validate reports every problem at once, joined, each a *setting.Problem. Call
// Defaults before.
func (c *Config) Validate() error {
	switch c.Type {
	case TypeStatic:
		return errors.Join(append(c.staticProblems(), c.foreignProblems()...)...)
	case TypeMNSToken:
		return errors.Join(c.mnsTokenProblems()...)
	case TypeRAMRoleARN, TypeOIDCRoleARN, TypeECSRAMRole, TypeCredentialsURI, TypeDefault:
		return setting.NotSupportedYet("type", string(c.Type))
	case "":
		return setting.Problemf("type", "required: write %s", typeList)
	}
	return setting.Problemf("type", "no such type: write %s", typeList)
}

// Warnings reports what works and is better changed, each a *setting.Problem.
func (c *Config) Warnings() []error {
	u, err := c.Endpoint.Parse()
	if err != nil || u.Scheme != "http" {
		return nil
	}
	addr, err := netip.ParseAddr(u.Hostname())
	if u.Hostname() == "localhost" || err == nil && addr.Unmap().IsLoopback() {
		return nil
	}
	return []error{setting.Problemf("endpoint", "is http://: the token and its secret travel unencrypted; write https://")}
}

// staticProblems checks keys that are written out.
func (c *Config) staticProblems() (problems []error) {
	if c.AccessKeyID == "" {
		problems = append(problems, setting.Problemf("access_key_id", "required: write the access key id, as in ${ALIBABA_CLOUD_ACCESS_KEY_ID}"))
	}
	if c.AccessKeySecret.IsZero() {
		problems = append(problems, setting.Problemf("access_key_secret", "required: write the secret of access_key_id, as in ${file:/run/secrets/access-key-secret}"))
	}
	for _, s := range []struct{ path, value string }{
		{"access_key_id", c.AccessKeyID},
		{"access_key_secret", c.AccessKeySecret.Reveal()},
		{"security_token", c.SecurityToken.Reveal()},
	} {
		if strings.ContainsFunc(s.value, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) {
			problems = append(problems, setting.Problemf(s.path, "holds a space or a line break: write it without"))
		}
	}
	return problems
}

// foreignProblems refuses what only an mns_token has.
func (c *Config) foreignProblems() (problems []error) {
	for _, s := range []struct {
		path string
		set  bool
	}{
		{"message_type", c.MessageType != ""},
		{"region", c.Region != ""},
		{"endpoint", !c.Endpoint.IsZero()},
		{"owner_id", c.OwnerID != 0},
		{"refresh_before", c.RefreshBefore != 0},
		{"base", c.Base != nil},
	} {
		if s.set {
			problems = append(problems, setting.Problemf(s.path, "has no meaning for type %s: remove it, or write type: mns_token", c.Type))
		}
	}
	return problems
}

func (c *Config) mnsTokenProblems() (problems []error) {
	switch {
	case c.MessageType == "":
		problems = append(problems, setting.Problemf("message_type", "required: write what the queue holds, the last part of its name, as in SmsReport"))
	case !isWord(c.MessageType):
		problems = append(problems, setting.Problemf("message_type", "not a message type: write letters and digits, as in SmsReport"))
	}
	switch {
	case c.Region == "":
		problems = append(problems, setting.Problemf("region", "required: write a region, as in cn-hangzhou"))
	case !isWord(c.Region):
		problems = append(problems, setting.Problemf("region", "not a region: write letters, digits and hyphens, as in cn-hangzhou"))
	}
	if err := checkEndpoint(c.Endpoint); err != nil {
		problems = append(problems, setting.Problemf("endpoint", "%s", err.Error()))
	}
	if c.RefreshBefore < 0 {
		problems = append(problems, setting.Problemf("refresh_before", "negative: write a duration, as in 2m"))
	}
	if c.OwnerID < 0 {
		problems = append(problems, setting.Problemf("owner_id", "negative: write the account's number"))
	}
	keys := c.AccessKeyID != "" || !c.AccessKeySecret.IsZero() || !c.SecurityToken.IsZero()
	switch {
	case keys && c.Base != nil:
		problems = append(problems, setting.Problemf("base", "given along with keys: write either base or access_key_id and access_key_secret"))
	case keys:
		problems = append(problems, c.staticProblems()...)
	case c.Base != nil:
		problems = append(problems, c.Base.baseProblems()...)
	}
	return problems
}

// baseProblems checks the base of an mns_token; paths are below it.
func (c *Config) baseProblems() (problems []error) {
	switch c.Type {
	case TypeStatic:
		problems = append(c.staticProblems(), c.foreignProblems()...)
	case TypeDefault:
		problems = c.foreignProblems()
		if c.AccessKeyID != "" || !c.AccessKeySecret.IsZero() || !c.SecurityToken.IsZero() {
			problems = append(problems, setting.Problemf("type", "default finds keys by itself: write type: static to give them"))
		}
	case TypeRAMRoleARN, TypeOIDCRoleARN, TypeECSRAMRole, TypeCredentialsURI:
		problems = []error{setting.NotSupportedYet("type", string(c.Type))}
	case TypeMNSToken:
		problems = []error{setting.Problemf("type", "an mns_token cannot be the base of another: write %s", baseTypeList)}
	default:
		problems = []error{setting.Problemf("type", "no such type: write %s", baseTypeList)}
	}
	for i, err := range problems {
		if p, ok := errors.AsType[*setting.Problem](err); ok {
			problems[i] = &setting.Problem{Path: strings.TrimSuffix("base."+p.Path, "."), Message: p.Message}
		}
	}
	return problems
}

func isWord(s string) bool { return regexp.MustCompile(`^[A-Za-z0-9_-]+$`).MatchString(s) }

// checkEndpoint accepts what the OpenAPI SDK can call: a scheme and a host.
func checkEndpoint(endpoint setting.URL) error {
	const mend = "write the address of a host, as in https://dybaseapi.aliyuncs.com"
	if endpoint.IsZero() {
		return errors.New("required, for no endpoint is known in this region: " + mend)
	}
	u, err := endpoint.Parse()
	switch {
	case err != nil:
		return fmt.Errorf("%w: %s", err, mend)
	case u.Scheme != "https" && u.Scheme != "http":
		return errors.New("not an https or http address: " + mend)
	case u.Hostname() == "":
		return errors.New("has no host: " + mend)
	case u.User != nil:
		return errors.New("holds a user name, which has no meaning here: " + mend)
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return errors.New("has more than a host: " + mend)
	}
	return nil
}

// Deps are what providers and refreshers are made with.
type Deps struct {
	// Queue is the queue that an mns_token is for.
	Queue string
	Log   *zap.Logger
}

// Provider makes the provider of a validated Config. It connects to nothing.
func (c *Config) Provider(deps Deps) (Provider, error) {
	switch c.Type {
	case TypeStatic:
		return c.static(), nil
	case TypeMNSToken:
		return c.mnsToken(deps)
	case TypeDefault:
		return environment{}, nil
	case TypeRAMRoleARN, TypeOIDCRoleARN, TypeECSRAMRole, TypeCredentialsURI:
	}
	return nil, fmt.Errorf("make credential provider: type %q is not supported yet", string(c.Type))
}

func (c *Config) static() Provider {
	return static{keys: &Keys{
		AccessKeyID:     c.AccessKeyID,
		AccessKeySecret: c.AccessKeySecret,
		SecurityToken:   c.SecurityToken,
	}}
}

func (c *Config) mnsToken(deps Deps) (Provider, error) {
	// The OpenAPI SDK prints every answer, the token included, to standard output
	// when the environment says so; it reads this once, before any code of ours.
	if slices.Contains(strings.Split(os.Getenv("DEBUG"), ","), "sdk") {
		return nil, errors.New("make credential provider: the environment variable DEBUG holds sdk, which makes the Alibaba Cloud SDK print secrets: unset it")
	}
	if deps.Queue == "" {
		return nil, errors.New("make credential provider: an mns_token is for a queue, and none is named")
	}
	endpoint, err := c.Endpoint.Parse()
	if err != nil {
		return nil, fmt.Errorf("make credential provider: endpoint: %w", err)
	}
	base := c.static()
	if c.Base != nil {
		if base, err = c.Base.Provider(deps); err != nil {
			return nil, err
		}
	}
	return newMNSToken(c, deps.Queue, endpoint, base), nil
}
