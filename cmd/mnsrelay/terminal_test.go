package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/emulator"
)

// terminal is a real one of the kernel's: what is written to it is read by read.
type terminal struct {
	*os.File
	mu    sync.Mutex
	text  strings.Builder
	ended chan struct{}
}

func newTerminal(t *testing.T) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = master.Close() })
	control, err := master.SyscallConn()
	require.NoError(t, err)
	var number, unlocked uint32
	require.NoError(t, control.Control(func(fd uintptr) {
		_, _, e := syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TIOCSPTLCK, uintptr(unsafe.Pointer(&unlocked)))
		require.Zero(t, e)
		_, _, e = syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TIOCGPTN, uintptr(unsafe.Pointer(&number)))
		require.Zero(t, e)
	}))
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	require.NoError(t, err)
	term := &terminal{File: slave, ended: make(chan struct{})}
	go func() {
		defer close(term.ended)
		for b := make([]byte, 4096); ; {
			n, err := master.Read(b)
			term.mu.Lock()
			term.text.Write(b[:n])
			term.mu.Unlock()
			if err != nil {
				return // nobody has the other side any more
			}
		}
	}()
	return term
}

// shows is what was written so far.
func (term *terminal) shows() string {
	term.mu.Lock()
	defer term.mu.Unlock()
	return strings.ReplaceAll(term.text.String(), "\r\n", "\n")
}

// read gives what was written, and closes the terminal.
func (term *terminal) read(t *testing.T) string {
	t.Helper()
	require.NoError(t, term.Close())
	<-term.ended
	return term.shows()
}

func onTerminal(t *testing.T, args ...string) (code int, out string) {
	t.Helper()
	term := newTerminal(t)
	var stderr bytes.Buffer
	code = execute(t.Context(), args, strings.NewReader(""), term.File, &stderr)
	return code, term.read(t)
}

func TestColoursAreForTerminals(t *testing.T) {
	path := oneOfTwoFails(t)
	t.Setenv("TERM", "xterm-256color")
	t.Setenv("NO_COLOR", "")
	code, out := onTerminal(t, "test", path)
	require.Equal(t, exitFailed, code, out)
	require.Contains(t, out, "\x1b[32mok\x1b[0m    goes\n")
	require.Contains(t, out, "\x1b[31mFAIL\x1b[0m  does not ("+path+":5)\n")

	t.Setenv("NO_COLOR", "1")
	_, out = onTerminal(t, "test", path)
	require.Contains(t, out, "ok    goes\n")
	require.NotContains(t, out, "\x1b")
	t.Setenv("NO_COLOR", "")
	t.Setenv("TERM", "dumb")
	_, out = onTerminal(t, "test", path)
	require.NotContains(t, out, "\x1b")

	t.Setenv("TERM", "xterm-256color")
	got := command(t, "", "test", path)
	require.NotContains(t, got.stdout+got.stderr, "\x1b")
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	require.NoError(t, err)
	defer func() { require.NoError(t, null.Close()) }()
	require.False(t, isTerminal(null), "a device is not always a terminal")
}

func TestPeekIsForPeopleOnATerminal(t *testing.T) {
	url, _ := startEmulator(t, "--queue", "orders")
	setKeys(t, emulator.DemoAccessKeyID, emulator.DemoAccessKeySecret)
	t.Setenv("TERM", "dumb")
	send(t, url, "orders", `{"id":1,"to":["a","b"]}`, "text \u009b2Jthat clears", "eyJpbiI6ImJhc2U2NCJ9", `{"id":1`)
	args := []string{"queue", "peek", "--endpoint", url, "--queue", "orders"}

	code, out := onTerminal(t, args...)
	require.Equal(t, exitDone, code)
	require.Regexp(t, `(?m)^message [0-9A-Za-z-]+  attempt 0, enqueued at 20.*Z, \d+s ago$`, out)
	require.Contains(t, out, "  body, 23 bytes:\n    {\n      \"id\": 1,\n      \"to\": [\n")
	require.Contains(t, out, "    text \ufffd2Jthat clears\n")
	require.Contains(t, out, "    {\n      \"in\": \"base64\"\n    }\n")
	require.Contains(t, out, "    {\"id\":1\n", "what is no JSON is shown as it is")

	code, out = onTerminal(t, append(args, "--json")...)
	require.Equal(t, exitDone, code)
	require.Len(t, readPeeked(t, out), 4)

	got := command(t, "", args...)
	require.Len(t, readPeeked(t, got.stdout), 4, "programs get JSON")

	// What a topic pushed is shown as it would be delivered.
	send(t, url, "orders", `{"TopicOwner":"1","TopicName":"bills","Subscriber":"1","SubscriptionName":"s","MessageId":"topic-1",`+
		`"MessageMD5":"","Message":"paid","PublishTime":"1449556920975","MessageTag":"urgent"}`)
	code, out = onTerminal(t, args...)
	require.Equal(t, exitDone, code)
	require.Contains(t, out, "  attributes.topic: bills\n")
	require.Contains(t, out, "  body, 4 bytes:\n    paid\n")
	got = command(t, "", append(args, "--json=false")...)
	require.Contains(t, got.stdout, "      \"id\": 1,\n")
}

func TestWatchOnATerminal(t *testing.T) {
	url, path := watched(t)
	send(t, url, "orders", "1")
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "")
	term := newTerminal(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var stderr bytes.Buffer
	code := make(chan int, 1)
	go func() {
		code <- execute(ctx, []string{"queue", "stats", "--config", path, "--watch", "--interval", "1s"}, strings.NewReader(""), term.File, &stderr)
	}()
	// A head, an empty line, the names of the columns, three rows, an error and a note.
	require.Eventually(t, func() bool {
		return strings.Contains(term.shows(), "\x1b[8A\r\x1b[J\x1b[2mevery 1s until Ctrl-C, at ")
	}, time.Minute, 10*time.Millisecond)
	cancel()
	require.Equal(t, exitDone, <-code, stderr.String())
	out := term.read(t)
	require.Empty(t, stderr.String(), "all is on the screen")
	require.Contains(t, out, "\x1b[1mSOURCE    QUEUE")
	require.Contains(t, out, "\x1b[31msms: attributes: 403 AccessDenied")
}
