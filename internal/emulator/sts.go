package emulator

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// roleAnswer is what AssumeRole answers.
type roleAnswer struct {
	XMLName         xml.Name        `json:"-" xml:"AssumeRoleResponse"`
	RequestID       string          `json:"RequestId" xml:"RequestId"`
	AssumedRoleUser assumedRoleUser `json:"AssumedRoleUser" xml:"AssumedRoleUser"`
	Credentials     roleCredentials `json:"Credentials" xml:"Credentials"`
}

type assumedRoleUser struct {
	ARN           string `json:"Arn" xml:"Arn"`
	AssumedRoleID string `json:"AssumedRoleId" xml:"AssumedRoleId"`
}

type roleCredentials struct {
	AccessKeyID     string `json:"AccessKeyId" xml:"AccessKeyId"`
	AccessKeySecret string `json:"AccessKeySecret" xml:"AccessKeySecret"`
	SecurityToken   string `json:"SecurityToken" xml:"SecurityToken"`
	Expiration      string `json:"Expiration" xml:"Expiration"`
}

// session is what both ways to assume a role ask for.
type session struct {
	name     string // RoleSessionName
	roleName string
	role     *Role
	life     time.Duration
}

// maxPolicy is the size of a Policy in bytes (STS: AssumeRole, AssumeRoleWithOIDC).
const (
	maxPolicy     = 2048
	maxOIDCPolicy = 1024
)

// session reads and checks the parameters that both ways share. The codes and texts
// are those that STS documents for AssumeRole.
func (s *Server) session(c *call, policySize int) (session, *wireError) {
	var of session
	arn := c.params.Get("RoleArn")
	if !hasForm(roleARNForm, arn) {
		return of, badRequest("InvalidParameter.RoleArn", "The parameter RoleArn is wrongly formed.")
	}
	of.name = c.params.Get("RoleSessionName")
	if !hasForm(sessionNameForm, of.name) {
		return of, badRequest("InvalidParameter.RoleSessionName", "The parameter RoleSessionName is wrongly formed.")
	}
	if err := checkPolicy(c.params.Get("Policy"), policySize); err != nil {
		return of, err
	}
	var found bool
	of.roleName, of.role, found = s.role(arn)
	if !found {
		return of, wireErrorf(http.StatusNotFound, "EntityNotExist.Role", "The role not exists: %s. ", arn)
	}
	longest := of.role.MaxSession
	if longest == 0 {
		longest = minMaxSession
	}
	of.life = defaultSession
	if text := c.params.Get("DurationSeconds"); text != "" {
		seconds, err := strconv.Atoi(text)
		if err != nil || seconds < int(minSession.Seconds()) || seconds > int(longest.Seconds()) {
			return of, wireErrorf(http.StatusBadRequest, "InvalidParameter.DurationSeconds", "The Min/Max value of DurationSeconds is 15min/%dhr.", int(longest.Hours()))
		}
		of.life = time.Duration(seconds) * time.Second
	}
	return of, nil
}

// checkPolicy refuses what is no policy document (RAM: policy elements). The
// emulator looks at its form only: it narrows no session.
func checkPolicy(text string, size int) *wireError {
	if text == "" {
		return nil
	}
	if len(text) > size {
		return wireErrorf(http.StatusBadRequest, "InvalidParameter.PolicySize", "The size of Policy must be smaller than %d bytes.", size)
	}
	var policy struct {
		Version   string
		Statement []struct {
			Effect                                 string
			Action, NotAction, Resource, Condition any
		}
	}
	decoder := json.NewDecoder(bytes.NewReader([]byte(text)))
	decoder.DisallowUnknownFields()
	wrong := decoder.Decode(&policy) != nil || decoder.More() || policy.Version != "1" || len(policy.Statement) == 0
	for _, statement := range policy.Statement {
		wrong = wrong || statement.Effect != "Allow" && statement.Effect != "Deny" ||
			(statement.Action == nil) == (statement.NotAction == nil) || statement.Resource == nil
	}
	if wrong {
		return badRequest("InvalidParameter.PolicyGrammar", "The parameter Policy has not passed grammar check.")
	}
	return nil
}

// openSession issues the session's credential. The life in the configuration stands
// for the role's longest session, so that renewal can be tested in seconds.
func (s *Server) openSession(c *call, of session) (assumedRoleUser, roleCredentials) {
	issued := s.issue(c.op, of.roleName, of.life)
	user := assumedRoleUser{
		ARN:           s.RoleARN(of.roleName) + "/" + of.name,
		AssumedRoleID: "3" + s.config.AccountID + ":" + of.name,
	}
	return user, roleCredentials{
		AccessKeyID: issued.id, AccessKeySecret: issued.secret, SecurityToken: issued.token,
		Expiration: issued.expires.UTC().Format(rpcTime),
	}
}

// missing gives the error of the first parameter that is not there.
func (c *call) missing(code, message string, names ...string) *wireError {
	for _, name := range names {
		if c.params.Get(name) == "" {
			return badRequest(code+name, fmt.Sprintf(message, name))
		}
	}
	return nil
}

// notAuthorized is the answer where a trust policy, the external id in it among
// them, does not let the caller assume the role (STS: AssumeRole).
func notAuthorized() *wireError {
	return &wireError{http.StatusForbidden, "NoPermission", "You are not authorized to do this action. You should be authorized by RAM."}
}

// assumeRole is STS: AssumeRole. A session may do what the policies of the server
// and of OpSTS allow.
func (s *Server) assumeRole(c *call) answer {
	caller, err := s.authenticateRPC(c, stsVersion)
	if err != nil {
		return failed(err)
	}
	if err := c.missing("Missing", "%s is mandatory for this action.", "RoleArn", "RoleSessionName"); err != nil {
		return failed(err)
	}
	externalID := c.params.Get("ExternalId")
	if externalID != "" && !validExternalID(externalID) {
		return failed(badRequest("InvalidParameter.ExternalId", "The parameter ExternalId is wrongly formed."))
	}
	wanted, err := s.session(c, maxPolicy)
	if err != nil {
		return failed(err)
	}
	principal := caller.id
	if caller.role != "" {
		principal = s.RoleARN(caller.role)
	}
	if !wanted.role.trusts(principal) || wanted.role.ExternalID != "" && wanted.role.ExternalID != externalID {
		return failed(notAuthorized())
	}
	user, credentials := s.openSession(c, wanted)
	return rpcAnswer(c, http.StatusOK, okCode, &roleAnswer{
		RequestID: s.rpcRequestID(s.nextRequestID()), AssumedRoleUser: user, Credentials: credentials,
	})
}

// identityAnswer is what GetCallerIdentity answers.
type identityAnswer struct {
	XMLName      xml.Name `json:"-" xml:"GetCallerIdentityResponse"`
	RequestID    string   `json:"RequestId" xml:"RequestId"`
	AccountID    string   `json:"AccountId" xml:"AccountId"`
	ARN          string   `json:"Arn" xml:"Arn"`
	IdentityType string   `json:"IdentityType" xml:"IdentityType"`
	PrincipalID  string   `json:"PrincipalId" xml:"PrincipalId"`
}

// callerIdentity is GetCallerIdentity, which anyone with good keys may call (STS:
// GetCallerIdentity). The emulator's own keys are those of a user called emulator.
func (s *Server) callerIdentity(c *call) answer {
	caller, err := s.authenticateRPC(c, stsVersion)
	if err != nil {
		return failed(err)
	}
	identity := &identityAnswer{
		RequestID: s.rpcRequestID(s.nextRequestID()), AccountID: s.config.AccountID,
		ARN: "acs:ram::" + s.config.AccountID + ":user/emulator", IdentityType: "RAMUser", PrincipalID: caller.id,
	}
	if caller.role != "" {
		identity.IdentityType = "AssumedRoleUser"
		identity.ARN = "acs:ram::" + s.config.AccountID + ":assumed-role/" + caller.role + "/emulator"
	}
	return rpcAnswer(c, http.StatusOK, okCode, identity)
}

// oidcRoleAnswer is what AssumeRoleWithOIDC answers.
type oidcRoleAnswer struct {
	XMLName         xml.Name        `json:"-" xml:"AssumeRoleWithOIDCResponse"`
	RequestID       string          `json:"RequestId" xml:"RequestId"`
	OIDCTokenInfo   oidcTokenInfo   `json:"OIDCTokenInfo" xml:"OIDCTokenInfo"`
	AssumedRoleUser assumedRoleUser `json:"AssumedRoleUser" xml:"AssumedRoleUser"`
	Credentials     roleCredentials `json:"Credentials" xml:"Credentials"`
}

type oidcTokenInfo struct {
	Subject          string `json:"Subject" xml:"Subject"`
	Issuer           string `json:"Issuer" xml:"Issuer"`
	ClientIDs        string `json:"ClientIds" xml:"ClientIds"`
	ExpirationTime   string `json:"ExpirationTime" xml:"ExpirationTime"`
	IssuanceTime     string `json:"IssuanceTime" xml:"IssuanceTime"`
	VerificationInfo string `json:"VerificationInfo" xml:"VerificationInfo"`
}

// assumeRoleWithOIDC is STS: AssumeRoleWithOIDC. The request is not signed: the token
// is all that is looked at, and signature parameters and nonces that come with it
// are not. Version and Timestamp are demanded, which every official client sends;
// whether STS insists on them is not documented.
//
// The provider is looked for before anything else, as STS does (the tests of
// aliyun/credentials-go and credentials-csharp meet "Parameter OIDCProviderArn is not
// valid" with a role and a policy that are wrong too). STS's own code for a provider
// that is not there is AuthenticationFail.NoPermission; EntityNotExist.OIDCProvider
// is IMS's.
func (s *Server) assumeRoleWithOIDC(c *call) answer {
	if err := s.checkRPC(c, stsVersion, "Version", "Timestamp"); err != nil {
		return failed(err)
	}
	if err := c.missing("MissingParameter.", "Parameter %s is required.", "RoleArn", "OIDCProviderArn", "RoleSessionName"); err != nil {
		return failed(err)
	}
	provider := c.params.Get("OIDCProviderArn")
	if !hasForm(providerARNForm, provider) {
		return failed(oidcRefused("NoPermission", "Parameter OIDCProviderArn is not valid"))
	}
	if provider != s.OIDCProviderARN() {
		return failed(oidcRefused("NoPermission", "No such OIDC Provider registered."))
	}
	claims, err := s.checkOIDCToken(c.params.Get("OIDCToken"))
	if err != nil {
		return failed(err)
	}
	wanted, err := s.session(c, maxOIDCPolicy)
	if err != nil {
		return failed(err)
	}
	if !wanted.role.trusts(claims.Subject) {
		return failed(oidcRefused("NoPermission", "There is no permission"))
	}
	user, credentials := s.openSession(c, wanted)
	return rpcAnswer(c, http.StatusOK, okCode, &oidcRoleAnswer{
		RequestID: s.rpcRequestID(s.nextRequestID()), AssumedRoleUser: user, Credentials: credentials,
		OIDCTokenInfo: claims.info(),
	})
}
