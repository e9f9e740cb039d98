package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // MNS signs with HMAC-SHA1.
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strconv"
	"time"
)

// queue is the least client of one MNS queue: for one goroutine, the answers it gets from
// the emulator and no others. It shares no code with the relay's.
type queue struct {
	client    *http.Client
	endpoint  string
	name      string
	keyID     string
	mac       hash.Hash
	signature []byte
	body      []byte // of the last answer
	request   []byte
	waits     int // seconds
}

// keys are those that every contender signs with.
const (
	keyID     = "LTAI-bench"
	keySecret = "bench-secret"
)

func newQueue(client *http.Client, endpoint, name string) *queue {
	return &queue{
		client: client, endpoint: endpoint, name: name, keyID: keyID,
		mac: hmac.New(sha1.New, []byte(keySecret)), waits: 30,
	}
}

// newHTTPClient keeps as many connections to a host as are in use at once.
func newHTTPClient(connections int) *http.Client {
	return &http.Client{Transport: &http.Transport{
		MaxIdleConns: 2 * connections, MaxIdleConnsPerHost: connections, DisableCompression: true,
	}}
}

// item is a message that was received. All but the text points into the answer, which the
// next call overwrites.
type item struct {
	id         string
	handle     []byte
	body       []byte
	enqueuedAt time.Time
	attempt    int64
}

// do sends one signed request and reads the answer into q.body.
func (q *queue) do(ctx context.Context, method, resource string, body []byte) (status int, err error) {
	var reader io.Reader = http.NoBody
	if body != nil {
		reader = bytes.NewReader(body)
	}
	request, err := http.NewRequestWithContext(ctx, method, q.endpoint+resource, reader)
	if err != nil {
		return 0, err
	}
	date := time.Now().UTC().Format(http.TimeFormat)
	q.mac.Reset()
	q.signature = append(q.signature[:0], method...)
	q.signature = append(q.signature, "\n\n\n"...) // neither digest nor content type
	q.signature = append(q.signature, date...)
	q.signature = append(q.signature, "\nx-mns-version:2015-06-06\n"...)
	q.signature = append(q.signature, resource...)
	q.mac.Write(q.signature)
	request.Header["Date"] = []string{date}
	request.Header["X-Mns-Version"] = []string{"2015-06-06"}
	request.Header["Authorization"] = []string{"MNS " + q.keyID + ":" + base64.StdEncoding.EncodeToString(q.mac.Sum(nil))}
	response, err := q.client.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close() //nolint:errcheck // It was only read.
	if size := max(response.ContentLength, 0); int64(cap(q.body)) < size {
		q.body = make([]byte, size)
	} else {
		q.body = q.body[:size]
	}
	if _, err := io.ReadFull(response.Body, q.body); err != nil {
		return 0, err
	}
	return response.StatusCode, nil
}

// receive waits for up to 16 messages and appends them to items. None: it has waited in
// vain.
func (q *queue) receive(ctx context.Context, items []item) ([]item, error) {
	status, err := q.do(ctx, http.MethodGet, "/queues/"+q.name+"/messages?numOfMessages="+strconv.Itoa(batch)+"&waitseconds="+strconv.Itoa(q.waits), nil)
	switch {
	case err != nil:
		return nil, err
	case status == http.StatusNotFound && bytes.Contains(q.body, []byte("MessageNotExist")):
		return items, nil
	case status != http.StatusOK:
		return nil, fmt.Errorf("receive: %d: %s", status, q.body)
	}
	rest := q.body
	for {
		var m item
		id, after, found := element(rest, "<MessageId>")
		if !found {
			return items, nil
		}
		m.id = string(id)
		if m.handle, after, found = element(after, "<ReceiptHandle>"); !found {
			return nil, errNotThere
		}
		if m.body, after, found = element(after, "<MessageBody>"); !found {
			return nil, errNotThere
		}
		enqueued, after, found := element(after, "<EnqueueTime>")
		if !found {
			return nil, errNotThere
		}
		ms, err := strconv.ParseInt(string(enqueued), 10, 64)
		if err != nil {
			return nil, err
		}
		m.enqueuedAt = time.UnixMilli(ms)
		count, after, found := element(after, "<DequeueCount>")
		if !found {
			return nil, errNotThere
		}
		if m.attempt, err = strconv.ParseInt(string(count), 10, 64); err != nil {
			return nil, err
		}
		items, rest = append(items, m), after
	}
}

var errNotThere = errors.New("an element of a message is missing")

// element gives the text of the first element with that start tag, and what follows it.
func element(in []byte, start string) (text, rest []byte, found bool) {
	at := bytes.Index(in, []byte(start))
	if at < 0 {
		return nil, nil, false
	}
	in = in[at+len(start):]
	end := bytes.IndexByte(in, '<')
	if end < 0 {
		return nil, nil, false
	}
	return in[:end], in[end:], true
}

// delete deletes a batch; a refusal of one is an error.
func (q *queue) delete(ctx context.Context, handles [][]byte) error {
	q.request = append(q.request[:0], `<?xml version="1.0" encoding="UTF-8"?><ReceiptHandles xmlns="http://mns.aliyuncs.com/doc/v1/">`...)
	for _, handle := range handles {
		q.request = append(q.request, "<ReceiptHandle>"...)
		q.request = append(q.request, handle...)
		q.request = append(q.request, "</ReceiptHandle>"...)
	}
	q.request = append(q.request, "</ReceiptHandles>"...)
	status, err := q.do(ctx, http.MethodDelete, "/queues/"+q.name+"/messages", q.request)
	if err == nil && status != http.StatusNoContent {
		err = fmt.Errorf("delete: %d: %s", status, q.body)
	}
	return err
}
