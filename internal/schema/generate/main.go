// Command generate writes the JSON Schema of the configuration. Its arguments are the folder
// of the module and the file to write.
package main

import (
	"fmt"
	"os"

	"mnsrelay/internal/schema"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: generate MODULE FILE")
		os.Exit(2)
	}
	text, err := schema.Generate(os.Args[1])
	if err == nil {
		err = os.WriteFile(os.Args[2], text, 0o644) //nolint:gosec // everybody may read it
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "generate the schema:", err)
		os.Exit(1)
	}
}
