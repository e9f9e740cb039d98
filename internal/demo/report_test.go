package demo

import (
	"bytes"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What has left the queue and has not arrived is lost, and fails the demo.
func TestALostMessageIsReported(t *testing.T) {
	t.Parallel()
	d := &demo{cfg: Config{Rate: 1, Listen: "127.0.0.1:0", TokenLife: time.Minute, Version: "test"}}
	defer d.close()
	require.NoError(t, d.start(t.Context(), io.Discard))
	d.sender.count.Store(3)
	d.receiver.add("1")
	d.receiver.add("2")
	d.receiver.add("2")
	var out bytes.Buffer
	require.ErrorIs(t, d.report(&out), ErrLost)
	require.Contains(t, out.String(), "webhook   2 arrived, 1 of them twice")
	require.Contains(t, out.String(), "lost      1")
	d.receiver.add("3")
	require.NoError(t, d.report(&out))
}
