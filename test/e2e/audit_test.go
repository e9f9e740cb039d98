package e2e_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/api"
	"mnsrelay/internal/emulator"
	"mnsrelay/test/broker"
	"mnsrelay/test/rig"
)

// whereIs runs the command and gives what it printed and its exit code.
func whereIs(t *testing.T, stdin string, args ...string) (out, said string, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binary, append([]string{"where"}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	cmd.Env = append(os.Environ(), "ALIBABA_CLOUD_ACCESS_KEY_ID="+keyID, "ALIBABA_CLOUD_ACCESS_KEY_SECRET="+keySecret)
	err := cmd.Run()
	require.NotNil(t, cmd.ProcessState, "%v", err)
	return stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()
}

const hashSecret = "hash-secret-of-the-audit-0123456789"

// longLeases keep a message from coming twice, however slow the machine is.
var longLeases = emulator.QueueConfig{VisibilityTimeout: 10 * time.Minute}

// audited adds an audit to a configuration.
func audited(configuration, path string) string {
	return configuration + fmt.Sprintf(`
  lines: {type: file, path: %q}
audit: {to: lines, key: '{{ body.biz_id }}', hash_secret: %q}
`, path, hashSecret)
}

// Each confirm has one line, with its target and a hash of its key and with nothing of its
// body; "where" finds it by id and by key.
func TestTheAuditHasALineForEachConfirm(t *testing.T) {
	t.Parallel()
	rig.Secret(hashSecret)
	server, url, queue := startEmulator(t, emulator.Config{}, longLeases)
	b := newInbox(t, broker.URL(t))
	b.start()
	sent := send(t, server, queue, 300, 0)
	hostile := "900^\n{\"time\":\"x\",\"audit\":\"delivered\",\"message_id\":\"forged\"}\n"
	body, err := json.Marshal(map[string]string{"biz_id": hostile})
	require.NoError(t, err)
	id, err := server.SendBase64(queue, body)
	require.NoError(t, err)
	sent[id] = string(body)
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	file := newConfigFile(t, audited(toRabbitMQ(url, queue, b, ""), path))
	r := runRelay(t, file.path)
	eventually(t, 20*time.Second, "every message is deleted", func() bool { return left(t, server, queue) == 0 })
	lines := auditLines(t, path) // on the disk before the deletes
	require.Len(t, lines, len(sent))
	for _, line := range lines {
		require.Contains(t, sent, line.MessageID)
		delete(sent, line.MessageID)
		require.Equal(t, "delivered", line.Audit)
		require.Equal(t, []string{"sms", "sms", "events", b.exchange}, []string{line.Source, line.Route, line.Sink, line.Target})
		require.Equal(t, 1, line.Attempt)
		require.Positive(t, line.Duration)
		require.Empty(t, line.Key)
		require.Len(t, line.KeyHash, sha256.Size*2)
	}
	require.Empty(t, sent)
	mac := hmac.New(sha256.New, []byte(hashSecret))
	mac.Write([]byte("7^0"))
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, 1, strings.Count(string(text), hex.EncodeToString(mac.Sum(nil))))
	require.NotContains(t, string(text), "13900001234")
	require.NotContains(t, string(text), hashSecret)
	_, metrics := r.get("/metrics")
	require.Contains(t, metrics, `mnsrelay_audit_lines_total{result="written"} 301`+"\n")
	require.Contains(t, metrics, `mnsrelay_audit_lines_total{result="lost"} 0`+"\n")

	one := lines[0].MessageID
	for _, name := range []string{one, "7^0", hostile} {
		out, said, code := whereIs(t, "", name, "--config", file.path)
		require.Zero(t, code, said)
		require.Contains(t, out, b.exchange)
		require.Contains(t, out, "delivered")
		require.Equal(t, 2, strings.Count(out, "\n"), out)
	}
	out, said, code := whereIs(t, "", "7^0", "--file", path)
	require.Equal(t, 1, code)
	require.Empty(t, out)
	require.Contains(t, said, "Keys are hashed in this audit")
	_, said, code = whereIs(t, "", "forged", "--config", file.path)
	require.Equal(t, 1, code)
	require.Contains(t, said, "in that time no sink has confirmed it")

	// The file is moved, as logrotate does it, and the relay asked.
	require.NoError(t, os.Rename(path, path+".1"))
	out, said, code = whereIs(t, "", one, "--json", "--config", file.path, "--url", r.URL())
	require.Zero(t, code, said)
	var found struct{ Events []auditLine }
	require.NoError(t, json.Unmarshal([]byte(out), &found))
	require.Equal(t, lines[:1], found.Events)
	require.Zero(t, r.end(syscall.SIGTERM))
}

// Whatever is killed between confirm, line and delete: no message leaves its queue without a
// line on the disk.
func TestAKilledRelayHasALineForEveryDelivery(t *testing.T) {
	t.Parallel()
	rig.Secret(hashSecret)
	server, url, queue := startEmulator(t, emulator.Config{}, emulator.QueueConfig{VisibilityTimeout: 2 * time.Second})
	b := newInbox(t, broker.URL(t))
	b.start()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	file := newConfigFile(t, audited(toRabbitMQ(url, queue, b, "    wait: 1s"), path))
	sent := send(t, server, queue, 4000, 0)
	for n := range 4 {
		r := runRelay(t, file.path)
		eventually(t, 20*time.Second, "some are deleted", func() bool { return left(t, server, queue) < len(sent)-(n+1)*700 })
		require.Equal(t, -1, r.end(syscall.SIGKILL))
	}
	r := runRelay(t, file.path)
	eventually(t, 60*time.Second, "every message is deleted", func() bool { return left(t, server, queue) == 0 })
	require.Zero(t, r.end(syscall.SIGTERM))
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	seen := map[string]bool{}
	for one := range strings.Lines(string(text)) {
		var line auditLine
		if json.Unmarshal([]byte(one), &line) == nil { // a kill may leave half a line
			seen[line.MessageID] = true
		}
	}
	for id := range sent {
		require.True(t, seen[id], "message %s was deleted and has no line", id)
	}
	b.requireAll(sent)
}

// What was not delivered is told of as well, and a dead letter by the key of its message.
func TestTheAuditTellsOfDeadLettersAndDrops(t *testing.T) {
	t.Parallel()
	server, url, queue := startEmulator(t, emulator.Config{}, emulator.QueueConfig{})
	b := newInbox(t, broker.URL(t))
	folder := t.TempDir()
	r := startRelay(t, fmt.Sprintf(`
audit: {to: log, key: '{{ body.biz_id }}'}
sources:
  sms: {queue: %s, endpoint: %s, credentials: {endpoint: %[2]s}, unmatched: delete, dead_letter: dead}
sinks:
  bound: {type: amqp091, url: %[3]q, exchange: %[4]s, routing_key: 'x.{{ body.part }}'}
  lost: {type: amqp091, url: %[3]q, exchange: amq.direct, routing_key: nobody.is.bound, unroutable: drop}
  dead: {type: file, path: "%[5]s/dead"}
routes:
  - {name: bound, from: [sms], when: body.to == "bound", to: bound}
  - {name: lost, from: [sms], when: body.to == "lost", to: lost}
`, queue, url, b.url, b.exchange, folder))
	for biz, body := range map[string]string{
		"good": `"to": "bound", "part": 1`, "rejected": `"to": "bound"`, "dropped": `"to": "lost"`, "unmatched": `"to": "nobody"`,
	} {
		_, err := server.SendBase64(queue, fmt.Appendf(nil, `{"biz_id": %q, %s}`, biz, body))
		require.NoError(t, err)
	}
	eventually(t, 10*time.Second, "every message is deleted", func() bool { return left(t, server, queue) == 0 })
	require.Zero(t, r.end(syscall.SIGTERM))
	for key, want := range map[string][]string{
		"good": {"delivered", "bound", b.exchange}, "rejected": {"dead-lettered", "dead", "expression"},
		"dropped": {"dropped", "lost", "amq.direct"}, "unmatched": {"deleted as unmatched"},
	} {
		out, said, code := whereIs(t, "other lines\n"+r.log()+`{"audit":"deliv`, key, "--file", "-")
		require.Zero(t, code, said)
		require.Equal(t, 2, strings.Count(out, "\n"), out)
		for _, part := range want {
			require.Contains(t, out, part)
		}
	}
}

// An audit that cannot be written holds up no message; it is said once, and counted.
func TestAnAuditThatCannotBeWrittenHoldsUpNothing(t *testing.T) {
	t.Parallel()
	rig.Secret(hashSecret)
	server, url, queue := startEmulator(t, emulator.Config{}, longLeases)
	b := newInbox(t, broker.URL(t))
	b.start()
	folder := filepath.Join(t.TempDir(), "not-mounted")
	r := startRelay(t, audited(toRabbitMQ(url, queue, b, ""), filepath.Join(folder, "audit.jsonl")))
	begun := time.Now()
	sent := send(t, server, queue, 1000, 0)
	eventually(t, 20*time.Second, "every message is deleted", func() bool { return left(t, server, queue) == 0 })
	t.Logf("took %v", time.Since(begun))
	// A machine that is slow may say before that the audit is.
	eventually(t, 10*time.Second, "it is said", func() bool { return strings.Contains(r.log(), "the audit cannot be written") })
	require.Equal(t, 1, strings.Count(r.log(), "the audit cannot be written"))
	eventually(t, 10*time.Second, "the sink is down, and the alert on it is the audit's", func() bool {
		return slices.ContainsFunc(r.status().Sinks, func(s api.Sink) bool {
			return s.Name == "lines" && s.State == api.SinkStateDown && strings.Contains(s.Reason, "no such file")
		})
	})
	// What waits is written when the disk is back.
	require.NoError(t, os.Mkdir(folder, 0o700))
	eventually(t, 10*time.Second, "the lines are written", func() bool {
		text, _ := os.ReadFile(filepath.Join(folder, "audit.jsonl"))
		return bytes.Count(text, []byte("\n")) == len(sent)
	})
	eventually(t, 20*time.Second, "and it is said, after a quick write", func() bool {
		if strings.Contains(r.log(), "the audit is written again") {
			return true
		}
		send(t, server, queue, 1, len(sent))
		return false
	})
	require.Zero(t, r.end(syscall.SIGTERM))
}

// A reload turns the audit on and off without a restart.
func TestAReloadTurnsTheAuditOn(t *testing.T) {
	t.Parallel()
	rig.Secret(hashSecret)
	server, url, queue := startEmulator(t, emulator.Config{}, longLeases)
	b := newInbox(t, broker.URL(t))
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	without := toRabbitMQ(url, queue, b, "    wait: 1s")
	file := newConfigFile(t, without)
	r := runRelay(t, file.path)
	for n, configuration := range []string{without, audited(without, path), without} {
		if n > 0 {
			file.write(configuration)
			require.NoError(t, r.Signal(syscall.SIGHUP))
			eventually(t, 20*time.Second, "reloaded", func() bool { return strings.Count(r.log(), `"message":"reloaded"`) == n })
		}
		send(t, server, queue, 10, 0)
		eventually(t, 10*time.Second, "deleted", func() bool { return left(t, server, queue) == 0 })
	}
	require.Len(t, auditLines(t, path), 10)
	require.True(t, r.source().Balance.Exact)
	require.Zero(t, r.end(syscall.SIGTERM))
}
