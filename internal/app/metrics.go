package app

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"mnsrelay/internal/relay"
)

// metrics are those that are counted as things happen; collector reads the others
// when they are asked for.
type metrics struct {
	requests         *prometheus.CounterVec
	deliveryDuration *prometheus.HistogramVec
	endToEnd         *prometheus.HistogramVec
	reloads          *prometheus.CounterVec
}

// A Prometheus that asks for native histograms gets those too: buckets a tenth wide, as many
// as fit, then wider ones.
const (
	nativeFactor  = 1.1
	nativeBuckets = 160
)

func newMetrics(registry prometheus.Registerer) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mnsrelay_mns_requests_total",
			Help: "Requests to MNS by operation and by the code of the answer; MNS bills them.",
		}, []string{"source", "op", "code"}),
		deliveryDuration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "mnsrelay_delivery_duration_seconds",
			Help:    "From the hand-over to the sink to its confirm, of confirmed messages.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},

			NativeHistogramBucketFactor: nativeFactor, NativeHistogramMaxBucketNumber: nativeBuckets,
		}, []string{"sink"}),
		endToEnd: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "mnsrelay_end_to_end_duration_seconds",
			Help:    "From the enqueueing in MNS to the confirm of every required sink.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600, 6 * 3600, 24 * 3600},

			NativeHistogramBucketFactor: nativeFactor, NativeHistogramMaxBucketNumber: nativeBuckets,
		}, []string{"source"}),
	}
	m.reloads = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "mnsrelay_config_reloads_total",
		Help: "Tries to put another configuration in force.",
	}, []string{"result"})
	m.reloads.WithLabelValues("success")
	m.reloads.WithLabelValues("failure")
	registry.MustRegister(m.requests, m.deliveryDuration, m.endToEnd, m.reloads)
	return m
}

// collector turns the counts that the status shows into metrics, so that the two never
// tell different things.
type collector struct{ app *App }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("mnsrelay_"+name, help, labels, nil)
}

// descs are the metrics of a collector.
type descs struct {
	received, deleted, lostLeases, returned, retried, delivered *prometheus.Desc
	deadLettered, skipped, givenUp                              *prometheus.Desc
	ledgerErrors, ledgerEntries, ledgerEvicted                  *prometheus.Desc
	state, inFlight, pollers, fill, oldest                      *prometheus.Desc
	queueMessages, retention                                    *prometheus.Desc
	expiry, refreshes, sinkUp, sinkRequired                     *prometheus.Desc
	shadowSeen, shadowDeliveries, auditLines                    *prometheus.Desc
	generation, hash, reloaded, reloadedAt                      *prometheus.Desc
}

func newDescs() descs {
	return descs{
		received:         desc("messages_received_total", "Messages received from the queue, redeliveries included.", "source"),
		deleted:          desc("messages_deleted_total", "Messages deleted from the queue after every required sink had confirmed them.", "source"),
		lostLeases:       desc("messages_lost_leases_total", "Messages whose lease ended before they were settled, or whose delete was not confirmed; they may come again.", "source"),
		returned:         desc("messages_returned_total", "Messages given back to the queue, by reason.", "source", "reason"),
		retried:          desc("messages_retried_total", "Tries to deliver that failed, by reason.", "source", "reason"),
		delivered:        desc("messages_delivered_total", "Messages confirmed by a sink.", "source", "route", "sink"),
		deadLettered:     desc("messages_dead_lettered_total", "Messages that a dead-letter sink has confirmed, by reason.", "source", "reason"),
		skipped:          desc("messages_skipped_total", "Deliveries that the ledger spared: the sink had confirmed the message before.", "source", "sink"),
		givenUp:          desc("messages_given_up_total", "Deliveries that failed and are not tried again, of sinks that are not required and of sources that deliver at most once, by reason.", "source", "reason"),
		ledgerErrors:     desc("ledger_failures_total", "Calls of the ledger that failed or were left out; each may cost duplicates.", "operation"),
		ledgerEntries:    desc("ledger_entries", "Confirms that the ledger remembers; absent where it does not know."),
		ledgerEvicted:    desc("ledger_evictions_total", "Confirms that a ledger in memory has dropped because it was full; a message that comes again after that may be delivered twice."),
		state:            desc("source_state", "1 for the state that the source is in, 0 for the others.", "source", "state"),
		inFlight:         desc("in_flight_messages", "Messages received and not settled.", "source"),
		pollers:          desc("pollers", "Pollers that ask the queue.", "source"),
		fill:             desc("batch_fill_ratio", "How full the batches were that held anything, of late: near 1 under a backlog; absent before the first.", "source"),
		oldest:           desc("oldest_message_age_seconds", "Age of the oldest message of the last batch when it was received; absent before the first.", "source"),
		queueMessages:    desc("queue_messages", "Messages in the queue as MNS tells; absent where it does not.", "source", "state"),
		retention:        desc("queue_retention_seconds", "How long MNS keeps a message, delivered or not; absent where it does not tell.", "source"),
		expiry:           desc("credential_expiry_timestamp_seconds", "When the credential ends; absent where it does not.", "source"),
		refreshes:        desc("credential_refreshes_total", "Attempts to fetch a credential.", "source", "result"),
		sinkUp:           desc("sink_up", "1 while the sink takes messages.", "sink"),
		sinkRequired:     desc("sink_required", "1 where a delete waits for the sink, 0 where no route requires it.", "sink"),
		shadowSeen:       desc("shadow_messages_total", "Messages seen by a source in shadow mode.", "source"),
		shadowDeliveries: desc("shadow_deliveries_total", "Deliveries that a source in shadow mode would make; none is made.", "source", "route", "sink"),
		auditLines:       desc("audit_lines_total", "Lines of the audit; a lost one could not be written.", "result"),
		generation:       desc("config_generation", "How many configurations have been in force, the present one included."),
		hash:             desc("config_hash", "The first 48 bits of the hash of the configuration in force: replicas that differ here differ in it."),
		reloaded:         desc("config_last_reload_successful", "0 if the last reload was refused and the configuration before it is in force, 1 otherwise."),
		reloadedAt:       desc("config_last_reload_success_timestamp_seconds", "When the configuration in force was loaded."),
	}
}

// Describe is part of prometheus.Collector.
func (c *collector) Describe(out chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, out) }

// Collect is part of prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	d := newDescs()
	c.ledger(out, &d)
	c.configuration(out, &d)
	now := c.app.present()
	for _, s := range now.sources {
		if s.shadow != nil {
			c.shadow(out, &d, s)
		} else {
			c.source(out, &d, s)
		}
		c.queue(out, &d, s)
	}
	c.audit(out, &d, now.audit)
	for _, s := range now.sinks {
		if s.idle {
			continue // neither up nor down
		}
		health, _ := s.endpoint.Health()
		out <- prometheus.MustNewConstMetric(d.sinkUp, prometheus.GaugeValue, number(health.State == relay.Up), s.name)
		out <- prometheus.MustNewConstMetric(d.sinkRequired, prometheus.GaugeValue, number(s.used(now.sources)), s.name)
	}
}

// number is 1 for true.
func number(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

func (c *collector) ledger(out chan<- prometheus.Metric, d *descs) {
	status := c.app.ledger.Status()
	for operation, n := range status.Failures {
		out <- prometheus.MustNewConstMetric(d.ledgerErrors, prometheus.CounterValue, float64(n), operation)
	}
	if status.Counted {
		out <- prometheus.MustNewConstMetric(d.ledgerEntries, prometheus.GaugeValue, float64(status.Entries))
	}
	out <- prometheus.MustNewConstMetric(d.ledgerEvicted, prometheus.CounterValue, float64(status.Evicted))
}

func (c *collector) configuration(out chan<- prometheus.Metric, d *descs) {
	loaded := c.app.configuration()
	gauge := func(desc *prometheus.Desc, v float64) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v)
	}
	gauge(d.generation, float64(loaded.Generation))
	// A gauge holds 53 bits exactly; the digest is in hexadecimal.
	if hash, err := strconv.ParseUint(loaded.Digest[:min(len(loaded.Digest), 12)], 16, 64); err == nil {
		gauge(d.hash, float64(hash))
	}
	gauge(d.reloaded, number(loaded.LastError == nil))
	gauge(d.reloadedAt, float64(loaded.Loaded.UnixMilli())/1000)
}

func (c *collector) source(out chan<- prometheus.Metric, d *descs, s *source) {
	name := s.cfg.Name
	count := func(desc *prometheus.Desc, n uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n), append([]string{name}, labels...)...)
	}
	gauge := func(desc *prometheus.Desc, v float64) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v, name)
	}
	counts := s.stats.Counts()
	count(d.received, counts.Received)
	count(d.deleted, counts.Deleted)
	count(d.lostLeases, counts.LostLeases)
	for reason, n := range counts.Returned {
		count(d.returned, n, reason)
	}
	for reason, n := range counts.Retried {
		count(d.retried, n, reason)
	}
	for reason, n := range counts.DeadLettered {
		count(d.deadLettered, n, reason)
	}
	for sink, n := range counts.Skipped {
		count(d.skipped, n, sink)
	}
	for reason, n := range counts.GivenUp {
		count(d.givenUp, n, reason)
	}
	for target, n := range counts.Delivered {
		count(d.delivered, n, target.Route, target.Sink)
	}
	gauge(d.inFlight, float64(counts.InFlight))
	gauge(d.pollers, float64(counts.Pollers))
	if !counts.LastReceive.IsZero() {
		gauge(d.fill, counts.Fill)
		gauge(d.oldest, counts.OldestAge.Seconds())
	}
}

// shadow tells of a source that only looks. It has none of the counts of messages that were
// received: an alert on what flows has nothing to say of it.
func (c *collector) shadow(out chan<- prometheus.Metric, d *descs, s *source) {
	report := s.shadow.Report()
	out <- prometheus.MustNewConstMetric(d.shadowSeen, prometheus.CounterValue, float64(report.Seen), s.cfg.Name)
	for target, n := range report.Deliveries {
		out <- prometheus.MustNewConstMetric(d.shadowDeliveries, prometheus.CounterValue, float64(n), s.cfg.Name, target.Route, target.Sink)
	}
}

// audit tells of the lines; nothing where none is written.
func (c *collector) audit(out chan<- prometheus.Metric, d *descs, a *auditing) {
	if a.auditor == nil {
		return
	}
	written, lost := c.app.audited.Counts()
	out <- prometheus.MustNewConstMetric(d.auditLines, prometheus.CounterValue, float64(written), "written")
	out <- prometheus.MustNewConstMetric(d.auditLines, prometheus.CounterValue, float64(lost), "lost")
}

// queue tells of the state of a source, of its queue and of its credential.
func (c *collector) queue(out chan<- prometheus.Metric, d *descs, s *source) {
	name := s.cfg.Name
	gauge := func(desc *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v, append([]string{name}, labels...)...)
	}
	state, _ := s.state()
	for _, possible := range relay.SourceStates() {
		gauge(d.state, number(state == possible), string(possible))
	}
	if depth := s.depth.Load(); depth != nil {
		gauge(d.queueMessages, float64(depth.Active), "active")
		gauge(d.queueMessages, float64(depth.Inactive), "inactive")
		gauge(d.queueMessages, float64(depth.Delayed), "delayed")
	}
	if retention := s.pipeline.Retention(); retention > 0 {
		gauge(d.retention, retention.Seconds())
	}
	credential := s.refresher.Status()
	if !credential.Expires.IsZero() {
		gauge(d.expiry, float64(credential.Expires.UnixMilli())/1000)
	}
	for result, n := range map[string]uint64{"success": credential.Refreshes, "failure": credential.Failures} {
		out <- prometheus.MustNewConstMetric(d.refreshes, prometheus.CounterValue, float64(n), name, result)
	}
}
