package file_test

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/relay"
)

// A preview is the file and the line that are written, or the error of what is rejected.
func TestPreview(t *testing.T) {
	folder := t.TempDir()
	for name, path := range map[string]string{
		"{{ source }}-{{ body.to }}.jsonl": "sms-..%2Fa.jsonl",
		"one.jsonl":                        "one.jsonl",
	} {
		endpoint := open(t, filepath.Join(folder, name), nil)
		m := message("1")
		m.Body = []byte(`{"to": "../a"}`)
		sink, err := endpoint.Bind(nil)
		require.NoError(t, err)
		previewer, is := sink.(relay.Previewer)
		require.True(t, is)
		preview, err := previewer.Preview(&m) // nothing is open yet
		require.NoError(t, err)
		require.Equal(t, []relay.Field{{Name: "path", Value: filepath.Join(folder, path)}}, preview.Fields)

		running := start(t, endpoint)
		requireDelivered(t, running, m)
		require.Equal(t, read(t, filepath.Join(folder, path)), string(preview.Body))

		if name == path {
			continue
		}
		m.Body = []byte("hunter2")
		result := deliver(t, running, m)[0]
		require.Equal(t, relay.Rejected, result.Outcome)
		_, err = previewer.Preview(&m)
		require.EqualError(t, err, result.Err.Error())
	}
}

func TestPreviewOfStandardOutput(t *testing.T) {
	out := &output{}
	endpoint := open(t, "-", out)
	sink := start(t, endpoint)
	m := message("1")
	preview, err := sink.(relay.Previewer).Preview(&m) //nolint:forcetypeassert // A panic tells.
	require.NoError(t, err)
	require.Equal(t, []relay.Field{{Name: "path", Value: "-"}}, preview.Fields)
	requireDelivered(t, sink, m)
	require.Equal(t, out.String(), string(preview.Body))
}
