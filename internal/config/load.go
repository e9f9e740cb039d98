package config

// Environment is what a file's ${...} are looked up in.
type Environment struct {
	// Lookup is os.LookupEnv.
	Lookup func(name string) (value string, found bool)
	// ReadFile is os.ReadFile.
	ReadFile func(path string) ([]byte, error)
}

// Load reads the file at path, or standard input for "-", with the process's own
// environment. The error is an *Error.
func Load(path string) (*Config, []Warning, error) {
	return Parse(path, nil, Environment{})
}

// Parse reads data as the file called name.
func Parse(name string, data []byte, env Environment) (*Config, []Warning, error) {
	return nil, nil, &Error{}
}

// YAML prints the effective configuration.
func (c *Config) YAML() []byte { return nil }

// JSON prints the effective configuration.
func (c *Config) JSON() []byte { return nil }

// Origin says where a value came from.
type Origin struct {
	Line, Column int
	Source       string
}
