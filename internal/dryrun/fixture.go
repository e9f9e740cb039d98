package dryrun

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"

	"mnsrelay/internal/config"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

// Fixtures are the tests of one file.
type Fixtures struct {
	// Config is the path of the configuration, relative to the file.
	Config string `yaml:"config"`
	// Env and Files stand in for variables and files that the configuration names.
	Env   map[string]string `yaml:"env"`
	Files map[string]string `yaml:"files"`
	Tests []Test            `yaml:"tests"`
}

// Test is a message and what is expected of it.
type Test struct {
	Name    string  `yaml:"name"`
	Message Message `yaml:"message"`
	// Deliveries are all that are expected, in any order.
	Deliveries []Expected `yaml:"deliveries"`
	// Rejected is the reason for which the message is rejected; empty: it is not.
	Rejected string `yaml:"rejected"`
	// End is what becomes of the message in its queue, EndDeleted or EndRetained; empty:
	// either.
	End string `yaml:"end"`

	line  int
	given bool // there is a message
}

// The values of Test.End.
const (
	EndDeleted  = "deleted"
	EndRetained = "retained"
)

// Expected is a delivery that is expected: its sink, and of what the sink sends as much as
// is written.
type Expected struct {
	Sink, Route string
	// body is nil where any will do.
	body *yaml.Node
	// fields are values by name, as JSON; null: there is no such field.
	fields []field
	line   int
}

type field struct {
	name  string
	value []byte
}

// UnmarshalYAML keeps what it does not know as the fields of the delivery.
func (e *Expected) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind != yaml.MappingNode {
		return fmt.Errorf("line %d: a delivery is a mapping: sink, route, body, and what else the sink sends, as routing_key or headers", n.Line)
	}
	e.line = n.Line
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, value := n.Content[i].Value, n.Content[i+1]
		var err error
		switch name {
		case "sink":
			e.Sink, err = nameOf(name, value)
		case "route":
			e.Route, err = nameOf(name, value)
		case "body":
			e.body = value
		default:
			err = e.flatten(name, n.Content[i], value, 0)
		}
		if err != nil {
			return err
		}
	}
	if e.Sink == "" {
		return fmt.Errorf("line %d: the delivery has no sink; write its name", n.Line)
	}
	return nil
}

// nameOf is the name of a sink or route.
func nameOf(key string, n *yaml.Node) (string, error) {
	n = resolved(n)
	if n.Kind != yaml.ScalarNode || n.Value == "" || n.ShortTag() == "!!null" {
		return "", fmt.Errorf("line %d: %s is a name, and one only", n.Line, key)
	}
	return n.Value, nil
}

// maxFields bounds how many fields a delivery may be compared by, and with it what aliases can
// make of it.
const maxFields = 10_000

func (e *Expected) flatten(name string, key, n *yaml.Node, depth int) error {
	if err := noMerge(key); err != nil {
		return err
	}
	n = resolved(n)
	if depth > maxDepth || len(e.fields) > maxFields {
		return fmt.Errorf("line %d: nests too deep, or is too long", n.Line)
	}
	if n.Kind == yaml.MappingNode && (len(n.Content) > 0 || depth == 0) { // {} alone compares nothing
		for i := 0; i+1 < len(n.Content); i += 2 {
			if err := e.flatten(name+"."+n.Content[i].Value, n.Content[i], n.Content[i+1], depth+1); err != nil {
				return err
			}
		}
		return nil
	}
	value, err := toJSON(n)
	e.fields = append(e.fields, field{name, value})
	return err
}

// UnmarshalYAML notes where the test stands.
func (t *Test) UnmarshalYAML(n *yaml.Node) error {
	type plain Test
	if err := n.Load((*plain)(t), yaml.WithKnownFields()); err != nil {
		return err
	}
	t.line = n.Line
	for i := 0; i+1 < len(n.Content); i += 2 {
		t.given = t.given || n.Content[i].Value == "message"
	}
	return nil
}

// Line is where the test stands in its file.
func (t *Test) Line() int { return t.line }

// ReadFixtures reads the tests of a file.
func ReadFixtures(path string) (*Fixtures, error) {
	data, err := setting.ReadFile(path)
	if err != nil {
		return nil, err
	}
	f := new(Fixtures)
	if err := yaml.Load(data, f, yaml.WithKnownFields()); err != nil {
		return nil, fmt.Errorf("%s: %s", path, problem(err))
	}
	switch {
	case len(f.Tests) == 0:
		return nil, fmt.Errorf("%s: has no tests; write them under the key tests", path)
	case f.Config != "" && !filepath.IsAbs(f.Config):
		f.Config = filepath.Join(filepath.Dir(path), f.Config)
	}
	for i, t := range f.Tests {
		switch {
		case t.Name == "":
			return nil, fmt.Errorf("%s:%d: tests[%d] has no name", path, t.line, i)
		case !t.given:
			return nil, fmt.Errorf("%s:%d: tests[%d] has no message", path, t.line, i)
		case t.End != "" && t.End != EndDeleted && t.End != EndRetained:
			return nil, fmt.Errorf("%s:%d: tests[%d] has end: %s; write %s or %s", path, t.line, i, t.End, EndDeleted, EndRetained)
		}
	}
	return f, nil
}

// Load reads the configuration of the fixtures, or the one at path instead, with their
// stand-ins.
func (f *Fixtures) Load(path string) (*config.Config, []config.Warning, error) {
	if path == "" {
		path = f.Config
	}
	if path == "" {
		return nil, nil, errors.New("names no configuration: write config: FILE, or --config FILE")
	}
	data, err := setting.ReadFile(path)
	if err != nil {
		return nil, nil, fmt.Errorf("read the configuration: %w", err)
	}
	return config.Parse(path, data, config.Environment{
		Lookup: func(name string) (string, bool) {
			if value, found := f.Env[name]; found {
				return value, true
			}
			return os.LookupEnv(name)
		},
		ReadFile: func(path string) ([]byte, error) {
			if text, found := f.Files[path]; found {
				return []byte(text), nil
			}
			return setting.ReadFile(path)
		},
	})
}

// Run runs a test and gives what is not as expected, in lines: "-" is expected, "+" is what
// would be. None: the test passes.
func (r *Relay) Run(t *Test) (diff []string, err error) {
	e, err := r.Explain(&t.Message)
	if err != nil {
		return nil, err
	}
	reason := ""
	if e.Rejected != nil {
		reason = relay.ReasonOf(e.Rejected)
	}
	if reason != t.Rejected {
		if t.Rejected != "" {
			diff = append(diff, "- rejected: "+t.Rejected)
		}
		if e.Rejected != nil {
			diff = append(diff, "+ rejected: "+reason+" ("+e.Rejected.Error()+")")
		}
	}
	end := EndDeleted
	if e.Retained {
		end = EndRetained
	}
	if t.End != "" && t.End != end {
		diff = append(diff, "- end: "+t.End, "+ end: "+end+" ("+e.End+")")
	}
	made := e.Deliveries()
	// First what fits, so that of two alike each gets its own.
	left := slices.Clone(t.Deliveries)
	for _, exact := range []bool{true, false} {
		left = slices.DeleteFunc(left, func(want Expected) bool {
			i := slices.IndexFunc(made, func(d Delivery) bool {
				return d.Sink == want.Sink && (want.Route == "" || d.Route == want.Route) && (!exact || len(want.diff(&d)) == 0)
			})
			if i < 0 {
				return false
			}
			if lines := want.diff(&made[i]); len(lines) > 0 {
				diff = append(diff, "  "+made[i].title()+":")
				diff = append(diff, lines...)
			}
			made = slices.Delete(made, i, i+1)
			return true
		})
	}
	for _, want := range left {
		missing := "- delivery to " + want.Sink
		if want.Route != "" {
			missing += " by route " + want.Route
		}
		diff = append(diff, missing+r.unknown(&want))
		for _, refused := range e.refused(want.Sink) {
			diff = append(diff, "  it is rejected: "+refused.Error())
		}
	}
	for i := range made {
		diff = append(diff, "+ "+made[i].title())
	}
	return diff, nil
}

// unknown says where an expected delivery names what there is not.
func (r *Relay) unknown(want *Expected) string {
	sinks, routes := make([]string, len(r.cfg.Sinks)), make([]string, len(r.cfg.Routes))
	for i, s := range r.cfg.Sinks {
		sinks[i] = s.Name
	}
	for i, rt := range r.cfg.Routes {
		routes[i] = rt.Name
	}
	switch {
	case !slices.Contains(sinks, want.Sink):
		return "   (there is no such sink: there is " + strings.Join(sinks, ", ") + ")"
	case want.Route != "" && !slices.Contains(routes, want.Route):
		return "   (there is no such route: there is " + strings.Join(routes, ", ") + ")"
	}
	return ""
}

// refused gives why a sink would reject the message.
func (e *Explanation) refused(sink string) (errs []error) {
	for _, r := range e.Routes {
		for _, d := range r.Deliveries {
			if d.Sink == sink && d.Err != nil {
				errs = append(errs, d.Err)
			}
		}
	}
	return errs
}

func (d *Delivery) title() string {
	if d.Route == "" {
		return "dead letter to " + d.Sink
	}
	return "delivery to " + d.Sink + " by route " + d.Route
}

// diff gives what of a delivery is not as expected.
func (e *Expected) diff(d *Delivery) (lines []string) {
	got := make(map[string][]byte)
	for _, f := range d.Preview.Fields {
		flatten(got, f)
	}
	for _, want := range e.fields {
		value, found := lookup(got, want.name)
		switch {
		case bytes.Equal(want.value, []byte("null")):
			if found {
				lines = append(lines, "- "+want.name+" is not sent", "+ "+want.name+": "+string(value))
			} else if near, is := nearestGroup(want.name, got); is {
				lines = append(lines, "- "+want.name+" is not sent   (there is "+near+")")
			}
		case !found:
			line := "- " + want.name + ": " + string(want.value)
			if near, is := setting.Nearest(want.name, slices.AppendSeq([]string{"sink", "route", "body"}, maps.Keys(got))); is {
				line += "   (there is " + near + ")"
			}
			lines = append(lines, line)
		case !sameJSON(want.value, value):
			lines = append(lines, "- "+want.name+": "+string(want.value), "+ "+want.name+": "+string(value))
		}
	}
	if e.body == nil {
		return lines
	}
	want, err := bodyOf(e.body)
	if err != nil {
		return append(lines, "- body: "+err.Error())
	}
	same := bytes.Equal(want, d.Preview.Body)
	if resolved(e.body).Kind != yaml.ScalarNode {
		same = sameJSON(want, d.Preview.Body)
	}
	if !same {
		lines = append(lines, "- body: "+printable(want), "+ body: "+printable(d.Preview.Body))
	}
	return lines
}

// nearestGroup gives what the part of a name before its dot may be a misspelling of: that a
// field is not there is no news where the whole group has another name.
func nearestGroup(name string, got map[string][]byte) (near string, is bool) {
	group, _, _ := strings.Cut(name, ".")
	var groups []string
	for other := range got {
		other, _, _ = strings.Cut(other, ".")
		if other == group {
			return "", false
		}
		groups = append(groups, other)
	}
	return setting.Nearest(group, groups)
}

// lookup finds a field; the names of headers are the same in any case.
func lookup(got map[string][]byte, name string) ([]byte, bool) {
	if value, found := got[name]; found {
		return value, true
	}
	for other, value := range got {
		if strings.EqualFold(other, name) {
			return value, true
		}
	}
	return nil, false
}

// flatten notes a field as JSON, a mapping by the names in it.
func flatten(into map[string][]byte, f relay.Field) {
	if m, is := f.Value.(map[string]any); is && len(m) > 0 {
		for name, member := range m {
			flatten(into, relay.Field{Name: f.Name + "." + name, Value: member})
		}
		return
	}
	into[f.Name] = f.JSON()
}

func sameJSON(a, b []byte) bool {
	one, err := fromJSON(a)
	if err != nil {
		return false
	}
	other, err := fromJSON(b)
	return err == nil && reflect.DeepEqual(one, other)
}

// printable is a body for people.
func printable(body []byte) string {
	if !utf8.Valid(body) {
		return fmt.Sprintf("%q", body)
	}
	return string(body)
}
