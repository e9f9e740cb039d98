package document_test

import (
	"encoding/json"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/document"
)

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
	places := []int{511, 512, 513, 543, 544, 545, 1060, 2000}
	for n := range 100 {
		places = append(places, n)
	}
	for _, n := range places { // what ends a string, at each place of a word and of a window
		for _, end := range []string{`"`, `\`, `\"`, "\x1f", "\x80", " "} {
			all = append(all, `{"k":"`+strings.Repeat("x", n)+end+`y"}`, `"`+strings.Repeat("é", n)+end)
		}
	}
	return all
}

// sameAsEncodingJSON holds that a text is JSON where encoding/json says so. That the values
// are the same is tested where they are used.
func sameAsEncodingJSON(t *testing.T, text []byte) {
	t.Helper()
	want := json.Valid(text)
	require.Equal(t, want, document.Valid(text), "%.100q", text)
	_, err := document.Parse(text)
	require.Equal(t, want, err == nil, "%.100q: %v", text, err)
}

func TestValid(t *testing.T) {
	t.Parallel()
	for _, text := range texts() {
		sameAsEncodingJSON(t, []byte(text))
	}
}

func FuzzValid(f *testing.F) {
	for _, text := range texts() {
		f.Add([]byte(text))
	}
	f.Fuzz(sameAsEncodingJSON)
}

// BenchmarkValid and BenchmarkParse read reports, long and short, and one long string.
func BenchmarkValid(b *testing.B) {
	read(b, document.Valid)
}

func BenchmarkParse(b *testing.B) {
	read(b, func(text []byte) bool {
		_, err := document.Parse(text)
		return err == nil
	})
}

func read(b *testing.B, is func([]byte) bool) {
	b.Helper()
	report := `{"phone_number":"13900001111","send_time":"2024-01-01 10:00:00","report_time":"2024-01-01 10:00:05","success":true,"err_code":"DELIVERED","err_msg":"delivered","sms_size":"1","biz_id":"900000000001^0","out_id":"42"}`
	for _, body := range []string{
		report,
		"[" + strings.Repeat(report+",", 17) + report + "]",
		`{"n":1,"text":"` + strings.Repeat("x", 65518) + `"}`,
	} {
		b.Run(strconv.Itoa(len(body)), func(b *testing.B) {
			text := []byte(body)
			b.SetBytes(int64(len(text)))
			b.ReportAllocs()
			for b.Loop() {
				if !is(text) {
					b.Fatal("it is JSON")
				}
			}
		})
	}
}
