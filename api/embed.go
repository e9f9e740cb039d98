// Package api holds the description of the HTTP API, from which clients are made and
// against which the answers are tested.
package api

import _ "embed"

// OpenAPI is openapi.yaml, OpenAPI 3.1.
//
//go:embed openapi.yaml
var OpenAPI []byte
