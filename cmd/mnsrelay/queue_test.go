package main

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/emulator"
	"mnsrelay/internal/mns"
)

const alicomQueue = "Alicom-Queue-1234567890123456-SmsReport"

func setKeys(t *testing.T, id, secret string) {
	t.Helper()
	t.Setenv("ALIBABA_CLOUD_ACCESS_KEY_ID", id)
	t.Setenv("ALIBABA_CLOUD_ACCESS_KEY_SECRET", secret)
	t.Setenv("ALIBABA_CLOUD_SECURITY_TOKEN", "")
	// Nothing but these keys is found.
	t.Setenv("ALIBABA_CLOUD_ECS_METADATA_DISABLED", "true")
	t.Setenv("HOME", t.TempDir())
}

func TestEmulatorSaysWhatToSet(t *testing.T) {
	url, said := startEmulator(t, "--queue", "orders", "--queue", alicomQueue)
	require.Contains(t, said, "with 2 queues: orders, "+alicomQueue)
	require.Contains(t, said, "export ALIBABA_CLOUD_ACCESS_KEY_ID="+emulator.DemoAccessKeyID+"\n")
	require.Contains(t, said, "export ALIBABA_CLOUD_ACCESS_KEY_SECRET="+emulator.DemoAccessKeySecret+"\n")
	require.Contains(t, said, "endpoint: "+url+"\n")

	_, said = startEmulator(t, "--access-key", "mine:hush")
	require.Contains(t, said, "export ALIBABA_CLOUD_ACCESS_KEY_ID=mine\n")
	require.NotContains(t, said, "hush")
	require.Contains(t, said, "credentials: {type: mns_token, message_type: SmsReport, ")
}

func TestEmulatorIssuesCredentials(t *testing.T) {
	url, said := startEmulator(t)
	require.Contains(t, said, "role acs:ram::"+emulator.DefaultAccountID+":role/mnsrelay\n")
	require.Contains(t, said, url+"/_emulator/oidc-token")
	for path, want := range map[string]string{
		"/latest/meta-data/ram/security-credentials/":         "mnsrelay",
		"/latest/meta-data/ram/security-credentials/mnsrelay": `"Code":"Success"`,
		"/credentials": `"Code":"Success"`,
	} {
		require.Contains(t, said, url+path[:strings.Index(path[1:]+"/", "/")+1])
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+path, http.NoBody)
		require.NoError(t, err)
		response, err := (&http.Client{}).Do(request)
		require.NoError(t, err)
		body, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		require.Contains(t, string(body), want)
	}
}

// peeked is a line of queue peek.
type peeked struct {
	ID         string            `json:"id"`
	Attributes map[string]string `json:"attributes"`
	Error      string            `json:"error"`
	Body       *string           `json:"body"`
	BodyBase64 []byte            `json:"body_base64"`
}

func (p peeked) body() string {
	if p.Body != nil {
		return *p.Body
	}
	return string(p.BodyBase64)
}

func readPeeked(t *testing.T, out string) []peeked {
	t.Helper()
	var ps []peeked
	for line := range strings.Lines(out) {
		var p peeked
		require.NoError(t, json.Unmarshal([]byte(line), &p))
		ps = append(ps, p)
	}
	return ps
}

func TestSendPeekStats(t *testing.T) {
	url, _ := startEmulator(t, "--queue", "orders")
	setKeys(t, emulator.DemoAccessKeyID, emulator.DemoAccessKeySecret)
	at := []string{"--endpoint", url, "--queue", "orders"}
	do := func(stdin string, args ...string) outcome {
		return command(t, stdin, append(append([]string{"queue"}, args...), at...)...)
	}

	got := do("", "peek")
	require.Equal(t, outcome{stderr: "there is no visible message\n"}, got)
	got = do("", "stats")
	require.Equal(t, exitDone, got.code)
	require.Contains(t, got.stdout, "active                -\n")
	require.Contains(t, got.stderr, "note: - is where the server says 0")

	sent := do("ignored", "send", "a <&> \"b\"", "")
	require.Equal(t, exitDone, sent.code, sent.stderr)
	ids := strings.Fields(sent.stdout)
	require.Len(t, ids, 2)
	sent = do("a\x00\xff\n\nzwei\r\n", "send", "--base64")
	require.Equal(t, exitDone, sent.code, sent.stderr)
	ids = append(ids, strings.Fields(sent.stdout)...)
	require.Len(t, ids, 4)
	require.Equal(t, exitDone, do("", "send", "--delay", "1h", "later").code)

	got = do("", "peek")
	require.Equal(t, exitDone, got.code, got.stderr)
	messages := readPeeked(t, got.stdout)
	bodies := make([]string, 0, len(messages))
	for i, m := range messages {
		require.Equal(t, ids[i], m.ID)
		bodies = append(bodies, m.body())
	}
	// The binary body is not taken for base64: it might be meant as it is.
	require.Equal(t, []string{"a <&> \"b\"", "", "YQD/", "zwei"}, bodies)

	got = do("", "peek", "--body", "base64", "--max", "3")
	messages = readPeeked(t, got.stdout)
	require.Len(t, messages, 3)
	require.Contains(t, messages[0].Error, "not base64")
	require.Equal(t, "a <&> \"b\"", messages[0].body())
	require.Equal(t, "a\x00\xff", string(messages[2].BodyBase64))

	got = do("", "stats")
	require.Equal(t, exitDone, got.code, got.stderr)
	require.Contains(t, got.stdout, "active                4\n")
	require.Contains(t, got.stdout, "delayed               1\n")
	require.Contains(t, got.stdout, "visibility timeout    30s\n")
	require.Empty(t, got.stderr)
}

func TestSendGathersRequestsWithinTheLimits(t *testing.T) {
	server, err := emulator.New(emulator.Config{Queues: map[string]emulator.QueueConfig{"orders": {}}})
	require.NoError(t, err)
	url, err := server.Start(t.Context(), "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Close()) })
	setKeys(t, emulator.DemoAccessKeyID, emulator.DemoAccessKeySecret)

	send := func(stdin string) outcome {
		return command(t, stdin, "queue", "send", "--endpoint", url, "--queue", "orders")
	}
	got := send(strings.Repeat("x\n", 33))
	require.Equal(t, exitDone, got.code, got.stderr)
	require.Len(t, strings.Fields(got.stdout), 33)
	require.Equal(t, int64(3), total(server, emulator.OpSend))

	server.ResetRequests()
	got = send(strings.Repeat(strings.Repeat("x", 30<<10)+"\n", 4))
	require.Equal(t, exitDone, got.code, got.stderr)
	require.Equal(t, int64(2), total(server, emulator.OpSend))

	// The largest body is sent; what is larger is not, and what came before it is.
	got = send(strings.Repeat("x", mns.MaxBody) + "\nx\n" + strings.Repeat("x", mns.MaxBody+1) + "\n")
	require.Equal(t, exitFailed, got.code)
	require.Len(t, strings.Fields(got.stdout), 2)
	require.Contains(t, got.stderr, strconv.Itoa(mns.MaxBody+1))
	got = send("x\n" + strings.Repeat("x", mns.MaxBody+100) + "\n")
	require.Equal(t, exitFailed, got.code)
	require.Len(t, strings.Fields(got.stdout), 1)
	require.Contains(t, got.stderr, "a line is longer")

	got = send("\n")
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, "nothing was sent")
}

func total(server *emulator.Server, op emulator.Op) (n int64) {
	for _, count := range server.Requests()[op] {
		n += count
	}
	return n
}

func TestQueueFailuresSayWhatToDo(t *testing.T) {
	url, _ := startEmulator(t, "--queue", "orders")
	tests := []struct {
		name, id, secret, endpoint, queue string
		want                              []string
	}{
		{"no queue", emulator.DemoAccessKeyID, emulator.DemoAccessKeySecret, url, "nothing", []string{"QueueNotExist", "check the endpoint and the name"}},
		{"wrong secret", emulator.DemoAccessKeyID, "hush-hush", url, "orders", []string{"SignatureDoesNotMatch", "check the access key"}},
		{"unknown key", "someone", "hush-hush", url, "orders", []string{"InvalidAccessKeyId", "check the access key"}},
		{"no keys", "", "", url, "orders", []string{"there are none in the environment (ALIBABA_CLOUD_ACCESS_KEY_ID and"}},
		{"no server", emulator.DemoAccessKeyID, "hush-hush", "http://127.0.0.1:1", "orders", []string{"connection refused"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			setKeys(t, tt.id, tt.secret)
			for _, verb := range []string{"stats", "peek"} {
				got := command(t, "", "queue", verb, "--endpoint", tt.endpoint, "--queue", tt.queue)
				require.Equal(t, exitFailed, got.code)
				require.Empty(t, got.stdout)
				for _, want := range tt.want {
					require.Contains(t, got.stderr, want)
				}
				require.NotContains(t, got.stderr, "hush-hush")
			}
		})
	}
}

// A source's own credentials are used: here a token that may only receive and delete.
func TestQueueOfAConfiguration(t *testing.T) {
	url, _ := startEmulator(t, "--token-policy", "receive-and-delete")
	setKeys(t, emulator.DemoAccessKeyID, emulator.DemoAccessKeySecret)
	path := filepath.Join(t.TempDir(), "mnsrelay.yaml")
	require.NoError(t, os.WriteFile(path, []byte(`
sources:
  sms:
    preset: none
    endpoint: `+url+`
    queue: `+alicomQueue+`
    credentials: {type: mns_token, message_type: SmsReport, endpoint: "`+url+`"}
    to: out
  keys:
    preset: none
    endpoint: `+url+`
    queue: `+alicomQueue+`
    body: raw
    credentials:
      type: static
      access_key_id: ${ALIBABA_CLOUD_ACCESS_KEY_ID}
      access_key_secret: ${ALIBABA_CLOUD_ACCESS_KEY_SECRET}
    to: out
sinks:
  out: {type: file, path: "-"}
`), 0o600))

	got := command(t, "", "queue", "peek", "--config", path)
	require.Equal(t, exitUsage, got.code)
	require.Contains(t, got.stderr, "write --source with one of: sms, keys")
	got = command(t, "", "queue", "stats", "--config", path, "--source", "other")
	require.Equal(t, exitUsage, got.code)
	require.Contains(t, got.stderr, "has no source \"other\"")

	got = command(t, "", "queue", "send", "--config", path, "--source", "keys", "eHg=")
	require.Equal(t, exitDone, got.code, got.stderr)
	got = command(t, "", "queue", "peek", "--config", path, "--source", "keys")
	require.Equal(t, exitDone, got.code, got.stderr)
	require.Equal(t, "eHg=", readPeeked(t, got.stdout)[0].body())

	got = command(t, "", "queue", "peek", "--config", path, "--source", "sms")
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, "may only receive and delete")
}

// What is not there is said with what to do, as check says it.
func TestQueueWhereNothingListens(t *testing.T) {
	setKeys(t, "emulator", "emulator-secret")
	for _, args := range [][]string{{"stats"}, {"peek"}, {"send", "body"}} {
		got := command(t, "", append(append([]string{"queue"}, args...), "--endpoint", "http://127.0.0.1:1", "--queue", "q")...)
		require.Equal(t, exitFailed, got.code, got.stderr)
		require.Contains(t, got.stderr, "connection refused: nothing listens there: check host and port, and that the server runs")
	}
}

func TestEmulatorWhereAnotherListens(t *testing.T) {
	url, _ := startEmulator(t)
	got := command(t, "", "emulator", "--listen", strings.TrimPrefix(url, "http://"))
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, "address already in use: another program listens there, an emulator perhaps: write another --listen")
}

// An attribute is not taken for the message's own.
func TestPeekTellsAttributesFromTheBody(t *testing.T) {
	p := shownMessage{ID: "id-1", Attributes: map[string]string{"body": "raw"}, Body: new("{}")}
	var out strings.Builder
	require.NoError(t, p.print(&out, painter{}, time.Now()))
	require.Contains(t, out.String(), "\n  attributes.body: raw\n  body, 2 bytes:\n")
}
