// Package configs holds examples of configurations, and the JSON Schema of all of them.
package configs

import _ "embed"

// Schema is mnsrelay.schema.json, JSON Schema of draft 2020-12, made by internal/schema as the
// reference docs/configuration.md is.
//
//go:generate go run ../internal/schema/generate .. mnsrelay.schema.json ../docs/configuration.md
//go:embed mnsrelay.schema.json
var Schema []byte
