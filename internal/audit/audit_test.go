package audit_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"mnsrelay/internal/audit"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/telemetry"
)

// disk is a file in memory that can be full, and that can hang.
type disk struct {
	mu     sync.Mutex
	text   bytes.Buffer
	full   error
	hangs  chan struct{} // nil: it does not
	takes  time.Duration // for each write
	writes int
}

func (d *disk) Append(ctx context.Context, lines []byte) error {
	d.mu.Lock()
	hangs, takes := d.hangs, d.takes
	d.mu.Unlock()
	<-time.After(takes)
	if hangs != nil {
		select {
		case <-hangs:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.writes++
	if d.full != nil {
		return d.full
	}
	d.text.Write(lines)
	return nil
}

func (d *disk) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.writes
}

func (d *disk) set(full error, hangs chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.full, d.hangs = full, hangs
}

func (d *disk) lines() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return bytes.Count(d.text.Bytes(), []byte("\n"))
}

func keys(t *testing.T, key, secret string) *audit.Keys {
	t.Helper()
	c := &audit.Config{To: "lines", Key: key}
	if secret != "" {
		c.HashSecret = setting.NewSecret(secret)
	}
	require.NoError(t, c.Validate())
	k, err := audit.NewKeys(c)
	require.NoError(t, err)
	return k
}

func entry(id, body string) relay.AuditEntry {
	now := time.Now()
	return relay.AuditEntry{
		Event: relay.AuditDelivered, Message: &relay.Message{ID: id, Source: "sms", Body: []byte(body), Attempt: 2},
		Target: relay.TargetName{Route: "all", Sink: "events"}, Address: "sms.events", Begun: now.Add(-12 * time.Millisecond), Time: now,
	}
}

// running is a Writer at work, inside a bubble of synctest.
func running(t *testing.T, k *audit.Keys, d *disk) (w *audit.Writer, counter *audit.Counter, said *observer.ObservedLogs, end func()) {
	t.Helper()
	core, said := observer.New(zap.InfoLevel)
	counter = &audit.Counter{}
	w = audit.NewWriter(k, d, zap.New(core), counter)
	ctx, cancel := context.WithCancel(t.Context())
	var writing sync.WaitGroup
	writing.Go(func() { w.Run(ctx) })
	return w, counter, said, func() {
		cancel()
		writing.Wait()
	}
}

func TestAFlushReturnsWhenTheLineIsWritten(t *testing.T) {
	t.Parallel()
	k := keys(t, "{{ body.biz_id }}", "")
	synctest.Test(t, func(t *testing.T) {
		d := &disk{}
		w, counter, _, end := running(t, k, d)
		var recording sync.WaitGroup
		for n := range 50 {
			recording.Go(func() {
				w.Record(entry(strconv.Itoa(n), "{}"))
				w.Flush(t.Context())
				require.Contains(t, func() string { d.mu.Lock(); defer d.mu.Unlock(); return d.text.String() }(), fmt.Sprintf(`"message_id":"%d"`, n))
			})
		}
		recording.Wait()
		end()
		written, lost := counter.Counts()
		require.Equal(t, []uint64{50, 0}, []uint64{written, lost})
		require.Equal(t, 50, d.lines())
	})
}

// A disk that is full holds up nobody. It is said once; what waits is written when there is
// room, within a second, and what does not fit into memory is counted.
func TestADiskThatIsFull(t *testing.T) {
	t.Parallel()
	k := keys(t, "{{ body.biz_id }}", "")
	synctest.Test(t, func(t *testing.T) {
		d := &disk{}
		w, counter, said, end := running(t, k, d)
		d.set(errors.New("no space left on device"), nil)
		w.Record(entry("first", "{}"))
		w.Flush(t.Context())
		begun := time.Now()
		const most = 15_000
		body := fmt.Sprintf(`{"biz_id":"%0250d"}`, 1)
		for n := range most {
			w.Record(entry(strconv.Itoa(n), body))
			w.Flush(t.Context())
		}
		require.Zero(t, time.Since(begun))
		require.Equal(t, 1, said.FilterMessageSnippet("cannot be written").Len())
		_, lost := counter.Counts()
		require.Positive(t, lost)
		require.Less(t, lost, uint64(most))
		<-time.After(time.Minute)
		require.LessOrEqual(t, d.count(), 62, "once a second")
		d.set(nil, nil)
		<-time.After(time.Second + time.Millisecond)
		require.Equal(t, 1, said.FilterMessageSnippet("written again").Len())
		written, again := counter.Counts()
		require.Equal(t, lost, again)
		require.Equal(t, uint64(most+1), written+lost)
		require.Equal(t, int(written), d.lines())
		end()
		require.Len(t, said.All(), 2)
	})
}

// A disk that hangs holds up a delete for a quarter of a second, once.
func TestADiskThatHangs(t *testing.T) {
	t.Parallel()
	k := keys(t, "{{ body.biz_id }}", "")
	synctest.Test(t, func(t *testing.T) {
		hangs := make(chan struct{})
		d := &disk{hangs: hangs}
		w, _, said, end := running(t, k, d)
		begun := time.Now()
		for range 10 {
			w.Record(entry("x", "{}"))
			w.Flush(t.Context())
		}
		require.Equal(t, 250*time.Millisecond, time.Since(begun))
		require.Equal(t, 1, said.FilterMessageSnippet("is slow").Len())
		d.set(nil, nil)
		close(hangs)
		synctest.Wait()
		w.Record(entry("y", "{}"))
		w.Flush(t.Context())
		require.Equal(t, 11, d.lines())
		end()
	})
}

// A write that is slow and then fails is said to fail, with its error, and a disk that writes
// again and is slow is not said to be well.
func TestADiskThatIsSlowAndThenFull(t *testing.T) {
	t.Parallel()
	k := keys(t, "{{ body.biz_id }}", "")
	synctest.Test(t, func(t *testing.T) {
		d := &disk{takes: 300 * time.Millisecond, full: errors.New("no space left on device")}
		w, counter, said, end := running(t, k, d)
		w.Record(entry("first", "{}"))
		w.Flush(t.Context())
		<-time.After(time.Minute)
		messages := func() (all []string) {
			for _, entry := range said.TakeAll() {
				all = append(all, entry.Message+": "+fmt.Sprint(entry.ContextMap()["error"]))
			}
			return all
		}
		require.Equal(t, []string{
			"the audit is slow: messages do not wait for it: <nil>",
			"the audit cannot be written: messages go on without it: no space left on device",
		}, messages())
		d.set(nil, nil)
		<-time.After(2 * time.Second)
		require.Equal(t, []string{"the audit is slow: messages do not wait for it: <nil>"}, messages())
		written, lost := counter.Counts()
		require.Equal(t, []uint64{1, 0}, []uint64{written, lost})
		end()
	})
}

// A disk that works and is slow holds up one delete, and is said to be slow once; one that is
// slow now and then does not flood the log.
func TestADiskThatIsSlow(t *testing.T) {
	t.Parallel()
	k := keys(t, "{{ body.biz_id }}", "")
	for name, test := range map[string]struct {
		takes []time.Duration
		lines int
	}{
		"always":         {[]time.Duration{300 * time.Millisecond}, 1},
		"for two writes": {[]time.Duration{150 * time.Millisecond}, 1},
		// The first ten lines of each kind, and one of each every ten seconds and at the end.
		"now and then": {[]time.Duration{300 * time.Millisecond, time.Millisecond}, 2 * (10 + 6 + 1)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var out bytes.Buffer
				log, _, err := telemetry.NewLogger("info", telemetry.FormatJSON, &out)
				require.NoError(t, err)
				d := &disk{}
				w := audit.NewWriter(k, d, log, &audit.Counter{})
				ctx, cancel := context.WithCancel(t.Context())
				var writing sync.WaitGroup
				writing.Go(func() { w.Run(ctx) })
				waited := 0
				for n := range 150 { // for a minute
					d.mu.Lock()
					d.takes = test.takes[n%len(test.takes)]
					d.mu.Unlock()
					w.Record(entry("before", "{}"))
					<-time.After(time.Millisecond)
					w.Record(entry("behind", "{}"))
					begun := time.Now()
					w.Flush(t.Context())
					if time.Since(begun) > 0 {
						waited++
					}
					<-time.After(time.Until(begun.Add(399 * time.Millisecond)))
				}
				if test.lines == 1 {
					require.Equal(t, 1, waited)
				}
				cancel()
				writing.Wait()
				require.NoError(t, log.Sync()) // what was left out, too
				lines := bytes.Count(out.Bytes(), []byte("\n"))
				require.Positive(t, lines)
				require.LessOrEqual(t, lines, test.lines, out.String())
			})
		})
	}
}

// Each problem of an audit is said at once.
func TestAConfigurationSaysAllThatIsWrong(t *testing.T) {
	t.Parallel()
	err := (&audit.Config{Key: "{{ nothing( }}", HashSecret: setting.NewSecret("x")}).Validate()
	require.ErrorContains(t, err, "is missing, so nothing is audited")
	require.ErrorContains(t, err, "key: at character 12")
	err = (&audit.Config{HashSecret: setting.NewSecret("x")}).Validate()
	require.ErrorContains(t, err, "is missing, so nothing is audited")
	require.ErrorContains(t, err, "has a meaning with a key only")
	require.NoError(t, (&audit.Config{}).Validate())
}

// A disk that hangs at the end is left after a second, and what is lost by it is said.
func TestADiskThatHangsAtTheEnd(t *testing.T) {
	t.Parallel()
	k := keys(t, "{{ body.biz_id }}", "")
	synctest.Test(t, func(t *testing.T) {
		d := &disk{hangs: make(chan struct{})}
		w, counter, said, end := running(t, k, d)
		w.Record(entry("x", "{}"))
		begun := time.Now()
		end()
		require.Equal(t, time.Second, time.Since(begun))
		_, lost := counter.Counts()
		require.Equal(t, uint64(1), lost)
		require.Equal(t, 1, said.FilterMessageSnippet("ends with lines").Len())
	})
}

// Nothing in a message makes a second line, in a file or in a log of either format, and each
// is found by what it is.
func TestHostileMessagesForgeNothing(t *testing.T) {
	t.Parallel()
	const forged = `{"time":"2026-01-01T00:00:00.000Z","audit":"delivered","message_id":"forged","source":"sms","attempt":1}`
	for _, text := range []string{
		"a\n" + forged + "\n", "a\r\n" + forged, "\u2028" + forged, `"}` + "\n" + forged, "\x00\x1b[2J\x7f", "\xff\xfe", `\n` + forged,
		"<b>&amp;", strings.Repeat("long", 200), "短信", "plain-1^0", `","message_id":"forged`, forged,
	} {
		for _, kind := range []string{"file", telemetry.FormatJSON, telemetry.FormatConsole} {
			var out bytes.Buffer
			k := keys(t, "{{ text }}", "")
			if kind == "file" {
				synctest.Test(t, func(t *testing.T) {
					d := &disk{}
					w := audit.NewWriter(k, d, zap.NewNop(), &audit.Counter{})
					ctx, cancel := context.WithCancel(t.Context())
					w.Record(entry(text, text))
					cancel()
					w.Run(ctx)
					out = d.text
				})
			} else {
				log, _, err := telemetry.NewLogger("error", kind, &out)
				require.NoError(t, err)
				log.Info("not this one")
				audit.NewLogged(k, log.With(zap.String("source", "x")), &audit.Counter{}).Record(entry(text, text))
				require.NotContains(t, out.String(), "not this one")
			}
			require.Equal(t, 1, strings.Count(out.String(), "\n"), "%s: %q", kind, out.String())
			search := k.Search(text)
			if utf8.ValidString(text) { // which JSON can carry
				require.NoError(t, search.Read(strings.NewReader("noise {\n"+out.String())))
				search.Finish()
				require.Len(t, search.Lines, 1, "%s: %q", kind, out.String())
				require.Equal(t, relay.AuditDelivered, search.Lines[0].Audit)
				require.NotEmpty(t, search.Lines[0].Time)
				require.Equal(t, search.First, search.Last)
				require.LessOrEqual(t, len(search.Lines[0].Key), 256)
			}
			search = k.Search("forged")
			require.NoError(t, search.Read(bytes.NewReader(out.Bytes())))
			require.Empty(t, search.Lines, "%s: %q", kind, out.String())
		}
	}
}

// A key that is hashed is in no line, and is found with the secret alone.
func TestHashedKeys(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log, _, err := telemetry.NewLogger("info", telemetry.FormatJSON, &out)
	require.NoError(t, err)
	hashing := keys(t, "{{ body.phone }}", "0123456789abcdef")
	audit.NewLogged(hashing, log, &audit.Counter{}).Record(entry("1", `{"phone":"13900001234"}`))
	audit.NewLogged(hashing, log, &audit.Counter{}).Record(entry("2", `{}`))
	require.NotContains(t, out.String(), "13900001234")
	for secret, found := range map[string]int{"0123456789abcdef": 1, "another-secret-of-16": 0, "": 0} {
		search := keys(t, "{{ body.phone }}", secret).Search("13900001234")
		require.NoError(t, search.Read(bytes.NewReader(out.Bytes())))
		require.Len(t, search.Lines, found, secret)
		require.Equal(t, secret == "", search.Hashed)
	}
}

// A search passes over what is no line of an audit, however long, and says what is torn.
func TestSearchReadsWhatThereIs(t *testing.T) {
	t.Parallel()
	line := func(id, at string) string {
		return fmt.Sprintf(`{"time":%q,"audit":"delivered","message_id":%q,"source":"s","attempt":1}`, at, id) + "\n"
	}
	var log strings.Builder
	log.WriteString(strings.Repeat("x", 1<<20) + "\n" + strings.Repeat("y", 64<<10-1) + "\n\n[pod/x] " + line("other", "2026-01-01T00:00:00.000Z"))
	log.WriteString(`{"time":"z","message":"delivery failed","error":"{\"audit\":\"delivered\",\"message_id\":\"mine\"}"}` + "\n")
	log.WriteString(line("mine", "2026-01-01T00:00:03.000Z") + line("mine", "2026-01-01T00:00:02.000Z"))
	log.WriteString(`{"time":"2026-01-01T00:00:04.000Z","audit":"delivered","message_id":"mine","sou`)
	search := keys(t, "{{ id }}", "").Search("mine")
	require.NoError(t, search.Read(strings.NewReader(log.String())))
	search.Finish()
	require.Len(t, search.Lines, 2)
	require.Equal(t, "2026-01-01T00:00:02.000Z", search.Lines[0].Time, "in the order of time")
	require.Equal(t, 1, search.Torn)
	require.Equal(t, "2026-01-01T00:00:00.000Z", search.First)
	require.Equal(t, []string{"mine"}, search.IDs())

	many := keys(t, "{{ id }}", "").Search("mine")
	require.NoError(t, many.Read(strings.NewReader(strings.Repeat(line("mine", "2026-01-01T00:00:02.000Z"), 25_000))))
	many.Finish()
	require.Len(t, many.Lines, 10_000)
	require.Equal(t, 15_000, many.Left)
}

func TestFilesAreThoseThatWereMoved(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	path := filepath.Join(folder, "audit.jsonl")
	_, err := audit.Files(path)
	require.ErrorContains(t, err, "there is no file")
	var packed bytes.Buffer
	zipped := gzip.NewWriter(&packed)
	_, err = zipped.Write([]byte("packed"))
	require.NoError(t, err)
	require.NoError(t, zipped.Close())
	for n, name := range []string{"audit.jsonl-20260101.gz", "audit.jsonl.1", "audit.jsonl", "other.jsonl"} {
		at := filepath.Join(folder, name)
		text := []byte("plain")
		if strings.HasSuffix(name, ".gz") {
			text = packed.Bytes()
		}
		require.NoError(t, os.WriteFile(at, text, 0o600))
		changed := time.Now().Add(time.Duration(n-10) * time.Hour)
		require.NoError(t, os.Chtimes(at, changed, changed))
	}
	files, err := audit.Files(path)
	require.NoError(t, err)
	require.Equal(t, []string{path + "-20260101.gz", path + ".1", path}, files)
	file, err := audit.Open(files[0])
	require.NoError(t, err)
	defer file.Close() //nolint:errcheck // a test reads
	var text bytes.Buffer
	_, err = text.ReadFrom(file)
	require.NoError(t, err)
	require.Equal(t, "packed", text.String())
	require.NoError(t, os.WriteFile(path+".2.gz", []byte("torn"), 0o600))
	_, err = audit.Open(path + ".2.gz")
	require.ErrorContains(t, err, "audit.jsonl.2.gz")
}

// A file that is a link is read, one that is being packed is read once, and another's is not.
func TestFilesOfAnAuditAlone(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	path := filepath.Join(folder, "audit.jsonl")
	for _, name := range []string{"data", "audit.jsonl.1", "audit.jsonl.1.gz", "audit.jsonlines"} {
		require.NoError(t, os.WriteFile(filepath.Join(folder, name), []byte("{}\n"), 0o600))
	}
	require.NoError(t, os.Symlink("data", path))
	files, err := audit.Files(path)
	require.NoError(t, err)
	require.ElementsMatch(t, []string{path, path + ".1"}, files)
}

func FuzzSearch(f *testing.F) {
	f.Add("a", `{"time":"x","audit":"delivered","message_id":"a"}`)
	f.Add("é\n", "2026-01-01T00:00:00Z {\"audit\":1}\n{")
	f.Fuzz(func(t *testing.T, text, file string) {
		k := keys(t, "{{ id }}", "")
		search := k.Search(text)
		require.NoError(t, search.Read(strings.NewReader(file)))
		search.Finish()
		// What was written is found behind anything that ends its line.
		line, err := json.Marshal(map[string]any{"audit": "delivered", "message_id": "needle"})
		require.NoError(t, err)
		search = k.Search("needle")
		require.NoError(t, search.Read(strings.NewReader(file+"\n"+string(line))))
		require.NotEmpty(t, search.Lines)
	})
}
