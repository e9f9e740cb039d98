package emulator_test

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/emulator"
)

// BenchmarkBatch moves messages through a queue in batches of 16, sent, received
// and deleted by signed requests, without the network.
func BenchmarkBatch(b *testing.B) {
	for _, size := range []int{400, 4096} {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			s, err := emulator.New(emulator.Config{Queues: map[string]emulator.QueueConfig{queueName: {}}})
			require.NoError(b, err)
			entry := "<Message><MessageBody>" + strings.Repeat("x", size) + "</MessageBody></Message>"
			send := "<Messages>" + strings.Repeat(entry, 16) + "</Messages>"
			serve := func(method, query, body string) []byte {
				w := httptest.NewRecorder()
				s.ServeHTTP(w, demoKey().request(b.Context(), method, "", messagesPath(query), body))
				return w.Body.Bytes()
			}
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					serve(http.MethodPost, "", send)
					serve(http.MethodDelete, "", handles(serve(http.MethodGet, "?numOfMessages=16", "")))
				}
			})
			b.ReportMetric(float64(b.N)*16/b.Elapsed().Seconds(), "messages/s")
		})
	}
}

// BenchmarkWire receives and deletes over loopback.
func BenchmarkWire(b *testing.B) {
	s, err := emulator.New(emulator.Config{Queues: map[string]emulator.QueueConfig{queueName: {}}})
	require.NoError(b, err)
	url, err := s.Start(b.Context(), "127.0.0.1:0")
	require.NoError(b, err)
	defer func() { require.NoError(b, s.Close()) }()
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	defer transport.CloseIdleConnections()
	batch := make([]emulator.Message, 16)
	for i := range batch {
		batch[i].Body = bytes.Repeat([]byte("x"), 400)
	}
	roundTrip := func(method, query, body string) []byte {
		r := demoKey().request(b.Context(), method, url, messagesPath(query), body)
		response, err := transport.RoundTrip(r)
		if err != nil {
			b.Error(err)
			return nil
		}
		defer func() { _ = response.Body.Close() }()
		answer, err := io.ReadAll(response.Body)
		if err != nil {
			b.Error(err)
		}
		return answer
	}
	b.SetParallelism(4)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := s.SendAll(queueName, batch); err != nil {
				b.Error(err)
			}
			roundTrip(http.MethodDelete, "", handles(roundTrip(http.MethodGet, "?numOfMessages=16", "")))
		}
	})
	b.ReportMetric(float64(b.N)*16/b.Elapsed().Seconds(), "messages/s")
}

// handles turns what a receive answered into the body of a batch delete.
func handles(received []byte) string {
	var document strings.Builder
	document.WriteString("<ReceiptHandles>")
	for _, part := range strings.Split(string(received), "<ReceiptHandle>")[1:] {
		handle, _, _ := strings.Cut(part, "<")
		document.WriteString("<ReceiptHandle>" + handle + "</ReceiptHandle>")
	}
	return document.String() + "</ReceiptHandles>"
}
