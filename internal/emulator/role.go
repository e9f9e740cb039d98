package emulator

import (
	"errors"
	"regexp"
	"slices"
	"strings"
	"time"

	"mnsrelay/internal/setting"
)

// Role is a RAM role of the account: who may assume it, how and for how long. The
// zero value trusts everybody.
type Role struct {
	// Trusts are the principals that may assume the role: the ids of access keys, the
	// ARNs of roles of which sessions may, and subjects of OIDC tokens, as in
	// system:serviceaccount:NAMESPACE:NAME. Nil: everybody may. The instance that has
	// the role gets its credentials without being named.
	Trusts []string
	// ExternalID is what AssumeRole has to bring; empty: whatever it brings is right.
	ExternalID string
	// MaxSession bounds DurationSeconds: 1 h to 12 h; 0: an hour, as RAM has it
	// (RAM: CreateRole, MaxSessionDuration).
	MaxSession time.Duration
}

// trusts says whether the principal may assume the role.
func (r *Role) trusts(principal string) bool {
	return r.Trusts == nil || slices.Contains(r.Trusts, principal)
}

// Limits of the sessions of roles (STS: AssumeRole; RAM: CreateRole).
const (
	minSession     = 15 * time.Minute
	defaultSession = time.Hour
	minMaxSession  = time.Hour
	maxMaxSession  = 12 * time.Hour
)

// The forms of names (RAM: CreateRole, CreateOIDCProvider; STS: AssumeRole).
const (
	roleNameForm     = `^[A-Za-z0-9._-]{1,64}$`
	providerNameForm = `^[A-Za-z0-9._-]{1,128}$`
	sessionNameForm  = `^[A-Za-z0-9.@_-]{2,64}$`
	externalIDForm   = `^[\w+=,.@:/-]{2,}$`
	roleARNForm      = `^acs:ram::[0-9]+:role/[A-Za-z0-9._-]+$`
	providerARNForm  = `^acs:ram::[0-9]+:oidc-provider/[A-Za-z0-9._-]+$`
)

func hasForm(form, text string) bool { return regexp.MustCompile(form).MatchString(text) }

func validExternalID(id string) bool { return len(id) <= 1224 && hasForm(externalIDForm, id) }

func (r *Role) validate(name string) error {
	var problems []error
	if !hasForm(roleNameForm, name) {
		problems = append(problems, setting.Problemf("roles", "%q is no name of a role: write letters, digits, periods and hyphens, at most 64", name))
	}
	if r.ExternalID != "" && !validExternalID(r.ExternalID) {
		problems = append(problems, setting.Problemf("roles."+name+".external_id", "write 2 to 1224 letters, digits and =,.@:/-_+"))
	}
	if r.MaxSession != 0 && (r.MaxSession < minMaxSession || r.MaxSession > maxMaxSession) {
		problems = append(problems, setting.Problemf("roles."+name+".max_session", "%v is out of range: write %v to %v", r.MaxSession, minMaxSession, maxMaxSession))
	}
	return errors.Join(problems...)
}

// RoleARN is the ARN of a role of the account.
func (s *Server) RoleARN(name string) string {
	return "acs:ram::" + s.config.AccountID + ":role/" + name
}

// role gives the role with the ARN and its name. A Config without roles has every
// role, each trusting everybody.
func (s *Server) role(arn string) (name string, _ *Role, found bool) {
	name, found = strings.CutPrefix(arn, s.RoleARN(""))
	if !found || !hasForm(roleNameForm, name) {
		return "", nil, false
	}
	if s.config.Roles == nil {
		return name, &Role{}, true
	}
	role, found := s.config.Roles[name]
	return name, &role, found
}
