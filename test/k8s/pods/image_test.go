package pods_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
)

// pauseImage is what nodes make the sandbox of a pod from.
const pauseImage = "localhost/pause:1"

// writePauseImage writes an archive, as docker save would, with nothing in it but one
// program.
func writePauseImage(t *testing.T, path, program string) {
	t.Helper()
	binary, err := os.ReadFile(program)
	require.NoError(t, err)
	layer := archive(t, map[string][]byte{"pause": binary})
	sum := sha256.Sum256(layer)
	config := encode(t, map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"config":       map[string]any{"Entrypoint": []string{"/pause"}, "User": "65535:65535"},
		"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(sum[:])}},
	})
	manifest := encode(t, []any{map[string]any{
		"Config": "config.json", "Layers": []string{"layer.tar"}, "RepoTags": []string{pauseImage},
	}})
	image := archive(t, map[string][]byte{"manifest.json": manifest, "config.json": config, "layer.tar": layer})
	require.NoError(t, os.WriteFile(path, image, 0o600))
}

func encode(t *testing.T, v any) []byte {
	t.Helper()
	text, err := json.Marshal(v)
	require.NoError(t, err)
	return text
}

func archive(t *testing.T, files map[string][]byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for name, content := range files {
		require.NoError(t, w.WriteHeader(&tar.Header{Name: filepath.ToSlash(name), Mode: 0o755, Size: int64(len(content))}))
		_, err := w.Write(content)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return out.Bytes()
}
