package e2e_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/emulator"
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
	const seconds, rate = 16, 10
	server, url, _ := startEmulator(t, emulator.Config{
		TokenLife: 3 * time.Second, InstanceRole: "instance", MetadataTokenRequired: true,
		Roles: map[string]emulator.Role{"relay": {ExternalID: "partner"}, "pod": {}, "instance": {}},
	}, emulator.QueueConfig{})
	folder := t.TempDir()
	tokenFile := filepath.Join(folder, "token")
	project := func() {
		fresh := filepath.Join(folder, "next")
		require.NoError(t, os.WriteFile(fresh, []byte(server.MintOIDCToken(emulator.OIDCToken{Life: emulator.Duration(6 * time.Second)})), 0o600))
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

	for _, s := range r.status().Sources {
		require.EqualValues(t, seconds*rate, s.Balance.Received, "%s: each was received once", s.Name)
		require.True(t, s.Balance.Exact, s.Name)
		require.Empty(t, s.Credential.LastError, s.Name)
	}
	for queue := range types {
		name := strings.ToLower(strings.ReplaceAll(queue, "Alicom-Queue-", "alicom-"))
		require.Equal(t, sent[queue], arrived(t, filepath.Join(folder, name+".jsonl")), queue)
	}
	issued := server.Requests()
	for op, codes := range issued {
		for code, n := range codes {
			if code != "OK" && code != "MessageNotExist" {
				t.Errorf("%d requests of %s were answered %s", n, op, code)
			}
		}
	}
	for _, op := range []emulator.Op{emulator.OpToken, emulator.OpSTS, emulator.OpOIDC, emulator.OpMetadata, emulator.OpURI} {
		require.GreaterOrEqual(t, issued[op]["OK"], int64(6), "%s: the first and five refreshes", op)
	}
	_, metrics := r.get("/metrics")
	for _, secret := range []string{keySecret, readText(t, tokenFile)} {
		require.NotContains(t, r.log()+metrics, secret)
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
