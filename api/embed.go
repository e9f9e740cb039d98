// Package api holds the description of the HTTP API, the types and routes that are generated
// from it, and against which the answers are tested.
package api

import _ "embed"

// OpenAPI is openapi.yaml, OpenAPI 3.1. server.gen.go is generated from it; what generates has
// a module file of its own, tools.mod.
//
//go:generate go tool -modfile=tools.mod oapi-codegen -config oapi-codegen.yaml -o server.gen.go openapi.yaml
//go:embed openapi.yaml
var OpenAPI []byte
