package webhook_test

import (
	"bytes"
	"compress/gzip"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"runtime/metrics"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"golang.org/x/net/http2"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink/webhook"
)

// An answer that would unpack to a gigabyte is neither unpacked nor kept.
func TestGzipBomb(t *testing.T) {
	var part bytes.Buffer
	w := gzip.NewWriter(&part)
	_, err := w.Write(make([]byte, 1<<20))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	bomb := bytes.Repeat(part.Bytes(), 1<<10) // members one after another are one file (RFC 1952, 2.2)
	require.Greater(t, len(bomb), 64<<10)
	var accepted atomic.Value
	far := start(t, func(w http.ResponseWriter, req *http.Request) {
		accepted.Store(req.Header.Get("Accept-Encoding"))
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = w.Write(bomb)
	})
	sink := sinkTo(t, far.url)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	requireFailure(t, relay.Retry, "answer_too_long", deliver(t, sink, message("1"))[0])
	runtime.ReadMemStats(&after)
	require.Empty(t, accepted.Load())
	require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(8<<20))
}

// An expired certificate is one that cannot be trusted.
func TestExpiredCertificate(t *testing.T) {
	far := httptest.NewUnstartedServer(http.HandlerFunc(accept))
	far.TLS = &tls.Config{Certificates: []tls.Certificate{expired}, MinVersion: tls.VersionTLS12}
	far.Config.ErrorLog = zap.NewStdLog(zap.NewNop())
	far.StartTLS()
	t.Cleanup(far.Close)
	result := deliver(t, sinkTo(t, far.URL), message("1"))[0]
	requireFailure(t, relay.Retry, "tls", result)
	require.ErrorContains(t, result.Err, "expired")
}

// multiplexed serves HTTP/2 frame by frame: play gets each connection after its preface,
// and whether it is the first.
func multiplexed(t *testing.T, play func(c net.Conn, framer *http2.Framer, first bool)) (url string) {
	t.Helper()
	var connections atomic.Int32
	config := &tls.Config{Certificates: []tls.Certificate{trusted}, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS12}
	return "https://" + listen(t, func(raw net.Conn) {
		c := tls.Server(raw, config)
		if c.HandshakeContext(t.Context()) != nil {
			return
		}
		preface := make([]byte, len(http2.ClientPreface))
		if _, err := io.ReadFull(c, preface); err != nil {
			return
		}
		framer := http2.NewFramer(c, c)
		if framer.WriteSettings() != nil {
			return
		}
		play(c, framer, connections.Add(1) == 1)
	})
}

// request reads frames until a request has come whole, and gives its stream.
func request(framer *http2.Framer) (stream uint32, ok bool) {
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			return 0, false
		}
		if s, is := frame.(*http2.SettingsFrame); is && !s.IsAck() {
			_ = framer.WriteSettingsAck()
		}
		ended := false
		switch frame := frame.(type) {
		case *http2.HeadersFrame:
			ended = frame.StreamEnded()
		case *http2.DataFrame:
			ended = frame.StreamEnded()
		}
		if ended {
			return frame.Header().StreamID, true
		}
	}
}

// noContent answers a stream with 204.
func noContent(framer *http2.Framer, stream uint32) {
	_ = framer.WriteHeaders(http2.HeadersFrameParam{
		StreamID: stream, BlockFragment: []byte{0x89}, EndHeaders: true, EndStream: true, // :status 204 (RFC 7541, appendix A)
	})
}

// A receiver that goes away by GOAWAY, and has not looked at the request, gets it again at
// once on another connection: that is no failed try.
func TestGoAway(t *testing.T) {
	url := multiplexed(t, func(_ net.Conn, framer *http2.Framer, first bool) {
		stream, ok := request(framer)
		switch {
		case !ok:
		case first:
			_ = framer.WriteGoAway(0, http2.ErrCodeNo, nil)
			_, _ = request(framer) // until the client closes
		default:
			noContent(framer, stream)
			_, _ = request(framer)
		}
	})
	requireDelivered(t, deliver(t, sinkTo(t, url), message("1")))
}

// A connection of HTTP/2 that was used before and is reset in the middle of a request is no
// failed try either.
func TestKeptHTTP2ConnectionThatIsReset(t *testing.T) {
	url := multiplexed(t, func(c net.Conn, framer *http2.Framer, first bool) {
		stream, _ := request(framer)
		noContent(framer, stream)
		stream, ok := request(framer)
		if ok && first {
			_ = c.(*tls.Conn).NetConn().(*net.TCPConn).SetLinger(0)
			return
		}
		noContent(framer, stream)
		_, _ = request(framer)
	})
	sink := sinkTo(t, url)
	requireDelivered(t, deliver(t, sink, message("1")))
	requireDelivered(t, deliver(t, sink, message("2")))
}

// What an answer over HTTP/2 costs in memory is bounded as well: a receiver that sends more than
// is read waits.
func TestMemoryOfAnHTTP2Answer(t *testing.T) {
	far := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		line := make([]byte, 16<<10)
		for {
			if _, err := w.Write(line); err != nil {
				return
			}
		}
	}))
	far.EnableHTTP2 = true
	far.TLS = &tls.Config{Certificates: []tls.Certificate{trusted}, MinVersion: tls.VersionTLS12}
	far.StartTLS()
	t.Cleanup(far.Close)
	endpoint := open(t, func(c *webhook.Config) { c.URL, c.Concurrency = setting.NewURL(far.URL), 1 })
	webhook.NeverOpen(endpoint)
	run(t, endpoint)
	sink := bind(t, endpoint)
	requireFailure(t, relay.Retry, "answer_too_long", deliver(t, sink, message("1"))[0])
	allocated := func() uint64 {
		sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
		metrics.Read(sample)
		return sample[0].Value.Uint64()
	}
	const answers = 50
	before := allocated()
	for range answers {
		requireFailure(t, relay.Retry, "answer_too_long", deliver(t, sink, message("1"))[0])
	}
	require.Less(t, (allocated()-before)/answers, uint64(400<<10), "bytes an answer, the far side's own included")
}

// What an HTTP/2 receiver may do instead of an answer.
func TestHostileHTTP2(t *testing.T) {
	for name, c := range map[string]struct {
		play func(c net.Conn, framer *http2.Framer, stream uint32)
		want string
	}{
		"goes away over and over": {func(_ net.Conn, framer *http2.Framer, _ uint32) {
			_ = framer.WriteGoAway(0, http2.ErrCodeEnhanceYourCalm, nil)
		}, "network"},
		"refuses the stream over and over": {func(_ net.Conn, framer *http2.Framer, stream uint32) {
			_ = framer.WriteRSTStream(stream, http2.ErrCodeRefusedStream)
			_, _ = request(framer)
		}, ""},
		"resets the stream": {func(_ net.Conn, framer *http2.Framer, stream uint32) {
			_ = framer.WriteRSTStream(stream, http2.ErrCodeInternal)
			_, _ = request(framer)
		}, "network"},
		"says nothing": {func(_ net.Conn, framer *http2.Framer, _ uint32) { _, _ = request(framer) }, "timeout"},
		"is no HTTP/2": {func(c net.Conn, _ *http2.Framer, _ uint32) { _, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n") }, "network"},
		"floods the body": {func(_ net.Conn, framer *http2.Framer, stream uint32) {
			// :status 200 (RFC 7541, appendix A)
			err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: []byte{0x88}, EndHeaders: true})
			for err == nil {
				err = framer.WriteData(stream, false, make([]byte, 16<<10)) // without waiting
			}
		}, ""},
		"floods pings": {func(_ net.Conn, framer *http2.Framer, _ uint32) {
			var err error
			for err == nil {
				err = framer.WritePing(false, [8]byte{})
			}
		}, "timeout"},
	} {
		t.Run(name, func(t *testing.T) {
			url := multiplexed(t, func(conn net.Conn, framer *http2.Framer, _ bool) {
				if stream, ok := request(framer); ok {
					c.play(conn, framer, stream)
				}
			})
			sink := sinkTo(t, url)
			began := time.Now()
			result := deliver(t, sink, message("1"))[0]
			require.Less(t, time.Since(began), timeout+2*time.Second)
			require.Error(t, result.Err)
			require.Equal(t, relay.Retry, result.Outcome)
			if c.want != "" {
				require.Equal(t, c.want, relay.ReasonOf(result.Err), "%v", result.Err)
			}
		})
	}
}
