package amqp10_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/relaytest"
	"mnsrelay/internal/setting"
	"mnsrelay/test/amqppeer"
)

func TestConformance(t *testing.T) {
	const timeout = time.Second
	relaytest.TestSink(t, relaytest.SinkHarness{
		Timeout: timeout,
		// An idle timeout of 2 s finds a peer that hangs, a handshake with one that hangs is
		// given up after 3 s, and a pause of 0.8 s follows.
		Recovery:  10 * time.Second,
		Connected: true,
		Start: func(t *testing.T) relaytest.FarSide {
			t.Helper()
			p := amqppeer.Start(t, amqppeer.Proton)
			proxy := relaytest.NewProxy(t, p.Address())
			c := config(p, "accept")
			c.URL = setting.NewURL("amqp://" + proxy.Addr())
			c.Timeout = timeout
			c.IdleTimeout = 2 * time.Second
			c.ConnectTimeout = 3 * time.Second
			endpoint, err := c.Open(deps())
			require.NoError(t, err)
			return relaytest.FarSide{
				Endpoint: endpoint,
				Arrived: func(t *testing.T) []relaytest.Arrival {
					t.Helper()
					var arrived []relaytest.Arrival
					for _, m := range p.Messages() {
						arrived = append(arrived, arrival(&m))
					}
					return arrived
				},
				Break: map[string]func(){"refuses": proxy.Refuse, "hangs": proxy.Hang},
				Mend:  proxy.Mend,
			}
		},
	})
}

// arrival shows a message as the suite wants it.
func arrival(m *amqppeer.Message) relaytest.Arrival {
	headers := map[string]string{}
	for name, value := range m.Properties {
		if pair, is := value.([]any); is && len(pair) == 2 {
			headers[name] = fmt.Sprint(pair[1])
		}
	}
	return relaytest.Arrival{ID: m.ID, Body: m.Body(), Headers: headers, ContentType: m.ContentType}
}
