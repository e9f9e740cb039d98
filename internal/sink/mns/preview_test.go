package mns_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/emulator"
	"mnsrelay/internal/relay"
	sink "mnsrelay/internal/sink/mns"
)

// A preview, made without a connection, is the body as it comes to be in the queue.
func TestPreview(t *testing.T) {
	binary, dead := text("a\x00\xff"), text("why")
	dead.Dead = &relay.DeadLetter{Reason: "max_receives", Error: "status 500", First: time.Unix(1, 0), Last: time.Unix(2, 0)}
	for name, m := range map[string]relay.Message{"text": text("<a>&\r\n短"), "base64": binary, "dead letter": dead} {
		t.Run(name, func(t *testing.T) {
			_, url := startServer(t, emulator.QueueConfig{})
			endpoint := open(t, url, nil)
			bound, err := endpoint.Bind(nil)
			require.NoError(t, err)
			preview, err := bound.(relay.Previewer).Preview(&m) //nolint:forcetypeassert // A panic tells.
			require.NoError(t, err)
			require.Equal(t, "endpoint", preview.Fields[0].Name)
			require.Equal(t, strings.TrimSuffix(url, "/"), strings.TrimSuffix(preview.Fields[0].Value.(string), "/")) //nolint:forcetypeassert // A panic tells.
			require.Equal(t, relay.Field{Name: "queue", Value: queueName}, preview.Fields[1])

			requireResult(t, relay.Delivered, "", deliver(t, run(t, endpoint, relay.Up), m)[0])
			require.Equal(t, []string{string(preview.Body)}, (&reader{url: url}).bodies(t))
		})
	}
}

func TestPreviewOfWhatIsRejected(t *testing.T) {
	_, url := startServer(t, emulator.QueueConfig{})
	s := run(t, open(t, url, func(c *sink.Config) { c.Body = "raw" }), relay.Up)
	for reason, m := range map[string]relay.Message{"not_text": text("a\x00"), "too_large": text(strings.Repeat("a", 64<<10+1))} {
		result := deliver(t, s, m)[0]
		requireResult(t, relay.Rejected, reason, result)
		_, err := s.(relay.Previewer).Preview(&m) //nolint:forcetypeassert // A panic tells.
		require.EqualError(t, err, result.Err.Error())
	}
}
