package config_test

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"mnsrelay/internal/config"
)

// Whatever the file says: no panic, each problem has its place on one line, what is
// printed of a valid one is a configuration that means the same, and nothing that is said
// shows what came from the file of a secret.
func FuzzParse(f *testing.F) {
	examples, err := filepath.Glob("../../configs/*.yaml")
	if err != nil || len(examples) == 0 {
		f.Fatal("no examples", err)
	}
	for _, path := range append(examples, "testdata/print.yaml") {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte(with("exchange: sms.events", "exchange: {{ x }}\n    headers: {<<: *a, b: ${HOOK_TOKEN:-x}}")))
	f.Add([]byte(with("sources:", "sources:")))
	f.Add([]byte("sources: {a: {queue: Alicom-Queue-1-SmsUp, wait: 1s, to: [o, p]}, b: {<<: &x {queue: Alicom-Queue-1-SmsUp}}}\nsinks: {o: &o {type: file, path: \"$${ ${HOOK_TOKEN}\"}, p: {<<: *o, path: '-'}}\nroutes: [{name: r, from: b, to: {sink: o, required: true}}]"))
	f.Add([]byte("a: &a [*a]\nsources: &s {x: {credentials: &c {base: *c}, to: &t [*t]}}\n"))
	f.Add([]byte("sinks: {e: &e {<<: [*e, *e], type: file, path: '$${'}}\n--- !x\n\t\xff"))
	f.Add([]byte(routed("unmatched: retain\n    dead_letter: dead", "- {name: a, from: sms, when: &w \"id == '\\x41' &&\\n  body.x\", to: [{sink: events, with: &o {exchange: e, headers: {a: b}}}]}\n  - {name: b, from: sms, when: *w, to: {sink: events, with: {<<: *o, timeout: 1s}}}")))
	f.Add([]byte(routed("unmatched: delete", "- {name: a, from: sms, when: |-2\n      bdy.x ||\n\n       txt\n    , to: events}")))
	f.Add([]byte(routed("unmatched: delete", "- name: a\n    when: >-\n      bdy.x ||\n\n       txt\r\n    from: sms\n    to: {sink: hook, with: {headers: {a: 'x'}}}")))
	f.Add([]byte("server: {listen: ':1', admin_listen: '127.0.0.1:1', admin_token: \"${file:/run/secrets/admin-token}\", tls: &t {cert_file: /run/secrets/relay-tls/tls.crt, key_file: /run/secrets/relay-tls/tls.key}}\n" +
		with("credentials: {type: static, access_key_id: id, access_key_secret: secret}", "credentials: {type: static, access_key_id: \"${file:/run/secrets/redis/password}\", access_key_secret: \"${file:/run/secrets/aliyun/access-key-secret}\"}")))
	f.Add([]byte(with("exchange: sms.events", "exchange: \"x${file:/run/secrets/artemis/password}y\"\n    tls: {ca_file: \"${file:/run/secrets/redis/password}\"}")))
	env := usual()

	// What is in these files, and in none that a fuzzer writes by itself.
	secrets := []string{"file-secret", "redis-secret", "artemis-secret", "BEGIN PRIVATE KEY"}
	hidden := func(t *testing.T, what, shown string, text []byte) {
		t.Helper()
		for _, secret := range secrets {
			if strings.Contains(shown, secret) && !strings.Contains(string(text), secret) {
				t.Fatalf("%s shows %q: %s", what, secret, shown)
			}
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c, warnings, err := config.Parse("f.yaml", text, env)
		for _, w := range warnings {
			checkPlace(t, config.Problem(w), text)
			hidden(t, "a warning", w.String(), text)
		}
		if err != nil {
			hidden(t, "a problem", err.Error(), text)
		} else {
			hidden(t, "what is printed", string(c.YAML()), text)
		}
		if err != nil {
			invalid, is := errors.AsType[*config.Error](err)
			if !is || c != nil || len(invalid.Problems) == 0 {
				t.Fatalf("an error that is not a list of problems: %v", err)
			}
			for _, p := range invalid.Problems {
				checkPlace(t, p, text)
			}
			return
		}
		printed := c.YAML()
		var document any
		if err := yaml.Load(printed, &document); err != nil {
			t.Fatalf("what is printed is not YAML: %v\n%s", err, printed)
		}
		again, _, err := config.Parse("f.yaml", printed, env)
		if err != nil {
			if strings.Contains(string(printed), "***") {
				return // where a secret stood there may be no word that is allowed
			}
			t.Fatalf("what is printed is refused: %v\n%s", err, printed)
		}
		var reprinted any
		if err := yaml.Load(again.YAML(), &reprinted); err != nil || !reflect.DeepEqual(reprinted, document) {
			t.Fatalf("what is printed means something else (%v):\n%s\n%s", err, printed, again.YAML())
		}
	})
}

func checkPlace(t *testing.T, p config.Problem, text []byte) {
	t.Helper()
	if p.Line < 1 || p.Column < 1 || p.Line > strings.Count(string(text), "\n")+strings.Count(string(text), "\r")+strings.Count(string(text), "\u0085")+
		strings.Count(string(text), "\u2028")+strings.Count(string(text), "\u2029")+2 || p.Message == "" || strings.ContainsAny(p.String(), "\n\r") {
		t.Fatalf("a problem without its place: %#v", p)
	}
}
