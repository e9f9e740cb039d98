package relay_test

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/relay"
)

func TestFieldAsJSON(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 2, 11, 4, 5, 0, time.FixedZone("", 8*60*60))
	for _, c := range []struct {
		value any
		want  string
	}{
		{`<"&">`, `"<\"&\">"`},
		{int64(math.MaxInt64), "9223372036854775807"},
		{true, "true"},
		{0.5, "0.5"},
		{math.NaN(), `"NaN"`},
		{at, `"2026-01-02T03:04:05.000Z"`},
		{[]any{at, map[string]any{"at": at, "none": nil}}, `["2026-01-02T03:04:05.000Z",{"at":"2026-01-02T03:04:05.000Z","none":null}]`},
	} {
		require.Equal(t, c.want, string(relay.Field{Value: c.value}.JSON()))
	}
}
