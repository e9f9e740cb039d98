package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/emulator"
)

const floodToken = "a-token-for-the-test-of-the-flood"

// flooded is a relay of two queues, whose bodies are not what they should be: it dead-letters those
// of one, and keeps those of the other.
const flooded = `
server: {listen: "127.0.0.1:0", admin_token: "` + floodToken + `"}
sources:
  refused:
    endpoint: EMULATOR
    queue: refused
    credentials: {type: static, access_key_id: emulator, access_key_secret: emulator-secret}
    body: base64
    to: out
    dead_letter: dead
    dead_letter_limit: {count: 100000, per: 1h}
  kept: {endpoint: EMULATOR, queue: kept, credentials: {type: static, access_key_id: emulator, access_key_secret: emulator-secret}, body: base64, to: out}
sinks:
  out: {type: file, path: FOLDER/out.jsonl}
  dead: {type: file, path: FOLDER/dead.jsonl}
`

// A relay that fails at every message says so in a few lines, and loses none of it: each dead
// letter is where it should be, and the lines say how many there were.
func TestAFloodOfFailuresIsFewLines(t *testing.T) {
	const messages = 3000
	url, _ := startEmulator(t, "--queue", "refused", "--queue", "kept")
	setKeys(t, emulator.DemoAccessKeyID, emulator.DemoAccessKeySecret)
	bodies := make([]string, messages)
	for i := range bodies {
		bodies[i] = fmt.Sprintf("!%d", i)
	}
	send(t, url, "refused", bodies...)
	send(t, url, "kept", bodies[:500]...)
	folder := t.TempDir()
	path := written(t, map[string]string{"mnsrelay.yaml": strings.NewReplacer("EMULATOR", url, "FOLDER", folder).Replace(flooded)})("mnsrelay.yaml")

	cmd := exec.CommandContext(t.Context(), program(t), "run", "--config", path)
	cmd.Env = append(os.Environ(), actAsProgram+"=1")
	stderr, err := cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	api := make(chan string, 1)
	log := make(chan []map[string]any, 1)
	go func() {
		var all []map[string]any
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			line := map[string]any{"message": lines.Text()}
			_ = json.Unmarshal(lines.Bytes(), &line) // else it is shown as it is
			if all = append(all, line); line["message"] == "relay started" {
				api <- "http://" + line["api"].(string)
			}
		}
		log <- all
	}()
	var base string
	select {
	case base = <-api:
	case all := <-log:
		require.Fail(t, "the relay ended", all)
	}
	// A message is deleted after its line was logged.
	deleted := func(n int) func() bool {
		return func() bool {
			return strings.Contains(metrics(t, base), fmt.Sprintf("mnsrelay_messages_deleted_total{source=\"refused\"} %d\n", n))
		}
	}
	require.Eventually(t, deleted(messages), time.Minute, 20*time.Millisecond)

	// The level holds from the moment it is set.
	setLevel(t, base, "error")
	send(t, url, "refused", "!the last one")
	require.Eventually(t, deleted(messages+1), time.Minute, 20*time.Millisecond)
	setLevel(t, base, "info")
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	all := <-log
	require.NoError(t, cmd.Wait())

	kinds, counted := map[string]int{}, map[string]int{}
	for _, line := range all {
		kind := fmt.Sprint(line["message"], " ", line["source"])
		suppressed, _ := line["suppressed"].(float64)
		kinds[kind]++
		counted[kind] += 1 + int(suppressed)
	}
	for kind, n := range kinds {
		require.LessOrEqual(t, n, 20, kind) // ten, and one every ten seconds
	}
	require.Equal(t, messages, counted["message dead-lettered refused"], "what was left out is counted, the one at level error aside")
	require.GreaterOrEqual(t, counted["message rejected; it stays in the queue and is retried at growing intervals kept"], 1, "one source does not hide the other")
	require.Equal(t, 1, counted["drained <nil>"])
}

func metrics(t *testing.T, base string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/metrics", http.NoBody)
	require.NoError(t, err)
	resp, err := (&http.Client{}).Do(req)
	require.NoError(t, err)
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	return string(text)
}

func setLevel(t *testing.T, base, level string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, base+"/api/v1/log-level", strings.NewReader(`{"level": "`+level+`"}`))
	require.NoError(t, err)
	req.Header.Set("Authorization", "Bearer "+floodToken)
	req.Header.Set("Content-Type", "application/json")
	resp, err := (&http.Client{}).Do(req)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, http.StatusOK, resp.StatusCode)
}
