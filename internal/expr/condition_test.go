package expr_test

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/expr"
	"mnsrelay/internal/relay"
)

func condition(t *testing.T, source string) *expr.Condition {
	t.Helper()
	c, err := expr.CompileCondition(source)
	require.NoError(t, err, source)
	return c
}

// secret is in every body that makes an expression fail: no error may hold it.
const secret = "13900001234"

// requireFailure holds what the error of an evaluation promises.
func requireFailure(t *testing.T, err error, text string) {
	t.Helper()
	require.ErrorContains(t, err, text)
	failure := (*relay.Failure)(nil)
	require.ErrorAs(t, err, &failure)
	require.Equal(t, expr.Reason, failure.Reason)
	require.Equal(t, expr.Reason, relay.ReasonOf(err))
	require.NotContains(t, err.Error(), secret)
}

func TestConditionsHold(t *testing.T) {
	t.Parallel()
	const body = `{"success":false,"n":42,"big":9007199254740993,"max":9223372036854775807,"huge":12345678901234567890,"f":1.5,"neg":-0.0,"zero":-0,
		"exp":1e3,"s":"1","text":"短信😀","nul":null,"empty":{},"o":{"k":[1,{"p":"q"}]},"l":["a","b"],"t":"2024-05-20T17:17:00Z","odd key":true,"dup":1,"dup":2}`
	for _, source := range []string{
		// Variables.
		`id == "8F2A6C0E-1"`, `source == "sms"`, `queue == "Alicom-Queue-1-SmsReport"`, `attempt == 3 && attempt > 2`,
		`enqueued_at == timestamp("2024-05-20T17:17:05.120Z")`, `enqueued_at > timestamp(body.t)`, `enqueued_at.getHours() == 17`, `enqueued_at.getHours("Asia/Shanghai") == 1`,
		`attributes.topic == "reports"`, `"topic" in attributes && !("tag" in attributes)`, `has(attributes.topic) && !has(attributes.tag)`, `attributes.exists(k, attributes[k] == "reports")`,
		`text.contains("短信")`, `text.startsWith("{")`, `size(text) > 100`,
		// JSON and its types.
		`body.success == false`, `!body.success`, `body.success != true`, `type(body.success) == bool`,
		`body.n == 42`, `type(body.n) == int`, `body.n + 1 == 43`, `body.n == 42.0`, `body.n < 42.5`,
		`body.big == 9007199254740993`, `body.big != 9007199254740992`, `body.max == 9223372036854775807`,
		`type(body.huge) == double`, `body.huge > 1e19`, `body.f == 1.5`, `body.neg == 0.0`, `body.zero == 0`, `type(body.neg) == double`, `type(body.zero) == int`, `type(body.exp) == double`, `body.exp == 1000`,
		`body.s == "1"`, `body.s != 1`, `int(body.s) == 1`, `body.text == "短信😀"`, `size(body.text) == 3`, `body.text.endsWith("😀")`,
		`body.nul == null`, `has(body.nul)`, `type(body.nul) == null_type`,
		// Objects and arrays.
		`size(body.empty) == 0`, `body.empty == {}`, `body.o == {"k": [1, {"p": "q"}]}`, `{"k": [1, {"p": "q"}]} == body.o`, `body.o != {"k": []}`, `body.o.k[1].p == "q"`, `body["odd key"]`, `body.o.k[0] == 1`,
		`size(body) == 18`, `"n" in body`, `!("x" in body)`, `!(7 in body)`, `body.exists(k, k == "n")`, `type(body.o) == map`, `type(body.l) == list`, `dyn(body.o) != 1`,
		`body.l == ["a", "b"]`, `["a", "b"] == body.l`, `"a" in body.l`, `size(body.l) == 2`, `body.l.all(x, x < "c")`, `body.l.map(x, x + "!") == ["a!", "b!"]`, `body.l.filter(x, x == "a").size() == 1`,
		`body.l + ["c"] == ["a", "b", "c"]`, `body.l.exists_one(x, x == "a")`, `body.l.join("-") == "a-b"`, `body.l[1.0] == "b"`, `body.dup == 2`,
		// What may be missing.
		`!has(body.missing)`, `!has(body.o.missing)`, `has(body.o.k)`, `!has(body.s.missing)`, `body.?missing.orValue("none") == "none"`, `body.?o.?k.hasValue()`, `!body.?missing.?deeper.hasValue()`, `body.l[?7] == optional.none()`, `body.?n.orValue(1) == 42`,
		`true || body.missing`, `!(false && body.missing)`, `body.missing == 1 || true`,
		// Extensions.
		`body.s.replace("1", "2") == "2"`, `"A.b".lowerAscii() == "a.b"`, `"a,b".split(",") == body.l`, `"%s-%d".format([body.s, body.n]) == "1-42"`, `math.greatest(body.n, 7) == 42`,
		`string(base64.decode("aGk=")) == "hi"`, `base64.encode(b"hi") == "aGk="`, `json.encode(body.o) == '{"k":[1,{"p":"q"}]}'`, `body.text.matches("^短")`, `matches(body.s, "[0-9]+")`, `"a".matches(r"\w")`,
		`(type(body.l) == list ? body.l[0] : body.l) == "a"`,
	} {
		ok, err := condition(t, source).Match(expr.NewInput(message(body), "Alicom-Queue-1-SmsReport"))
		require.NoError(t, err, source)
		require.True(t, ok, source)
	}
}

func TestConditionsOverOtherDocuments(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ source, body string }{
		{`body[0].call_id == "1"`, `[{"call_id":"1"},{"call_id":"2"}]`},
		{`body.exists(r, r.call_id == "2")`, `[{"call_id":"1"},{"call_id":"2"}]`},
		{`body == "text"`, `"text"`},
		{`body == 7`, ` 7 `},
		{`body == null`, `null`},
		{`body`, `true`},
		{`size(text) == 0`, ``},
		{`text == "a\ufffd\ufffdb"`, "a\xff\xfeb"},
		{`body == "a\ufffd"`, "\"a\xff\""},
		{`body == body`, strings.Repeat("[", 9000) + strings.Repeat("]", 9000)},
		{`size(json.encode(body)) == 18000`, strings.Repeat("[", 9000) + strings.Repeat("]", 9000)},
		{`size(body) == 40 && body[39] == 39 && body[?40] == optional.none()`, "[" + strings.Join(numbers(40), ",") + "]"},
	} {
		ok, err := condition(t, test.source).Match(expr.NewInput(message(test.body), "q"))
		require.NoError(t, err, test.source)
		require.True(t, ok, test.source)
	}
}

func TestMessageWithoutAttributes(t *testing.T) {
	t.Parallel()
	ok, err := condition(t, `!has(attributes.tag) && size(attributes) == 0`).Match(expr.NewInput(&relay.Message{}, "q"))
	require.NoError(t, err)
	require.True(t, ok)
}

// A body that no expression asks for is not read.
func TestBodyNeedNotBeJSON(t *testing.T) {
	t.Parallel()
	in := expr.NewInput(message("no JSON"), "q")
	ok, err := condition(t, `source == "sms" && text == "no JSON"`).Match(in)
	require.NoError(t, err)
	require.True(t, ok)
}

func TestFailures(t *testing.T) {
	t.Parallel()
	const body = `{"phone":"` + secret + `","n":1,"l":["` + secret + `"],"o":{}}`
	for source, want := range map[string]string{
		`body.missing == 1`:                                 `expression: evaluate "body.missing == 1": no such key: missing; select it with .? or ask has() first where it may be missing`,
		`body.o.deep.er`:                                    `no such key: deep; select`,
		`body.phone.x == 1`:                                 `no such key: x; select`,
		`body[body.phone] == 1`:                             `no such key; select`,
		`attributes[body.phone] == ""`:                      `no such key; select`,
		`attributes.tag == ""`:                              `no such key: tag; select`,
		`body.l[1] == ""`:                                   `index out of bounds`,
		`body.l[body.phone] == ""`:                          `does not take this value`,
		`body.phone`:                                        `it gives a value of type string, not true or false`,
		`body.l`:                                            `it gives a value of type list, not true or false`,
		`body`:                                              `it gives a value of type map, not true or false`,
		`body.phone > 1`:                                    `: > does not take values of these types; convert them first, as in int(...)`,
		`body.phone + 1 == 2`:                               `: + does not take values of these types`,
		`body.phone && true`:                                `: && does not take values of these types`,
		`body.phone ? true : false`:                         `: ? : does not take values of these types`,
		`timestamp(body.phone) > enqueued_at`:               `: timestamp() does not take this value`,
		`bool(body.phone)`:                                  `: bool() does not take this value`,
		`enqueued_at.getHours(body.phone) == 1`:             `: getHours() does not take this value`,
		`"%d".format([body.phone]) == ""`:                   `: format() does not take this value`,
		`body.phone.charAt(99) == ""`:                       `: charAt() does not take this value`,
		`base64.decode(body.phone + "!") == b""`:            `: base64.decode() does not take this value`,
		`body.phone.replace("9", "") == body.l[9]`:          `index out of bounds`,
		`1 / (body.n - 1) == 1`:                             `division by zero`,
		`1 % (body.n - 1) == 1`:                             `modulus by zero`,
		`9223372036854775807 + body.n == 1`:                 `integer overflow`,
		`body.?missing.value() == 1`:                        `optional.none() dereference`,
		`timestamp(body.n * 999999999999999) > enqueued_at`: `timestamp overflow`,
		`math.abs(-9223372036854775807 - body.n) == 1`:      `integer overflow`,
		`body.l.exists(x, x == ` + strings.Repeat(" ", 200) + `1 / 0)`: `…": `,
	} {
		_, err := condition(t, source).Match(expr.NewInput(message(body), "q"))
		requireFailure(t, err, want)
	}
}

func TestBodyThatIsNotJSON(t *testing.T) {
	t.Parallel()
	for _, source := range []string{`body.x == 1`, `has(body.x)`, `body.?x.orValue(true)`, `size(body) == 0`, `body == null`} {
		for body, want := range map[string]string{"": "body is not JSON (byte 1)", `{"x": ` + secret + `x}`: "body is not JSON (byte 18)", `{"x":1`: "body is not JSON (byte 7)"} {
			_, err := condition(t, source).Match(expr.NewInput(message(body), "q"))
			requireFailure(t, err, want)
		}
	}
}

// What a message can make expensive ends at the limit, whatever the function: each of
// these took seconds where only operators were charged.
func TestCostIsLimited(t *testing.T) {
	t.Parallel()
	bodies := map[string]string{
		"numbers": "[" + strings.Join(numbers(12000), ",") + "]",
		"objects": "[" + strings.TrimSuffix(strings.Repeat(`{"a":1,"b":[1]},`, 4000), ",") + "]",
		"text":    `["` + strings.Repeat("a", 60000) + `"]`,
	}
	for source, body := range map[string]string{
		`body.all(x, body.all(y, true))`:                                   "numbers",
		`body.all(x, x in body)`:                                           "numbers",
		`body.all(x, body == body)`:                                        "objects",
		`body.all(x, [body] == [body])`:                                    "objects",
		`body.all(x, {"a": body} == {"a": body})`:                          "objects",
		`body.all(x, json.encode(body) != "")`:                             "objects",
		`text.split("").all(x, size(text) > 0)`:                            "text",
		`text.split("").all(x, "%s".format([text]) != "")`:                 "text",
		`text.split("").all(x, text.format([]) != "")`:                     "text",
		`text.split("").all(x, text.replace("a", "bb") != "")`:             "text",
		`text.split("").all(x, text + x != "")`:                            "text",
		`text.split("").all(x, bytes(text) != b"")`:                        "text",
		`text.split("").all(x, bool(text) || true)`:                        "text",
		`text.split("").all(x, text.matches("x$") == false)`:               "text",
		`text.split("").all(x, base64.encode(bytes(text)) != "")`:          "text",
		`text.split("").all(x, body[0].indexOf("aaaaaaaaaaab") < 0)`:       "text",
		`text.split("").all(x, text.split("").all(y, y != "" || x != ""))`: "text",
	} {
		t.Run(source, func(t *testing.T) {
			t.Parallel()
			_, err := condition(t, source).Match(expr.NewInput(message(bodies[body]), "q"))
			requireFailure(t, err, "it costs more than the limit of 1000000")
		})
	}
}

// A list or map that is looked for in a list as large as itself is not gone through for each
// element.
func TestMembershipIsLinear(t *testing.T) {
	const size = 8000
	list := "[" + strings.Join(numbers(size), ",") + "]"
	members := make([]string, size)
	for i := range members {
		members[i] = fmt.Sprintf("%q:1", strconv.Itoa(i))
	}
	for _, body := range []string{
		`{"a":` + list + `,"b":` + list + `}`,
		`{"a":{` + strings.Join(members, ",") + `},"b":` + list + `}`,
	} {
		in := expr.NewInput(message(body), "q")
		c := condition(t, "body.a in body.b")
		allocations := testing.AllocsPerRun(1, func() {
			found, err := c.Match(in)
			require.NoError(t, err)
			require.False(t, found)
		})
		require.Less(t, allocations, 4.0*size)
	}
	found, err := condition(t, "body.a in body.b").Match(expr.NewInput(message(`{"a":[1,{"x":2}],"b":[1,[1],[1,{"x":2}]]}`), "q"))
	require.NoError(t, err)
	require.True(t, found)
}

// What people write over the largest message is far from the limit.
func TestCostOfWhatPeopleWrite(t *testing.T) {
	t.Parallel()
	body := "[" + strings.TrimSuffix(strings.Repeat(`{"status":"DELIVRD","code":0},`, 2000), ",") + "]"
	for _, source := range []string{
		`body.exists(r, r.status == "FAILED")`, `body.all(r, r.code == 0 && r.status.startsWith("D"))`, `text.contains("FAILED")`, `text.matches("FAIL(ED|URE)[0-9]*")`,
		`body.filter(r, r.status == "FAILED").size() > 3`, `body.map(r, r.status).join(",").contains("FAILED")`, `text.lowerAscii().contains("failed")`, `body == []`,
	} {
		_, err := condition(t, source).Match(expr.NewInput(message(body), "q"))
		require.NoError(t, err, source)
	}
}

// Some errors of cel-go are shared by all evaluations, and written to by the first: the
// race detector watches. It is not parallel, so that no other test is the first.
func TestErrorsSharedByEvaluations(t *testing.T) {
	in := expr.NewInput(message(report), "q")
	for _, source := range []string{
		`timestamp(9223372036854775804 + attempt) > enqueued_at`, `math.abs(-9223372036854775805 - attempt) == 0`,
		`body.sms_size in body.success`, `size(body.success) == 1`, `body.success.getHours() == 1`,
	} {
		c := condition(t, source)
		start := make(chan struct{})
		var group sync.WaitGroup
		for range 8 {
			group.Go(func() {
				<-start
				if _, err := c.Match(in); err == nil {
					t.Errorf("%s does not fail", source)
				}
			})
		}
		close(start)
		group.Wait()
	}
}

func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	sources := []string{
		`body.success == false`, `body.?missing.orValue(1) == 1`, `body.missing == 1`, `body.err_code > 1`, `text.size() > 1 && body.size() > 3`,
		`enqueued_at.getHours(body.biz_id) == 1`, `body.phone_number.matches("^1[0-9]+$")`, `text.split(",").exists(x, x.contains("biz"))`,
	}
	var conditions []*expr.Condition
	for _, source := range sources {
		conditions = append(conditions, condition(t, source))
	}
	template, err := expr.CompileTemplate("{{ body.biz_id }}.{{ body.sequence_id }}.{{ body }}")
	require.NoError(t, err)
	in := expr.NewInput(message(report), "q")
	broken := expr.NewInput(message(report+"}"), "q")
	want, err := template.Render(expr.NewInput(message(report), "q"))
	require.NoError(t, err)

	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 20 {
				for _, c := range conditions {
					_, _ = c.Match(in)
					_, _ = c.Match(broken)
				}
				got, err := template.Render(in)
				if err != nil || got != want {
					t.Errorf("%q: %v", got, err)
				}
			}
		})
	}
	group.Wait()
}

func numbers(n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = strconv.Itoa(i)
	}
	return list
}
