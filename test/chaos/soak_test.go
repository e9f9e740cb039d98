package chaos_test

import (
	"context"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/test/rig"
)

const (
	// sampleEvery is how often a soak looks at what the relay needs.
	sampleEvery = time.Second
	// blocks is how many medians a fit is made of: what one fault adds to neighbouring
	// samples is one value then, not many that agree.
	blocks = 20
	// warmUp is the share of a soak that is left out: pools, pages and garbage grow to
	// their size.
	warmUp = 0.2
	// leastBlock is how long a block must be for its median not to hang on the one before it:
	// for a minute or so the memory still tells of the last faults. A shorter run is not judged.
	leastBlock = time.Minute
	// soakBusy leaves the relay the time to keep up with a steady load: with both sinks at fault
	// for half of the time it is well for a quarter of it, and a backlog grows for as long as
	// the run lasts.
	soakBusy = 0.2
)

// needed is what the relay needs at a moment.
type needed struct {
	rss, anonymous, heap, goroutines, files, sockets float64
}

// TestSoak runs one relay for long, with a steady load and all faults that leave it alive,
// and asks whether what it needs grows. The short form is too short to say so, and only
// shows that all of it works.
func TestSoak(t *testing.T) {
	seed := seed(t)
	short := *minutesFlag == 0
	span := 15 * time.Second
	if !short {
		span = time.Duration(*minutesFlag * float64(time.Minute))
	}
	messages := int(span.Minutes() * perMinute)
	if *messagesFlag > 0 {
		messages = *messagesFlag
	}
	t.Logf("seed %d: %d messages over %v", seed, messages, span)
	var living []lane
	for _, l := range lanes(true) {
		if l.name == "relay" {
			l.kinds = slices.DeleteFunc(l.kinds, func(k kind) bool { return k.name != "reloads" })
		}
		if short {
			l.kinds = l.kinds[:1]
		}
		living = append(living, l)
	}

	w := newWorld(t, true)
	require.NoError(t, w.start(t.Context(), first))
	atRest := w.rest(t)
	var samples []needed
	r := w.happen(t, messages, span, plan(seed, span, short, soakBusy, living), func(ctx context.Context) error {
		for end := time.Now().Add(span); time.Now().Before(end); {
			if err := pause(ctx, sampleEvery); err != nil {
				return err
			}
			s, err := look(ctx, w.living()[first])
			if err != nil {
				return err
			}
			samples = append(samples, s)
		}
		return nil
	})
	if len(samples) < 3*blocks {
		t.Logf("%d samples are too few to tell whether something grows", len(samples))
		w.requireArrived(t, r, messages, atRest)
		return
	}

	taken := len(samples)
	samples = samples[int(warmUp*float64(len(samples))):]
	var b strings.Builder
	table := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(table, "\tmedian\tgrows in the run by\tstandard error of that\t")
	fits := map[string]fit{}
	const resident = "RSS, MiB"
	for _, of := range []struct {
		name  string
		value func(needed) float64
	}{
		{resident, func(n needed) float64 { return n.rss / (1 << 20) }},
		{"of it anonymous, MiB", func(n needed) float64 { return n.anonymous / (1 << 20) }},
		// What the collector lets the heap grow to: some four times what is in use.
		{"heap goal, MiB", func(n needed) float64 { return n.heap / (1 << 20) }},
		{"goroutines", func(n needed) float64 { return n.goroutines }},
		{"open files", func(n needed) float64 { return n.files }},
		{"sockets", func(n needed) float64 { return n.sockets }},
	} {
		f := fitted(samples, of.value)
		fits[of.name] = f
		_, _ = fmt.Fprintf(table, "%s\t%.1f\t%+.2f\t%.2f\t\n", of.name, f.median, f.growth, f.deviation)
	}
	require.NoError(t, table.Flush())
	t.Log("\n" + b.String())
	w.requireArrived(t, r, messages, atRest)
	require.GreaterOrEqual(t, taken, int(span/sampleEvery)/2)
	if time.Duration((1-warmUp)*float64(span)) < blocks*leastBlock {
		t.Logf("too short to tell growth from what faults leave behind: that takes %v", time.Duration(math.Ceil(blocks*leastBlock.Minutes()/(1-warmUp)))*time.Minute)
		return
	}
	for name, f := range fits {
		// The rest of what is resident are pages of the program's file, each from when it is
		// first run: as code for rare faults is needed they grow towards the size of the file.
		if name != resident {
			require.True(t, f.flat(), "%s: %+v", name, f)
		}
	}
}

// look asks the system and the relay what it needs.
func look(ctx context.Context, r *rig.Relay) (needed, error) {
	goroutines, err := r.Metric(ctx, "go_goroutines")
	if err != nil {
		return needed{}, err
	}
	heap, err := r.Metric(ctx, "go_memstats_next_gc_bytes")
	if err != nil {
		return needed{}, err
	}
	n := needed{heap: heap, goroutines: goroutines}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.PID()))
	if err != nil {
		return n, err
	}
	for name, value := range map[string]*float64{"VmRSS:": &n.rss, "RssAnon:": &n.anonymous} {
		_, after, found := strings.Cut(string(status), name)
		if !found {
			return n, fmt.Errorf("the system does not tell %s", name)
		}
		kib, err := strconv.ParseFloat(strings.Fields(after)[0], 64)
		if err != nil {
			return n, err
		}
		*value = kib * 1024
	}
	dir := fmt.Sprintf("/proc/%d/fd", r.PID())
	open, err := os.ReadDir(dir)
	if err != nil {
		return n, err
	}
	for _, f := range open {
		n.files++
		// One that was closed since is none.
		if to, err := os.Readlink(dir + "/" + f.Name()); err == nil && strings.HasPrefix(to, "socket:") {
			n.sockets++
		}
	}
	return n, nil
}

// fit is a straight line through the medians of blocks of samples.
type fit struct {
	median float64
	// growth is how much higher the line ends than it begins, and deviation the standard
	// error of that.
	growth, deviation float64
}

// flat says that the growth of one thing is no more than chance makes of the noise in one run
// of about 400, or else below a fiftieth of the whole.
func (f fit) flat() bool { return f.growth < max(3*f.deviation, f.median/50) }

// fitted makes a line by least squares.
func fitted(samples []needed, value func(needed) float64) fit {
	ys := make([]float64, blocks)
	for i := range ys {
		block := samples[i*len(samples)/blocks : (i+1)*len(samples)/blocks]
		values := make([]float64, len(block))
		for k, s := range block {
			values[k] = value(s)
		}
		slices.Sort(values)
		ys[i] = values[len(values)/2]
	}
	var meanX, meanY float64
	for i, y := range ys {
		meanX += float64(i) / blocks
		meanY += y / blocks
	}
	var xx, xy float64
	for i, y := range ys {
		xx += (float64(i) - meanX) * (float64(i) - meanX)
		xy += (float64(i) - meanX) * (y - meanY)
	}
	slope := xy / xx
	var rest float64
	for i, y := range ys {
		r := y - meanY - slope*(float64(i)-meanX)
		rest += r * r
	}
	f := fit{growth: slope * (blocks - 1), deviation: math.Sqrt(rest/(blocks-2)/xx) * (blocks - 1)}
	slices.Sort(ys)
	f.median = ys[blocks/2]
	return f
}

// A leak shows although faults make more noise than it grows between two of them, and noise
// alone is none.
func TestFit(t *testing.T) {
	for name, test := range map[string]struct {
		leak float64 // of the whole, in the run
		flat bool
	}{
		"noise": {0, true},
		"leak":  {0.2, false},
	} {
		t.Run(name, func(t *testing.T) {
			samples := make([]needed, 600)
			for i := range samples {
				noise := 4 * math.Sin(float64(i)*1.7)
				if i%97 < 10 {
					noise += 50 // a fault
				}
				samples[i].rss = 100 + noise + 100*test.leak*float64(i)/600
			}
			f := fitted(samples, func(n needed) float64 { return n.rss })
			require.Equal(t, test.flat, f.flat(), "%+v", f)
		})
	}
}
