package credentials_test

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/credentials"
)

func TestPresetFor(t *testing.T) {
	for _, tt := range []struct {
		queue, preset, messageType string
	}{
		{"Alicom-Queue-1234567890123456-SmsReport", credentials.PresetAlicomCN, "SmsReport"},
		{"Alicom-Queue-1234567890123456-GlobeSmsReport", credentials.PresetAlicomIntl, "GlobeSmsReport"},
		{"Alicom-Queue-1234567890123456-eu-GlobeSmsReport", credentials.PresetAlicomIntl, "GlobeSmsReport"},
		{"Alicom-Queue-1234567890123456", credentials.PresetAlicomCN, ""},
		{"Alicom-Queue-", credentials.PresetAlicomCN, ""},
		{"alicom-queue-1-SmsReport", "", ""},
		{"orders", "", ""},
		{"", "", ""},
	} {
		t.Run(tt.queue, func(t *testing.T) {
			preset, found := credentials.PresetFor(tt.queue)
			require.Equal(t, tt.preset != "", found)
			require.Equal(t, tt.preset, preset.Name)
			require.Equal(t, tt.messageType, credentials.MessageType(tt.queue))
		})
	}
}

func TestPresetsMakeValidCredentials(t *testing.T) {
	require.Len(t, credentials.Presets(), 2)
	for _, preset := range credentials.Presets() {
		named, found := credentials.PresetNamed(preset.Name)
		require.True(t, found)
		require.Equal(t, preset, named)
		require.Contains(t, preset.MNSEndpoint, ".mns."+preset.Region+".aliyuncs.com")

		// The region alone is enough to find the endpoint.
		config := credentials.Config{Type: credentials.TypeMNSToken, MessageType: "SmsReport", Region: preset.Region}
		config.Defaults(os.Getenv)
		require.Equal(t, preset.TokenEndpoint, config.Endpoint.Reveal())
		require.NoError(t, config.Validate())
	}
	_, found := credentials.PresetNamed("none")
	require.False(t, found)
}
