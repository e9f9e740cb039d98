package schema

import (
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink"
)

// Overridable are the settings of a sink that a route may set otherwise.
func Overridable(c sink.Config) []setting.Field {
	settings, has := settingsOf(c)
	if !has {
		return nil
	}
	return setting.Fields(settings.Type())
}
