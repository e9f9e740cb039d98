package file

import (
	"os"
	"strings"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

// Stdout is the Path of standard output.
const Stdout = "-"

// Config holds the settings of a file sink.
type Config struct {
	// Path is the file that lines are appended to; it is made where it is missing,
	// its folder is not. Stdout is standard output.
	Path string `yaml:"path"`
}

// Defaults gives the settings that apply where the configuration is silent.
func Defaults() *Config { return &Config{} }

// Validate reports what is wrong as a *setting.Problem.
func (c *Config) Validate() error {
	switch {
	case c.Path == "":
		return setting.Problemf("path", `is missing; write a file, or "-" for standard output`)
	case strings.Contains(c.Path, "{{"):
		return setting.NotSupportedYet("path", "a template")
	case strings.ContainsRune(c.Path, 0):
		return setting.Problemf("path", "has a NUL character in it")
	case os.IsPathSeparator(c.Path[len(c.Path)-1]):
		return setting.Problemf("path", "is a folder; write the file in it")
	}
	return nil
}

// Open makes the endpoint of a validated Config.
func (c *Config) Open(deps relay.SinkDeps) (relay.Endpoint, error) {
	return New(c, deps, os.Stdout), nil
}
