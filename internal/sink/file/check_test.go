package file_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/sink/file"
)

// What is wrong is said, and what is not there is not made.
func TestCheck(t *testing.T) {
	folder := t.TempDir()
	in := func(name string) string { return filepath.Join(folder, name) }
	require.NoError(t, os.WriteFile(in("there"), []byte("torn"), 0o600))
	require.NoError(t, os.Mkdir(in("folder"), 0o700))
	for path, want := range map[string]struct {
		verdict relay.Verdict
		text    string
	}{
		in("new"):           {relay.OK, "is not there yet: it is made at the start"},
		in("there"):         {relay.OK, "is there and can be written"},
		in("{{ id }}.json"): {relay.OK, "files can be made in it"},
		in("folder"):        {relay.Failed, "is no regular file: correct path"},
		in("missing/x"):     {relay.Failed, "make the folder, or mount it"},
		in("there/x"):       {relay.Failed, "is no folder"},
		file.Stdout:         {relay.OK, "without a file"},
	} {
		findings := open(t, path, nil).Check(t.Context())
		last := findings[len(findings)-1]
		require.Equal(t, want.verdict, last.Verdict, "%s: %s", path, last.Text)
		require.Contains(t, last.Text, want.text, path)
	}
	entries, err := os.ReadDir(folder)
	require.NoError(t, err)
	require.Len(t, entries, 2)
	text, err := os.ReadFile(in("there"))
	require.NoError(t, err)
	require.Equal(t, "torn", string(text))
}
