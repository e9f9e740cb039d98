package mns

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	ali_mns "github.com/aliyun/aliyun-mns-go-sdk"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

// skewShown is the difference of the clocks from which on a check speaks of it: less may
// be the way of the answer and the whole seconds of a Date.
const skewShown = 5 * time.Second

// CheckSource looks, without a receive, for what would keep a source from working: is the
// server there, do the clocks agree, are the keys good, is there such a queue, may the keys
// look into it and delete.
func (q *Queue) CheckSource(ctx context.Context) []relay.Finding {
	findings, denied, there := q.look(ctx)
	if !there {
		return findings
	}
	add := func(what string, verdict relay.Verdict, text string) {
		findings = append(findings, relay.Finding{What: what, Verdict: verdict, Text: text})
	}
	if denied {
		add(OpAttributes, relay.OK, "the credential may not read them; the relay does without: no counts, no warning before the end of the retention")
	}
	switch _, err := q.Peek(ctx, 1); {
	case err == nil:
		add(OpPeek, relay.OK, "the credential may")
	case NotAllowed(err):
		denied = true
		add(OpPeek, relay.OK, "the credential may not; only \"queue peek\", \"explain --peek\" and mode: shadow need it")
	default:
		findings = append(findings, q.failing(ctx, OpPeek, err))
	}
	switch err := q.tryDelete(ctx); {
	case NotAllowed(err):
		add(OpDelete, relay.Failed, "the keys are good, and may not delete from the queue: grant them mns:ReceiveMessage, mns:DeleteMessage and mns:ChangeMessageVisibility on it")
	case err != nil:
		findings = append(findings, q.failing(ctx, OpDelete, err))
	case denied:
		add(OpDelete, relay.OK, "the credential may. It may not do all the rest, as tokens of Alicom queues, which is enough: leases are not renewed then")
	default:
		add(OpDelete, relay.OK, "the credential may")
	}
	add("receive", relay.Unknown, "not tried, as it takes messages; it needs mns:ReceiveMessage")
	return findings
}

// CheckShadow is CheckSource for a queue that is only looked into.
func (q *Queue) CheckShadow(ctx context.Context) []relay.Finding {
	findings, _, there := q.look(ctx)
	if !there {
		return findings
	}
	switch _, err := q.Peek(ctx, 1); {
	case err == nil:
		findings = append(findings, relay.Finding{What: OpPeek, Verdict: relay.OK, Text: "the credential may"})
	case NotAllowed(err):
		findings = append(findings, relay.Finding{What: OpPeek, Verdict: relay.Failed, Text: "the keys are good, and may not peek, so that mode: shadow sees nothing: grant them mns:PeekMessage; a token of an Alicom queue may only receive and delete"})
	default:
		findings = append(findings, q.failing(ctx, OpPeek, err))
	}
	return findings
}

// CheckSink is CheckSource for a queue that is sent to.
func (q *Queue) CheckSink(ctx context.Context) []relay.Finding {
	findings, denied, there := q.look(ctx)
	switch {
	case !there:
	case denied:
		findings = append(findings, relay.Finding{What: OpSend, Verdict: relay.Unknown, Text: "the credential may not look at the queue; a message will tell whether it is there and may be sent to: grant mns:SendMessage, and mns:GetQueueAttributes for this check"})
	default:
		findings = append(findings, relay.Finding{What: OpSend, Verdict: relay.Unknown, Text: "not tried: a message will tell; it needs mns:SendMessage"})
	}
	return findings
}

// look asks for the attributes. There says that the keys are good and nothing is known
// against the queue, denied that they may not read attributes.
func (q *Queue) look(ctx context.Context) (findings []relay.Finding, denied, there bool) {
	_, err := q.Attributes(ctx)
	if e, is := errors.AsType[*Error](err); is && e.Code == codeTimeExpired {
		_, err = q.Attributes(ctx) // now with the server's time
	}
	server := "server " + q.endpoint.String()
	e, answered := errors.AsType[*Error](err)
	if err != nil && (!answered || e.Status == 0 || e.class == relay.ClassServer || e.class == relay.ClassThrottled) {
		return []relay.Finding{q.failing(ctx, server, err)}, false, false
	}
	findings = append(findings, relay.Finding{What: server, Verdict: relay.OK, Text: "answers"}, q.checkClock())
	keys := relay.Finding{What: "keys", Verdict: relay.OK, Text: "the server takes them"}
	switch {
	case err == nil:
	case NotAllowed(err):
		return append(findings, keys), true, true
	case e.class == relay.ClassAuth, e.Code == codeTimeExpired:
		return append(findings, q.failing(ctx, keys.What, err)), false, false
	default:
		return append(findings, keys, q.failing(ctx, "queue "+q.cfg.Queue, err)), false, false
	}
	return append(findings, keys, relay.Finding{What: "queue " + q.cfg.Queue, Verdict: relay.OK, Text: "is there"}), false, true
}

// checkClock compares the clocks, which matters to nobody but whoever reads the times here:
// the relay signs with the server's.
func (q *Queue) checkClock() relay.Finding {
	f := relay.Finding{What: "clock", Verdict: relay.OK, Text: "as the server's"}
	if lo, hi := q.clock.bounds(); lo == 0 && hi == 0 {
		f.Verdict, f.Text = relay.Unknown, "the server does not tell the time"
		return f
	}
	skew := q.clock.skew(time.Now())
	f.Details = []relay.Field{{Name: "skew_seconds", Value: skew.Round(time.Second).Seconds()}}
	if skew.Abs() <= skewShown {
		return f
	}
	how := "behind"
	if skew < 0 {
		how = "ahead of"
	}
	f.Text = fmt.Sprintf("the clock of this machine is %v %s the server's: set it; the relay signs with the server's time and works all the same", skew.Abs().Round(time.Second), how)
	return f
}

// noMessage is a handle of a message that was gone in 2015 (MNS: DeleteMessage, the example).
const noMessage = "1-ODU4OTkzNDU5My0xNDMyNzI3ODI3LTItOA=="

// tryDelete finds out whether the keys may delete, with a handle that no message has.
func (q *Queue) tryDelete(ctx context.Context) error {
	c := call{op: OpDelete, method: ali_mns.DELETE, resource: q.path("/messages?ReceiptHandle=" + escapeQuery(noMessage))}
	return q.call(ctx, c, func(l *lane, status int, body []byte) error {
		if status/100 == 2 {
			return nil
		}
		if e := lost(q.refused(l, OpDelete, status, body)); !errors.Is(e, relay.ErrLeaseLost) {
			return e
		}
		return nil
	})
}

// failing makes the Finding of an error: what it means and what to do.
func (q *Queue) failing(ctx context.Context, what string, err error) relay.Finding {
	e, is := errors.AsType[*Error](err)
	switch {
	case !is: // a context has ended
		return relay.Failing(what, setting.AdviseNetwork(fmt.Errorf("no answer in time: %w", context.Cause(ctx))))
	case e.Status == 0 && e.Err != nil:
		if authority := (x509.UnknownAuthorityError{}); errors.As(e.Err, &authority) {
			return relay.Failing(what, fmt.Errorf("%w: correct the endpoint, or have this machine trust the authority that issued the server's certificate", e.Err))
		}
		return relay.Failing(what, setting.AdviseNetwork(setting.AdviseTLS(e.Err)))
	}
	var text string
	switch e.Code {
	case codeInvalidKey:
		text = "the server does not know the access key: check access_key_id, that the key is enabled, and that the endpoint is of its region"
	case codeSignature:
		text = "the secret does not belong to the access key: check access_key_secret"
	case codeQueueNotExist:
		text = "there is no such queue: create it, or correct queue and endpoint, as queues belong to one account and region"
	case codeTimeExpired:
		text = "the server refuses the time of the request: set the clock of this machine"
	default:
		switch {
		case e.class == relay.ClassAuth:
			text = "the server refuses the keys; they may have ended or been revoked, or belong to another account"
		case e.class == relay.ClassThrottled:
			text = "the server takes no more requests at present: try again later"
		case e.Code == "" || e.Err != nil:
			text = "what answers there is no MNS: check the endpoint"
		default:
			text = "the server refuses it"
		}
	}
	code := e.Code
	if code == "" {
		code = "status"
	}
	return relay.Failing(what, fmt.Errorf("%s (%s %d)", text, code, e.Status))
}
