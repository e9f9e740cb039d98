package config

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"mnsrelay/internal/credentials"
	"mnsrelay/internal/expr"
	"mnsrelay/internal/mns"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink"
)

// check reports what the types alone do not show.
func (d *decoder) check(c *Config) {
	d.checkProcess(c)
	for i := range c.Sources {
		d.checkSource(&c.Sources[i])
	}
	for i := range c.Sinks {
		d.checkSink(&c.Sinks[i])
	}
	d.checkRoutes(c)
	for i := range c.Sources {
		d.checkFate(c, &c.Sources[i])
	}
	d.checkRings(c)
	d.checkLedger(c)
	d.checkAudit(c)
	d.checkWhole(c)
}

// checked reports what is wrong with path, unless a problem with it, or with a part of
// it, is known already: what was refused kept its default, and that is not the user's.
func (d *decoder) checked(path, format string, args ...any) {
	if !d.suspect(path) {
		d.problem(path, format, args...)
	}
}

// suspect tells whether a problem is known with path, with a part of it or with what
// it is a part of.
func (d *decoder) suspect(path string) bool {
	for bad, is := range d.bad {
		if is && bad != "" && (within(bad, path) || within(path, bad)) {
			return true
		}
	}
	return false
}

// within tells whether inner is outer or below it.
func within(inner, outer string) bool {
	rest, found := strings.CutPrefix(inner, outer)
	return found && (rest == "" || rest[0] == '.' || rest[0] == '[')
}

// shown quotes a value for a problem, unless it came from a variable or a file.
func (d *decoder) shown(path, value string) string { return d.plain(path, quote(value)) }

// plain is shown without quotes: for numbers.
func (d *decoder) plain(path string, value any) string {
	if x, found := d.expanded[path]; found {
		return origins(x)
	}
	if duration, is := value.(time.Duration); is {
		return DurationText(duration)
	}
	return fmt.Sprint(value)
}

func (d *decoder) oneOf(path, value string, choices ...string) bool {
	if slices.Contains(choices, value) {
		return true
	}
	mend := ""
	if near, found := setting.Nearest(value, choices); found {
		mend = "; did you mean " + strconv.Quote(near) + "?"
	}
	d.checked(path, "must be %s, not %s%s", list(choices, "or"), d.shown(path, value), mend)
	return false
}

func (d *decoder) checkProcess(c *Config) {
	d.checkServer(&c.Server)
	d.oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	d.oneOf("log.format", c.Log.Format, "json", "console")
	d.positive("drain_timeout", c.DrainTimeout, 45*time.Second)
	if c.Reload.Watch && d.piped {
		d.checked("reload.watch", "standard input is read only once: read the configuration from a file, or remove the line")
	}
	d.checkTracing(&c.Tracing)
	batch := 1
	for _, s := range c.Sources {
		batch = max(batch, min(s.BatchSize, mns.MaxBatch))
	}
	d.room("in_flight", c.InFlight, batch, "the largest batch_size")
}

func (d *decoder) positive(path string, value, example time.Duration) {
	if value <= 0 {
		d.checked(path, "must be longer than 0s, as in %s", DurationText(example))
	}
}

// room checks that a batch fits: what does not would never be received.
func (d *decoder) room(path string, room InFlight, batch int, why string) {
	if at := join(path, "messages"); room.Messages < batch {
		d.checked(at, "must be at least %d, %s, not %s", batch, why, d.plain(at, room.Messages))
	}
	if at, need := join(path, "bytes"), mns.MaxBody*setting.Size(batch); room.Bytes < need {
		d.checked(at, "must be at least %s, what %d messages of %s need, not %s", need, batch, setting.Size(mns.MaxBody), d.plain(at, room.Bytes))
	}
}

func (d *decoder) checkSource(s *Source) {
	path := join("sources", s.Name)
	at := func(key string) string { return join(path, key) }

	d.oneOf(at("type"), s.Type, sourceTypeMNS)
	d.oneOf(at("mode"), s.Mode, modeRelay, modeShadow)
	d.oneOf(at("preset"), s.Preset, credentials.PresetAlicomCN, credentials.PresetAlicomIntl, presetNone)
	if s.BatchSize < 1 || s.BatchSize > mns.MaxBatch {
		d.checked(at("batch_size"), "must be from 1 to %d, not %s", mns.MaxBatch, d.plain(at("batch_size"), s.BatchSize))
	}
	if s.Wait < 0 || s.Wait > mns.MaxWait || s.Wait%time.Second != 0 {
		d.checked(at("wait"), "must be whole seconds from 0s to %s, not %s", DurationText(mns.MaxWait), d.plain(at("wait"), s.Wait))
	}
	d.checkPollers(at("pollers"), s.Pollers)
	d.room(at("in_flight"), s.InFlight, min(max(s.BatchSize, 1), mns.MaxBatch), "the batch_size")
	d.oneOf(at("body"), s.Body, "auto", "base64", "raw")
	d.oneOf(at("unwrap"), s.Unwrap, "auto", "none")
	d.checkRedelivery(at("redelivery"), s.Redelivery)
	d.oneOf(at("guarantee"), s.Guarantee, atLeastOnce, atMostOnce)

	if (s.Queue == "" || d.suspect(at("queue"))) && !d.written(at("preset")) {
		// Its name may be that of a queue with a preset: what is required is not known.
		for _, key := range []string{"endpoint", "credentials"} {
			d.bad[at(key)] = d.bad[at(key)] || !d.written(at(key))
		}
	}
	queue := mns.Config{Name: s.Name, Endpoint: s.Endpoint.Reveal(), Queue: s.Queue, Wait: s.Wait}
	d.validated(path, queue.Validate())
	if endpoint, err := mns.ParseEndpoint(s.Endpoint.Reveal()); err == nil && endpoint.Exposed() {
		d.warn(at("endpoint"), "is http://: messages and tokens cross the network unencrypted; write https://")
	}
	d.checkCredentials(at("credentials"), s)
}

func (d *decoder) checkCredentials(path string, s *Source) {
	c := &s.Credentials
	if *c == (credentials.Config{}) && !d.written(path) {
		d.checked(path, "required: write {type: static, access_key_id: ..., access_key_secret: ...}; only the queues named Alicom-Queue-... have keys by default")
		return
	}
	d.validated(path, c.Validate())
	d.warned(path, c.Warnings())
	d.checkChain(path, c)
}

// checkChain warns where nothing is set for the default chain: the profile file and the
// role of an ECS instance remain, which only mnsrelay check can find out about.
func (d *decoder) checkChain(path string, c *credentials.Config) {
	for at := c; at != nil; at = at.Base {
		if at.Type != credentials.TypeDefault {
			continue
		}
		for _, name := range []string{credentials.VariableAccessKeyID, credentials.VariableOIDCTokenFile, credentials.VariableURI} {
			if d.getenv(name) != "" {
				return
			}
		}
		d.warn(path, "no keys are set in the environment (%s, %s or %s): what remains is a profile in ~/.aliyun/config.json or the RAM role of an ECS instance; mnsrelay check tells whether there is one",
			credentials.VariableAccessKeyID, credentials.VariableOIDCTokenFile, credentials.VariableURI)
	}
}

func (d *decoder) checkPollers(path string, p Pollers) {
	if at := join(path, "min"); p.Min < 1 {
		d.checked(at, "must be at least 1, not %s", d.plain(at, p.Min))
	}
	if at := join(path, "max"); p.Max < max(p.Min, 1) {
		d.checked(at, "must be at least min, which is at least 1, not %s", d.plain(at, p.Max))
	}
}

func (d *decoder) checkRedelivery(path string, r Redelivery) {
	if at := join(path, "initial"); r.Initial < time.Second || r.Initial > mns.MaxVisibility {
		d.checked(at, "must be from 1s to %s, not %s", DurationText(mns.MaxVisibility), d.plain(at, r.Initial))
	}
	if at := join(path, "max"); r.Max < r.Initial || r.Max > mns.MaxVisibility {
		d.checked(at, "must be at least initial and at most %s, not %s", DurationText(mns.MaxVisibility), d.plain(at, r.Max))
	}
}

// sinkType reads the type of a sink and gives the settings of that type.
func (d *decoder) sinkType(node *yaml.Node, path string, name *string) (sink.Config, bool) {
	table := sink.Types()
	types := SinkTypes()
	key := join(path, sinkTypeKey)
	if node.Kind != yaml.MappingNode {
		if isNull(node) {
			d.problem(path, "required: its type, %s, and settings", list(types, "or"))
		} else {
			d.problem(path, "must be a mapping, as in {type: %s, ...}, not %s", types[0], kind(node))
		}
		return nil, false
	}
	before := len(d.problems)
	for _, p := range d.pairs(node, path) {
		if p.key.Value == sinkTypeKey {
			d.mark(key, p.key, p.value)
			d.value(p.value, reflect.ValueOf(name).Elem(), key)
		}
	}
	settings, found := table[*name]
	switch {
	case found:
		return settings(), true
	case len(d.problems) > before:
	case *name == "":
		d.problem(key, "required: write %s", list(types, "or"))
	default:
		d.oneOf(key, *name, types...)
	}
	return nil, false
}

func (d *decoder) checkSink(s *Sink) {
	if s.Settings == nil {
		return
	}
	path := join("sinks", s.Name)
	d.validated(path, s.Settings.Validate())
	if warns, can := s.Settings.(interface{ Warnings() []error }); can {
		d.warned(path, warns.Warnings())
	}
}

// warned passes on what the owner of a part warns of.
func (d *decoder) warned(owner string, warnings []error) {
	for _, err := range warnings {
		path, message := d.located(owner, err)
		d.warn(path, "%s", message)
	}
}

// validated reports what the owner of a part found wrong with it. What came from
// variables and files into the part, or into those besides, is not shown.
func (d *decoder) validated(owner string, err error, besides ...string) {
	found := apart(err)
	found = slices.DeleteFunc(found, func(err error) bool {
		path, _ := d.located(owner, err)
		return d.suspect(path)
	})
	for _, err := range found {
		path, message := d.located(owner, err, besides...)
		if wrong, is := errors.AsType[*expr.Problem](err); is && d.written(path) {
			d.misexpressed(path, wrong)
			continue
		}
		d.problem(path, "%s", message)
	}
}

// apart gives the errors that err joins.
func apart(err error) []error {
	if err == nil {
		return nil
	}
	joined, is := err.(interface{ Unwrap() []error })
	if !is {
		return []error{err}
	}
	var all []error
	for _, err := range joined.Unwrap() {
		all = append(all, apart(err)...)
	}
	return all
}

// located gives the path of a problem below its owner, and its message without what
// came from variables and files.
func (d *decoder) located(owner string, err error, besides ...string) (path, message string) {
	path, message = owner, err.Error()
	if p := (*setting.Problem)(nil); errors.As(err, &p) {
		path, message = join(owner, p.Path), p.Message
	}
	for at, x := range d.expanded {
		if !within(at, owner) && !slices.ContainsFunc(besides, func(other string) bool { return within(at, other) }) {
			continue
		}
		for _, value := range x.values {
			// Elsewhere a short value would hide ordinary words.
			if value != "" && (at == path || x.secret && len(value) >= 4) {
				escaped := strings.Trim(strconv.Quote(value), `"`)
				message = strings.ReplaceAll(strings.ReplaceAll(message, value, redacted), escaped, redacted)
			}
		}
	}
	return path, message
}

func (d *decoder) checkRoutes(c *Config) {
	named := map[string]*Route{}
	for i := range c.Routes {
		r := &c.Routes[i]
		derived := !strings.HasPrefix(r.path, "routes")
		switch first := named[r.Name]; {
		case r.Name == "":
			d.checked(join(r.path, "name"), "required: write a name for metrics and logs, as in name: all")
		case first != nil && derived:
			d.checked(join(first.path, "name"), `the route that "to" of the source %s makes has this name: choose another`, r.Name)
		case first != nil:
			d.checked(join(r.path, "name"), "the route in line %d has this name: choose another", d.at(join(first.path, "name")).line)
		case !derived && !isName(r.Name):
			d.checked(join(r.path, "name"), "%s", d.badName(join(r.path, "name"), r.Name))
		default:
			named[r.Name] = r
		}
		if !derived {
			d.checkFrom(c, r)
		}
		d.compile(r)
		d.checkTargets(c, r)
	}
}

func (d *decoder) checkFrom(c *Config, r *Route) {
	path := join(r.path, "from")
	if len(r.From) == 0 {
		d.checked(path, "required: write the sources, as in from: [%s]", firstOr(sourceNames(c), "sms"))
	}
	for i, name := range r.From {
		at := index(path, i)
		switch {
		case d.bad["sources"]:
		case !slices.Contains(sourceNames(c), name):
			d.missing(at, "source", name, sourceNames(c))
		case slices.Index(r.From, name) < i:
			d.checked(at, "names a source twice: keep one of %s", d.shown(at, name))
		}
	}
}

func (d *decoder) checkTargets(c *Config, r *Route) {
	path := join(r.path, "to")
	if len(r.To) == 0 {
		d.checked(path, "required: write the sinks, as in to: [%s]", firstOr(sinkNames(c), "events"))
	}
	for i, target := range r.To {
		at := index(path, i)
		name := join(at, "sink")
		switch {
		case target.Sink == "":
			d.checked(name, "required: write the name of a sink")
		case d.bad["sinks"]:
		case !slices.Contains(sinkNames(c), target.Sink):
			d.missing(name, "sink", target.Sink, sinkNames(c))
		case slices.IndexFunc(r.To, func(t Target) bool { return t.Sink == target.Sink }) < i:
			d.checked(name, "names a sink twice: keep one of %s", d.shown(name, target.Sink))
		}
		d.override(c, &r.To[i], join(at, "with"))
	}
	if len(r.To) > 0 && !slices.ContainsFunc(r.To, func(t Target) bool { return t.Required }) && !d.suspect(path) {
		d.warn(path, "no sink of the route is required: a message is deleted whether or not one of them has confirmed it")
	}
}

// missing reports the name of something that is not there.
func (d *decoder) missing(path, what, name string, names []string) {
	mend := "there is none yet"
	if len(names) > 0 {
		mend = "there are " + list(names, "and")
		if len(names) == 1 {
			mend = "there is " + names[0]
		}
	}
	if near, found := setting.Nearest(name, names); found {
		mend = "did you mean " + strconv.Quote(near) + "?"
	}
	if x, found := d.expanded[path]; found {
		d.checked(path, "%s is the name of no %s: %s", origins(x), what, mend)
		return
	}
	d.checked(path, "there is no %s %s: %s", what, quote(name), mend)
}

// checkWhole checks what belongs together.
func (d *decoder) checkWhole(c *Config) {
	if len(c.Sources) == 0 {
		d.checked("sources", "required: write at least one source, as in sources: {sms: {queue: ..., to: events}}")
	}
	if len(c.Sinks) == 0 {
		d.checked("sinks", "required: write at least one sink, as in sinks: {events: {type: amqp091, ...}}")
	}
	for i, s := range c.Sources {
		path := join("sources", s.Name)
		if !slices.ContainsFunc(c.Routes, func(r Route) bool { return slices.Contains(r.From, s.Name) }) && !d.suspect("routes") && !d.suspect(join(path, "to")) {
			d.problem(path, "no route takes its messages: write to: %s here, or a route with from: [%s]", firstOr(sinkNames(c), "SINK"), s.Name)
		}
		for _, other := range c.Sources[:i] {
			if s.Queue != "" && s.Queue == other.Queue && s.Endpoint == other.Endpoint && !s.Shadow() && !other.Shadow() {
				d.warn(join(path, "queue"), "the source %s receives from it too: each gets a part of the messages", other.Name)
			}
		}
		d.warnTwice(c, s.Name)
	}
	if len(d.problems) > 0 {
		return // one of which may be the reason why
	}
	d.warnSameFile(c)
	for _, s := range c.Sinks {
		used := slices.ContainsFunc(c.Sources, func(source Source) bool { return source.DeadLetter == s.Name }) || slices.ContainsFunc(c.Routes, func(r Route) bool {
			return slices.ContainsFunc(r.To, func(t Target) bool { return t.Sink == s.Name })
		})
		if !used && s.Name != c.Audit.To {
			d.warn(join("sinks", s.Name), "no route leads to it, and no source has it for its dead letters")
		}
	}
}

// warnTwice tells of a sink that a source reaches by two routes, unless both have a
// condition: these may exclude each other.
func (d *decoder) warnTwice(c *Config, source string) {
	by := map[string]Route{} // sink: the first route there
	for _, r := range routesOf(c, source) {
		for i, t := range r.To {
			first, found := by[t.Sink]
			switch at := index(join(r.path, "to"), i); {
			case !found:
				by[t.Sink] = r
			case first.Name == r.Name, first.When != "" && r.When != "":
			case first.When == "" && r.When == "":
				d.warn(at, "the route %s takes the source %s to this sink too: each message is delivered twice", first.Name, source)
			default:
				d.warn(at, "the route %s takes the source %s to this sink too: what both take is delivered twice", first.Name, source)
			}
		}
	}
}

func sourceNames(c *Config) []string {
	names := make([]string, len(c.Sources))
	for i, s := range c.Sources {
		names[i] = s.Name
	}
	return names
}

func sinkNames(c *Config) []string {
	names := make([]string, len(c.Sinks))
	for i, s := range c.Sinks {
		names[i] = s.Name
	}
	return names
}

func firstOr(names []string, fallback string) string {
	if len(names) > 0 {
		return names[0]
	}
	return fallback
}
