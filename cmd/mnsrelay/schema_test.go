package main

import (
	"os"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"
)

func TestSchemaPrintsTheFileThatIsInTheRepository(t *testing.T) {
	got := command(t, "", "schema")
	require.Equal(t, exitDone, got.code, got.stderr)
	require.Empty(t, got.stderr)
	committed, err := os.ReadFile("../../configs/mnsrelay.schema.json")
	require.NoError(t, err)
	require.Equal(t, string(committed), got.stdout)

	document, err := jsonschema.UnmarshalJSON(strings.NewReader(got.stdout))
	require.NoError(t, err)
	compiler := jsonschema.NewCompiler()
	require.NoError(t, compiler.AddResource("mnsrelay.schema.json", document))
	_, err = compiler.Compile("mnsrelay.schema.json")
	require.NoError(t, err, "it is a schema of its draft")
}
