package main

import (
	"context"
	"encoding/base64"
	"time"

	ali_mns "github.com/aliyun/aliyun-mns-go-sdk"
	amqp "github.com/rabbitmq/amqp091-go"
	"golang.org/x/sync/errgroup"
)

// runUsual is what is written with the official SDK as its examples show it.
func runUsual(ctx context.Context, conn *amqp.Connection, t *task, failed func(error)) error {
	pollers, ctx := errgroup.WithContext(ctx)
	for range t.Pollers {
		channel, err := openChannel(conn, failed)
		if err != nil {
			return err
		}
		pollers.Go(func() error { return pollUsual(ctx, channel, t) })
	}
	return pollers.Wait()
}

// pollUsual ends with the context after a poll, which knows no context.
func pollUsual(ctx context.Context, channel *amqp.Channel, t *task) error {
	// The SDK's constructor wants an address of five parts, and takes this one for it.
	client := ali_mns.NewAliMNSClientWithConfig(ali_mns.AliMNSClientConfig{
		EndPoint: t.Endpoint + "/.", AccessKeyId: keyID, AccessKeySecret: keySecret,
		TimeoutSecond: ali_mns.DefaultTimeout,
	})
	const unlimited = 1 << 30 // its own limit is 2000 requests a second
	queue := ali_mns.NewMNSQueue(t.Queue, client, unlimited)
	received := make(chan ali_mns.BatchMessageReceiveResponse, 1) // it is sent to before the call returns
	empty := make(chan error, 1)
	const waits = 30 // seconds
	for ctx.Err() == nil {
		queue.BatchReceiveMessage(received, empty, batch, waits)
		select {
		case err := <-empty:
			if ali_mns.ERR_MNS_MESSAGE_NOT_EXIST.IsEqual(err) {
				continue
			}
			return err
		case response := <-received:
			handles := make([]string, 0, len(response.Messages))
			for _, m := range response.Messages {
				body := []byte(m.MessageBody)
				if !t.Raw {
					var err error
					if body, err = base64.StdEncoding.DecodeString(m.MessageBody); err != nil {
						return err
					}
				}
				confirm, err := channel.PublishWithDeferredConfirm(name, t.Key, true, false,
					publishing(amqp.Table{}, m.MessageId, m.DequeueCount, time.UnixMilli(m.EnqueueTime), t.Raw, body))
				if err != nil {
					return err
				}
				if !confirm.Wait() {
					return errRefused
				}
				handles = append(handles, m.ReceiptHandle)
			}
			if _, err := queue.BatchDeleteMessage(handles...); err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}
