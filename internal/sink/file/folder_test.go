package file_test

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/sink/file"
)

func TestTemplateOfAName(t *testing.T) {
	folder := t.TempDir()
	sink := start(t, open(t, filepath.Join(folder, "{{ source }}-{{ body.to }}.jsonl"), nil))
	body := func(id, body string) relay.Message {
		m := message(id)
		m.Body = []byte(body)
		return m
	}
	ms := []relay.Message{
		body("1", `{"to": "a"}`),
		body("2", `{"to": "../../etc/passwd"}`),
		body("3", "hunter2"),
		body("4", `{"to": "a"}`),
		body("5", `{"to": "`+strings.Repeat("hunter2", 36)+`"}`),
		body("6", `{"to": "a\u0000\n\u202e b\\"}`),
		body("7", `{"to": "短信"}`),
		body("8", `{"to": "%2F"}`),
	}
	for i, r := range deliver(t, sink, ms...) {
		reason, rejected := map[int]string{2: "expression", 4: "invalid_property"}[i]
		if !rejected {
			require.NoError(t, r.Err)
			require.Equal(t, relay.Delivered, r.Outcome)
			continue
		}
		require.Equal(t, relay.Rejected, r.Outcome)
		require.Equal(t, reason, relay.ReasonOf(r.Err))
		require.NotContains(t, r.Err.Error(), "hunter2")
	}
	want := map[string][]string{
		"sms-a.jsonl":                       {"1", "4"},
		"sms-..%2F..%2Fetc%2Fpasswd.jsonl":  {"2"},
		"sms-a%00%0A%E2%80%AE%20b%5C.jsonl": {"6"},
		"sms-短信.jsonl":                      {"7"},
		"sms-%252F.jsonl":                   {"8"},
	}
	require.Equal(t, want, idsIn(t, folder))
}

// idsIn reads the ids of all files, by name.
func idsIn(t *testing.T, folder string) map[string][]string {
	t.Helper()
	entries, err := os.ReadDir(folder)
	require.NoError(t, err)
	got := map[string][]string{}
	for _, entry := range entries {
		got[entry.Name()] = ids(t, read(t, filepath.Join(folder, entry.Name())))
	}
	return got
}

func TestNamesThatAreNone(t *testing.T) {
	sink := start(t, open(t, filepath.Join(t.TempDir(), "{{ attributes.?name }}"), nil))
	for _, name := range []string{"", ".", ".."} {
		m := message("1")
		m.Attributes = map[string]string{"name": name}
		r := deliver(t, sink, m)[0]
		require.Equal(t, relay.Rejected, r.Outcome, "%q", name)
		require.Equal(t, "invalid_property", relay.ReasonOf(r.Err))
	}
}

// More files than may be open are written to in turn, and none loses a line.
func TestOpenFilesAreBounded(t *testing.T) {
	folder := t.TempDir()
	sink := start(t, open(t, filepath.Join(folder, "{{ id }}"), nil))
	const files = 200
	before := descriptors(t)
	for range 2 {
		ms := make([]relay.Message, files)
		for i := range ms {
			ms[i] = message(fmt.Sprintf("file-%d", i))
		}
		requireDelivered(t, sink, ms...)
		require.LessOrEqual(t, descriptors(t)-before, 64)
	}
	got := idsIn(t, folder)
	require.Len(t, got, files)
	for name, ids := range got {
		require.Equal(t, []string{name, name}, ids)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	open, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(open)
}

// FuzzName holds that a value names a file in the folder, and another one than any other
// value.
func FuzzName(f *testing.F) {
	for _, seed := range []string{"", ".", "..", "a/b", "../x", "\x00", "\xff", "短", "%2F", "a\\b", " ", "\u202e", "\ufffd"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		name := file.Escape(value)
		require.Equal(t, name, filepath.Base("x" + name)[1:])
		for _, r := range name {
			require.True(t, r > ' ' && r != 0x7f && r != '/', "%q in %q", r, name)
		}
		back, err := url.PathUnescape(name)
		require.NoError(t, err)
		require.Equal(t, value, back)
	})
}
