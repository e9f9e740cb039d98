package relay_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/relay"
)

const jsonType = "application/json"

// texts are JSON, nearly JSON and neither.
func texts() []string {
	deep := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	all := []string{
		``, ` `, `{}`, ` { } `, `[]`, "[\n]", `[1,2]`, `[1,]`, `[,1]`, `[1 2]`, `{"a":1}`, `{"a" : [ {"b":null} , true,false ] }`, `{"a"}`, `{"a":}`, `{"a":1,}`, `{a:1}`,
		`{"a":1]`, `[1}`, `{`, `[`, `{"`, `{"a`, `{"a"`, `{"a":`, `{"a":1`, `{"a":1,`, `{"a":1,"b"`, `}`, `]`, `1`, `-1`, `-`, `+1`, `01`, `-01`, `0`, `0.`, `.5`, `0.5`, `1e5`, `1E+5`, `1e`, `1e-`, `1.2e-03`, `1x`, `--1`,
		`true`, `tru`, `truex`, `null `, `nul`, `false`, `fals`, `"`, `"a`, `"a"`, `"a""`, `"\`, `"\"`, `"\""`, `"\x"`, `"\u00e9"`, `"\u00g0"`, `"\u12"`, `"\u123`, `"\/\b\f\n\r\t\\"`,
		"\"a\x00b\"", "\"a\tb\"", "\"12345678\tb\"", "\"a\x7fb\"", "\"\xff\xfe\"", "\"1234567\xff\x80\"", `"日本語の文字列"`, "\ufeff{}", `"a" "b"`, `{} {}`,
		deep(64), deep(65), deep(10_000), deep(10_001), strings.Repeat(`{"a":`, 70) + "1" + strings.Repeat("}", 70),
	}
	for n := range 20 { // what ends a string, at each place of a word
		for _, end := range []string{`"`, `\`, `\"`, "\x1f", "\x80", " "} {
			all = append(all, `{"k":"`+strings.Repeat("x", n)+end+`y"}`, `"`+strings.Repeat("é", n)+end)
		}
	}
	return all
}

// A body is JSON where encoding/json says so.
func TestContentTypeOfJSON(t *testing.T) {
	for _, text := range texts() {
		require.Equal(t, json.Valid([]byte(text)), relay.ContentType([]byte(text)) == jsonType, "%.100q", text)
	}
}

func FuzzContentTypeOfJSON(f *testing.F) {
	for _, text := range texts() {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		require.Equal(t, json.Valid(text), relay.ContentType(text) == jsonType)
	})
}

func BenchmarkContentType(b *testing.B) {
	report := `{"phone_number":"13900001111","send_time":"2024-01-01 10:00:00","report_time":"2024-01-01 10:00:05","success":true,"err_code":"DELIVERED","err_msg":"delivered","sms_size":"1","biz_id":"900000000001^0","out_id":"42"}`
	for name, body := range map[string]string{
		"report": report,
		"400B":   `{"n":1,"text":"` + strings.Repeat("x", 383) + `"}`,
		"4KiB":   "[" + strings.Repeat(report+",", 17) + report + "]",
		"64KiB":  `{"n":1,"text":"` + strings.Repeat("x", 65518) + `"}`,
	} {
		b.Run(fmt.Sprintf("%s-%d", name, len(body)), func(b *testing.B) {
			text := []byte(body)
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				if relay.ContentType(text) != jsonType {
					b.Fatal("it is JSON")
				}
			}
		})
	}
}
