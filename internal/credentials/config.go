package credentials

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
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

// The types.
const (
	// TypeStatic has its keys written beside it.
	TypeStatic Type = "static"
	// TypeMNSToken asks for the token of an Alicom queue.
	TypeMNSToken Type = "mns_token"
	// TypeRAMRoleARN takes on a role, with keys.
	TypeRAMRoleARN Type = "ram_role_arn"
	// TypeOIDCRoleARN takes on a role, with the token of a pod (RRSA).
	TypeOIDCRoleARN Type = "oidc_role_arn"
	// TypeECSRAMRole is the role of an ECS instance.
	TypeECSRAMRole Type = "ecs_ram_role"
	// TypeCredentialsURI asks an address.
	TypeCredentialsURI Type = "credentials_uri"
	// TypeDefault looks for keys in the usual places: environment, RRSA, profile, ECS role,
	// credentials URI.
	TypeDefault Type = "default"
)

const (
	typeList     = "static, mns_token, ram_role_arn, oidc_role_arn, ecs_ram_role, credentials_uri or default"
	baseTypeList = "static, ram_role_arn, oidc_role_arn, ecs_ram_role, credentials_uri or default"
)

// DefaultRefreshBefore is how long before their end temporary keys are replaced
// where the configuration does not say.
const DefaultRefreshBefore = 2 * time.Minute

// defaultSession is the name of a role's session where nothing says another: RAM's logs
// show it.
const defaultSession = "mnsrelay"

// Limits of a role's session (STS: AssumeRole).
const (
	minDuration = 15 * time.Minute
	maxDuration = 12 * time.Hour
)

// Config is the credentials block of a source.
type Config struct {
	// Type is where keys come from.
	Type Type `yaml:"type"`
	// MessageType is what kind of messages the queue of an mns_token holds, the last part of
	// its name: SmsReport, SmsUp and others.
	MessageType string `yaml:"message_type" of:"mns_token"`
	// AccessKeyID, AccessKeySecret and, of temporary keys, SecurityToken are the keys of type
	// static and, for an mns_token or a ram_role_arn, a short form of a static base. From files
	// they are read again.
	AccessKeyID     setting.Secret `yaml:"access_key_id" of:"static,mns_token,ram_role_arn"`
	AccessKeySecret setting.Secret `yaml:"access_key_secret" of:"static,mns_token,ram_role_arn"`
	SecurityToken   setting.Secret `yaml:"security_token" of:"static,mns_token,ram_role_arn"`
	// Region and Endpoint are where the keys come from: Dybaseapi for an mns_token, STS
	// for a role, the metadata server for an ecs_ram_role. The endpoint is a URL of a host
	// alone, https or http.
	Region   string      `yaml:"region" of:"mns_token,ram_role_arn,oidc_role_arn"`
	Endpoint setting.URL `yaml:"endpoint" of:"mns_token,ecs_ram_role,ram_role_arn,oidc_role_arn"`
	// OwnerID is the account that a partner's mns_token is asked for; 0: the
	// caller's own.
	OwnerID int64 `yaml:"owner_id" of:"mns_token" schema:"min=0"`
	// RoleARN is the role that a ram_role_arn or oidc_role_arn takes on.
	RoleARN string `yaml:"role_arn" of:"ram_role_arn,oidc_role_arn"`
	// SessionName names its sessions in the logs of RAM: 2 to 64 of A-Z a-z 0-9 . @ - _.
	SessionName string `yaml:"session_name" of:"ram_role_arn,oidc_role_arn"`
	// ExternalID is what the role's trust policy may ask for.
	ExternalID string `yaml:"external_id" of:"ram_role_arn"`
	// Policy is a RAM policy, as JSON, that narrows what the session may do.
	Policy string `yaml:"policy" of:"ram_role_arn,oidc_role_arn"`
	// Duration is how long a session lasts, 15m to 12h and no longer than the role allows;
	// 0: as long as STS gives, an hour.
	Duration time.Duration `yaml:"duration" of:"ram_role_arn,oidc_role_arn"`
	// OIDCProviderARN and OIDCTokenFile are the identity provider of the cluster and the
	// projected token of the pod.
	OIDCProviderARN string `yaml:"oidc_provider_arn" of:"oidc_role_arn"`
	OIDCTokenFile   string `yaml:"oidc_token_file" of:"oidc_role_arn"`
	// RoleName is the role of the instance; empty: the one that it has.
	RoleName string `yaml:"role_name" of:"ecs_ram_role"`
	// URI is what a credentials_uri asks.
	URI setting.URL `yaml:"uri" of:"credentials_uri"`
	// RefreshBefore is how long before their end temporary keys are replaced, at
	// most a third of their life.
	RefreshBefore time.Duration `yaml:"refresh_before" of:"mns_token,ecs_ram_role,credentials_uri,default,ram_role_arn,oidc_role_arn"`
	// Base gets the keys with which an mns_token or a ram_role_arn is asked for, where there
	// are none beside it. Unset: the default chain.
	Base *Config `yaml:"base" of:"mns_token,ram_role_arn"`
}

// Derived is a value that Defaults has set, and where it came from.
type Derived struct{ Path, Origin string }

// Defaults sets what the configuration left out and what has a default. getenv gives the
// variables of the environment. It tells what it found there.
func (c *Config) Defaults(getenv func(string) string) []Derived {
	if c.RefreshBefore == 0 && c.Type != TypeStatic && c.Type != "" {
		c.RefreshBefore = DefaultRefreshBefore
	}
	return c.defaults(getenv)
}

func (c *Config) defaults(getenv func(string) string) (derived []Derived) {
	fromEnvironment := func(into *string, path, variable string) {
		if *into == "" && getenv(variable) != "" {
			*into = getenv(variable)
			derived = append(derived, Derived{path, "environment " + variable})
		}
	}
	switch c.Type {
	case TypeMNSToken:
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
	case TypeOIDCRoleARN:
		fromEnvironment(&c.RoleARN, "role_arn", VariableRoleARN)
		fromEnvironment(&c.OIDCProviderARN, "oidc_provider_arn", VariableOIDCProviderARN)
		fromEnvironment(&c.OIDCTokenFile, "oidc_token_file", VariableOIDCTokenFile)
		fromEnvironment(&c.SessionName, "session_name", VariableSessionName)
		// A host, as ACK's add-on and the SDKs have it.
		if host := getenv(VariableSTSEndpoint); host != "" && c.Endpoint.IsZero() && c.Region == "" {
			if !strings.Contains(host, "://") {
				host = "https://" + host
			}
			c.Endpoint = setting.NewURL(host)
			derived = append(derived, Derived{"endpoint", "environment " + VariableSTSEndpoint})
		}
	case TypeECSRAMRole:
		fromEnvironment(&c.RoleName, "role_name", VariableRoleName)
		if c.Endpoint.IsZero() {
			c.Endpoint = setting.NewURL(metadataAddress)
		}
	case TypeCredentialsURI:
		if value := getenv(VariableURI); c.URI.IsZero() && value != "" {
			c.URI = setting.NewURL(value)
			derived = append(derived, Derived{"uri", "environment " + VariableURI})
		}
	case TypeStatic, TypeRAMRoleARN, TypeDefault:
	}
	if c.isRole() {
		if c.SessionName == "" {
			c.SessionName = defaultSession
		}
		if c.Endpoint.IsZero() {
			c.Endpoint = setting.NewURL("https://sts.aliyuncs.com")
			if c.Region != "" && isWord(c.Region) {
				c.Endpoint = setting.NewURL("https://sts." + c.Region + ".aliyuncs.com")
			}
		}
	}
	if !c.hasBase() {
		return derived
	}
	if c.Base == nil && !c.hasKeys() {
		c.Base = &Config{Type: TypeDefault}
	}
	if c.Base != nil {
		for _, d := range c.Base.defaults(getenv) {
			derived = append(derived, Derived{"base." + d.Path, d.Origin})
		}
	}
	return derived
}

func (c *Config) isRole() bool  { return c.Type == TypeRAMRoleARN || c.Type == TypeOIDCRoleARN }
func (c *Config) hasBase() bool { return c.Type == TypeMNSToken || c.Type == TypeRAMRoleARN }
func (c *Config) hasKeys() bool {
	return !c.AccessKeyID.IsZero() || !c.AccessKeySecret.IsZero() || !c.SecurityToken.IsZero()
}

// Validate reports every problem at once, joined, each a *setting.Problem. Call
// Defaults before.
func (c *Config) Validate() error { return errors.Join(c.problems(typeList)...) }

func (c *Config) problems(types string) (problems []error) {
	report := func(path, format string, args ...any) {
		problems = append(problems, setting.Problemf(path, format, args...))
	}
	required := func(value, path, what string) {
		if value == "" {
			report(path, "required: write %s", what)
		}
	}
	switch c.Type {
	case TypeStatic:
		problems = c.keyProblems()
	case TypeMNSToken:
		switch {
		case c.MessageType == "":
			report("message_type", "required: write what the queue holds, the last part of its name, as in SmsReport")
		case !isWord(c.MessageType):
			report("message_type", "not a message type: write letters and digits, as in SmsReport")
		}
		required(c.Region, "region", "a region, as in cn-hangzhou")
		if c.OwnerID < 0 {
			report("owner_id", "negative: write the account's number")
		}
	case TypeRAMRoleARN:
		required(c.RoleARN, "role_arn", "the role to take on, as in acs:ram::1234567890123456:role/mnsrelay")
	case TypeOIDCRoleARN:
		required(c.RoleARN, "role_arn", "the role to take on, as in acs:ram::1234567890123456:role/mnsrelay, or set "+VariableRoleARN)
		required(c.OIDCProviderARN, "oidc_provider_arn", "the provider of the cluster, as in acs:ram::1234567890123456:oidc-provider/ack-rrsa-CLUSTER, or set "+VariableOIDCProviderARN)
		required(c.OIDCTokenFile, "oidc_token_file", "the file of the projected token, or set "+VariableOIDCTokenFile)
	case TypeECSRAMRole:
		if c.RoleName != "" && !isRoleName(c.RoleName) {
			report("role_name", "not the name of a role: write letters, digits and . - _")
		}
	case TypeCredentialsURI:
		if u, err := c.URI.Parse(); c.URI.IsZero() {
			report("uri", "required: write the address that gives keys, or set %s", VariableURI)
		} else if err != nil || u.Scheme != "http" && u.Scheme != "https" {
			report("uri", "not an http or https address")
		} else if u.User != nil {
			report("uri", "holds a user name, which is not sent: write the address without")
		}
	case TypeDefault:
	case "":
		return []error{setting.Problemf("type", "required: write %s", types)}
	default:
		return []error{setting.Problemf("type", "no such type: write %s", types)}
	}
	if c.isRole() {
		problems = append(problems, c.roleProblems()...)
	}
	if c.Region != "" && !isWord(c.Region) {
		report("region", "not a region: write letters, digits and hyphens, as in cn-hangzhou")
	}
	if c.Type == TypeMNSToken || c.isRole() || c.Type == TypeECSRAMRole {
		if err := checkEndpoint(c.Endpoint); err != nil {
			report("endpoint", "%s", err.Error())
		}
	}
	if c.RefreshBefore < 0 {
		report("refresh_before", "negative: write a duration, as in 2m")
	}
	if c.hasBase() {
		problems = append(problems, c.baseProblems()...)
	}
	return append(problems, c.foreignProblems()...)
}

// roleProblems checks what both ways to a role have in common.
func (c *Config) roleProblems() (problems []error) {
	report := func(path, format string, args ...any) {
		problems = append(problems, setting.Problemf(path, format, args...))
	}
	if c.RoleARN != "" && !regexp.MustCompile(`^acs:ram::[0-9]+:role/\S+$`).MatchString(c.RoleARN) {
		report("role_arn", "not the ARN of a role: write it as in acs:ram::1234567890123456:role/mnsrelay")
	}
	if !regexp.MustCompile(`^[A-Za-z0-9.@_-]{2,64}$`).MatchString(c.SessionName) {
		report("session_name", "write 2 to 64 letters, digits and . @ - _")
	}
	if c.Policy != "" && !json.Valid([]byte(c.Policy)) {
		report("policy", "not JSON: write a RAM policy, with Version and Statement")
	}
	if c.Duration != 0 && (c.Duration < minDuration || c.Duration > maxDuration || c.Duration%time.Second != 0) {
		report("duration", "is %v: write whole seconds from %v to %v", c.Duration, minDuration, maxDuration)
	}
	return problems
}

// baseProblems checks the keys with which others are asked for.
func (c *Config) baseProblems() (problems []error) {
	switch {
	case c.hasKeys() && c.Base != nil:
		problems = append(problems, setting.Problemf("base", "given along with keys: write either base or access_key_id and access_key_secret"))
	case c.hasKeys():
		problems = c.keyProblems()
	case c.Base != nil && c.Base.Type == TypeMNSToken:
		problems = append(problems, setting.Problemf("base.type", "an mns_token is good for its queue only: write %s", baseTypeList))
	case c.Base != nil:
		if c.Base.RefreshBefore != 0 {
			problems = append(problems, setting.Problemf("base.refresh_before", "has no meaning in a base, whose keys are replaced after two thirds of their life: remove it"))
		}
		for _, err := range c.Base.problems(baseTypeList) {
			if p, ok := errors.AsType[*setting.Problem](err); ok {
				err = &setting.Problem{Path: strings.TrimSuffix("base."+p.Path, "."), Message: p.Message}
			}
			problems = append(problems, err)
		}
	}
	return problems
}

// Warnings reports what works and is better changed, each a *setting.Problem.
func (c *Config) Warnings() []error { return c.warnings("") }

func (c *Config) warnings(path string) (warnings []error) {
	warn := func(name string, address setting.URL) {
		if u, err := address.Parse(); err == nil && u.Scheme == "http" && !setting.IsLoopback(u.Hostname()) {
			warnings = append(warnings, setting.Problemf(path+name, "is http://: keys and tokens travel unencrypted; write https://"))
		}
	}
	if c.Type != TypeECSRAMRole { // its server speaks http only, and is the instance's own
		warn("endpoint", c.Endpoint)
	}
	warn("uri", c.URI)
	if near, is := setting.Nearest(c.MessageType, MessageTypes()); is && !slices.Contains(MessageTypes(), c.MessageType) {
		warnings = append(warnings, setting.Problemf(path+"message_type", "not one that Alicom documents: did you mean %q?", near))
	}
	if c.Base != nil {
		warnings = append(warnings, c.Base.warnings(path+"base.")...)
	}
	return warnings
}

// keyProblems checks keys that are written out.
func (c *Config) keyProblems() (problems []error) {
	if c.AccessKeyID.IsZero() {
		problems = append(problems, setting.Problemf("access_key_id", "required: write the access key id, as in ${ALIBABA_CLOUD_ACCESS_KEY_ID}"))
	}
	if c.AccessKeySecret.IsZero() {
		problems = append(problems, setting.Problemf("access_key_secret", "required: write the secret of access_key_id, as in ${file:/run/secrets/access-key-secret}"))
	}
	for _, s := range []struct {
		path  string
		value setting.Secret
	}{
		{"access_key_id", c.AccessKeyID},
		{"access_key_secret", c.AccessKeySecret},
		{"security_token", c.SecurityToken},
	} {
		if !isKey(s.value.Reveal()) {
			problems = append(problems, setting.Problemf(s.path, "holds a space or a line break: write it without"))
		}
	}
	return problems
}

// isKey tells whether a text can be a key or a token.
func isKey(text string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) })
}

// foreignProblems refuses what has no meaning for the type, by the tag of.
func (c *Config) foreignProblems() (problems []error) {
	v := reflect.ValueOf(c).Elem()
	for _, f := range setting.Fields(v.Type()) {
		of := TypesOf(v.Type().FieldByIndex(f.Index))
		value := v.FieldByIndex(f.Index)
		isZero := value.IsZero()
		if zeroer, is := reflect.TypeAssert[interface{ IsZero() bool }](value); is {
			isZero = zeroer.IsZero()
		}
		if !isZero && !slices.Contains(of, c.Type) {
			names := make([]string, len(of))
			for i, t := range of {
				names[i] = string(t)
			}
			problems = append(problems, setting.Problemf(f.Key, "has no meaning for type %s: remove it, or write type: %s", c.Type, strings.Join(names, " or ")))
		}
	}
	return problems
}

// Types are all types.
func Types() []Type {
	return []Type{TypeStatic, TypeMNSToken, TypeRAMRoleARN, TypeOIDCRoleARN, TypeECSRAMRole, TypeCredentialsURI, TypeDefault}
}

// TypesOf gives the types for which a field of Config has a meaning.
func TypesOf(field reflect.StructField) []Type {
	of, limited := field.Tag.Lookup("of")
	if !limited {
		return Types()
	}
	var types []Type
	for name := range strings.SplitSeq(of, ",") {
		types = append(types, Type(name))
	}
	return types
}

func isWord(s string) bool { return regexp.MustCompile(`^[A-Za-z0-9_-]+$`).MatchString(s) }

// isRoleName tells whether RAM lets a role have the name (RAM: CreateRole).
func isRoleName(s string) bool { return regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`).MatchString(s) }

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

// Provider makes the provider of a validated Config, that shares nothing with others. It
// connects to nothing. queue is what an mns_token is for.
func (c *Config) Provider(queue string) (Provider, error) {
	return NewPool(zap.NewNop()).provider(c, queue)
}
