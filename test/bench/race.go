package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// load is what a contender has to do, and where.
type load struct {
	// messages of size bytes are all there from the beginning, or come at a rate a second.
	messages, size, rate int
	// pollers of each source; 0: what is the default.
	pollers int
	// sources, sinks and replicas are how many there are.
	sources, sinks, replicas int
	// distant: there is a round trip to MNS and to the broker.
	distant bool
	// hook: they go to the receiver of webhooks.
	hook bool
	// templates: the route has a condition, the sink templates.
	templates bool
	// role: the relay takes on a role, with one credential for all sources.
	role bool
}

// raw: bodies are not base64.
func (l load) raw() bool { return l.size > rawFrom }

// contender is a process that relays.
type contender interface {
	pid() int
	memory(ctx context.Context) (memoryUse, error)
	ended() <-chan struct{}
	end() error
}

// start starts a contender by its name.
func (w *world) start(ctx context.Context, kind string, l load, round int) (contender, error) {
	if strings.HasPrefix(kind, "relay") {
		return w.startRelay(ctx, w.configuration(l))
	}
	c, err := startChild(ctx, contenderArg)
	if err != nil {
		return nil, err
	}
	t := task{
		Contender: kind, Endpoint: w.endpoint(l), Queue: queueName(0), Pollers: l.pollers, Raw: l.raw(),
		Key: sinkName(0), Profile: w.profileOf(kind, l, round),
	}
	if l.hook {
		t.Hook = w.receiver.url
	} else {
		t.Broker = w.brokerURL(l)
	}
	return c, c.tell(t)
}

// profileOf names the file of a profile; empty: none is wanted.
func (w *world) profileOf(kind string, l load, round int) string {
	if w.profiles == "" || round == warmUp {
		return ""
	}
	return filepath.Join(w.profiles, fmt.Sprintf("%s-%d-%d.pprof", strings.ReplaceAll(kind, " ", "-"), l.size, round))
}

// snapshot is where a run stands.
type snapshot struct {
	at       time.Time
	deleted  int
	requests int
	// The processor time used, and what the contenders have allocated.
	contenders, emulator, broker time.Duration
	memory                       memoryUse
}

// fewest is how many messages can be measured while a contender runs: fewer are gone before
// its processor time has been counted.
const fewest = 1000

// race lets one contender do its work and measures it.
func (w *world) race(ctx context.Context, kind string, l load, round int) (_ run, err error) {
	limit := 10*time.Minute + time.Duration(l.messages/max(l.rate, 1))*time.Second
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errors.New("it takes too long"))
	defer cancel()
	if err := w.prepare(ctx, l); err != nil {
		return nil, err
	}
	var latency *observer
	if l.rate > 0 {
		if latency, err = w.observe(l); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, latency.close()) }()
	}
	var all []contender
	defer func() {
		for _, c := range all {
			err = errors.Join(err, c.end())
		}
	}()
	unstarted, err := w.snapshot(ctx, nil, l)
	if err != nil {
		return nil, err
	}
	for range l.replicas {
		c, err := w.start(ctx, kind, l, round)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	var sending sync.WaitGroup
	defer sending.Wait()
	if l.rate > 0 {
		sent, stop := context.WithCancel(ctx)
		defer stop()
		sending.Go(func() {
			if err := w.trickle(sent, l); err != nil && sent.Err() == nil {
				w.log("send: %v", err) // and what is missing shows
			}
		})
	}
	begin, end, err := w.watch(ctx, all, l, kind, round)
	if err != nil {
		return nil, err
	}
	if l.messages < fewest || begin.deleted == end.deleted {
		w.log("%s is measured from its start: %d messages are too few to tell when it runs", kind, l.messages)
		begin = unstarted
	}
	r := begin.until(end)
	for _, c := range all {
		m, err := memoryOf(c.pid())
		if err != nil {
			return nil, err
		}
		r[peakRSS] += m.peak
	}
	for _, c := range all {
		if err := c.end(); err != nil {
			return nil, fmt.Errorf("end: %w", err)
		}
	}
	all = nil
	if latency != nil {
		if err := latency.report(ctx, r); err != nil {
			return nil, err
		}
	}
	return r, w.verify(ctx, l)
}

// prepare empties the world, and fills the queues with a backlog.
func (w *world) prepare(ctx context.Context, l load) error {
	if err := w.makeQueues(ctx, l.sources); err != nil {
		return err
	}
	if l.hook {
		if err := w.receiver.empty(ctx); err != nil {
			return err
		}
	}
	if err := w.makeKept(l.sinks); err != nil {
		return err
	}
	if l.rate == 0 {
		if err := w.fill(ctx, l); err != nil {
			return err
		}
	}
	// What the run before has left to write, and the queue that was deleted just now, are not this one's.
	syscall.Sync()
	return nil
}

// watch waits for the part of a run that counts and gives where it began and ended.
func (w *world) watch(ctx context.Context, all []contender, l load, kind string, round int) (begin, end snapshot, err error) {
	if _, err := w.await(ctx, all, l, max(l.messages/10, 1)); err != nil {
		return begin, end, err
	}
	if begin, err = w.snapshot(ctx, all, l); err != nil {
		return begin, end, err
	}
	var profiling sync.WaitGroup
	defer profiling.Wait()
	if r, is := all[0].(*relayProcess); is {
		if path := w.profileOf(kind, l, round); path != "" {
			profiling.Go(func() {
				const seconds = 10 // or as long as the run takes: after it there is nothing to see
				if err := r.profile(ctx, path, seconds); err != nil {
					w.log("profile: %v", err)
				}
			})
		}
	}
	at, err := w.await(ctx, all, l, l.messages)
	if err != nil {
		return begin, end, err
	}
	if end, err = w.snapshotAt(ctx, all, l, at); err != nil {
		return begin, end, err
	}
	// What has been allocated is asked for outside of the time that counts: the answer is work.
	end.memory, err = useOf(ctx, all)
	return begin, end, err
}

// await waits until so many messages have been deleted and tells when that was seen.
func (w *world) await(ctx context.Context, all []contender, l load, deleted int) (time.Time, error) {
	every := 5 * time.Millisecond
	if l.sources > 1 {
		every = 50 * time.Millisecond // it is asked about all of them
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		s, err := w.state(ctx, l.sources)
		if err != nil {
			return time.Time{}, err
		}
		if s.Deleted >= deleted {
			return time.Now(), nil
		}
		if i := slices.IndexFunc(all, gone); i >= 0 {
			return time.Time{}, errors.New("it has ended before its work was done")
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("%w: %d of %d messages were deleted, %d are under lease", context.Cause(ctx), s.Deleted, l.messages, s.Inactive)
		}
	}
}

func gone(c contender) bool {
	select {
	case <-c.ended():
		return true
	default:
		return false
	}
}

// snapshot reads where a run stands now, and first what has been allocated: the answer to that
// is work that does not count.
func (w *world) snapshot(ctx context.Context, all []contender, l load) (snapshot, error) {
	use, err := useOf(ctx, all)
	if err != nil {
		return snapshot{}, err
	}
	s, err := w.snapshotAt(ctx, all, l, time.Time{})
	s.memory = use
	return s, err
}

// snapshotAt reads all but what has been allocated; at, if not zero, is what time it is.
func (w *world) snapshotAt(ctx context.Context, all []contender, l load, at time.Time) (s snapshot, err error) {
	used := func(pid int, total *time.Duration) {
		t, failed := processorTime(pid)
		*total += t
		err = errors.Join(err, failed)
	}
	for _, c := range all {
		used(c.pid(), &s.contenders)
	}
	used(w.emulator.PID(), &s.emulator)
	used(w.node.PID(), &s.broker)
	if err != nil {
		return s, err
	}
	now, err := w.state(ctx, l.sources)
	if err != nil {
		return s, err
	}
	s.at, s.deleted = at, now.Deleted
	if at.IsZero() {
		s.at = time.Now()
	}
	s.requests, err = w.requests(ctx)
	return s, err
}

// useOf is what contenders have allocated, together.
func useOf(ctx context.Context, all []contender) (total memoryUse, err error) {
	for _, c := range all {
		use, err := c.memory(ctx)
		if err != nil {
			return total, err
		}
		total.Allocations += use.Allocations
		total.Bytes += use.Bytes
	}
	return total, nil
}

// until is what was measured between two snapshots.
func (s snapshot) until(end snapshot) run {
	n := float64(end.deleted - s.deleted)
	each := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 / n }
	return run{
		perSecond:   n / end.at.Sub(s.at).Seconds(),
		cpu:         each(end.contenders - s.contenders),
		emulatorCPU: each(end.emulator - s.emulator),
		brokerCPU:   each(end.broker - s.broker),
		requests:    float64(end.requests-s.requests) / n,
		allocations: float64(end.memory.Allocations-s.memory.Allocations) / n,
		allocated:   float64(end.memory.Bytes-s.memory.Bytes) / n,
	}
}
