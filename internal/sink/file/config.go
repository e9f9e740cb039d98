package file

import (
	"os"
	"path/filepath"
	"strings"

	"mnsrelay/internal/expr"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

// Stdout is the Path of standard output.
const Stdout = "-"

// Config holds the settings of a file sink.
type Config struct {
	// Path is the file that lines are appended to; it is made where it is missing,
	// its folder is not. `-` is standard output. The file's name, not its folder's, may
	// hold {{ }} templates; what their values have that could lead elsewhere is
	// percent-encoded.
	Path string `yaml:"path" schema:"required"`
}

// Defaults gives the settings that apply where the configuration is silent.
func Defaults() *Config { return &Config{} }

// Validate reports what is wrong as a *setting.Problem.
func (c *Config) Validate() error {
	switch {
	case c.Path == "":
		return setting.Problemf("path", `is missing; write a file, or "-" for standard output`)
	case strings.ContainsRune(c.Path, 0):
		return setting.Problemf("path", "has a NUL character in it")
	case os.IsPathSeparator(c.Path[len(c.Path)-1]):
		return setting.Problemf("path", "is a folder; write the file in it")
	}
	_, _, err := c.split()
	return err
}

// split gives the folder and the template of the name in it; nil: the same for every
// message.
func (c *Config) split() (folder string, name *expr.Template, err error) {
	literal, _, templated := strings.Cut(c.Path, "{{")
	if !templated {
		return "", nil, nil
	}
	template, err := expr.CompileSetting("path", c.Path)
	if err != nil {
		return "", nil, err
	}
	folder, start := filepath.Split(literal)
	// Later folders, if any, and those in literals within {{ }}.
	if sampled, _ := filepath.Split(template.Sample("x")); sampled != folder {
		return "", nil, setting.Problemf("path", "has a {{ }} in the name of a folder, and folders are not made; write them out, and {{ }} in the file's name only")
	}
	name, err = expr.CompileTemplate(start + c.Path[len(literal):])
	return folder, name, err
}

// Open makes the endpoint of a validated Config.
func (c *Config) Open(deps relay.SinkDeps) (relay.Endpoint, error) {
	return New(c, deps, os.Stdout)
}
