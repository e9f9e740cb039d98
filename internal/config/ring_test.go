package config_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/config"
)

// ring is a configuration of the sources a, b and c with a sink into the queue of each,
// to_a, to_b and to_c, and a file.
func ring(sources map[string]string, routes string) string {
	const keys = "credentials: {type: static, access_key_id: id, access_key_secret: secret}"
	var b strings.Builder
	b.WriteString("sources:\n")
	for _, name := range []string{"a", "b", "c"} {
		fmt.Fprintf(&b, "  %s: {queue: q%s, endpoint: https://1.mns.cn-hangzhou.aliyuncs.com, %s, %s}\n", name, name, keys, sources[name])
	}
	b.WriteString("sinks:\n  file: {type: file, path: f}\n")
	for _, name := range []string{"a", "b", "c"} {
		fmt.Fprintf(&b, "  to_%s: {type: mns, queue: q%s, endpoint: https://1.mns.cn-hangzhou.aliyuncs.com, %s}\n", name, name, keys)
	}
	return b.String() + "routes: " + routes + "\n"
}

// Queues that feed each other are refused where every message goes round, and warned of
// where conditions or failures decide.
func TestQueuesThatFeedEachOther(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		text             string
		refused, warning string
	}{
		"a chain": {text: ring(map[string]string{"a": "to: to_b", "b": "to: to_c", "c": "to: file"}, "[]")},
		"two": {
			text:    ring(map[string]string{"a": "to: to_b", "b": "to: to_a", "c": "to: file"}, "[]"),
			refused: "2:147: sources.a.to: the queues feed each other, a -> b -> a: every message would go round for ever",
		},
		"three": {
			text:    ring(map[string]string{"a": "to: [file, to_b]", "b": "to: to_c", "c": "to: to_a"}, "[]"),
			refused: "sources.a.to[1]: the queues feed each other, a -> b -> c -> a",
		},
		"a ring behind a source": {
			text:    ring(map[string]string{"a": "to: to_b", "b": "to: to_c", "c": "to: to_b"}, "[]"),
			refused: "sources.b.to: the queues feed each other, b -> c -> b",
		},
		"with a condition": {
			text:    ring(map[string]string{"a": "to: to_b", "b": "unmatched: delete", "c": "to: file"}, `[{name: back, from: b, to: to_a, when: body.again}]`),
			warning: "sources.a.to: the queues feed each other, a -> b -> a: a message may go round for ever",
		},
		"by dead letters": {
			text:    ring(map[string]string{"a": "to: file, dead_letter: to_b", "b": "to: to_a", "c": "to: file"}, "[]"),
			warning: "sources.a.dead_letter: the queues feed each other, a -> b -> a",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, warnings, err := config.Parse("relay.yaml", []byte(c.text), environment(nil, nil))
			if c.refused != "" {
				require.ErrorContains(t, err, c.refused)
				require.Equal(t, 1, strings.Count(err.Error(), "feed each other"), "said once: %v", err)
				return
			}
			require.NoError(t, err)
			said := fmt.Sprint(warnings)
			if c.warning == "" {
				require.NotContains(t, said, "feed each other")
				return
			}
			require.Contains(t, said, c.warning)
			require.Equal(t, 1, strings.Count(said, "feed each other"))
		})
	}
}
