package expr_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/expr"
	"mnsrelay/internal/relay"
)

// report is an SMS report, 400 bytes of JSON.
const report = `{"phone_number":"13900001234","send_time":"2024-05-20 17:16:58","report_time":"2024-05-20 17:17:05",` +
	`"success":false,"err_code":"UNDELIV","err_msg":"user unreachable or powered off at the time of delivery","sms_size":"1",` +
	`"biz_id":"932702304080415357^0","out_id":"order-2024-05-20-000123","sequence_id":1234567890,"sign_name":"Example",` +
	`"template_code":"SMS_1234567","extra":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}`

func message(body string) *relay.Message {
	return &relay.Message{
		ID: "8F2A6C0E-1", Source: "sms", Body: []byte(body), Attempt: 3,
		Attributes: map[string]string{"body": "base64", "topic": "reports"},
		EnqueuedAt: time.Date(2024, 5, 20, 17, 17, 5, 120e6, time.UTC),
	}
}

func BenchmarkMatch(b *testing.B) {
	c, err := expr.CompileCondition("body.success == false")
	require.NoError(b, err)
	in := expr.NewInput(message(report), "q")
	b.ReportAllocs()
	for b.Loop() {
		if ok, err := c.Match(in); !ok || err != nil {
			b.Fatal(ok, err)
		}
	}
}

// BenchmarkMessage is all that a message costs with a condition and a routing key.
func BenchmarkMessage(b *testing.B) {
	c, err := expr.CompileCondition("body.success == false")
	require.NoError(b, err)
	t, err := expr.CompileTemplate(`sms.report.{{ body.success ? "ok" : "failed" }}`)
	require.NoError(b, err)
	m := message(report)
	b.ReportAllocs()
	for b.Loop() {
		in := expr.NewInput(m, "q")
		if ok, err := c.Match(in); !ok || err != nil {
			b.Fatal(ok, err)
		}
		if s, err := t.Render(in); s != "sms.report.failed" || err != nil {
			b.Fatal(s, err)
		}
	}
}

func BenchmarkRender(b *testing.B) {
	for _, source := range []string{"sms.report", "{{ id }}", "{{ body.biz_id }}", "sms.{{ body.sequence_id }}.{{ body.sign_name.lowerAscii() }}"} {
		b.Run(source, func(b *testing.B) {
			t, err := expr.CompileTemplate(source)
			require.NoError(b, err)
			in := expr.NewInput(message(report), "q")
			b.ReportAllocs()
			for b.Loop() {
				if _, err := t.Render(in); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkValue(b *testing.B) {
	t, err := expr.CompileTemplate("{{ body.biz_id }}")
	require.NoError(b, err)
	in := expr.NewInput(message(report), "q")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := t.Value(in); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCompile(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := expr.CompileCondition("body.success == false"); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkUnmarshal is what the parser of this package is measured against.
func BenchmarkUnmarshal(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		var v any
		if err := json.Unmarshal([]byte(report), &v); err != nil {
			b.Fatal(err)
		}
	}
}
