// Package amqppeer gives tests AMQP 1.0 peers that are nobody's broker: programs on Qpid
// Proton and on rhea that take messages, tell what they saw, and do with each what the name
// of its address begins with:
//
//	accept, or anything else      accepted
//	reject                        rejected, amqp:resource-limit-exceeded
//	release                       released
//	modify                        modified, failed
//	modify-undeliverable          modified, undeliverable here
//	settle                        settled without an outcome
//	silent                        nothing
//	detach                        the link is ended
//	drop                          the connection is cut
//	refuse                        the link is refused, amqp:not-found
//	nocredit                      no credit is granted
//	credit.N                      accepted; credit for N messages and no more
//	idle                          accepted, and the link is ended after it
//
// No test is skipped for want of a peer: it fails, and says what to do.
package amqppeer

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"mnsrelay/test/process"
)

// patience is how long a peer may take to start or to stop on a busy machine.
const patience = 30 * time.Second

// Kind is what a peer is built on.
type Kind string

// The kinds of peers.
const (
	Proton Kind = "proton"
	Rhea   Kind = "rhea"
)

// Message is what a peer saw of a message. Values of properties and annotations are pairs
// of a type and a value: bool, long, double, string, binary (base64), timestamp (ms), list,
// map.
type Message struct {
	Address         string         `json:"address"`
	Settled         bool           `json:"settled"`
	ID              string         `json:"id"`
	Body64          string         `json:"body"`
	Durable         bool           `json:"durable"`
	Priority        int            `json:"priority"`
	TTL             int64          `json:"ttl"`
	Subject         string         `json:"subject"`
	To              string         `json:"to"`
	ReplyTo         string         `json:"reply_to"`
	CorrelationID   string         `json:"correlation_id"`
	GroupID         string         `json:"group_id"`
	UserID          string         `json:"user_id"`
	ContentType     string         `json:"content_type"`
	ContentEncoding string         `json:"content_encoding"`
	CreationTime    int64          `json:"creation_time"`
	Properties      map[string]any `json:"properties"`
	Annotations     map[string]any `json:"annotations"`
}

// Body is the payload.
func (m *Message) Body() []byte {
	body, err := base64.StdEncoding.DecodeString(m.Body64)
	if err != nil {
		return []byte(err.Error())
	}
	return body
}

// Peer is a running peer. It is gone when its test ends, and dies with this process too.
type Peer struct {
	tb      testing.TB
	kind    Kind
	port    int
	process *process.Process

	marks chan struct{} // size 1

	mu       sync.Mutex
	messages []Message
	attached map[string]int
	detached map[string]int
}

// Start starts a peer for tb and returns when it accepts connections.
func Start(tb testing.TB, kind Kind) *Peer {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ports, err := process.FreePorts(ctx, 1)
	if err != nil {
		tb.Fatal(err)
	}
	p := &Peer{tb: tb, kind: kind, port: ports[0], marks: make(chan struct{}, 1), attached: map[string]int{}, detached: map[string]int{}}
	tb.Cleanup(p.Kill)
	p.Start()
	return p
}

// command is the program, and an error that says what to do where it is missing.
func (p *Peer) command() (*exec.Cmd, error) {
	_, file, _, _ := runtime.Caller(0)
	script := func(name string) string { return filepath.Join(filepath.Dir(file), name) }
	port := strconv.Itoa(p.port)
	if p.kind == Proton {
		const python = "/usr/bin/python3"                                         // Debian's, whose packages these are
		if err := exec.Command(python, "-c", "import proton").Run(); err != nil { //nolint:noctx // It ends at once.
			return nil, fmt.Errorf("python3-qpid-proton is not installed: run test/setup (%w)", err)
		}
		return exec.Command(python, script("proton_peer.py"), port), nil //nolint:noctx,gosec // It lives until Kill.
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, err
	}
	modules := filepath.Join(cache, "mnsrelay-test", "amqppeer", "node_modules")
	if _, err := os.Stat(filepath.Join(modules, "rhea")); err != nil {
		return nil, fmt.Errorf("rhea is not installed: run test/setup (%w)", err)
	}
	cmd := exec.Command("node", script("rhea_peer.js"), port) //nolint:noctx,gosec // It lives until Kill.
	cmd.Env = append(os.Environ(), "NODE_PATH="+modules)
	return cmd, nil
}

// Start starts the peer again after Kill, on the same port.
func (p *Peer) Start() {
	p.tb.Helper()
	cmd, err := p.command()
	if err != nil {
		p.tb.Fatal(err)
	}
	listening := make(chan struct{})
	reader, writer := io.Pipe()
	go p.read(reader, listening)
	if p.process, err = process.Start(cmd, writer); err != nil {
		p.tb.Fatalf("start the peer: %v", err)
	}
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	select {
	case <-listening:
	case <-p.process.Done():
		p.tb.Fatalf("start the peer: %v", p.process.Outcome())
	case <-timeout.C:
		p.tb.Fatal("start the peer: it does not listen")
	}
	ended := p.process.Done()
	go func() {
		<-ended
		_ = writer.Close()
	}()
}

// read notes what the peer says.
func (p *Peer) read(from io.Reader, listening chan<- struct{}) {
	lines := bufio.NewScanner(from)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		var said struct {
			Event string `json:"event"`
			Message
		}
		if json.Unmarshal(lines.Bytes(), &said) != nil {
			continue // what a runtime says of its own
		}
		switch said.Event {
		case "listening":
			close(listening)
		case "mark":
			select {
			case p.marks <- struct{}{}:
			default:
			}
		case "message":
			p.mu.Lock()
			p.messages = append(p.messages, said.Message)
			p.mu.Unlock()
		case "attached":
			p.mu.Lock()
			p.attached[said.Address]++
			p.mu.Unlock()
		case "detached":
			p.mu.Lock()
			p.detached[said.Address]++
			p.mu.Unlock()
		}
	}
}

// URL is where the peer listens.
func (p *Peer) URL() string { return "amqp://" + p.Address() }

// Address is its host and port.
func (p *Peer) Address() string { return "127.0.0.1:" + strconv.Itoa(p.port) }

// Kill ends the peer at once.
func (p *Peer) Kill() {
	p.tb.Helper()
	if p.process == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := p.process.End(ctx, syscall.SIGKILL); err != nil {
		p.tb.Fatalf("end the peer: %v", err)
	}
}

// Pause stops the peer's process, its connections open.
func (p *Peer) Pause() { p.signal(syscall.SIGSTOP) }

// Resume lets it run on.
func (p *Peer) Resume() { p.signal(syscall.SIGCONT) }

func (p *Peer) signal(s syscall.Signal) {
	p.tb.Helper()
	if err := p.process.Signal(s); err != nil {
		p.tb.Fatal(err)
	}
}

// Messages are those that the peer has seen so far, copies included. What it has settled
// is among them, unless it was killed.
func (p *Peer) Messages() []Message {
	p.mark()
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.messages)
}

// mark waits until what the peer has said so far is read.
func (p *Peer) mark() {
	select {
	case <-p.marks:
	default:
	}
	if p.process.Signal(syscall.SIGUSR2) != nil {
		return // it was killed
	}
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	select {
	case <-p.marks:
	case <-p.process.Done():
	case <-timeout.C:
		p.tb.Error("the peer does not answer")
	}
}

// Attached is how often a link to an address was attached.
func (p *Peer) Attached(address string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.attached[address]
}

// Detached is how often a link to an address has ended on both sides.
func (p *Peer) Detached(address string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.detached[address]
}
