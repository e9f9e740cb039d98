package mns_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/mns"
	"mnsrelay/internal/relay"
)

func batchXML(size int) []byte {
	var b bytes.Buffer
	body := strings.Repeat("a", size)
	b.WriteString(`<?xml version="1.0"?><Messages xmlns="http://mns.aliyuncs.com/doc/v1/">`)
	for i := range 16 {
		fmt.Fprintf(&b, "<Message><MessageId>5F290C926D472878-2-14D9529A8FA-2000000%02d</MessageId>"+
			"<ReceiptHandle>1-ODU4OTkzNDU5My0xNDMyNzI3ODI3LTIt%02d==</ReceiptHandle><MessageBodyMD5>C5DD56A39F5F7BB8B3337C6D11B6D8C7</MessageBodyMD5>"+
			"<MessageBody>%s</MessageBody><EnqueueTime>1449556920975</EnqueueTime><NextVisibleTime>%d</NextVisibleTime>"+
			"<FirstDequeueTime>1449556920975</FirstDequeueTime><DequeueCount>1</DequeueCount><Priority>8</Priority></Message>",
			i, i, body, time.Now().Add(time.Hour).UnixMilli())
	}
	b.WriteString("</Messages>")
	return b.Bytes()
}

func BenchmarkReadMessages(b *testing.B) {
	for _, size := range []int{400, 4096, 65536} {
		b.Run(fmt.Sprintf("%dB", size), func(b *testing.B) {
			data := batchXML(size)
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				if err := mns.ScanMessages(data); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkReceiveAndSettle is a message's whole way through the source, in batches of
// 16, against a server that costs next to nothing: one operation is one message.
func BenchmarkReceiveAndSettle(b *testing.B) {
	for _, size := range []int{400, 4096} {
		b.Run(fmt.Sprintf("%dB", size), func(b *testing.B) {
			body := batchXML(size)
			got := fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nContent-Type: text/xml\r\nDate: %s\r\n\r\n%s",
				len(body), time.Now().UTC().Format(http.TimeFormat), body)
			gone := []byte("HTTP/1.1 204 No Content\r\n\r\n")
			l, err := new(net.ListenConfig).Listen(b.Context(), "tcp", "127.0.0.1:0")
			require.NoError(b, err)
			b.Cleanup(func() { require.NoError(b, l.Close()) })
			go func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					go answerRaw(conn, got, gone)
				}
			}()
			s, err := mns.NewSource(mns.Config{Name: "sms", Endpoint: "http://" + l.Addr().String(), Queue: "q"}, mns.Deps{Credentials: static("id", "secret")})
			require.NoError(b, err)
			b.Cleanup(func() { require.NoError(b, s.Close()) })
			ss := make([]relay.Settlement, 16)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if i%16 != 0 {
					continue
				}
				ds, err := s.Receive(b.Context(), 16, true)
				if err != nil || len(ds) != 16 {
					b.Fatal(err, len(ds))
				}
				for k := range ds {
					ss[k] = relay.Settlement{Delivery: ds[k], Delete: true}
				}
				for _, err := range s.Settle(b.Context(), ss) {
					if err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

// answerRaw answers requests without net/http, which would be most of what is measured.
func answerRaw(conn net.Conn, got, gone []byte) {
	defer func() { _ = conn.Close() }()
	r := bufio.NewReader(conn)
	for {
		answer, length := got, 0
		for first := true; ; first = false {
			line, err := r.ReadSlice('\n')
			if err != nil {
				return
			}
			if first && line[0] == 'D' {
				answer = gone
			}
			if n, found := bytes.CutPrefix(line, []byte("Content-Length: ")); found {
				for _, c := range bytes.TrimSpace(n) {
					length = length*10 + int(c-'0')
				}
			}
			if len(line) == 2 {
				break
			}
		}
		if _, err := io.CopyN(io.Discard, r, int64(length)); err != nil {
			return
		}
		if _, err := conn.Write(answer); err != nil {
			return
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	body := `{"phone_number":"13900001111","success":true,"err_msg":"delivered","sms_size":"1","biz_id":"1"}`
	long := strings.Repeat(body, 40) // 4 KB
	for name, in := range map[string]string{"raw": body, "base64": b64(body), "raw 4KB": long, "base64 4KB": b64(long)} {
		b.Run(name, func(b *testing.B) {
			d := mns.Decoder{Body: mns.BodyAuto, Unwrap: true}
			m := relay.Message{Body: []byte(in)}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := d.Decode(m); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
