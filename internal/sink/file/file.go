// Package file is the sink that appends messages to a file as JSON lines, or writes
// them to standard output.
//
// One goroutine, Run, owns the file; Deliver hands its batch over and waits, so that
// a disk that stalls holds up nobody whose context has ended. A batch is written by
// one write and reported as delivered after fsync. What a failed write left is cut
// off again; where even that fails, and where a crash left half a line, the next open
// ends that line, so that no message is ever glued to a torn one. A file that was
// moved away or removed, as logrotate does, is made anew.
//
// A path may be a template of the file's name. Up to maxOpen such files are kept open;
// the one that was not written to for longest makes room. A value can neither leave the
// folder nor be taken for another one (name).
//
// One process writes a file: what another one appends at the same time could be cut
// off together with a failed write.
package file

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"go.uber.org/zap"

	"mnsrelay/internal/expr"
	"mnsrelay/internal/format"
	"mnsrelay/internal/relay"
)

const (
	// reopenEvery is how long Run waits before it tries again to open a file that
	// could not be opened or written.
	reopenEvery = time.Second
	// stopWithin is how long Run, when it has to end, waits for a write under way.
	stopWithin = time.Second
)

// The reasons under which failures are counted.
const (
	reasonStopped = "stopped"          // the caller gave up or the endpoint was closed
	reasonNotOpen = "not_open"         // there is no file to write to
	reasonWrite   = "write"            // a write or its fsync failed
	reasonEncode  = "encode"           // a message has no JSON
	reasonInvalid = "invalid_property" // a template gave what is no name of a file
)

var (
	errNotYet  = errors.New("the file was not opened yet")
	errStopped = errors.New("the file is closed")
	errStuck   = fmt.Errorf("a write did not end within %v", stopWithin)
)

// Endpoint owns one file. Make it with New.
type Endpoint struct {
	open    func() (output, error)
	written string         // the path as the configuration has it
	path    string         // of the file; where a message decides its name, of the folder
	name    *expr.Template // of the file in the folder; nil: there is one file
	log     *zap.Logger
	health  *relay.Monitor
	batches chan batch
	ended   chan struct{} // closed when nothing is written any more
	logged  string        // the trouble that was last logged; Run's goroutine only
}

// output is what lines are written to. After an error from write it is closed and
// opened again.
type output interface {
	// write appends to the named file, where there is more than one.
	write(name string, lines []byte) error
	close() error
}

// batch is what one Deliver writes. One value goes through written, which never
// blocks the sender.
type batch struct {
	parts   []part
	written chan error
}

// part is what one file gets.
type part struct {
	name  string
	lines []byte
}

var (
	_ relay.Endpoint  = (*Endpoint)(nil)
	_ relay.Sink      = (*Sink)(nil)
	_ relay.Previewer = (*Sink)(nil)
)

// New makes the endpoint of a validated Config. What stdout is, is passed in, for
// the Path Stdout.
func New(c *Config, deps relay.SinkDeps, stdout io.Writer) (*Endpoint, error) {
	in, name, err := c.split()
	if err != nil {
		return nil, err
	}
	e := &Endpoint{
		written: c.Path,
		path:    c.Path,
		name:    name,
		log:     deps.Log,
		health:  relay.NewMonitor(relay.Down, errNotYet.Error()),
		batches: make(chan batch),
		ended:   make(chan struct{}),
	}
	switch path := c.Path; {
	case path == Stdout:
		out := &stream{w: stdout}
		e.open = func() (output, error) { return out, nil }
	case name != nil:
		e.path = in
		e.open = func() (output, error) { return openFolder(in) }
	default:
		e.open = func() (output, error) { return openDisk(path) }
	}
	return e, nil
}

// Run writes what Sinks deliver until ctx ends, then closes the file. A file that
// cannot be opened is tried again every second. An error says that a write under way
// at the end is stuck.
func (e *Endpoint) Run(ctx context.Context) error {
	defer close(e.ended)
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		e.serve(ctx)
	}()

	<-ctx.Done()
	defer e.health.Set(relay.Down, errStopped.Error())
	patience := time.NewTimer(stopWithin)
	defer patience.Stop()
	select {
	case <-finished:
		return nil
	case <-patience.C:
		return errStuck // its goroutine ends with the write, if ever
	}
}

// serve is the only one that touches the output.
func (e *Endpoint) serve(ctx context.Context) {
	var (
		out     output // nil: to be opened
		trouble error  // why
		suspect bool   // the last write failed: let one message find out
		opening = time.NewTimer(reopenEvery)
	)
	opening.Stop() // until something fails
	defer opening.Stop()
	fail := func(err error) {
		out, trouble = nil, err
		opening.Reset(reopenEvery)
		e.report(ctx, relay.Down, err)
	}
	open := func() {
		opened, err := e.open()
		switch {
		case err != nil:
			fail(err)
			return
		case suspect:
			e.report(ctx, relay.Probe, trouble)
		default:
			e.report(ctx, relay.Up, nil)
		}
		out = opened
	}
	open()
	for {
		select {
		case <-ctx.Done():
			if out != nil {
				if err := out.close(); err != nil {
					e.log.Warn("closing the file failed", zap.Error(err))
				}
			}
			return

		case <-opening.C:
			open()

		case b := <-e.batches:
			if out == nil {
				b.written <- relay.Fail(reasonNotOpen, trouble)
				continue
			}
			if err := b.writeTo(out); err != nil {
				err = errors.Join(err, out.close())
				suspect = true
				// Down first, so that who learns of the failure sees its cause.
				fail(err)
				b.written <- relay.Fail(reasonWrite, err)
				continue
			}
			suspect = false
			e.report(ctx, relay.Up, nil)
			b.written <- nil
		}
	}
}

func (b *batch) writeTo(out output) error {
	for _, p := range b.parts {
		if err := out.write(p.name, p.lines); err != nil {
			return err
		}
	}
	return nil
}

// report records a state, and logs trouble once until it is another or has ended.
func (e *Endpoint) report(ctx context.Context, state relay.State, cause error) {
	if ctx.Err() != nil {
		return // Run has the last word
	}
	reason := ""
	if cause != nil {
		reason = cause.Error()
	}
	e.health.Set(state, reason)
	switch {
	case state == relay.Down && reason != e.logged:
		e.logged = reason
		e.log.Warn("the file cannot be written", zap.Error(cause))
	case state == relay.Up && e.logged != "":
		e.logged = ""
		e.log.Info("the file can be written again")
	}
}

// Health is down while the file cannot be opened, and probe after a write failed
// until one succeeds.
func (e *Endpoint) Health() (relay.Health, <-chan struct{}) { return e.health.Health() }

// Bind makes a Sink. A file has no settings that a route could set otherwise.
func (e *Endpoint) Bind(with relay.Overrides) (relay.Sink, error) {
	if with != nil {
		if err := with(&struct{}{}); err != nil {
			return nil, err
		}
	}
	return &Sink{endpoint: e}, nil
}

// Sink appends messages to the file. Make it with Endpoint.Bind.
type Sink struct{ endpoint *Endpoint }

// Deliver appends all messages of a file with one write. All that have a file share one
// result.
func (s *Sink) Deliver(ctx context.Context, ms []relay.Message, done func(i int, r relay.Result)) {
	var files []lot
	if s.endpoint.name == nil {
		files = []lot{{messages: ms}}
	}
	rejected := make([]bool, len(ms))
	for i := range ms {
		if s.endpoint.name == nil {
			break
		}
		name, err := s.endpoint.nameFor(&ms[i])
		if err != nil {
			rejected[i] = true
			done(i, relay.Result{Outcome: relay.Rejected, Err: err})
			continue
		}
		at := slices.IndexFunc(files, func(l lot) bool { return l.name == name })
		if at < 0 {
			at, files = len(files), append(files, lot{name: name})
		}
		files[at].messages = append(files[at].messages, ms[i])
	}
	result := relay.Result{Outcome: relay.Delivered}
	if err := s.endpoint.append(ctx, files); err != nil {
		result = relay.Result{Err: err}
	}
	for i := range ms {
		if !rejected[i] {
			done(i, result)
		}
	}
}

// Address is part of relay.Addressed: the file, whose name may hold {{ }}.
func (s *Sink) Address() string { return s.endpoint.written }

// Preview is part of relay.Previewer. The body is the line, with its end.
func (s *Sink) Preview(m *relay.Message) (relay.Preview, error) {
	name, err := s.endpoint.nameFor(m)
	if err != nil {
		return relay.Preview{}, err
	}
	line, err := format.Envelopes([]relay.Message{*m})
	if err != nil {
		return relay.Preview{}, relay.Fail(reasonEncode, err)
	}
	return relay.Preview{Fields: []relay.Field{{Name: "path", Value: s.endpoint.path + name}}, Body: line}, nil
}

// lot is the messages of one file.
type lot struct {
	name     string
	messages []relay.Message
}

// append returns when all files are written, or when ctx or the endpoint has ended; then
// they may or may not be.
func (e *Endpoint) append(ctx context.Context, files []lot) error {
	if len(files) == 0 || len(files[0].messages) == 0 {
		return nil
	}
	var parts []part
	for _, l := range files {
		lines, err := format.Envelopes(l.messages)
		if err != nil {
			return relay.Fail(reasonEncode, err)
		}
		parts = append(parts, part{l.name, lines})
	}
	return e.write(ctx, parts)
}

// Append writes lines that are no messages, each with its end, to the one file of the
// endpoint, and returns when the disk has them. After an error they are cut off again, as far
// as that is possible.
func (e *Endpoint) Append(ctx context.Context, lines []byte) error {
	return e.write(ctx, []part{{lines: lines}})
}

// write hands parts over to Run and waits for their end.
func (e *Endpoint) write(ctx context.Context, parts []part) error {
	if ctx.Err() != nil {
		return relay.Fail(reasonStopped, context.Cause(ctx))
	}
	b := batch{parts: parts, written: make(chan error, 1)}
	select {
	case e.batches <- b:
	case <-ctx.Done():
		return relay.Fail(reasonStopped, context.Cause(ctx))
	case <-e.ended:
		return relay.Fail(reasonStopped, errStopped)
	}
	select {
	case err := <-b.written:
		return err
	case <-ctx.Done():
		return relay.Fail(reasonStopped, context.Cause(ctx))
	case <-e.ended:
	}
	// Run waits for the last write, whose result counts.
	select {
	case err := <-b.written:
		return err
	default:
		return relay.Fail(reasonStopped, errStopped)
	}
}
