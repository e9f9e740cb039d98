package relay

import (
	"context"
	"sync"
)

// Room bounds what is in flight, in messages and in bytes of bodies.
//
// A source reserves its own room before it receives, so that a lease never ages
// while it waits for a place. The room of all sources together is only charged on
// arrival: it may go over its bounds by what was being received when it filled up,
// and stops new receives until it is under them again.
type Room struct {
	mu          sync.Mutex
	maxMessages int
	maxBytes    int64

	messages int
	bytes    int64
	// freed is closed and replaced when room is given back while someone waits.
	freed   chan struct{}
	waiting int
}

// NewRoom makes an empty room for that many messages and bytes, each at least 1.
func NewRoom(messages int, bytes int64) *Room {
	return &Room{maxMessages: messages, maxBytes: bytes, freed: make(chan struct{})}
}

// alike makes an empty room of the same bounds.
func (r *Room) alike() *Room { return NewRoom(r.maxMessages, r.maxBytes) }

// Reserve takes room for messages and bytes, waiting until there is as much or ctx
// ends. A demand larger than the whole room is granted when the room is empty.
func (r *Room) Reserve(ctx context.Context, messages int, bytes int64) error {
	return r.wait(ctx, func() bool { return r.take(messages, bytes) })
}

// Await returns when the room is under its bounds or ctx ends. It takes nothing.
func (r *Room) Await(ctx context.Context) error {
	return r.wait(ctx, func() bool {
		return r.messages < r.maxMessages && r.bytes < r.maxBytes
	})
}

// Charge takes room without waiting, over the bounds if need be.
func (r *Room) Charge(messages int, bytes int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.messages += messages
	r.bytes += bytes
}

// Try takes room if there is as much at once.
func (r *Room) Try(messages int, bytes int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.take(messages, bytes)
}

// take takes room if there is as much, or if none is taken; the caller holds the
// lock.
func (r *Room) take(messages int, bytes int64) bool {
	fits := r.messages+messages <= r.maxMessages && r.bytes+bytes <= r.maxBytes
	if !fits && r.messages > 0 {
		return false
	}
	r.messages += messages
	r.bytes += bytes
	return true
}

// Give returns room that was reserved or charged.
func (r *Room) Give(messages int, bytes int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.messages -= messages
	r.bytes -= bytes
	r.wake()
}

// SetBounds changes the bounds. What is taken stays taken.
func (r *Room) SetBounds(messages int, bytes int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.maxMessages, r.maxBytes = messages, bytes
	r.wake()
}

// wake lets those who wait look again; the caller holds the lock.
func (r *Room) wake() {
	if r.waiting > 0 {
		close(r.freed)
		r.freed = make(chan struct{})
		r.waiting = 0
	}
}

// InFlight tells the room taken.
func (r *Room) InFlight() (messages int, bytes int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.messages, r.bytes
}

// wait calls try under the lock until it is true or ctx ends.
func (r *Room) wait(ctx context.Context, try func() bool) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		r.mu.Lock()
		if try() {
			r.mu.Unlock()
			return nil
		}
		freed := r.freed
		r.waiting++
		r.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
