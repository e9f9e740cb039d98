package amqp091_test

import (
	"strconv"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/relaytest"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink/amqp091"
	"mnsrelay/test/broker"
)

func TestConformance(t *testing.T) {
	const timeout = time.Second
	relaytest.TestSink(t, relaytest.SinkHarness{
		Timeout: timeout,
		// A heartbeat of 2 s finds a broker that hangs within 3 s, a handshake with
		// one that hangs is given up after 10 s, and a pause of 0.8 s follows.
		Recovery:  14 * time.Second,
		Connected: true,
		Start: func(t *testing.T) relaytest.FarSide {
			t.Helper()
			inbox := newInbox(t, broker.URL(t))
			proxy := relaytest.NewProxy(t, address(t, inbox.url))
			c := inbox.config()
			c.URL = setting.NewURL(through(t, inbox.url, proxy.Addr()) + "?heartbeat=2")
			c.Timeout = timeout
			endpoint, err := c.Open(deps(t))
			require.NoError(t, err)

			var arrived []relaytest.Arrival
			return relaytest.FarSide{
				Endpoint: endpoint,
				Arrived: func(t *testing.T) []relaytest.Arrival {
					t.Helper()
					for _, d := range inbox.take() {
						arrived = append(arrived, arrival(d))
					}
					return arrived
				},
				Break: map[string]func(){"refuses": proxy.Refuse, "hangs": proxy.Hang},
				Mend:  proxy.Mend,
			}
		},
	})
}

// arrival shows a delivery as the suite wants it.
func arrival(d amqp.Delivery) relaytest.Arrival {
	headers := map[string]string{}
	for name, value := range d.Headers {
		switch v := value.(type) {
		case string:
			headers[name] = v
		case int64:
			if name == relay.HeaderAttempt {
				headers[name] = strconv.FormatInt(v, 10)
			}
		}
	}
	return relaytest.Arrival{ID: d.MessageId, Body: d.Body, Headers: headers, ContentType: d.ContentType}
}

var _ relay.Endpoint = (*amqp091.Endpoint)(nil)
