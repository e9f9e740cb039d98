package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"syscall"
	"time"

	"mnsrelay/internal/emulator"
)

// lanes are all the faults there are; shared says that there is a Redis.
func lanes(shared bool) []lane {
	const second = time.Second
	all := []lane{
		{name: "broker", share: 1, kinds: []kind{
			{name: "broker kill -9", least: second, most: 6 * second, more: 6 * second, blinds: true, do: killBroker},
			{name: "broker SIGSTOP", least: 3 * second, most: 12 * second, blinds: true, do: stopBroker},
			{name: "broker cut before confirm", least: second / 2, most: 2 * second, do: cutConfirms},
			{name: "broker latency 2 s", least: 4 * second, most: 10 * second, do: toxic(brokerWay, `{"type": "latency", "stream": "downstream", "attributes": {"latency": 2000}}`)},
			{name: "broker 10 KB/s", least: 4 * second, most: 10 * second, do: toxic(brokerWay, `{"type": "bandwidth", "stream": "upstream", "attributes": {"rate": 10}}`)},
		}},
		{name: "queue", share: 1, kinds: []kind{
			{name: "receive 500", least: second, most: 6 * second, free: true, do: failing(emulator.OpReceive)},
			{name: "receive dropped", least: second, most: 6 * second, free: true, do: dropping(emulator.OpReceive)},
			{name: "delete 500", least: 2 * second, most: 6 * second, do: failing(emulator.OpDelete)},
			{name: "delete dropped", least: 2 * second, most: 6 * second, do: dropping(emulator.OpDelete)},
			{name: "visibility 500", least: 3 * second, most: 8 * second, do: failing(emulator.OpVisibility)},
			{name: "visibility dropped", least: 3 * second, most: 8 * second, do: dropping(emulator.OpVisibility)},
			{name: "tokens revoked", do: revoke},
			{name: "Dybaseapi down", least: tokenLife + second, most: 20 * second, do: withoutTokens},
			{name: "MNS cut", least: second / 2, most: 2 * second, do: cutQueue},
			{name: "MNS latency 2 s", least: 4 * second, most: 8 * second, do: toxic(queueWay, `{"type": "latency", "stream": "downstream", "attributes": {"latency": 2000}}`)},
		}},
		{name: "webhook", share: 1, kinds: []kind{
			{name: "webhook 500", least: 2 * second, most: 8 * second, do: answering(http.StatusInternalServerError)},
			{name: "webhook 429", least: 2 * second, most: 8 * second, do: answering(http.StatusTooManyRequests)},
			{name: "webhook silent", least: 3 * second, most: 8 * second, do: answering(silent)},
		}},
		// Left alone towards the end, so that what leaks in a relay that lives shows.
		{name: "relay", share: 2. / 3, kinds: []kind{
			{name: "relay kill -9", most: 3 * second, more: second, do: killRelay},
			{name: "relay SIGTERM", most: 2 * second, more: 2 * second, do: drainRelay},
			{name: "two relays, one killed", least: 5 * second, most: 15 * second, more: second, do: secondRelay(syscall.SIGKILL)},
			{name: "two relays, one drained", least: 5 * second, most: 15 * second, more: 2 * second, do: secondRelay(syscall.SIGTERM)},
			{name: "reloads", least: second, most: 5 * second, more: 2 * second, do: reload},
		}},
	}
	if shared {
		all = append(all, lane{name: "ledger", share: 1, kinds: []kind{
			{name: "Redis kill -9", least: 2 * second, most: 6 * second, do: killLedger},
			{name: "Redis SIGSTOP", least: 2 * second, most: 6 * second, do: stopLedger},
		}})
	}
	return all
}

func killBroker(ctx context.Context, w *world, _ *rand.Rand, lasts time.Duration) error {
	if err := w.node.Kill(ctx); err != nil {
		return err
	}
	if err := pause(ctx, lasts); err != nil {
		return err
	}
	return w.node.Start(ctx)
}

func stopBroker(ctx context.Context, w *world, _ *rand.Rand, lasts time.Duration) error {
	if err := w.node.Pause(); err != nil {
		return err
	}
	return errors.Join(pause(ctx, lasts), w.node.Resume())
}

// cutConfirms lets publishes pass and nothing come back, and then cuts the connections.
func cutConfirms(ctx context.Context, w *world, _ *rand.Rand, lasts time.Duration) error {
	if _, err := w.amqp.Toxics.AddToxicJson(strings.NewReader(`{"name": "confirms", "type": "timeout", "stream": "downstream", "attributes": {"timeout": 0}}`)); err != nil {
		return fmt.Errorf("swallow confirms: %w", err)
	}
	err := pause(ctx, lasts)
	w.amqp.Stop()
	return errors.Join(err, w.amqp.Toxics.RemoveToxic(ctx, "confirms"), w.amqp.Start())
}

func cutQueue(ctx context.Context, w *world, _ *rand.Rand, lasts time.Duration) error {
	w.mns.Stop()
	return errors.Join(pause(ctx, lasts), w.mns.Start())
}

func brokerWay(w *world) *way { return w.amqp }
func queueWay(w *world) *way  { return w.mns }

// toxic makes a way bad.
func toxic(of func(*world) *way, definition string) func(context.Context, *world, *rand.Rand, time.Duration) error {
	return func(ctx context.Context, w *world, _ *rand.Rand, lasts time.Duration) error {
		added, err := of(w).Toxics.AddToxicJson(strings.NewReader(definition))
		if err != nil {
			return fmt.Errorf("make the way bad: %w", err)
		}
		return errors.Join(pause(ctx, lasts), of(w).Toxics.RemoveToxic(ctx, added.Name))
	}
}

// failing answers a share of the requests with 500.
func failing(op emulator.Op) func(context.Context, *world, *rand.Rand, time.Duration) error {
	return func(ctx context.Context, w *world, dice *rand.Rand, lasts time.Duration) error {
		return w.fault(ctx, lasts, emulator.Fault{
			Operation: op, Status: http.StatusInternalServerError, Code: "InternalError", Rate: share(dice),
		})
	}
}

// dropping does what a share of the requests ask for, and gives no answer.
func dropping(op emulator.Op) func(context.Context, *world, *rand.Rand, time.Duration) error {
	return func(ctx context.Context, w *world, dice *rand.Rand, lasts time.Duration) error {
		return w.fault(ctx, lasts, emulator.Fault{Operation: op, Connection: emulator.DropAfter, Rate: share(dice)})
	}
}

// share is of half of the requests to all of them.
func share(dice *rand.Rand) float64 { return 0.5 + dice.Float64()/2 }

func revoke(_ context.Context, w *world, _ *rand.Rand, _ time.Duration) error {
	w.emulator.RevokeTokens()
	return nil
}

func withoutTokens(ctx context.Context, w *world, dice *rand.Rand, lasts time.Duration) error {
	fault := emulator.Fault{Operation: emulator.OpToken, Connection: emulator.DropBefore}
	if dice.IntN(2) == 0 {
		fault = emulator.Fault{Operation: emulator.OpToken, Status: http.StatusServiceUnavailable, Code: "ServiceUnavailable"}
	}
	return w.fault(ctx, lasts, fault)
}

func answering(status int64) func(context.Context, *world, *rand.Rand, time.Duration) error {
	return func(ctx context.Context, w *world, _ *rand.Rand, lasts time.Duration) error {
		w.hook.answer(status)
		err := pause(ctx, lasts)
		w.hook.answer(http.StatusNoContent)
		return err
	}
}

func killRelay(ctx context.Context, w *world, _ *rand.Rand, lasts time.Duration) error {
	if err := w.end(ctx, first, syscall.SIGKILL); err != nil {
		return err
	}
	if err := pause(ctx, lasts); err != nil {
		return err
	}
	return w.start(ctx, first)
}

func drainRelay(ctx context.Context, w *world, _ *rand.Rand, lasts time.Duration) error {
	if err := w.end(ctx, first, syscall.SIGTERM); err != nil {
		return err
	}
	if err := pause(ctx, lasts); err != nil {
		return err
	}
	return w.start(ctx, first)
}

// secondRelay puts another relay beside the first and ends one of the two; the one that
// is left is the first from then on.
func secondRelay(with syscall.Signal) func(context.Context, *world, *rand.Rand, time.Duration) error {
	return func(ctx context.Context, w *world, dice *rand.Rand, lasts time.Duration) error {
		if err := w.start(ctx, second); err != nil {
			return err
		}
		if err := pause(ctx, lasts); err != nil {
			return err
		}
		if dice.IntN(2) == 0 {
			w.swap()
		}
		return w.end(ctx, second, with)
	}
}

// reload changes the configuration twice, the second time perhaps while the first change
// is still draining, and writes one between that is refused.
func reload(ctx context.Context, w *world, dice *rand.Rand, lasts time.Duration) error {
	for _, wrong := range []bool{false, true, false} {
		text := "sources: {sms: {weit: 5s}}"
		if !wrong {
			w.version += 1 + dice.IntN(3)
			text = w.settings(w.version)
		}
		if err := w.reload(ctx, text, wrong); err != nil {
			return err
		}
		if err := pause(ctx, time.Duration(dice.Int64N(int64(lasts)))); err != nil {
			return err
		}
	}
	return nil
}

// killLedger makes the relays forget, as that Redis keeps nothing on disk.
func killLedger(ctx context.Context, w *world, _ *rand.Rand, lasts time.Duration) error {
	w.redis.Kill() //nolint:contextcheck // It ends with the test.
	err := pause(ctx, lasts)
	w.redis.Start()
	return err
}

func stopLedger(ctx context.Context, w *world, _ *rand.Rand, lasts time.Duration) error {
	w.redis.Pause()
	defer w.redis.Resume()
	return pause(ctx, lasts)
}
