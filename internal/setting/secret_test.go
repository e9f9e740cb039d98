package setting_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/setting"
)

// A secret that was replaced in its file is used from then on; one whose file cannot be
// read stays what it was.
func TestCurrentSecret(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "password")
	secret := setting.FileSecret("first", path)
	require.Equal(t, "first", secret.Current())
	require.NoError(t, os.WriteFile(path, []byte("second\n"), 0o600))
	require.Equal(t, "second", secret.Current())
	require.Equal(t, "first", secret.Reveal())
	require.NoError(t, os.WriteFile(path, []byte("\xff"), 0o600))
	require.Equal(t, "first", secret.Current())
	require.NoError(t, os.WriteFile(path, make([]byte, setting.MaxFile+1), 0o600))
	require.Equal(t, "first", secret.Current())
	require.Equal(t, "written", setting.NewSecret("written").Current())
	require.Equal(t, "***", secret.String())
}
