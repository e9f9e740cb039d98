package config

import (
	"reflect"
	"slices"

	"go.uber.org/zap"
	"go.yaml.in/yaml/v4"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

// override tries what stands under a target's `with` on the sink: it is bound as it
// will be when the relay is built, which opens no connection.
func (d *decoder) override(c *Config, t *Target, path string) {
	node, found := d.with[path]
	if !found || isNull(node) || node.Kind == yaml.MappingNode && len(node.Content) == 0 {
		return
	}
	if node.Kind != yaml.MappingNode {
		d.problem(path, "must be a mapping, as in {timeout: 3s}, not %s", kind(node))
		return
	}
	i := slices.IndexFunc(c.Sinks, func(s Sink) bool { return s.Name == t.Sink })
	if i < 0 || c.Sinks[i].Settings == nil || d.suspect(join("sinks", t.Sink)) {
		return // what is wrong with the sink comes first
	}
	sink := &c.Sinks[i]
	endpoint, err := sink.Settings.Open(relay.SinkDeps{Name: sink.Name, Log: zap.NewNop()})
	if err != nil {
		d.validated(join("sinks", sink.Name), err)
		return
	}
	_, err = endpoint.Bind(func(settings any) error {
		d.overrides(node, settings, path, sink)
		v := reflect.ValueOf(settings).Elem()
		copied := reflect.New(v.Type())
		copied.Elem().Set(v)
		c.settings[path] = copied.Interface()
		return nil
	})
	d.validated(path, err, join("sinks", sink.Name))

	file, env := d.file, d.env
	t.With = func(settings any) error {
		again := &decoder{file: file, env: env}
		again.begin()
		again.overrides(node, settings, path, sink)
		if len(again.problems) > 0 {
			return &Error{Problems: again.problems}
		}
		return nil
	}
}

// overrides decodes a `with` into the per-message settings of a sink, a pointer to a
// struct. A setting that the sink has for all routes is refused by its name.
func (d *decoder) overrides(n *yaml.Node, settings any, path string, sink *Sink) {
	n, leave, ok := d.enter(n, path)
	if !ok {
		return
	}
	defer leave()
	own := keys(setting.Fields(reflect.TypeOf(settings).Elem()))
	shared := slices.DeleteFunc(keys(setting.Fields(reflect.TypeOf(sink.Settings).Elem())), func(key string) bool { return slices.Contains(own, key) })
	d.members(n, reflect.ValueOf(settings).Elem(), path, func(key *yaml.Node) {
		switch at := join(path, key.Value); {
		case key.Value == sinkTypeKey, slices.Contains(shared, key.Value):
			d.problemAt(key.Line, key.Column, at, "belongs to the sink %s as a whole, whose connections all routes share: remove it, or write another sink", sink.Name)
		case len(own) == 0:
			d.problemAt(key.Line, key.Column, at, "unknown key: a sink of type %s has nothing that a route may set otherwise", sink.Type)
		default:
			d.unknownKey(key, path, own)
		}
	})
}
