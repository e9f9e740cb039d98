package emulator_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/errors"
	"github.com/aliyun/alibaba-cloud-sdk-go/services/sts"
	"github.com/stretchr/testify/require"

	"mnsrelay/internal/emulator"
)

// assumeRoleWithOIDC sends what credentials-go sends, as params change it.
func assumeRoleWithOIDC(t *testing.T, s *emulator.Server, params map[string]string) (int, stsReply) {
	t.Helper()
	query := url.Values{
		"Action": {"AssumeRoleWithOIDC"}, "Version": {"2015-04-01"}, "Format": {"JSON"},
		"Timestamp": {time.Now().Add(s.ClockOffset()).UTC().Format("2006-01-02T15:04:05Z")},
	}
	form := url.Values{
		"RoleArn": {s.RoleARN("relay")}, "OIDCProviderArn": {s.OIDCProviderARN()}, "RoleSessionName": {"test"},
		"OIDCToken": {s.MintOIDCToken(emulator.OIDCToken{})},
	}
	for name, value := range params {
		in := form
		if query.Has(name) {
			in = query
		}
		if in.Set(name, value); value == "" {
			in.Del(name)
		}
	}
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/?"+query.Encode(), strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return callSTS(t, s, r)
}

// jwt makes a token of the given parts.
func jwt(header, claims, signature string) string {
	encode := base64.RawURLEncoding.EncodeToString
	return encode([]byte(header)) + "." + encode([]byte(claims)) + "." + encode([]byte(signature))
}

func TestAssumeRoleWithOIDC(t *testing.T) {
	t.Parallel()
	s := newServer(t, emulator.Config{Roles: map[string]emulator.Role{
		"relay": {}, "pod": {Trusts: []string{"system:serviceaccount:prod:relay"}}, "keys": {Trusts: []string{emulator.DemoAccessKeyID}},
	}})
	token := func(of emulator.OIDCToken) map[string]string {
		return map[string]string{"OIDCToken": s.MintOIDCToken(of)}
	}
	with := func(params map[string]string, name, value string) map[string]string {
		params[name] = value
		return params
	}
	good := s.MintOIDCToken(emulator.OIDCToken{})
	parts := strings.Split(good, ".")
	stamp := func(shift time.Duration) string {
		return time.Now().Add(shift).UTC().Format("2006-01-02T15:04:05Z")
	}
	for name, c := range map[string]struct {
		params  map[string]string
		status  int
		code    string
		message string
	}{
		"right":                  {status: 200},
		"trusted subject":        {params: with(token(emulator.OIDCToken{Subject: "system:serviceaccount:prod:relay"}), "RoleArn", s.RoleARN("pod")), status: 200},
		"other subject":          {map[string]string{"RoleArn": s.RoleARN("pod")}, 401, "AuthenticationFail.NoPermission", "There is no permission"},
		"role of keys":           {map[string]string{"RoleArn": s.RoleARN("keys")}, 401, "AuthenticationFail.NoPermission", "There is no permission"},
		"unknown role":           {map[string]string{"RoleArn": s.RoleARN("none")}, 404, "EntityNotExist.Role", "The role not exists: " + s.RoleARN("none")},
		"no role":                {map[string]string{"RoleArn": ""}, 400, "MissingParameter.RoleArn", "required"},
		"no provider":            {map[string]string{"OIDCProviderArn": ""}, 400, "MissingParameter.OIDCProviderArn", "required"},
		"no session":             {map[string]string{"RoleSessionName": ""}, 400, "MissingParameter.RoleSessionName", "required"},
		"no ARN of a provider":   {map[string]string{"OIDCProviderArn": "test", "RoleArn": "test"}, 401, "AuthenticationFail.NoPermission", "Parameter OIDCProviderArn is not valid"},
		"unknown provider":       {map[string]string{"OIDCProviderArn": s.OIDCProviderARN() + "2"}, 401, "AuthenticationFail.NoPermission", "No such OIDC Provider registered."},
		"too long":               {map[string]string{"DurationSeconds": "3601"}, 400, "InvalidParameter.DurationSeconds", "15min/1hr"},
		"policy":                 {params: map[string]string{"Policy": goodPolicy}, status: 200},
		"no policy":              {map[string]string{"Policy": "test"}, 400, "InvalidParameter.PolicyGrammar", "grammar"},
		"policy of 1025 bytes":   {map[string]string{"Policy": goodPolicy + strings.Repeat(" ", 1025-len(goodPolicy))}, 400, "InvalidParameter.PolicySize", "1024"},
		"expired":                {token(emulator.OIDCToken{Life: -1}), 401, "AuthenticationFail.OIDCToken.Expired", "This JsonWebToken is expired."},
		"other audience":         {token(emulator.OIDCToken{Audience: "https://kubernetes.default.svc"}), 401, "AuthenticationFail.OIDCToken.AudienceNotMatch", "Invalid audience."},
		"other issuer":           {token(emulator.OIDCToken{Issuer: "https://kubernetes.default.svc"}), 401, "AuthenticationFail.OIDCToken.IssuerNotMatch", "doesn't match"},
		"signed by others":       {map[string]string{"OIDCToken": newServer(t, emulator.Config{}).MintOIDCToken(emulator.OIDCToken{})}, 401, "AuthenticationFail.OIDCToken.InvalidSignature", "invalid signature"},
		"changed":                {map[string]string{"OIDCToken": parts[0] + "." + strings.Split(s.MintOIDCToken(emulator.OIDCToken{Subject: "root"}), ".")[1] + "." + parts[2]}, 401, "AuthenticationFail.OIDCToken.InvalidSignature", "invalid signature"},
		"emptied":                {map[string]string{"OIDCToken": ""}, 401, "AuthenticationFail.OIDCToken.Invalid", "can not empty"},
		"cut":                    {map[string]string{"OIDCToken": parts[0] + "." + parts[1]}, 401, "AuthenticationFail.OIDCToken.Invalid", "3 parts"},
		"too large":              {map[string]string{"OIDCToken": good + strings.Repeat("A", 20000)}, 401, "AuthenticationFail.OIDCToken.Invalid", "3 parts"},
		"no base64":              {map[string]string{"OIDCToken": "a.%.b"}, 401, "AuthenticationFail.OIDCToken.Invalid", "base64"},
		"line break at its end":  {map[string]string{"OIDCToken": good + "\n"}, 401, "AuthenticationFail.OIDCToken.Invalid", "base64"},
		"no JSON":                {map[string]string{"OIDCToken": jwt("a", "b", "c")}, 401, "AuthenticationFail.OIDCToken.Invalid", "cannot be recognized"},
		"without an end":         {map[string]string{"OIDCToken": jwt(`{"alg":"ES256"}`, `{"iss":"i"}`, "c")}, 401, "AuthenticationFail.OIDCToken.Invalid", "cannot be recognized"},
		"symmetric algorithm":    {map[string]string{"OIDCToken": jwt(`{"alg":"HS256"}`, `{"exp":1}`, "c")}, 401, "AuthenticationFail.OIDCToken.Invalid", "HS256"},
		"no algorithm":           {map[string]string{"OIDCToken": jwt(`{"alg":"none"}`, `{"exp":1}`, "")}, 401, "AuthenticationFail.OIDCToken.Invalid", "none"},
		"other version":          {map[string]string{"Version": "2017-05-25"}, 400, "InvalidVersion", ""},
		"no timestamp":           {map[string]string{"Timestamp": ""}, 400, "MissingTimestamp", ""},
		"timestamp of no form":   {map[string]string{"Timestamp": "now"}, 400, "InvalidTimeStamp.Format", ""},
		"16 minutes behind":      {map[string]string{"Timestamp": stamp(-16 * time.Minute)}, 400, "InvalidTimeStamp.Expired", ""},
		"14 minutes ahead":       {params: map[string]string{"Timestamp": stamp(14 * time.Minute)}, status: 200},
		"keys that are not used": {params: map[string]string{"AccessKeyId": "nobody", "Signature": "none", "SignatureNonce": "n"}, status: 200},
	} {
		status, got := assumeRoleWithOIDC(t, s, c.params)
		require.Equal(t, c.status, status, "%s: %s %s", name, got.Code, got.Message)
		require.Equal(t, c.code, got.Code, name)
		require.Contains(t, got.Message, c.message, name)
		if status == http.StatusOK {
			require.Equal(t, emulator.OIDCAudience, got.OIDCTokenInfo.ClientIDs)
			require.Equal(t, emulator.DefaultOIDCIssuer, got.OIDCTokenInfo.Issuer)
			require.Equal(t, 201, do(t, s, got.key().request(t.Context(), http.MethodPost, "", messagesPath(""), oneMessage)).status)
		} else {
			require.Equal(t, "sts.aliyuncs.com", got.HostID)
		}
	}
	require.Positive(t, s.Requests()[emulator.OpOIDC]["AuthenticationFail.OIDCToken.Expired"])
}

func TestOIDCTokenEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, emulator.Config{})
		token := map[string]string{"OIDCToken": s.MintOIDCToken(emulator.OIDCToken{Life: emulator.Duration(10 * time.Second)})}
		<-time.After(10*time.Second - time.Millisecond)
		status, _ := assumeRoleWithOIDC(t, s, token)
		require.Equal(t, http.StatusOK, status)
		<-time.After(time.Millisecond)
		_, got := assumeRoleWithOIDC(t, s, token)
		require.Equal(t, "AuthenticationFail.OIDCToken.Expired", got.Code)

		s.SetClockOffset(time.Hour)
		status, got = assumeRoleWithOIDC(t, s, nil)
		require.Equal(t, http.StatusOK, status, got.Code)
		require.Equal(t, time.Now().Add(2*time.Hour).UTC().Format(time.RFC3339), got.OIDCTokenInfo.ExpirationTime)
	})
}

// Tokens of another issuer are verified with its keys, whatever made them.
func TestOIDCKeys(t *testing.T) {
	t.Parallel()
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	s := newServer(t, emulator.Config{OIDC: emulator.OIDCProvider{
		Name: "cluster", Issuer: "https://cluster.example", Keys: []crypto.PublicKey{&other.PublicKey, &private.PublicKey},
	}})
	require.True(t, strings.HasSuffix(s.OIDCProviderARN(), ":oidc-provider/cluster"))
	claims, err := json.Marshal(map[string]any{
		"iss": "https://cluster.example", "sub": "system:serviceaccount:a:b", "aud": "sts.aliyuncs.com",
		"exp": float64(time.Now().Add(time.Minute).UnixMilli()) / 1000,
	})
	require.NoError(t, err)
	unsigned := strings.TrimSuffix(jwt(`{"alg":"RS256","kid":"k"}`, string(claims), ""), ".")
	digest := sha256.Sum256([]byte(unsigned))
	signature, err := rsa.SignPKCS1v15(rand.Reader, private, crypto.SHA256, digest[:])
	require.NoError(t, err)
	encoded := base64.RawURLEncoding.EncodeToString
	status, got := assumeRoleWithOIDC(t, s, map[string]string{"OIDCToken": unsigned + "." + encoded(signature)})
	require.Equal(t, http.StatusOK, status, got.Code)
	require.Equal(t, "system:serviceaccount:a:b", got.OIDCTokenInfo.Subject)
	signature[0] ^= 1
	_, got = assumeRoleWithOIDC(t, s, map[string]string{"OIDCToken": unsigned + "." + encoded(signature)})
	require.Equal(t, "AuthenticationFail.OIDCToken.InvalidSignature", got.Code)
	status, _ = assumeRoleWithOIDC(t, s, nil)
	require.Equal(t, http.StatusOK, status, "the emulator's own stay good")
}

// The OpenAPI SDK, which signs this request for nothing.
func TestAssumeRoleWithOIDCClient(t *testing.T) {
	t.Parallel()
	s, url := startServer(t, emulator.Config{TokenLife: time.Minute})
	client, err := sts.NewClientWithAccessKey("cn-hangzhou", "none", "none")
	require.NoError(t, err)
	client.Domain = strings.TrimPrefix(url, "http://")
	request := sts.CreateAssumeRoleWithOIDCRequest()
	request.Scheme = "http"
	request.RoleArn, request.OIDCProviderArn = s.RoleARN("relay"), s.OIDCProviderARN()
	request.RoleSessionName, request.OIDCToken = "relay", s.MintOIDCToken(emulator.OIDCToken{})
	response, err := client.AssumeRoleWithOIDC(request)
	require.NoError(t, err)
	require.Equal(t, emulator.DefaultOIDCSubject, response.OIDCTokenInfo.Subject)
	_, err = token(t, url, key{response.Credentials.AccessKeyId, response.Credentials.AccessKeySecret, response.Credentials.SecurityToken})
	require.NoError(t, err, "a role can ask for Dybaseapi's tokens")

	request.OIDCToken = s.MintOIDCToken(emulator.OIDCToken{Life: -1})
	_, err = client.AssumeRoleWithOIDC(request)
	var server *errors.ServerError
	require.ErrorAs(t, err, &server)
	require.Equal(t, "AuthenticationFail.OIDCToken.Expired", server.ErrorCode())
	require.Equal(t, http.StatusUnauthorized, server.HttpStatus())
}
