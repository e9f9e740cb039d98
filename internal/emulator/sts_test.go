package emulator_test

import (
	"crypto/rand"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/emulator"
)

// stsReply is an answer of STS.
type stsReply struct {
	RequestID     string `json:"RequestId"`
	HostID        string `json:"HostId"`
	Code, Message string
	Credentials   struct {
		AccessKeyID     string `json:"AccessKeyId"`
		AccessKeySecret string
		SecurityToken   string
		Expiration      string
	}
	AssumedRoleUser struct {
		ARN string `json:"Arn"`
	}
	OIDCTokenInfo struct {
		Subject, Issuer string
		ClientIDs       string `json:"ClientIds"`
		ExpirationTime  string
	}
}

func (r stsReply) key() key {
	return key{r.Credentials.AccessKeyID, r.Credentials.AccessKeySecret, r.Credentials.SecurityToken}
}

func callSTS(t *testing.T, s *emulator.Server, r *http.Request) (int, stsReply) {
	t.Helper()
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	var got stsReply
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &got), w.Body.String())
	return w.Code, got
}

// assumeRole calls AssumeRole for the role "relay", as params change it.
func assumeRole(t *testing.T, s *emulator.Server, k key, params map[string]string) (int, stsReply) {
	t.Helper()
	return callSTS(t, s, rpcRequest(t, http.MethodPost, k, true, func(p url.Values) {
		p.Del("MessageType")
		p.Set("Action", "AssumeRole")
		p.Set("Version", "2015-04-01")
		p.Set("SignatureNonce", rand.Text())
		p.Set("RoleArn", s.RoleARN("relay"))
		p.Set("RoleSessionName", "test")
		if k.token != "" {
			p.Set("SecurityToken", k.token)
		}
		for name, value := range params {
			if p.Set(name, value); value == "" {
				p.Del(name)
			}
		}
	}))
}

const goodPolicy = `{"Version":"1","Statement":[{"Effect":"Allow","Action":["mns:ReceiveMessage"],"Resource":"*"}]}`

func TestAssumeRoleRefuses(t *testing.T) {
	t.Parallel()
	s := newServer(t, emulator.Config{
		TokenLife: 12 * time.Hour,
		Roles: map[string]emulator.Role{
			"relay":  {},
			"long":   {MaxSession: 4 * time.Hour},
			"third":  {ExternalID: "tenant-7"},
			"others": {Trusts: []string{"somebody"}},
			"nobody": {Trusts: []string{}},
		},
	})
	role := s.RoleARN
	for name, c := range map[string]struct {
		params map[string]string
		status int
		code   string
	}{
		"right":                   {nil, 200, ""},
		"no role":                 {map[string]string{"RoleArn": ""}, 400, "MissingRoleArn"},
		"no session":              {map[string]string{"RoleSessionName": ""}, 400, "MissingRoleSessionName"},
		"no ARN":                  {map[string]string{"RoleArn": "relay"}, 400, "InvalidParameter.RoleArn"},
		"unknown role":            {map[string]string{"RoleArn": role("none")}, 404, "EntityNotExist.Role"},
		"other account":           {map[string]string{"RoleArn": "acs:ram::1:role/relay"}, 404, "EntityNotExist.Role"},
		"session of one letter":   {map[string]string{"RoleSessionName": "a"}, 400, "InvalidParameter.RoleSessionName"},
		"session with a space":    {map[string]string{"RoleSessionName": "a b"}, 400, "InvalidParameter.RoleSessionName"},
		"15 min":                  {map[string]string{"DurationSeconds": "900"}, 200, ""},
		"too short":               {map[string]string{"DurationSeconds": "899"}, 400, "InvalidParameter.DurationSeconds"},
		"an hour":                 {map[string]string{"DurationSeconds": "3600"}, 200, ""},
		"longer than the role's":  {map[string]string{"DurationSeconds": "3601"}, 400, "InvalidParameter.DurationSeconds"},
		"a longer role":           {map[string]string{"DurationSeconds": "14400", "RoleArn": role("long")}, 200, ""},
		"longer than that":        {map[string]string{"DurationSeconds": "14401", "RoleArn": role("long")}, 400, "InvalidParameter.DurationSeconds"},
		"no number":               {map[string]string{"DurationSeconds": "1h"}, 400, "InvalidParameter.DurationSeconds"},
		"external id":             {map[string]string{"RoleArn": role("third"), "ExternalId": "tenant-7"}, 200, ""},
		"external id nobody asks": {map[string]string{"ExternalId": "tenant-7"}, 200, ""},
		"no external id":          {map[string]string{"RoleArn": role("third")}, 403, "NoPermission"},
		"other external id":       {map[string]string{"RoleArn": role("third"), "ExternalId": "tenant-8"}, 403, "NoPermission"},
		"external id of one":      {map[string]string{"ExternalId": "x"}, 400, "InvalidParameter.ExternalId"},
		"external id's letters":   {map[string]string{"ExternalId": "a b"}, 400, "InvalidParameter.ExternalId"},
		"role of others":          {map[string]string{"RoleArn": role("others")}, 403, "NoPermission"},
		"role of nobody":          {map[string]string{"RoleArn": role("nobody")}, 403, "NoPermission"},
		"policy":                  {map[string]string{"Policy": goodPolicy}, 200, ""},
		"policy of no JSON":       {map[string]string{"Policy": "{"}, 400, "InvalidParameter.PolicyGrammar"},
		"two policies":            {map[string]string{"Policy": goodPolicy + goodPolicy}, 400, "InvalidParameter.PolicyGrammar"},
		"policy's version":        {map[string]string{"Policy": strings.Replace(goodPolicy, `"1"`, `"2"`, 1)}, 400, "InvalidParameter.PolicyGrammar"},
		"policy's effect":         {map[string]string{"Policy": strings.Replace(goodPolicy, "Allow", "Perhaps", 1)}, 400, "InvalidParameter.PolicyGrammar"},
		"policy without action":   {map[string]string{"Policy": strings.Replace(goodPolicy, "Action", "Deed", 1)}, 400, "InvalidParameter.PolicyGrammar"},
		"policy of 2049 bytes":    {map[string]string{"Policy": goodPolicy + strings.Repeat(" ", 2049-len(goodPolicy))}, 400, "InvalidParameter.PolicySize"},
	} {
		status, got := assumeRole(t, s, demoKey(), c.params)
		require.Equal(t, c.status, status, "%s: %s %s", name, got.Code, got.Message)
		require.Equal(t, c.code, got.Code, name)
		if status == http.StatusOK {
			require.Equal(t, 201, do(t, s, got.key().request(t.Context(), http.MethodPost, "", messagesPath(""), oneMessage)).status)
		} else {
			require.Equal(t, "sts.aliyuncs.com", got.HostID)
			require.Empty(t, got.Credentials)
		}
	}
}

// A role can be trusted to assume another one, and a key only by name.
func TestTrust(t *testing.T) {
	t.Parallel()
	s := newServer(t, emulator.Config{})
	chain := newServer(t, emulator.Config{Roles: map[string]emulator.Role{
		"base":  {Trusts: []string{emulator.DemoAccessKeyID}},
		"relay": {Trusts: []string{s.RoleARN("base")}},
	}})
	status, got := assumeRole(t, chain, demoKey(), nil)
	require.Equal(t, http.StatusForbidden, status)
	require.Equal(t, "You are not authorized to do this action. You should be authorized by RAM.", got.Message)
	status, base := assumeRole(t, chain, demoKey(), map[string]string{"RoleArn": s.RoleARN("base")})
	require.Equal(t, http.StatusOK, status)
	status, got = assumeRole(t, chain, base.key(), nil)
	require.Equal(t, http.StatusOK, status, got.Message)
	require.Equal(t, s.RoleARN("relay")+"/test", got.AssumedRoleUser.ARN)
}

func TestSessionEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, emulator.Config{TokenLife: 3 * time.Second})
		_, got := assumeRole(t, s, demoKey(), map[string]string{"DurationSeconds": "3600"})
		require.Equal(t, time.Now().Add(3*time.Second).UTC().Format(time.RFC3339), got.Credentials.Expiration, "the configuration caps it")
		<-time.After(3*time.Second - time.Millisecond)
		status, _ := assumeRole(t, s, got.key(), nil)
		require.Equal(t, http.StatusOK, status)
		<-time.After(time.Millisecond)
		status, dead := assumeRole(t, s, got.key(), nil)
		require.Equal(t, http.StatusBadRequest, status)
		require.Equal(t, "InvalidSecurityToken.Expired", dead.Code)
		require.Equal(t, "SecurityTokenExpired", do(t, s, got.key().request(t.Context(), http.MethodGet, "", messagesPath(""), "")).Code)
	})
}

// Each kind of credential has a policy of its own, ends when it is revoked, and is
// issued by the clock that the server shows.
func TestEveryKindOfCredential(t *testing.T) {
	t.Parallel()
	issue := map[emulator.Op]func(*testing.T, *emulator.Server) (key, string){
		emulator.OpToken: func(t *testing.T, s *emulator.Server) (key, string) { t.Helper(); return issueToken(t, s), "" },
		emulator.OpSTS: func(t *testing.T, s *emulator.Server) (key, string) {
			t.Helper()
			_, got := assumeRole(t, s, demoKey(), nil)
			return got.key(), got.Credentials.Expiration
		},
		emulator.OpOIDC: func(t *testing.T, s *emulator.Server) (key, string) {
			t.Helper()
			_, got := assumeRoleWithOIDC(t, s, nil)
			return got.key(), got.Credentials.Expiration
		},
		emulator.OpMetadata: func(t *testing.T, s *emulator.Server) (key, string) {
			t.Helper()
			return parseCredentials(t, metadata(t, s, http.MethodGet, rolesPath+"relay", nil))
		},
		emulator.OpURI: func(t *testing.T, s *emulator.Server) (key, string) {
			t.Helper()
			return parseCredentials(t, metadata(t, s, http.MethodGet, "/credentials", nil))
		},
	}
	for op, credential := range issue {
		t.Run(string(op), func(t *testing.T) {
			t.Parallel()
			s := newServer(t, emulator.Config{
				TokenLife: 2 * time.Minute, InstanceRole: "relay",
				IssuedPolicies: map[emulator.Op]emulator.Policy{op: emulator.PolicyReceiveDelete},
			})
			try := func(k key, method string) int {
				return do(t, s, k.request(t.Context(), method, "", messagesPath(""), oneMessage)).status
			}
			bound, _ := credential(t, s)
			require.Equal(t, []int{404, 403}, []int{try(bound, http.MethodGet), try(bound, http.MethodPost)}, "receive and send")
			for other, of := range issue {
				if other != op {
					free, _ := of(t, s)
					require.Equal(t, 201, try(free, http.MethodPost), "%s has a policy of its own", other)
					require.Equal(t, 200, try(free, http.MethodGet))
				}
			}
			require.NoError(t, s.SetIssuedPolicy(op, emulator.PolicyFull))
			free, _ := credential(t, s)
			require.Equal(t, []int{201, 200}, []int{try(free, http.MethodPost), try(free, http.MethodGet)})

			require.Positive(t, s.RevokeTokens())
			require.Equal(t, 403, try(free, http.MethodGet))
			again, _ := credential(t, s)
			require.NotEqual(t, 403, try(again, http.MethodGet))

			s.SetClockOffset(10 * time.Minute)
			ahead, expiration := credential(t, s)
			require.NotEqual(t, 403, try(ahead, http.MethodGet))
			if expiration != "" {
				require.True(t, strings.HasSuffix(expiration, "Z"), expiration)
				expires, err := time.Parse(time.RFC3339, expiration)
				require.NoError(t, err)
				require.WithinDuration(t, time.Now().Add(12*time.Minute), expires, 5*time.Second)
			}
		})
	}
	s := newServer(t, emulator.Config{})
	require.ErrorContains(t, s.SetIssuedPolicy(emulator.OpReceive, emulator.PolicyFull), `"receive" issues no credentials`)
}
