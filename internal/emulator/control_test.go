package emulator_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/emulator"
)

func TestControls(t *testing.T) {
	t.Parallel()
	s := newServer(t, emulator.Config{})
	ok := func(method, path, body string) string {
		t.Helper()
		status, answer := control(t, s, method, path, body)
		require.Less(t, status, 300, answer)
		return answer
	}

	require.Contains(t, ok("GET", "/", ""), "POST   /_emulator/faults")
	ok("PUT", "/queues/new", "")
	require.JSONEq(t, ok("PUT", "/queues/new", "{}"), ok("GET", "/queues/new", ""))
	require.Contains(t, ok("PUT", "/queues/quick", `{"visibility_timeout":"5s"}`), `"visibility_timeout": "5s"`)
	require.Equal(t, 3, strings.Count(ok("GET", "/queues", ""), `"name"`))
	ok("DELETE", "/queues/new", "")
	require.Equal(t, []string{queueName, "quick"}, s.Queues())

	ok("POST", "/queues/"+queueName+"/messages", `{"body":"{\"a\":1}","encode":"base64","priority":3}`)
	require.Equal(t, "eyJhIjoxfQ==", receiveOne(t, s).MessageBody)
	require.Contains(t, ok("POST", "/queues/"+queueName+"/messages", `[{"body":"1"},{"body":"2","delay":"5s"}]`), `"ids"`)
	require.Contains(t, ok("GET", "/queues/"+queueName, ""), `"delayed": 1`)

	require.JSONEq(t, `[]`, ok("GET", "/faults", ""))
	ok("POST", "/faults", `{"operation":"receive","status":503,"code":"InternalError","delay":"1ms","count":1}`)
	ok("POST", "/faults", `{"operation":"peek","connection":"drop_after","rate":0.5}`)
	require.Equal(t, http.StatusServiceUnavailable, mns(t, s, http.MethodGet, messagesPath(""), "").status)
	require.JSONEq(t, `[{"id":"1","operation":"receive","status":503,"code":"InternalError","delay":"1ms","count":1,"hits":1},
		{"id":"2","operation":"peek","connection":"drop_after","rate":0.5,"hits":0}]`, ok("GET", "/faults", ""))
	ok("DELETE", "/faults/1", "")
	require.Len(t, s.Faults(), 1)
	ok("DELETE", "/faults", "")
	require.Empty(t, s.Faults())

	k := issueToken(t, s)
	require.JSONEq(t, `{"receive":{"OK":1,"InternalError":1},"token":{"OK":1}}`, ok("GET", "/requests", ""))
	tokens := ok("GET", "/tokens", "")
	require.Contains(t, tokens, `"alive": true`)
	require.Contains(t, tokens, k.id)
	require.NotContains(t, tokens, k.secret)
	require.NotContains(t, tokens, k.token)
	require.JSONEq(t, `{"revoked":1}`, ok("DELETE", "/tokens", ""))
	require.Contains(t, ok("GET", "/tokens", ""), `"alive": false`)

	status, got := assumeRoleWithOIDC(t, s, map[string]string{"OIDCToken": ok("POST", "/oidc-token", "")})
	require.Equal(t, http.StatusOK, status, got.Code)
	require.Contains(t, ok("GET", "/tokens", ""), `"issuer": "oidc"`)
	_, got = assumeRoleWithOIDC(t, s, map[string]string{"OIDCToken": ok("POST", "/oidc-token", `{"life":"-1s"}`)})
	require.Equal(t, "AuthenticationFail.OIDCToken.Expired", got.Code)
	require.JSONEq(t, `{"role":"","token_required":false}`, ok("GET", "/metadata", ""))
	require.JSONEq(t, `{"role":"relay","token_required":false}`, ok("PUT", "/metadata", `{"role":"relay"}`))
	require.JSONEq(t, `{"role":"relay","token_required":true}`, ok("PUT", "/metadata", `{"token_required":true}`))
	require.Equal(t, http.StatusForbidden, metadata(t, s, http.MethodGet, rolesPath, nil).Code)
	s.ResetRequests()

	require.Contains(t, ok("PUT", "/clock", `{"offset":"-20m"}`), `"offset": "-20m0s"`)
	require.Equal(t, "TimeExpired", mns(t, s, http.MethodGet, messagesPath(""), "").Code)
	ok("PUT", "/clock", `{"offset":"0s"}`)
	require.Contains(t, ok("GET", "/clock", ""), `"offset": "0s"`)

	require.JSONEq(t, `{"server":"full","tokens":"full","sts":"full","oidc":"full","metadata":"full","uri":"full"}`, ok("GET", "/policy", ""))
	require.JSONEq(t, `{"server":"full","tokens":"receive-and-delete","sts":"full","oidc":"receive-and-delete","metadata":"full","uri":"full"}`,
		ok("PUT", "/policy", `{"tokens":"receive-and-delete","oidc":"receive-and-delete"}`))
	require.Contains(t, ok("PUT", "/policy", `{"server":"receive-and-delete"}`), `"server": "receive-and-delete"`)
	require.Equal(t, "AccessDenied", mns(t, s, http.MethodPost, messagesPath(""), oneMessage).Code)

	require.JSONEq(t, `{"receive":{"TimeExpired":1},"send":{"AccessDenied":1}}`, ok("GET", "/requests", ""))
	ok("DELETE", "/requests", "")
	require.JSONEq(t, `{}`, ok("GET", "/requests", ""))
}

func TestControlsAnswerErrorsInWords(t *testing.T) {
	t.Parallel()
	s := newServer(t, emulator.Config{})
	for _, c := range []struct {
		method, path, body string
		status             int
		words              string
	}{
		{"GET", "/nothing", "", 404, "there is no control GET /_emulator/nothing: GET /_emulator/ lists them"},
		{"PATCH", "/faults", "", 404, "there is no control PATCH"},
		{"GET", "/queues/none", "", 404, `there is no queue "none": create it with PUT /_emulator/queues/none`},
		{"DELETE", "/queues/none", "", 404, `there is no queue "none"`},
		{"POST", "/queues/none/messages", `{"body":"x"}`, 404, `there is no queue "none"`},
		{"PUT", "/queues/a_b", "", 400, "should start with letter or digit"},
		{"PUT", "/queues/" + queueName, `{"delay":"5s"}`, 409, "already exist"},
		{"PUT", "/queues/new", `{"delay":"5"}`, 400, "not a duration: write a number with its unit"},
		{"PUT", "/queues/new", `{"colour":1}`, 400, `unknown field "colour"`},
		{"POST", "/queues/" + queueName + "/messages", `{"body":"\u0000"}`, 400, "encode the body as base64"},
		{"POST", "/queues/" + queueName + "/messages", `{"text":"x"}`, 400, `unknown field "text"`},
		{"POST", "/queues/" + queueName + "/messages", `{"body":"x","encode":"gzip"}`, 400, `there is no encoding "gzip"`},
		{"POST", "/queues/" + queueName + "/messages", `{"body":"x","priority":17}`, 400, "Priority should between 1 and 16"},
		{"POST", "/faults", "", 400, "the request has no body"},
		{"POST", "/faults", "{", 400, "read the request's JSON"},
		{"POST", "/faults", "{} {}", 400, "more follows after its end"},
		{"POST", "/faults", "{}", 400, "the fault does nothing"},
		{"DELETE", "/faults/7", "", 404, `there is no fault "7"`},
		{"PUT", "/clock", "{}", 400, "there is no offset"},
		{"PUT", "/policy", `{"server":"none"}`, 400, `there is no policy "none"`},
		{"PUT", "/policy", `{"queue":"full"}`, 400, `there is no "queue" that a policy binds`},
		{"PUT", "/metadata", `{"role":"a b"}`, 400, `there is no role "a b"`},
		{"POST", "/oidc-token", `{"age":"1s"}`, 400, `unknown field "age"`},
	} {
		status, answer := control(t, s, c.method, c.path, c.body)
		require.Equal(t, c.status, status, "%s %s: %s", c.method, c.path, answer)
		require.Contains(t, answer, c.words)
	}
}
