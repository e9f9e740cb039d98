package telemetry_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"mnsrelay/internal/telemetry"
)

func TestJSONLine(t *testing.T) {
	var out bytes.Buffer
	log, _, err := telemetry.NewLogger("info", telemetry.FormatJSON, &out)
	require.NoError(t, err)
	log.Named("mns").Info("received", zap.String("source", "sms"), zap.Duration("duration", 1500*time.Millisecond))
	require.NoError(t, log.Sync())

	var line map[string]any
	require.NoError(t, json.Unmarshal(out.Bytes(), &line))
	at, err := time.Parse(time.RFC3339, line["time"].(string))
	require.NoError(t, err)
	require.WithinDuration(t, time.Now(), at, time.Minute)
	require.True(t, strings.HasSuffix(line["time"].(string), "Z"))
	delete(line, "time")
	require.Equal(t, map[string]any{
		"level": "info", "logger": "mns", "message": "received", "source": "sms", "duration": 1.5,
	}, line)
}

func TestConsoleLineHasNoColours(t *testing.T) {
	var out bytes.Buffer
	log, _, err := telemetry.NewLogger("info", telemetry.FormatConsole, &out)
	require.NoError(t, err)
	log.Warn("sink is down", zap.String("sink", "events"))
	require.Contains(t, out.String(), "\twarn\tsink is down\t{\"sink\": \"events\"}\n")
	require.NotContains(t, out.String(), "\x1b")
}

func TestLevelChangesWhileInUse(t *testing.T) {
	var out bytes.Buffer
	log, level, err := telemetry.NewLogger("warn", telemetry.FormatJSON, &out)
	require.NoError(t, err)
	log.Info("before")
	require.Empty(t, out.String())
	level.SetLevel(zap.DebugLevel)
	log.Debug("after")
	require.Contains(t, out.String(), "after")
}

func TestWrongLevelAndFormat(t *testing.T) {
	tests := []struct{ name, level, format, want string }{
		{"unknown level", "loud", "json", `read log level "loud": write debug, info, warn or error`},
		{"a level that ends the process", "fatal", "json", `read log level "fatal"`},
		{"unknown format", "info", "xml", `read log format "xml": write json or console`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := telemetry.NewLogger(tt.level, tt.format, &bytes.Buffer{})
			require.ErrorContains(t, err, tt.want)
		})
	}
}

func TestRegistry(t *testing.T) {
	families, err := telemetry.NewRegistry("1.2.3").Gather()
	require.NoError(t, err)
	labels := map[string]string{}
	names := make([]string, 0, len(families))
	for _, f := range families {
		names = append(names, f.GetName())
		if f.GetName() == "mnsrelay_build_info" {
			require.InDelta(t, 1, f.GetMetric()[0].GetGauge().GetValue(), 0)
			for _, l := range f.GetMetric()[0].GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
		}
	}
	require.Equal(t, "1.2.3", labels["version"])
	require.Contains(t, labels["goversion"], "go1.")
	require.Contains(t, names, "go_goroutines")
	require.Contains(t, names, "process_resident_memory_bytes")
}
