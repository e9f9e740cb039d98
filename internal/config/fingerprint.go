package config

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"maps"
	"reflect"
	"slices"
	"strconv"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

// The fingerprints tell two configurations apart part by part, for a reload. They are
// taken of what the settings came to, secrets included: one that was replaced in its
// file or variable is a change, a comment or a line that moved is none. Since they are
// taken of secrets, they are compared and never shown.

// SourceFingerprint is equal for equal pipelines: the source, its routes, and the sinks
// that these and its dead letters go to, and the audit. It is empty where there is no such source.
func (c *Config) SourceFingerprint(name string) string {
	i := slices.IndexFunc(c.Sources, func(s Source) bool { return s.Name == name })
	if i < 0 {
		return ""
	}
	f := c.fingerprint()
	source := c.Sources[i]
	f.value(reflect.ValueOf(source), join("sources", name))
	sinks := map[string]bool{source.DeadLetter: true}
	for _, r := range routesOf(c, name) {
		r.From = nil // where else it begins makes no difference here
		f.value(reflect.ValueOf(r), r.path)
		for _, t := range r.To {
			sinks[t.Sink] = true
		}
	}
	for _, sink := range slices.Sorted(maps.Keys(sinks)) {
		f.text(sink, c.SinkFingerprint(sink))
	}
	f.text(c.AuditFingerprint())
	return f.sum()
}

// SinkFingerprint is equal for equal sinks. It is empty where there is no such sink.
func (c *Config) SinkFingerprint(name string) string {
	i := slices.IndexFunc(c.Sinks, func(s Sink) bool { return s.Name == name })
	if i < 0 {
		return ""
	}
	f := c.fingerprint()
	f.text(c.Sinks[i].Type)
	f.value(reflect.ValueOf(c.Sinks[i].Settings).Elem(), join("sinks", name))
	return f.sum()
}

// ServerFingerprint is equal for equal settings under server.
func (c *Config) ServerFingerprint() string { return c.section("server", c.Server) }

// LedgerFingerprint is equal for equal settings under ledger.
func (c *Config) LedgerFingerprint() string { return c.section("ledger", c.Ledger) }

// TracingFingerprint is equal for equal settings under tracing.
func (c *Config) TracingFingerprint() string { return c.section("tracing", c.Tracing) }

func (c *Config) section(path string, section any) string {
	f := c.fingerprint()
	f.value(reflect.ValueOf(section), path)
	return f.sum()
}

// fingerprint is a hash over settings, each with its length before it.
type fingerprint struct {
	config *Config
	hash   hash.Hash
}

func (c *Config) fingerprint() fingerprint { return fingerprint{config: c, hash: sha256.New()} }

func (f fingerprint) sum() string { return hex.EncodeToString(f.hash.Sum(nil)) }

func (f fingerprint) text(texts ...string) {
	for _, text := range texts {
		_, _ = f.hash.Write(binary.BigEndian.AppendUint64(nil, uint64(len(text))))
		_, _ = f.hash.Write([]byte(text))
	}
}

// value takes in what is at path: of a struct the settings, with their keys.
func (f fingerprint) value(v reflect.Value, path string) {
	switch value := v.Interface().(type) {
	case setting.Secret:
		f.text(value.Reveal(), value.File())
		return
	case setting.URL:
		f.text(value.Reveal())
		return
	case setting.Value:
		f.typed(value.Any())
		return
	case relay.Overrides:
		if settings, found := f.config.settings[path]; found {
			f.value(reflect.ValueOf(settings).Elem(), path)
		}
		return
	}
	if text, isScalar := scalarText(v); isScalar {
		f.text(text)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		f.text(strconv.FormatBool(v.IsNil()))
		if !v.IsNil() {
			f.value(v.Elem(), path)
		}
	case reflect.Struct:
		for _, field := range setting.Fields(v.Type()) {
			f.text(field.Key)
			f.value(v.FieldByIndex(field.Index), join(path, field.Key))
		}
	case reflect.Map:
		keys := slices.Sorted(maps.Keys(stringKeys(v)))
		f.text(strconv.Itoa(len(keys)))
		for _, key := range keys {
			f.text(key)
			f.value(v.MapIndex(reflect.ValueOf(key)), join(path, key))
		}
	default:
		f.text(strconv.Itoa(v.Len()))
		for i := range v.Len() {
			f.value(v.Index(i), index(path, i))
		}
	}
}

// typed takes in what setting.Value holds, types included.
func (f fingerprint) typed(value any) {
	switch v := value.(type) {
	case map[string]any:
		f.text("mapping", strconv.Itoa(len(v)))
		for _, key := range slices.Sorted(maps.Keys(v)) {
			f.text(key)
			f.typed(v[key])
		}
	case []any:
		f.text("list", strconv.Itoa(len(v)))
		for i := range v {
			f.typed(v[i])
		}
	default:
		f.text(fmt.Sprintf("%T %v", v, v))
	}
}
