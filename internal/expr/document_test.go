package expr_test

import (
	"encoding/json"
	"math"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/expr"
)

// documents are JSON and what is nearly JSON.
func documents() []string {
	wide := make([]string, 40)
	for i := range wide {
		wide[i] = strconv.Quote("k"+strconv.Itoa(i%30)) + ":" + strconv.Itoa(i)
	}
	texts := []string{
		report, `{}`, `[]`, ` [ ] `, `""`, `null`, `true`, `false`, "\t{\"a\" : [ 1 , { \"b\" : null } ] }\r\n", `{"a":1,"a":2}`, `{"a":{"a":{"a":"x"}}}`,
		`0`, `-0`, `-0.0`, `1e3`, `1E+3`, `1e-3`, `0.1`, `123456789012345678901234567890`, `9223372036854775807`, `-9223372036854775808`, `9223372036854775808`,
		`"\"\\\/\b\f\n\r\t"`, `"\u00e9\u4E2D\ud83d\ude00"`, `"\ud83d"`, `"\ude00"`, `"\ud83dx"`, `"\ud83d\n"`, `"\ud83d\ud83d\ude00"`, `"\ud800\u0041"`, `"中文😀"`, "\"\xff\xfe\"", "\"a\xe4\xb8\"", `{"\u0061":1,"a":2}`, `{"":0}`, `"\u0000"`,
		"{" + strings.Join(wide, ",") + "}", "[" + strings.Repeat("[1,2],", 40) + "0]",
		// Not JSON.
		``, ` `, `{`, `}`, `[`, `]`, `{"a"}`, `{"a":}`, `{"a":1,}`, `[1,]`, `[,1]`, `{,}`, `{a:1}`, `[1 2]`, `{"a":1 "b":2}`, `1 2`, `{} {}`, `{}x`, `nul`, `nullx`, `True`, `tru e`,
		`01`, `-`, `+1`, `1.`, `.1`, `1e`, `1e+`, `0x1`, `NaN`, `Infinity`, `"`, `"a`, `"\`, `"\x"`, `"\u12"`, `"\u12g4"`, `"\u+123"`, "\"a\nb\"", "\"\x00\"", "\"\\u0041\x01\"", `"\\`, `'a'`, "\xef\xbb\xbf{}", `[1]]`, `{"a":1}}`, "\xff", `{"a":"\ud83d`,
	}
	for _, depth := range []int{100, 9999, 10000, 10001, 20000} {
		texts = append(texts, strings.Repeat("[", depth)+strings.Repeat("]", depth), strings.Repeat(`{"a":`, depth)+"1"+strings.Repeat("}", depth), strings.Repeat("[", depth))
	}
	return texts
}

// sameAsEncodingJSON holds that a text is JSON here exactly if it is there, and that its
// values are the same.
func sameAsEncodingJSON(t *testing.T, body []byte) {
	t.Helper()
	got, err := expr.ParseJSON(body)
	require.Equal(t, json.Valid(body), err == nil, "%.80q: %v", body, err)
	if err != nil {
		return
	}
	var want any
	if json.Unmarshal(body, &want) != nil {
		return // a number beyond a double: infinite here, an error there
	}
	require.Equal(t, want, got, "%.80q", body)
}

func TestJSONIsThatOfEncodingJSON(t *testing.T) {
	t.Parallel()
	for _, body := range documents() {
		sameAsEncodingJSON(t, []byte(body))
	}
}

func TestNumberBeyondDoubleIsInfinite(t *testing.T) {
	t.Parallel()
	got, err := expr.ParseJSON([]byte(`[1e999, -1e999]`))
	require.NoError(t, err)
	require.Equal(t, []any{math.Inf(1), math.Inf(-1)}, got)
}

func FuzzJSON(f *testing.F) {
	for _, body := range documents() {
		if len(body) < 1000 {
			f.Add([]byte(body))
		}
	}
	f.Fuzz(func(t *testing.T, body []byte) { sameAsEncodingJSON(t, body) })
}
