package config_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/config"
)

func TestReadOutline(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, text string
		want       config.Outline
	}{
		{"a file that needs what is not here", `
sources:
  sms: {queue: "Alicom-Queue-1-SmsReport", credentials: {access_key_secret: "${file:/nowhere}"}, nonsense: 1}
  voice: &v {queue: "${QUEUE}"}
  again: *v
sinks:
  events: {type: amqp091, password: "${NOT_SET}"}
routes:
  - {name: all, from: sms, to: events}
`, config.Outline{
			Sources: []config.Named{{"sms", "Alicom-Queue-1-SmsReport"}, {"voice", "${QUEUE}"}, {"again", "${QUEUE}"}},
			Sinks:   []config.Named{{"events", "amqp091"}},
		}},
		{"a file that is being written", "sources:\n  sms:\n  other: 3\nsinks: []\n", config.Outline{
			Sources: []config.Named{{"sms", ""}, {"other", ""}},
		}},
		{"names that are none", "sources: {\"a b\": {}, \"x\\ny\": {}, 1: {}}\n", config.Outline{Sources: []config.Named{{"1", ""}}}},
		{"no YAML", "sources: {sms: [", config.Outline{}},
		{"a list", "- sources\n", config.Outline{}},
		{"nothing", "", config.Outline{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "mnsrelay.yaml")
			require.NoError(t, os.WriteFile(path, []byte(tt.text), 0o600))
			require.Equal(t, tt.want, config.ReadOutline(path))
		})
	}
	t.Run("what cannot be read", func(t *testing.T) {
		t.Parallel()
		pipe := filepath.Join(t.TempDir(), "pipe")
		require.NoError(t, syscall.Mkfifo(pipe, 0o600))
		for _, path := range []string{"", "-", t.TempDir(), filepath.Join(t.TempDir(), "missing"), pipe} {
			require.Equal(t, config.Outline{}, config.ReadOutline(path), path)
		}
	})
}
