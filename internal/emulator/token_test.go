package emulator_test

import (
	"crypto"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/emulator"
	"mnsrelay/internal/setting"
)

func TestTokenExpires(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, emulator.Config{TokenLife: 3 * time.Second})
		<-time.After(400 * time.Millisecond) // times on the wire are cut to seconds
		k := issueToken(t, s)
		send := func() reply {
			return do(t, s, k.request(t.Context(), http.MethodPost, "", messagesPath(""), oneMessage))
		}
		require.Equal(t, http.StatusCreated, send().status)
		<-time.After(2599 * time.Millisecond)
		require.Equal(t, http.StatusCreated, send().status, "to the last millisecond")
		<-time.After(time.Millisecond)
		dead := send()
		require.Equal(t, http.StatusForbidden, dead.status)
		require.Equal(t, "SecurityTokenExpired", dead.Code)

		k = issueToken(t, s)
		require.Equal(t, http.StatusCreated, send().status, "a new one works")
		k.token += "x"
		require.Equal(t, "InvalidSecurityToken", send().Code)
		<-time.After(12 * time.Minute)
		issueToken(t, s)
		require.Equal(t, "InvalidAccessKeyId", send().Code, "in the end it is forgotten")
	})
}

func TestRevokeTokens(t *testing.T) {
	t.Parallel()
	s := newServer(t, emulator.Config{})
	a, b := issueToken(t, s), issueToken(t, s)
	require.Equal(t, 2, s.RevokeTokens())
	require.Zero(t, s.RevokeTokens())
	c := issueToken(t, s)
	for k, status := range map[key]int{a: 403, b: 403, c: 201, demoKey(): 201} {
		require.Equal(t, status, do(t, s, k.request(t.Context(), http.MethodPost, "", messagesPath(""), oneMessage)).status)
	}
}

func TestPolicies(t *testing.T) {
	t.Parallel()
	type attempt struct{ method, path, body string }
	attempts := map[emulator.Op]attempt{
		emulator.OpReceive:    {"GET", messagesPath(""), ""},
		emulator.OpDelete:     {"DELETE", deletePath("1-x"), ""},
		emulator.OpPeek:       {"GET", messagesPath("?peekonly=true"), ""},
		emulator.OpSend:       {"POST", messagesPath(""), oneMessage},
		emulator.OpVisibility: {"PUT", visibilityPath("1-x", 1), ""},
		emulator.OpAttributes: {"GET", "/queues/" + queueName, ""},
		emulator.OpQueues:     {"GET", "/queues", ""},
	}
	denied := func(s *emulator.Server, k key) map[emulator.Op]bool {
		denied := map[emulator.Op]bool{}
		for op, a := range attempts {
			got := do(t, s, k.request(t.Context(), a.method, "", a.path, a.body))
			if got.status == http.StatusForbidden {
				require.Equal(t, "AccessDenied", got.Code)
				denied[op] = true
			}
		}
		return denied
	}
	restricted := map[emulator.Op]bool{
		emulator.OpPeek: true, emulator.OpSend: true, emulator.OpVisibility: true,
		emulator.OpAttributes: true, emulator.OpQueues: true,
	}

	s := newServer(t, emulator.Config{TokenPolicy: emulator.PolicyReceiveDelete})
	bound := issueToken(t, s)
	require.Equal(t, restricted, denied(s, bound))
	require.Empty(t, denied(s, demoKey()))
	require.NoError(t, s.SetTokenPolicy(emulator.PolicyFull))
	require.Empty(t, denied(s, issueToken(t, s)))
	require.Equal(t, restricted, denied(s, bound), "a token keeps the policy that it was issued with")
	require.NoError(t, s.SetPolicy(emulator.PolicyReceiveDelete))
	require.Equal(t, restricted, denied(s, demoKey()))
	require.Error(t, s.SetPolicy("everything"))
}

func TestClockOffset(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const offset = 10 * time.Minute
		s := newServer(t, emulator.Config{})
		sendBody(t, s, "x")
		s.SetClockOffset(offset)
		server := time.Now().Add(offset)
		got := mns(t, s, http.MethodGet, messagesPath(""), "")
		require.Equal(t, server.UTC().Format(http.TimeFormat), got.header.Get("Date"))
		m := got.Messages[0]
		require.Equal(t, server.UnixMilli(), m.EnqueueTime)
		require.Equal(t, server.UnixMilli(), m.FirstDequeueTime)
		require.Equal(t, server.UnixMilli()+30_000, m.NextVisibleTime)
		<-time.After(29 * time.Second)
		require.Empty(t, receive(t, s, ""), "a lease lasts as long as before")
		<-time.After(time.Second)
		receiveOne(t, s)

		s.SetClockOffset(20 * time.Minute)
		late := mns(t, s, http.MethodGet, messagesPath(""), "")
		require.Equal(t, http.StatusRequestTimeout, late.status)
		require.Equal(t, "TimeExpired", late.Code)
		require.Equal(t, time.Now().Add(20*time.Minute).UTC().Format(http.TimeFormat), late.header.Get("Date"), "it says how far off the client is")
		_, asked := rpc(t, s, rpcRequest(t, http.MethodPost, demoKey(), false, nil))
		require.Equal(t, "InvalidTimeStamp.Expired", asked.Code)
	})
}

func TestConfigValidate(t *testing.T) {
	t.Parallel()
	_, err := emulator.New(emulator.Config{
		AccessKeys:   []emulator.AccessKey{{ID: "a"}, {ID: "b", Secret: setting.NewSecret("s")}, {ID: "b", Secret: setting.NewSecret("s")}},
		TokenLife:    1500 * time.Millisecond,
		Policy:       "all",
		MaxLongPolls: -1,
		IssuedPolicies: map[emulator.Op]emulator.Policy{
			emulator.OpSTS: "much", emulator.OpReceive: emulator.PolicyFull,
		},
		Roles:        map[string]emulator.Role{"a b": {}, "r": {ExternalID: "?", MaxSession: time.Minute}},
		InstanceRole: "none",
		OIDC:         emulator.OIDCProvider{Name: "a/b", Issuer: "http://a", Keys: []crypto.PublicKey{"key"}},
		Queues: map[string]emulator.QueueConfig{
			"a_b": {}, "c": {VisibilityTimeout: 13 * time.Hour}, "d": {Delay: time.Millisecond},
		},
	})
	for _, words := range []string{
		"needs an id and a secret", `"b" is there twice`, "token_life: 1.5s", `policy: there is no policy "all"`,
		`issued_policies.sts: there is no policy "much"`, `issued_policies: "receive" issues no credentials`,
		`roles: "a b"`, "roles.r.external_id", "roles.r.max_session: 1m0s", `instance_role: there is no role "none"`,
		`oidc.name: "a/b"`, `oidc.issuer: "http://a"`, "oidc.keys: string",
		"max_long_polls", `queues: "a_b"`, "queues.c: ", "queues.d: ",
	} {
		require.ErrorContains(t, err, words)
	}
	s, err := emulator.New(emulator.Config{
		AccessKeys: []emulator.AccessKey{{ID: "mine", Secret: setting.NewSecret("s")}}, AccountID: "42", Queues: map[string]emulator.QueueConfig{queueName: {}},
	})
	require.NoError(t, err)
	require.Equal(t, "Alicom-Queue-42-SmsReport", s.AlicomQueue("SmsReport"))
	require.Equal(t, "InvalidAccessKeyId", mns(t, s, http.MethodGet, messagesPath(""), "").Code, "the demo key is the default only")
	got := do(t, s, key{id: "mine", secret: "s"}.request(t.Context(), http.MethodGet, "", messagesPath(""), ""))
	require.Equal(t, "MessageNotExist", got.Code)
}
