package e2e_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/emulator"
	"mnsrelay/test/rig"
)

// credentialTypes are a source of each type and of each base, by the name of its queue.
func credentialTypes(server *emulator.Server, url, tokenFile string) map[string]string {
	keys := fmt.Sprintf("access_key_id: %s, access_key_secret: %s", keyID, keySecret)
	oidc := fmt.Sprintf("type: oidc_role_arn, role_arn: %q, oidc_provider_arn: %q, oidc_token_file: %q, endpoint: %s",
		server.RoleARN("pod"), server.OIDCProviderARN(), tokenFile, url)
	ecs := "type: ecs_ram_role, endpoint: " + url
	role := fmt.Sprintf("type: ram_role_arn, role_arn: %q, endpoint: %s, external_id: partner", server.RoleARN("relay"), url)
	token := "type: mns_token, endpoint: " + url
	return map[string]string{
		"static":                          "type: static, " + keys,
		"default":                         "type: default",
		"role":                            role + ", " + keys,
		"rrsa":                            oidc,
		"ecs":                             ecs,
		"uri":                             "type: credentials_uri, uri: " + url + "/credentials",
		"role-of-ecs":                     role + ", base: {" + ecs + "}",
		"role-of-uri":                     role + ", base: {type: credentials_uri, uri: " + url + "/credentials}",
		"role-of-rrsa":                    role + ", base: {" + oidc + "}",
		server.AlicomQueue("SmsReport"):   token + ", " + keys,
		server.AlicomQueue("SmsUp"):       token + ", base: {" + oidc + "}",
		server.AlicomQueue("VoiceReport"): token + ", base: {" + role + ", base: {" + ecs + "}}",
	}
}

// Every way to get credentials, all at once: the emulator issues them, MNS accepts them,
// and messages flow over at least five refreshes without a request that is refused. The
// projected token is replaced meanwhile, as the kubelet does.
func TestEveryTypeOfCredential(t *testing.T) {
	t.Parallel()
	const seconds, rate = 28, 10
	server, url, _ := startEmulator(t, emulator.Config{
		TokenLife: 6 * time.Second, InstanceRole: "instance", MetadataTokenRequired: true,
		TokenPolicy: emulator.PolicyReceiveDelete, // as tokens of Alicom's may be
		Roles:       map[string]emulator.Role{"relay": {ExternalID: "partner"}, "pod": {}, "instance": {}},
	}, emulator.QueueConfig{})
	folder := t.TempDir()
	tokenFile := filepath.Join(folder, "token")
	project := func() {
		fresh, token := filepath.Join(folder, "next"), server.MintOIDCToken(emulator.OIDCToken{Life: emulator.Duration(10 * time.Second)})
		rig.Secret(token)
		require.NoError(t, os.WriteFile(fresh, []byte(token), 0o600))
		require.NoError(t, os.Rename(fresh, tokenFile))
	}
	project()

	var sources, sinks strings.Builder
	types := credentialTypes(server, url, tokenFile)
	for queue, credentials := range types {
		if _, found := server.QueueStats(queue); !found {
			require.NoError(t, server.CreateQueue(queue, emulator.QueueConfig{}))
		}
		name := strings.ToLower(strings.ReplaceAll(queue, "Alicom-Queue-", "alicom-"))
		fmt.Fprintf(&sources, "  %s: {queue: %s, endpoint: %s, wait: 1s, credentials: {%s}, to: %s}\n", name, queue, url, credentials, name)
		fmt.Fprintf(&sinks, "  %s: {type: file, path: %q}\n", name, filepath.Join(folder, name+".jsonl"))
	}
	r := startRelay(t, "sources:\n"+sources.String()+"sinks:\n"+sinks.String())

	var senders sync.WaitGroup
	sent := make(map[string]map[string]string)
	var mu sync.Mutex
	for queue := range types {
		senders.Go(func() {
			ids := send(t, server, queue, seconds*rate, rate)
			mu.Lock()
			defer mu.Unlock()
			sent[queue] = ids
		})
	}
	projecting := time.NewTicker(2 * time.Second)
	defer projecting.Stop()
	sending := make(chan struct{})
	go func() {
		senders.Wait()
		close(sending)
	}()
	for more := true; more; {
		select {
		case <-projecting.C:
			project()
		case <-sending:
			more = false
		}
	}
	for queue := range types {
		eventually(t, 20*time.Second, "every message of "+queue+" is deleted", func() bool { return left(t, server, queue) == 0 })
	}

	_, metrics := r.get("/metrics")
	for _, s := range r.status().Sources {
		require.EqualValues(t, seconds*rate, s.Balance.Received, "%s: each was received once", s.Name)
		require.True(t, s.Balance.Exact, s.Name)
		require.Nil(t, s.Credential.LastError, s.Name)
		if types := []string{"static", "default"}; !slices.Contains(types, s.Name) {
			require.Regexp(t, `mnsrelay_credential_refreshes_total\{result="success",source="`+s.Name+`"\} ([6-9]|[1-9][0-9])\n`, metrics, "%s: the first and five refreshes", s.Name)
		}
	}
	for queue := range types {
		name := strings.ToLower(strings.ReplaceAll(queue, "Alicom-Queue-", "alicom-"))
		require.Equal(t, sent[queue], arrived(t, filepath.Join(folder, name+".jsonl")), queue)
	}
	issued := server.Requests()
	for op, codes := range issued {
		for code, n := range codes {
			denied := code == "AccessDenied" && (op == emulator.OpAttributes || op == emulator.OpVisibility)
			if code != "OK" && code != "MessageNotExist" && !denied {
				t.Errorf("%d requests of %s were answered %s", n, op, code)
			}
		}
	}
	for _, path := range []string{"/metrics", "/api/v1/sources", "/api/v1/sinks"} {
		r.get(path) // which holds no secret
	}
	require.Zero(t, r.end(syscall.SIGTERM))
}

// arrived are the bodies in a file of the file sink, by message id.
func arrived(t *testing.T, path string) map[string]string {
	t.Helper()
	bodies := make(map[string]string)
	for line := range strings.Lines(readText(t, path)) {
		var m struct{ ID, Body string }
		require.NoError(t, json.Unmarshal([]byte(line), &m))
		require.NotContains(t, bodies, m.ID, "it came twice")
		bodies[m.ID] = m.Body
	}
	return bodies
}

func readText(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(text)
}

// What goes wrong with credentials loses nothing, is said once in the log and in status
// and metrics, and is over within five seconds of its cause.
func TestFaultsOfCredentials(t *testing.T) {
	t.Parallel()
	server, url, _ := startEmulator(t, emulator.Config{
		TokenLife: 3 * time.Second, InstanceRole: "instance",
		TokenPolicy: emulator.PolicyReceiveDelete, // as tokens of Alicom's may be
	}, emulator.QueueConfig{})
	folder := t.TempDir()
	tokenFile := filepath.Join(folder, "token")
	projectOne := func(claims emulator.OIDCToken) {
		fresh, token := filepath.Join(folder, "next"), server.MintOIDCToken(claims)
		rig.Secret(token)
		require.NoError(t, os.WriteFile(fresh, []byte(token), 0o600))
		require.NoError(t, os.Rename(fresh, tokenFile))
	}
	project := func() { projectOne(emulator.OIDCToken{}) }
	project()
	types := map[string]string{
		"rrsa":                          fmt.Sprintf("type: oidc_role_arn, role_arn: %q, oidc_provider_arn: %q, oidc_token_file: %q, endpoint: %s", server.RoleARN("pod"), server.OIDCProviderARN(), tokenFile, url),
		"ecs":                           "type: ecs_ram_role, endpoint: " + url,
		"uri":                           "type: credentials_uri, uri: " + url + "/credentials",
		"role":                          fmt.Sprintf("type: ram_role_arn, role_arn: %q, endpoint: %s", server.RoleARN("relay"), url),
		server.AlicomQueue("SmsReport"): "type: mns_token, endpoint: " + url,
	}
	var sources, sinks strings.Builder
	names := make(map[string]string)
	for queue, credentials := range types {
		if _, found := server.QueueStats(queue); !found {
			require.NoError(t, server.CreateQueue(queue, emulator.QueueConfig{}))
		}
		names[queue] = strings.ToLower(queue)
		// A poll lasts longer than keys live.
		fmt.Fprintf(&sources, "  %s: {queue: %s, endpoint: %s, wait: 8s, credentials: {%s}, to: %[1]s}\n", names[queue], queue, url, credentials)
		fmt.Fprintf(&sinks, "  %s: {type: file, path: %q}\n", names[queue], filepath.Join(folder, names[queue]+".jsonl"))
	}
	r := startRelay(t, "sources:\n"+sources.String()+"sinks:\n"+sinks.String())
	sent := make(map[string]map[string]string)
	sendAll := func(n int) {
		for queue := range types {
			if sent[queue] == nil {
				sent[queue] = make(map[string]string)
			}
			maps.Copy(sent[queue], send(t, server, queue, n, 0))
		}
	}
	drained := func(queue string) func() bool { return func() bool { return left(t, server, queue) == 0 } }
	sendAll(10)
	for queue := range types {
		eventually(t, 10*time.Second, queue+" flows", drained(queue))
	}
	everywhere := func(fault emulator.Fault) func() (mend func()) {
		return func() (mend func()) {
			var removes []func()
			for _, op := range []emulator.Op{emulator.OpToken, emulator.OpSTS, emulator.OpOIDC, emulator.OpMetadata, emulator.OpMetadataToken, emulator.OpURI} {
				f := fault
				f.Operation = op
				remove, err := server.AddFault(f)
				require.NoError(t, err)
				removes = append(removes, remove)
			}
			return func() {
				for _, remove := range removes {
					remove()
				}
			}
		}
	}

	for _, c := range []struct {
		name string
		// of are the sources that notice; nil: all.
		of     []string
		begin  func() (mend func())
		reason string // a part of what status says; empty: the keys go on and nobody notices
	}{
		{"the servers are down for longer than keys live", nil, everywhere(emulator.Fault{Connection: emulator.DropBefore}), "check that the endpoint is right and can be reached"},
		{"the servers take calls and never answer", nil, everywhere(emulator.Fault{Delay: emulator.Duration(time.Hour)}), "no answer in time"},
		{"keys end while a request is in flight", nil, func() (mend func()) {
			<-time.After(4 * time.Second) // of polls that find nothing
			return func() {}
		}, ""},
		{"the servers fail", nil, everywhere(emulator.Fault{Status: 503, Code: "ServiceUnavailable"}), "HTTP 503"},
		{"the servers answer with HTML", nil, everywhere(emulator.Fault{Status: 200, Body: "<html>maintenance"}), "check the endpoint"},
		{"the servers answer 200 and refuse", []string{names[server.AlicomQueue("SmsReport")], "uri"}, everywhere(emulator.Fault{Status: 200, Code: "isp.SYSTEM_ERROR"}), "isp.SYSTEM_ERROR"},
		{"keys are revoked", nil, func() (mend func()) {
			server.RevokeTokens()
			return func() {}
		}, ""},
		{"the projected token is emptied", []string{"rrsa"}, func() (mend func()) {
			require.NoError(t, os.WriteFile(tokenFile, nil, 0o600))
			return project
		}, "is empty"},
		{"the projected token is gone", []string{"rrsa"}, func() (mend func()) {
			require.NoError(t, os.Remove(tokenFile))
			return project
		}, "read oidc_token_file"},
		{"the projected token is for others", []string{"rrsa"}, func() (mend func()) {
			projectOne(emulator.OIDCToken{Audience: "kubernetes"})
			return project
		}, "sts.aliyuncs.com"},
		{"the projected token cannot be read", []string{"rrsa"}, func() (mend func()) {
			require.NoError(t, os.Remove(tokenFile))
			require.NoError(t, os.Mkdir(tokenFile, 0o700))
			return func() {
				require.NoError(t, os.Remove(tokenFile))
				project()
			}
		}, "is a directory"},
	} {
		of := c.of
		if of == nil {
			for _, name := range names {
				of = append(of, name)
			}
		}
		lines := func(message, name string) (n int) {
			for line := range strings.Lines(r.log()) {
				if strings.Contains(line, message) && strings.Contains(line, fmt.Sprintf(`"used_by":[%q]`, name)) {
					n++
				}
			}
			return n
		}
		failures := func(name string) (n int) {
			_, metrics := r.get("/metrics")
			_, after, found := strings.Cut(metrics, `mnsrelay_credential_refreshes_total{result="failure",source="`+name+`"} `)
			require.True(t, found)
			_, err := fmt.Sscan(after, &n)
			require.NoError(t, err)
			return n
		}
		const began, ended = "credential not refreshed", "credential refreshed again"
		before, failed := make(map[string]int), make(map[string]int)
		for _, name := range of {
			before[name], failed[name] = lines(began, name), failures(name)
		}
		mend := c.begin()
		if c.reason != "" {
			for _, name := range of {
				eventually(t, 10*time.Second, c.name+": status of "+name+" says "+c.reason, func() bool {
					for _, s := range r.status().Sources {
						if s.Name == name {
							return s.Credential.LastError != nil && strings.Contains(s.Credential.LastError.Text, c.reason)
						}
					}
					return false
				})
			}
			// Until the keys have ended, and the source waits for others.
			<-time.After(3500 * time.Millisecond)
			for _, name := range of {
				require.Greater(t, failures(name), failed[name], "%s: the metric of %s", c.name, name)
			}
		}
		sendAll(10)
		mend()
		mended := time.Now()
		for queue := range types {
			eventually(t, 5*time.Second-time.Since(mended), c.name+": "+queue+" flows again", drained(queue))
		}
		for _, name := range of {
			if c.reason == "" {
				require.Equal(t, before[name], lines(began, name), "%s: %s is nothing to say", c.name, name)
				continue
			}
			require.Equal(t, before[name]+1, lines(began, name), "%s: %s is said once", c.name, name)
			eventually(t, 5*time.Second, c.name+": the end for "+name+" is said", func() bool { return lines(ended, name) == lines(began, name) })
		}
	}
	for queue := range types {
		require.Equal(t, sent[queue], arrived(t, filepath.Join(folder, names[queue]+".jsonl")), queue)
	}
	require.Zero(t, r.end(syscall.SIGTERM))
}

// Keys that have never come: the relay lives and is not ready, says why, and works within
// five seconds of the mend.
func TestKeysThatNeverCame(t *testing.T) {
	t.Parallel()
	server, url, _ := startEmulator(t, emulator.Config{Roles: map[string]emulator.Role{"late": {}}}, emulator.QueueConfig{})
	require.NoError(t, server.CreateQueue("ecs", emulator.QueueConfig{}))
	path := filepath.Join(t.TempDir(), "all.jsonl")
	r := startRelay(t, fmt.Sprintf(`
sources: {ecs: {queue: ecs, endpoint: %s, wait: 1s, credentials: {type: ecs_ram_role, endpoint: %[1]s}, to: all}}
sinks: {all: {type: file, path: %[2]q}}
`, url, path))
	sent := send(t, server, "ecs", 10, 0)
	eventually(t, 5*time.Second, "status says why", func() bool {
		return strings.Contains(r.source().Reason, "the instance has no RAM role: bind one to it")
	})
	code, body := r.get("/readyz")
	require.Equal(t, 503, code)
	require.Contains(t, body, "the instance has no RAM role")
	code, _ = r.get("/livez")
	require.Equal(t, 200, code)
	require.NoError(t, server.SetInstanceRole("late"))
	eventually(t, 5*time.Second, "every message is deleted", func() bool { return left(t, server, "ecs") == 0 })
	require.Equal(t, sent, arrived(t, path))
	code, _ = r.get("/readyz")
	require.Equal(t, 200, code)
	require.Zero(t, r.end(syscall.SIGTERM))
}

// Two hundred sources that begin at once, each with a token of its own, and an outage of the
// server of tokens: no second has more than ten calls, none is lost, and all flow again.
func TestTwoHundredTokens(t *testing.T) {
	t.Parallel()
	const sources = 200
	server, url, _ := startEmulator(t, emulator.Config{TokenLife: 90 * time.Second}, emulator.QueueConfig{})
	// Ten are sent in a second; two more may arrive in it.
	_, err := server.AddFault(emulator.Fault{Operation: emulator.OpToken, Status: 400, Code: "Throttling.User", PerSecond: 12})
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "all.jsonl")
	var text strings.Builder
	var queues []string
	for n := range sources {
		queue := fmt.Sprintf("Alicom-Queue-%d-SmsReport", n)
		queues = append(queues, queue)
		require.NoError(t, server.CreateQueue(queue, emulator.QueueConfig{}))
		fmt.Fprintf(&text, "  s%d: {queue: %s, endpoint: %s, wait: 20s, pollers: {max: 1}, credentials: {type: mns_token, endpoint: %[3]s}, to: all}\n", n, queue, url)
	}
	r := startRelay(t, "sources:\n"+text.String()+fmt.Sprintf("sinks: {all: {type: file, path: %q}}\n", path))
	sent := make(map[string]string)
	flow := func(what string, within time.Duration) {
		for _, queue := range queues {
			maps.Copy(sent, send(t, server, queue, 1, 0))
		}
		eventually(t, within, what, func() bool {
			return !slices.ContainsFunc(queues, func(queue string) bool { return left(t, server, queue) > 0 })
		})
	}
	flow("all flow", 30*time.Second)
	// They are refreshed a third of their life before the end, and it is over before that.
	remove, err := server.AddFault(emulator.Fault{Operation: emulator.OpToken, Connection: emulator.DropBefore})
	require.NoError(t, err)
	eventually(t, 90*time.Second, "refreshes fail", func() bool {
		return strings.Count(r.log(), "credential not refreshed") > sources/4
	})
	remove()
	flow("all flow on", 10*time.Second)
	eventually(t, 60*time.Second, "all are refreshed", func() bool {
		for _, s := range r.status().Sources {
			if s.Credential.LastError != nil || s.Credential.Expires.Before(time.Now().Add(20*time.Second)) {
				return false
			}
		}
		return true
	})
	flow("all flow to the end", 10*time.Second)
	require.Equal(t, sent, arrived(t, path))
	require.Zero(t, server.Requests()[emulator.OpToken]["Throttling.User"])
	require.Zero(t, r.end(syscall.SIGTERM))
}

// A machine whose clock is wrong signs with the server's time, and its keys last as long
// as they do.
func TestClocksThatDiffer(t *testing.T) {
	t.Parallel()
	for _, offset := range []time.Duration{20 * time.Minute, -20 * time.Minute, 8 * time.Hour, -8 * time.Hour} {
		t.Run(offset.String(), func(t *testing.T) {
			t.Parallel()
			server, url, queue := startEmulator(t, emulator.Config{TokenLife: 4 * time.Second, InstanceRole: "instance"}, emulator.QueueConfig{})
			server.SetClockOffset(offset)
			for _, q := range []string{"ecs", "rrsa", "role"} {
				require.NoError(t, server.CreateQueue(q, emulator.QueueConfig{}))
			}
			folder := t.TempDir()
			path, tokenFile := filepath.Join(folder, "all.jsonl"), filepath.Join(folder, "token")
			require.NoError(t, os.WriteFile(tokenFile, []byte(server.MintOIDCToken(emulator.OIDCToken{})), 0o600))
			r := startRelay(t, fmt.Sprintf(`
sources:
  token: {queue: %s, endpoint: %[2]s, wait: 1s, credentials: {type: mns_token, endpoint: %[2]s}, to: all}
  ecs: {queue: ecs, endpoint: %[2]s, wait: 1s, credentials: {type: ecs_ram_role, endpoint: %[2]s}, to: all}
  rrsa: {queue: rrsa, endpoint: %[2]s, wait: 1s, credentials: {type: oidc_role_arn, endpoint: %[2]s, role_arn: %[4]q, oidc_provider_arn: %[5]q, oidc_token_file: %[6]q}, to: all}
  role: {queue: role, endpoint: %[2]s, wait: 1s, credentials: {type: ram_role_arn, endpoint: %[2]s, role_arn: %[4]q}, to: all}
sinks: {all: {type: file, path: %[3]q}}
`, queue, url, path, server.RoleARN("relay"), server.OIDCProviderARN(), tokenFile))
			sent := send(t, server, queue, 40, 5)
			for _, q := range []string{"ecs", "rrsa", "role"} {
				maps.Copy(sent, send(t, server, q, 10, 0))
			}
			for _, q := range []string{queue, "ecs", "rrsa", "role"} {
				eventually(t, 10*time.Second, "every message is deleted", func() bool { return left(t, server, q) == 0 })
			}
			require.Equal(t, sent, arrived(t, path))
			for op, codes := range server.Requests() {
				for code, n := range codes {
					// The first of each connection, before it is known.
					if code != "OK" && code != "MessageNotExist" && code != "TimeExpired" && code != "InvalidTimeStamp.Expired" {
						t.Errorf("%d requests of %s were answered %s", n, op, code)
					}
				}
			}
			require.Zero(t, r.end(syscall.SIGTERM))
		})
	}
}
