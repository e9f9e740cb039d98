package shadow

import (
	"maps"
	"slices"
	"strings"
	"time"

	"mnsrelay/internal/dryrun"
	"mnsrelay/internal/relay"
)

// Report is what a source in shadow mode has seen. It holds no bodies.
type Report struct {
	// Seen counts messages, and the others what would become of them: delivered to a sink at
	// least, given to the dead-letter sink, deleted since no route takes it, or left in the
	// queue.
	Seen, Delivered, DeadLettered, Deleted, Retained uint64
	// Deliveries are those that would be made, by target.
	Deliveries map[relay.TargetName]uint64
	// LastPeek is when a peek last worked, and Head how many messages it showed.
	LastPeek time.Time
	Head     int
	// Previews are the last twenty, the newest first.
	Previews []Preview
}

// Preview is what would become of one message.
type Preview struct {
	Time       time.Time
	Message    string // its id
	EnqueuedAt time.Time
	// Attempt is that of the next receive.
	Attempt    int
	Deliveries []Delivery
	// End says in words what would become of it in the queue.
	End string
	// Reason and Text say why it would be rejected; empty: it would not.
	Reason, Text string
}

// Delivery is what one sink would get.
type Delivery struct {
	// Route is empty for a dead letter.
	Route, Sink, Address string
	// Reason and Text say why the sink would reject it; empty: it would not.
	Reason, Text string
}

func newPreview(e *dryrun.Explanation) Preview {
	m := &e.Message
	p := Preview{
		Time: time.Now(), Message: strings.Clone(m.ID[:min(len(m.ID), idLength)]), EnqueuedAt: m.EnqueuedAt, Attempt: m.Attempt, End: e.End,
	}
	p.Reason, p.Text = errorText(e.Rejected)
	add := func(d *dryrun.Delivery) {
		one := Delivery{Route: d.Route, Sink: d.Sink, Address: d.Address}
		one.Reason, one.Text = errorText(d.Err)
		p.Deliveries = append(p.Deliveries, one)
	}
	for _, r := range e.Routes {
		for i := range r.Deliveries {
			add(&r.Deliveries[i])
		}
	}
	if e.DeadLetter != nil {
		add(e.DeadLetter)
	}
	return p
}

// count takes in a message and its preview.
func (r *Report) count(e *dryrun.Explanation, p Preview) {
	r.Seen++
	sent := false
	for _, d := range p.Deliveries {
		if d.Reason == "" && d.Route != "" {
			r.Deliveries[relay.TargetName{Route: d.Route, Sink: d.Sink}]++
			sent = true
		}
	}
	if sent {
		r.Delivered++
	}
	switch {
	case e.DeadLetter != nil && e.DeadLetter.Err == nil:
		r.DeadLettered++
	case e.Retained:
		r.Retained++
	case unmatched(e):
		r.Deleted++
	}
	r.Previews = slices.Insert(r.Previews, 0, p)
	r.Previews = r.Previews[:min(len(r.Previews), previewsKept)]
}

func (r *Report) clone() Report {
	c := *r
	c.Deliveries, c.Previews = maps.Clone(r.Deliveries), slices.Clone(r.Previews)
	return c
}
