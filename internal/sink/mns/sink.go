package mns

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"mnsrelay/internal/mns"
	"mnsrelay/internal/relay"
)

// Reasons of failures beside the names of relay.Class.
const (
	reasonTooLarge = "too_large"
	reasonNotText  = "not_text"
	reasonRefused  = "refused"
	reasonTimeout  = "timeout"
	reasonCanceled = "canceled"
	reasonStopped  = "stopped"
)

// Sink sends messages with the settings of one route. Make it with Endpoint.Bind.
type Sink struct {
	endpoint *Endpoint
	settings Settings
}

// request is what goes in one request: bodies, and which messages they are.
type request struct {
	out   []mns.Outgoing
	index []int
	bytes int
}

// Deliver sends the messages in as few requests as MNS allows, all at once.
func (s *Sink) Deliver(ctx context.Context, ms []relay.Message, done func(i int, r relay.Result)) {
	ctx, cancel := context.WithTimeoutCause(ctx, s.settings.Timeout, errTimeout)
	defer cancel()
	var sending sync.WaitGroup
	for _, r := range s.pack(ms, done) {
		sending.Go(func() { s.send(ctx, r, done) })
	}
	sending.Wait()
}

// pack divides messages into requests and answers for those that cannot be sent.
func (s *Sink) pack(ms []relay.Message, done func(i int, r relay.Result)) []*request {
	var all []*request
	for i := range ms {
		body, err := s.encode(&ms[i])
		if err != nil {
			done(i, s.rejected(err))
			continue
		}
		var r *request
		if len(all) > 0 {
			r = all[len(all)-1]
		}
		if r == nil || len(r.out) == mns.MaxBatch || r.bytes+len(body) > mns.MaxBody {
			r = &request{}
			all = append(all, r)
		}
		r.out, r.index, r.bytes = append(r.out, mns.Outgoing{Body: body}), append(r.index, i), r.bytes+len(body)
	}
	return all
}

// encode gives the body that goes into the queue.
func (s *Sink) encode(m *relay.Message) (body []byte, err error) {
	if m.Dead != nil || s.settings.Format == FormatEnvelope {
		body, err = mns.Wrap(m).Text()
	} else {
		body, err = s.settings.Body.Encode(m)
	}
	switch {
	case err != nil:
		return nil, relay.Fail(reasonNotText, err)
	case len(body) > mns.MaxBody:
		return nil, relay.Fail(reasonTooLarge, fmt.Errorf("the body has %d bytes, %d as it is sent, and MNS takes %d", len(m.Body), len(body), mns.MaxBody))
	}
	return body, nil
}

// Address is part of relay.Addressed: the queue.
func (s *Sink) Address() string { return s.endpoint.name }

// Preview is part of relay.Previewer. The body is what MNS gets, encoded.
func (s *Sink) Preview(m *relay.Message) (relay.Preview, error) {
	body, err := s.encode(m)
	if err != nil {
		return relay.Preview{}, s.rejected(err).Err
	}
	return relay.Preview{Fields: []relay.Field{
		{Name: "endpoint", Value: s.endpoint.endpoint.String()},
		{Name: "queue", Value: s.endpoint.name},
	}, Body: body}, nil
}

// send makes one request and answers for its messages.
func (s *Sink) send(ctx context.Context, r *request, done func(i int, r relay.Result)) {
	e := s.endpoint
	sent, err := e.send(ctx, r.out)
	results := make([]relay.Result, len(r.out))
	var delivered bool
	var trouble error // why nothing was taken, where that is the queue's fault
	for k := range results {
		cause := err
		if cause == nil {
			cause = sent[k].Err
		}
		switch {
		case cause == nil:
			results[k] = relay.Result{Outcome: relay.Delivered}
			delivered = true
		case mns.RefusesBody(cause):
			results[k] = s.rejected(relay.Fail(reasonRefused, cause))
		default:
			theirs, why := e.failure(ctx, cause)
			results[k] = s.failed(why)
			if theirs {
				trouble = results[k].Err
			}
		}
	}
	// The health is told of before the results that it explains.
	switch {
	case delivered:
		e.takes()
	case trouble != nil:
		e.takesNot(trouble)
	}
	for k, result := range results {
		done(r.index[k], result)
	}
}

func (s *Sink) failed(err error) relay.Result {
	return relay.Result{Err: fmt.Errorf("send to queue %q: %w", s.endpoint.name, err)}
}

func (s *Sink) rejected(err error) relay.Result {
	r := s.failed(err)
	r.Outcome = relay.Rejected
	return r
}

// send sends up to 16 messages and tells what became of each. The last result is why
// nothing is known of any.
func (e *Endpoint) send(ctx context.Context, out []mns.Outgoing) ([]mns.Sent, error) {
	select {
	case e.slots <- struct{}{}:
		defer func() { <-e.slots }()
	case <-e.stopped:
		return nil, errStopped
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	sent, err := e.request(ctx, out)
	if !mns.RefusesBody(err) || len(out) == 1 {
		return sent, err
	}
	// MNS may have refused all because of one: alone, each is judged by itself.
	sent = make([]mns.Sent, len(out))
	for k := range out {
		one, err := e.request(ctx, out[k:k+1])
		if err != nil {
			sent[k].Err = err
			continue
		}
		sent[k] = one[0]
	}
	return sent, nil
}

func (e *Endpoint) request(ctx context.Context, out []mns.Outgoing) ([]mns.Sent, error) {
	keys, _ := e.refresher.Current() // without keys the call says so
	sent, err := e.queue.BatchSend(ctx, out)
	e.refused(keys, err)
	return sent, err
}

// failure tells whether the queue is to blame for err, and names its reason.
func (e *Endpoint) failure(ctx context.Context, err error) (theirs bool, why error) {
	select {
	case <-e.stopped:
		return false, relay.Fail(reasonStopped, errStopped)
	default:
	}
	if ended := ctx.Err(); ended != nil && errors.Is(err, ended) {
		cause := context.Cause(ctx)
		if errors.Is(cause, errTimeout) {
			return true, relay.Fail(reasonTimeout, errTimeout)
		}
		return false, relay.Fail(reasonCanceled, cause)
	}
	reason := reasonRefused
	if class := relay.ClassOf(err); class != relay.ClassUnknown {
		reason = class.String()
	}
	return true, relay.Fail(reason, err)
}
