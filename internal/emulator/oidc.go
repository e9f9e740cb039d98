package emulator

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math/big"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"mnsrelay/internal/setting"
)

// What AssumeRoleWithOIDC expects of a token, and what MintOIDCToken puts into one
// that says nothing else.
const (
	// OIDCAudience is the audience that Alibaba documents for the tokens that ACK
	// projects into pods (ACK: RRSA).
	OIDCAudience = "sts.aliyuncs.com"
	// DefaultOIDCIssuer is made up: nobody has to reach it.
	DefaultOIDCIssuer   = "https://oidc.emulator.internal"
	DefaultOIDCProvider = "ack-rrsa-emulator"
	DefaultOIDCSubject  = "system:serviceaccount:default:mnsrelay"
	DefaultOIDCLife     = time.Hour
)

// OIDCProvider is the identity provider that the account has registered.
type OIDCProvider struct {
	// Name is the last part of its ARN. Empty: DefaultOIDCProvider.
	Name string
	// Issuer is what tokens name as theirs. Empty: DefaultOIDCIssuer.
	Issuer string
	// Keys verify signatures, as does the emulator's own key, with which MintOIDCToken
	// signs: *rsa.PublicKey for RS256, *ecdsa.PublicKey of P-256 for ES256. Tokens of
	// a Kubernetes API server are accepted with its issuer and its public key here.
	Keys []crypto.PublicKey
}

func (p *OIDCProvider) setDefaults() {
	if p.Name == "" {
		p.Name = DefaultOIDCProvider
	}
	if p.Issuer == "" {
		p.Issuer = DefaultOIDCIssuer
	}
}

func (p *OIDCProvider) validate() error {
	var problems []error
	if p.Name != "" && !hasForm(providerNameForm, p.Name) {
		problems = append(problems, setting.Problemf("oidc.name", "%q is no name of a provider: write letters, digits, periods, hyphens and underscores, at most 128", p.Name))
	}
	if issuer, err := url.Parse(p.Issuer); p.Issuer != "" && (err != nil || issuer.Scheme != "https" || issuer.Host == "") {
		problems = append(problems, setting.Problemf("oidc.issuer", "%q is no issuer: write a URL with https", p.Issuer))
	}
	for _, key := range p.Keys {
		switch key := key.(type) {
		case *rsa.PublicKey:
		case *ecdsa.PublicKey:
			if key.Curve != elliptic.P256() {
				problems = append(problems, setting.Problemf("oidc.keys", "the curve has to be P-256"))
			}
		default:
			problems = append(problems, setting.Problemf("oidc.keys", "%T is no key for RS256 or ES256", key))
		}
	}
	return errors.Join(problems...)
}

// OIDCProviderARN is the ARN of the provider that AssumeRoleWithOIDC knows.
func (s *Server) OIDCProviderARN() string {
	return "acs:ram::" + s.config.AccountID + ":oidc-provider/" + s.config.OIDC.Name
}

// OIDCToken says what MintOIDCToken signs. The zero value is a token that is accepted
// for an hour.
type OIDCToken struct {
	// Subject is the service account. Empty: DefaultOIDCSubject.
	Subject string `json:"subject"`
	// Audience is for whom the token is. Empty: OIDCAudience.
	Audience string `json:"audience"`
	// Issuer is who made it. Empty: that of the provider.
	Issuer string `json:"issuer"`
	// Life is how long the token lives from now, in whole seconds; negative: it has
	// ended. 0: DefaultOIDCLife. Times in it are by the server's clock with its
	// offset and cut to seconds, so that it lives up to a second less.
	Life Duration `json:"life"`
}

// oidcClaims are the claims of a token that are looked at.
type oidcClaims struct {
	Issuer   string      `json:"iss"`
	Subject  string      `json:"sub"`
	Audience stringList  `json:"aud"`
	Expires  json.Number `json:"exp"`
	Issued   json.Number `json:"iat"`
}

// stringList is a string or a list of them, as the audience may be (RFC 7519).
type stringList []string

// UnmarshalJSON reads either form.
func (l *stringList) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil {
		*l = stringList{one}
		return nil
	}
	return json.Unmarshal(data, (*[]string)(l))
}

func unixTime(seconds json.Number) time.Time {
	f, _ := seconds.Float64()
	return time.Unix(int64(f), 0)
}

func (c *oidcClaims) info() oidcTokenInfo {
	return oidcTokenInfo{
		Subject: c.Subject, Issuer: c.Issuer, ClientIDs: strings.Join(c.Audience, ","),
		ExpirationTime: unixTime(c.Expires).UTC().Format(rpcTime), IssuanceTime: unixTime(c.Issued).UTC().Format(rpcTime),
		VerificationInfo: "Success",
	}
}

// MintOIDCToken makes a token as the kubelet projects it into a pod, signed with the
// emulator's own key.
func (s *Server) MintOIDCToken(token OIDCToken) string {
	or := func(value, otherwise string) string {
		if value != "" {
			return value
		}
		return otherwise
	}
	life := time.Duration(token.Life)
	if life == 0 {
		life = DefaultOIDCLife
	}
	now := s.wireTime().Truncate(time.Second)
	claims := map[string]any{
		"iss": or(token.Issuer, s.config.OIDC.Issuer), "sub": or(token.Subject, DefaultOIDCSubject),
		"aud": []string{or(token.Audience, OIDCAudience)},
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(life).Unix(), "jti": rand.Text(),
	}
	encode := func(value any) string {
		text, err := json.Marshal(value)
		if err != nil { // maps of strings and numbers can be written
			panic(err)
		}
		return base64.RawURLEncoding.EncodeToString(text)
	}
	signed := encode(map[string]string{"alg": "ES256", "kid": "emulator"}) + "." + encode(claims)
	digest := sha256.Sum256([]byte(signed))
	r, v, err := ecdsa.Sign(rand.Reader, s.oidcKey, digest[:])
	if err != nil { // a key that was made here signs
		panic(err)
	}
	signature := append(r.FillBytes(make([]byte, 32)), v.FillBytes(make([]byte, 32))...)
	minted := signed + "." + base64.RawURLEncoding.EncodeToString(signature)
	if s.config.Issued != nil {
		s.config.Issued(minted)
	}
	return minted
}

// oidcRefused is the answer to a token or provider that is not right, with 401 as
// the codes are documented (STS: error codes).
func oidcRefused(code, message string) *wireError {
	return &wireError{http.StatusUnauthorized, "AuthenticationFail." + code, message}
}

// Lengths of a token (STS: AssumeRoleWithOIDC).
const (
	minOIDCToken = 4
	maxOIDCToken = 20000
)

// checkOIDCToken checks a token as STS does. Codes and texts are STS's (STS: error
// codes; ACK: RRSA); the order of the checks is not documented and is the emulator's,
// as is that white space around the token is refused. When the token was issued is
// not looked at.
func (s *Server) checkOIDCToken(token string) (*oidcClaims, *wireError) {
	invalid := func(message string) (*oidcClaims, *wireError) {
		return nil, oidcRefused("OIDCToken.Invalid", message)
	}
	if token == "" {
		return invalid("The OIDCToken can not empty.")
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 || len(token) < minOIDCToken || len(token) > maxOIDCToken {
		return invalid("The number of Jwt field should be divided into 3 parts with '.' .")
	}
	var decoded [3][]byte
	for i, part := range parts {
		var err error
		// The decoder skips line breaks.
		if decoded[i], err = base64.RawURLEncoding.DecodeString(part); err != nil || strings.ContainsAny(part, "\r\n") {
			return invalid("Cannot decode base64 encoded response(format invalided).")
		}
	}
	var header struct {
		Algorithm string `json:"alg"`
	}
	var claims oidcClaims
	if json.Unmarshal(decoded[0], &header) != nil || json.Unmarshal(decoded[1], &claims) != nil || claims.Expires == "" {
		return invalid("The Jwt content is invalid that cannot be recognized.")
	}
	if header.Algorithm != "RS256" && header.Algorithm != "ES256" {
		return invalid("The algorithm " + header.Algorithm + " that be specified in Jwt header is unknown.")
	}
	if claims.Issuer != s.config.OIDC.Issuer {
		return nil, oidcRefused("OIDCToken.IssuerNotMatch", "The issuer in the OIDC Token doesn't match the OIDC Provider registered.")
	}
	if !s.verifyOIDC(header.Algorithm, parts[0]+"."+parts[1], decoded[2]) {
		return nil, oidcRefused("OIDCToken.InvalidSignature", "OIDC token validate failed: invalid signature.")
	}
	if !slices.Contains(claims.Audience, OIDCAudience) {
		return nil, oidcRefused("OIDCToken.AudienceNotMatch", "Invalid audience.")
	}
	if !s.wireTime().Before(unixTime(claims.Expires)) {
		return nil, oidcRefused("OIDCToken.Expired", "This JsonWebToken is expired.")
	}
	return &claims, nil
}

// verifyOIDC tries every key of the algorithm.
func (s *Server) verifyOIDC(algorithm, signed string, signature []byte) bool {
	digest := sha256.Sum256([]byte(signed))
	for _, key := range append([]crypto.PublicKey{&s.oidcKey.PublicKey}, s.config.OIDC.Keys...) {
		switch key := key.(type) {
		case *rsa.PublicKey:
			if algorithm == "RS256" && rsa.VerifyPKCS1v15(key, crypto.SHA256, digest[:], signature) == nil {
				return true
			}
		case *ecdsa.PublicKey:
			if algorithm == "ES256" && len(signature) == 64 &&
				ecdsa.Verify(key, digest[:], new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])) {
				return true
			}
		}
	}
	return false
}
