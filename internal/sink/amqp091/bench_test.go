package amqp091_test

import (
	"fmt"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/relaytest"
	"mnsrelay/test/broker"
)

// BenchmarkDeliver compares the sink with a bare publisher that keeps the same
// window and sends the same properties: one iteration is one message of 1 KiB.
func BenchmarkDeliver(b *testing.B) {
	for _, batch := range []int{16, 256} {
		b.Run(fmt.Sprintf("sink/%d", batch), func(b *testing.B) {
			in := newInbox(b, broker.URL(b))
			r := run(b, in.config())
			r.Await(relay.Up)
			ms := relaytest.Messages("m", batch, 1024)
			done := func(_ int, result relay.Result) {
				if result.Outcome != relay.Delivered {
					b.Error(result.Err)
				}
			}
			r.Sink.Deliver(b.Context(), ms, done)
			b.ReportAllocs()
			b.ResetTimer()
			for sent := 0; sent < b.N; sent += batch {
				r.Sink.Deliver(b.Context(), ms[:min(batch, b.N-sent)], done)
			}
		})
		b.Run(fmt.Sprintf("bare/%d", batch), func(b *testing.B) {
			in := newInbox(b, broker.URL(b))
			ms := relaytest.Messages("m", batch, 1024)
			in.with(func(ch *amqp.Channel) {
				require.NoError(b, ch.Confirm(false))
				confirms := make([]*amqp.DeferredConfirmation, 0, batch)
				b.ReportAllocs()
				b.ResetTimer()
				for sent := 0; sent < b.N; sent += batch {
					confirms = confirms[:0]
					for i := range ms[:min(batch, b.N-sent)] {
						m := &ms[i]
						confirm, err := ch.PublishWithDeferredConfirm(in.exchange, routingKey, true, false, amqp.Publishing{
							Headers: amqp.Table{
								relay.HeaderSource: m.Source, relay.HeaderAttempt: int64(m.Attempt),
								relay.HeaderEnqueuedAt: m.EnqueuedAtText(), relay.HeaderBody: m.BodyEncoding(),
							},
							ContentType: "text/plain; charset=utf-8", DeliveryMode: amqp.Persistent,
							MessageId: m.ID, Timestamp: m.EnqueuedAt, Body: m.Body,
						})
						require.NoError(b, err)
						confirms = append(confirms, confirm)
					}
					for _, confirm := range confirms {
						require.True(b, confirm.Wait())
					}
				}
			})
		})
	}
}
