// Command generate writes the JSON Schema of the configuration and its reference. Its
// arguments are the folder of the module and the two files to write.
package main

import (
	"errors"
	"fmt"
	"os"

	"mnsrelay/internal/schema"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: generate MODULE SCHEMA REFERENCE")
		os.Exit(2)
	}
	err := errors.Join(
		write(os.Args[2], os.Args[1], schema.Generate),
		write(os.Args[3], os.Args[1], schema.Reference))
	if err != nil {
		fmt.Fprintln(os.Stderr, "generate the schema and the reference:", err)
		os.Exit(1)
	}
}

func write(file, module string, generate func(module string) ([]byte, error)) error {
	text, err := generate(module)
	if err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o644) //nolint:gosec // everybody may read it
}
