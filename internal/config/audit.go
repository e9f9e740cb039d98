package config

import (
	"path/filepath"
	"slices"
	"strings"

	"mnsrelay/internal/audit"
	"mnsrelay/internal/sink/file"
)

// checkAudit checks where the audit goes to: the log, or a file of its own, in which no
// message stands beside its lines.
func (d *decoder) checkAudit(c *Config) {
	const path, to = "audit", "audit.to"
	d.validated(path, c.Audit.Validate())
	d.warned(path, c.Audit.Warnings())
	i := slices.IndexFunc(c.Sinks, func(s Sink) bool { return s.Name == c.Audit.To })
	switch {
	case c.Audit.To == "" || d.bad["sinks"] || d.suspect(to):
		return
	case c.Audit.To == audit.ToLog && i >= 0:
		d.checked(to, "is the log, and there is a sink of this name: give the sink another")
		return
	case c.Audit.To == audit.ToLog:
		return
	case i < 0:
		d.missing(to, "sink", c.Audit.To, append(sinkNames(c), audit.ToLog))
		return
	}
	settings, is := c.Sinks[i].Settings.(*file.Config)
	switch {
	case c.Sinks[i].Settings == nil: // said already
	case !is:
		d.checked(to, "must be log or a sink of type file, and %s is of type %s", d.shown(to, c.Audit.To), c.Sinks[i].Type)
	case strings.Contains(settings.Path, "{{"):
		d.checked(to, "must be a sink with one file, and the path of %s holds a {{ }}", d.shown(to, c.Audit.To))
	default:
		d.checkAuditAlone(c)
	}
}

// checkAuditAlone refuses a sink, or a file, that messages go to as well.
func (d *decoder) checkAuditAlone(c *Config) {
	const to = "audit.to"
	for _, s := range c.Sources {
		if s.DeadLetter == c.Audit.To {
			d.checked(to, "is the dead_letter of the source %s too: write a sink of its own", s.Name)
			return
		}
	}
	for _, r := range c.Routes {
		if slices.ContainsFunc(r.To, func(t Target) bool { return t.Sink == c.Audit.To }) {
			d.checked(to, "is a sink that the route %s leads to: write one of its own", r.Name)
			return
		}
	}
	for _, s := range c.Sinks {
		if s.Name != c.Audit.To && sameFile(c.AuditFile(), filePath(s)) {
			d.checked(to, "is a sink with the path of %s: write a file of its own", s.Name)
			return
		}
	}
}

// warnSameFile tells of sinks that write to one file, which has one writer at a time.
func (d *decoder) warnSameFile(c *Config) {
	for i, s := range c.Sinks {
		for _, other := range c.Sinks[:i] {
			if path := filePath(s); path != file.Stdout && sameFile(path, filePath(other)) {
				d.warn(join(join("sinks", s.Name), "path"), "the sink %s has this file too: whichever comes second finds it locked, and is down; write another path, or use one sink for both", other.Name)
			}
		}
	}
}

// filePath is the path of a sink of type file; empty: it is of another type, or wrong.
func filePath(s Sink) string {
	if settings, is := s.Settings.(*file.Config); is {
		return settings.Path
	}
	return ""
}

// sameFile tells whether two paths, as they are written, are surely of one file.
func sameFile(a, b string) bool { return a != "" && b != "" && filepath.Clean(a) == filepath.Clean(b) }

// AuditFile is the file that the audit is written to; empty: there is none.
func (c *Config) AuditFile() string {
	for _, s := range c.Sinks {
		if s.Name == c.Audit.To {
			return filePath(s)
		}
	}
	return ""
}

// AuditFingerprint is equal for equal audits: the settings, and the sink that they name.
func (c *Config) AuditFingerprint() string {
	return c.section("audit", c.Audit) + c.SinkFingerprint(c.Audit.To)
}
