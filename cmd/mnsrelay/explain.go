package main

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"mnsrelay/internal/config"
	"mnsrelay/internal/dryrun"
	"mnsrelay/internal/mns"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

func newExplain() *cobra.Command {
	var configFile, messageFile, bodyFile, source string
	var asJSON bool
	var peek int
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "explain --config FILE {--message FILE|--peek N}",
		Short: "Show what would become of a message",
		Long: `Reads a message and tells, without sending anything, which routes take it and why the
others do not, what each sink would send (where to, headers, key, signature, body), and what
becomes of the message in its queue.

A message is YAML or JSON with the keys source, id, body, attributes, attempt and enqueued_at,
of which only body is needed; the lines that "queue peek" prints and that the file sink writes
are such messages. Write body_base64 for what is no text, and raw in the place of body for what
is still encoded as it is in the queue. --body takes a file that holds nothing but the body.

With --peek the messages are the first that are visible in the queue of the source: it is asked
for them, with the credentials of the configuration, and they stay as they are. Nothing else is
connected to. With --json there is a document for each message then.

What ${...} brings from files and from the environment is shown as ***, unless it is shorter than
4 bytes or, from the environment, a number or a boolean. So are authorizations, and the whole of a
header, property or URL that holds ${...}.`,
		Example: `  mnsrelay explain --config mnsrelay.yaml --message message.yaml
  mnsrelay queue peek --config mnsrelay.yaml --source sms --max 1 | mnsrelay explain -c mnsrelay.yaml --source sms --message -
  mnsrelay explain --config mnsrelay.yaml --source sms --peek 5
  mnsrelay explain --config mnsrelay.yaml --source sms --body report.json --json | jq '.routes[].matches'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(exclusive(cmd, "message", "body"), exclusive(cmd, "peek", "message"), exclusive(cmd, "peek", "body")); err != nil {
				return err
			}
			peeking := cmd.Flags().Changed("peek")
			switch {
			case peeking && (peek < 1 || peek > mns.MaxBatch):
				return usagef(cmd, "--peek must be from 1 to %d", mns.MaxBatch)
			case !peeking && messageFile == "" && bodyFile == "":
				return usagef(cmd, "which message? write --message FILE, --body FILE, or --peek N for those in the queue")
			}
			cfg, err := load(cmd, configFile)
			if err != nil {
				return err
			}
			var explained []*dryrun.Explanation
			if peeking {
				flags := queueFlags{config: configFile, source: source, timeout: timeout}
				explained, err = explainPeeked(cmd, cfg, &flags, peek)
			} else {
				explained, err = explainGiven(cmd, cfg, messageFile, bodyFile, source)
			}
			if err != nil {
				return err
			}
			return printExplained(cmd.OutOrStdout(), explained, cfg.Conceal, asJSON)
		},
	}
	configFlag(cmd, &configFile)
	cmd.Flags().StringVarP(&messageFile, "message", "m", "", "the `FILE` with the message; - reads standard input")
	cmd.Flags().StringVar(&bodyFile, "body", "", "a `FILE` that is the body of the message; - reads standard input")
	cmd.Flags().StringVar(&source, "source", "", "the `NAME` of the source it came from, if the message does not say")
	cmd.Flags().IntVar(&peek, "peek", 0, "look at up to `N` messages in the queue of the source, 1 to 16")
	cmd.Flags().DurationVar(&timeout, "timeout", 10*time.Second, "how long one request of --peek may take, and the fetching of a token")
	jsonFlag(cmd, &asJSON)
	return cmd
}

func explainGiven(cmd *cobra.Command, cfg *config.Config, messageFile, bodyFile, source string) ([]*dryrun.Explanation, error) {
	message, err := readGiven(cmd.InOrStdin(), messageFile, bodyFile)
	if err != nil {
		return nil, err
	}
	if source != "" {
		message.Source = source
	}
	dry, err := dryrun.New(cfg, agent())
	if err != nil {
		return nil, err
	}
	e, err := dry.Explain(message)
	return []*dryrun.Explanation{e}, err
}

// explainPeeked explains the first messages in the queue of a source.
func explainPeeked(cmd *cobra.Command, cfg *config.Config, flags *queueFlags, most int) ([]*dryrun.Explanation, error) {
	source, err := flags.choose(cmd, cfg.Sources)
	if err != nil {
		return nil, err
	}
	dry, err := dryrun.New(cfg, agent())
	if err != nil {
		return nil, err
	}
	queue, err := flags.client(cmd, &source)
	if err != nil {
		return nil, err
	}
	defer queue.Close()
	messages, err := queue.Peek(cmd.Context(), most)
	switch {
	case mns.NotAllowed(err):
		return nil, fmt.Errorf("%w; the keys may not peek: grant them mns:PeekMessage; with a token of an Alicom queue, which may only receive and delete, write a message of yours and --message", err)
	case err != nil:
		return nil, advise(err)
	case len(messages) == 0:
		_, err := fmt.Fprintln(cmd.ErrOrStderr(), "there is no visible message")
		return nil, err
	}
	explained := make([]*dryrun.Explanation, len(messages))
	for i := range messages {
		if explained[i], err = dry.ExplainPeeked(source.Name, messages[i]); err != nil {
			return nil, err
		}
	}
	return explained, nil
}

func printExplained(out io.Writer, explained []*dryrun.Explanation, conceal func(string) string, asJSON bool) error {
	var b strings.Builder
	paint := painterFor(out)
	for i, e := range explained {
		if asJSON {
			if err := explainJSON(out, e, conceal); err != nil {
				return err
			}
			continue
		}
		if i > 0 {
			b.WriteString("\n")
		}
		explainText(&b, e, paint, conceal)
	}
	_, err := io.WriteString(out, conceal(b.String()))
	return err
}

// readGiven reads a message, or one that is but a body.
func readGiven(stdin io.Reader, messageFile, bodyFile string) (*dryrun.Message, error) {
	path := messageFile + bodyFile
	var data []byte
	var err error
	if path == "-" {
		data, err = setting.ReadBounded(stdin)
	} else {
		data, err = setting.ReadFile(path)
	}
	if err != nil {
		return nil, fmt.Errorf("read the message: %w", err)
	}
	if bodyFile != "" {
		return &dryrun.Message{BodyBase64: base64.StdEncoding.EncodeToString(data)}, nil
	}
	m, err := dryrun.ReadMessage(data)
	if err != nil {
		return nil, fmt.Errorf("%s is no message: %w; a file that is the body alone is given by --body", path, err)
	}
	return m, nil
}

// explainText prints an explanation for people. It conceals what could not be found in its
// text any more.
func explainText(w io.Writer, e *dryrun.Explanation, paint painter, conceal func(string) string) {
	m := &e.Message
	_, _ = fmt.Fprintf(w, "message %s of source %s: %d bytes, attempt %d, enqueued at %s\n\n", fieldText(relay.Field{Value: m.ID}), m.Source, len(m.Body), m.Attempt, m.EnqueuedAtText())
	for _, r := range e.Routes {
		switch {
		case r.Err != nil:
			_, _ = fmt.Fprintf(w, "route %s %s: %s\n", r.Name, paint.paint(red, "cannot tell"), r.When)
		case !r.Matches:
			_, _ = fmt.Fprintf(w, "route %s %s, because this is not true: %s\n", r.Name, paint.paint(yellow, "does not take it"), r.When)
		case r.When == "":
			_, _ = fmt.Fprintf(w, "route %s %s, as every message\n", r.Name, paint.paint(green, "takes it"))
		default:
			_, _ = fmt.Fprintf(w, "route %s %s: %s\n", r.Name, paint.paint(green, "takes it"), r.When)
		}
		for _, s := range r.Steps {
			value := s.Value
			if value == "" {
				value = "not looked at"
			}
			_, _ = fmt.Fprintf(w, "  %s%s  is  %s\n", strings.Repeat("  ", s.Depth), s.Text, value)
		}
		for i := range r.Deliveries {
			explainDelivery(w, &r.Deliveries[i], paint, conceal)
		}
		_, _ = fmt.Fprintln(w)
	}
	if e.Rejected != nil {
		_, _ = fmt.Fprintf(w, "%s: %v\n", paint.paint(red, "rejected"), e.Rejected)
	}
	if e.DeadLetter != nil {
		_, _ = fmt.Fprintln(w, "dead letter")
		explainDelivery(w, e.DeadLetter, paint, conceal)
	}
	_, _ = fmt.Fprintln(w, e.End)
}

func explainDelivery(w io.Writer, d *dryrun.Delivery, paint painter, conceal func(string) string) {
	optional := ""
	if !d.Required && d.Route != "" {
		optional = ", not required"
	}
	_, _ = fmt.Fprintf(w, "  -> %s (%s%s)\n", paint.paint(bold, d.Sink), d.Type, optional)
	if d.Err != nil {
		_, _ = fmt.Fprintf(w, "     %s: %v\n", paint.paint(red, "is rejected"), d.Err)
		return
	}
	for _, f := range d.Preview.Fields {
		_, _ = fmt.Fprintf(w, "     %s: %s\n", f.Name, fieldText(f))
	}
	size, body := len(d.Preview.Body), conceal(string(d.Preview.Body))
	switch {
	case size == 0:
		_, _ = fmt.Fprintln(w, "     no body")
	case utf8.ValidString(body):
		_, _ = fmt.Fprintf(w, "     body, %d bytes:\n       %s\n", size, strings.ReplaceAll(strings.TrimSuffix(body, "\n"), "\n", "\n       "))
	default:
		_, _ = fmt.Fprintf(w, "     body, %d bytes, in base64:\n       %s\n", size, base64.StdEncoding.EncodeToString([]byte(body)))
	}
}

// fieldText writes a value; a text only in quotes where it could be taken for something else.
func fieldText(f relay.Field) string {
	value := f.JSON()
	var text string
	if json.Unmarshal(value, &text) != nil || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return string(value)
	}
	return text
}

// The shapes of the JSON.
type (
	explanationJSON struct {
		ID         string            `json:"id"`
		Source     string            `json:"source"`
		Attributes map[string]string `json:"attributes,omitempty"`
		Routes     []routeJSON       `json:"routes"`
		Rejected   *failureJSON      `json:"rejected,omitempty"`
		DeadLetter *deliveryJSON     `json:"dead_letter,omitempty"`
		End        string            `json:"end"`
		Retained   bool              `json:"retained"`
	}
	routeJSON struct {
		Name       string         `json:"name"`
		When       string         `json:"when,omitempty"`
		Matches    bool           `json:"matches"`
		Error      string         `json:"error,omitempty"`
		Steps      []stepJSON     `json:"steps,omitempty"`
		Deliveries []deliveryJSON `json:"deliveries,omitempty"`
	}
	stepJSON struct {
		Text  string `json:"text"`
		Value string `json:"value,omitempty"`
		// Depth is 1 for what the condition at 0 before it is made of.
		Depth int `json:"depth"`
	}
	deliveryJSON struct {
		Sink       string       `json:"sink"`
		Type       string       `json:"type"`
		Required   bool         `json:"required"`
		Rejected   *failureJSON `json:"rejected,omitempty"`
		Fields     fieldsJSON   `json:"fields,omitempty"`
		Body       *string      `json:"body,omitempty"`
		BodyBase64 []byte       `json:"body_base64,omitempty"`
	}
	failureJSON struct {
		Reason string `json:"reason"`
		Error  string `json:"error"`
	}
	// fieldsJSON is a mapping that keeps its order.
	fieldsJSON []relay.Field
)

// MarshalJSON writes the fields in order.
func (f fieldsJSON) MarshalJSON() ([]byte, error) { //nolint:unparam // It is a json.Marshaler.
	b := []byte{'{'}
	for i, field := range f {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, relay.Field{Value: field.Name}.JSON()...)
		b = append(b, ':')
		b = append(b, field.JSON()...)
	}
	return append(b, '}'), nil
}

// explainJSON prints an explanation for programs. It conceals texts and not their JSON, which
// would not be JSON afterwards.
func explainJSON(w io.Writer, e *dryrun.Explanation, conceal func(string) string) error {
	c := concealer(conceal)
	out := explanationJSON{
		ID: e.Message.ID, Source: e.Message.Source, Attributes: make(map[string]string, len(e.Message.Attributes)),
		Routes: []routeJSON{}, Rejected: c.failure(e.Rejected), End: e.End, Retained: e.Retained,
	}
	for name, value := range e.Message.Attributes {
		out.Attributes[name] = conceal(value)
	}
	for _, r := range e.Routes {
		route := routeJSON{Name: r.Name, When: conceal(r.When), Matches: r.Matches}
		if r.Err != nil {
			route.Error = conceal(r.Err.Error())
		}
		for _, s := range r.Steps {
			route.Steps = append(route.Steps, stepJSON{conceal(s.Text), conceal(s.Value), s.Depth})
		}
		for i := range r.Deliveries {
			route.Deliveries = append(route.Deliveries, *c.delivery(&r.Deliveries[i]))
		}
		out.Routes = append(out.Routes, route)
	}
	if e.DeadLetter != nil {
		out.DeadLetter = c.delivery(e.DeadLetter)
	}
	return printJSON(w, out)
}

// concealer makes JSON of what it conceals.
type concealer func(text string) string

func (c concealer) failure(err error) *failureJSON {
	if err == nil {
		return nil
	}
	return &failureJSON{Reason: relay.ReasonOf(err), Error: c(err.Error())}
}

func (c concealer) delivery(d *dryrun.Delivery) *deliveryJSON {
	out := &deliveryJSON{Sink: d.Sink, Type: d.Type, Required: d.Required, Rejected: c.failure(d.Err)}
	if d.Err != nil {
		return out
	}
	for _, f := range d.Preview.Fields {
		out.Fields = append(out.Fields, relay.Field{Name: f.Name, Value: c.value(f.Value)})
	}
	if body := c(string(d.Preview.Body)); utf8.ValidString(body) {
		out.Body = &body
	} else {
		out.BodyBase64 = []byte(body)
	}
	return out
}

// value conceals the texts in the value of a field.
func (c concealer) value(v any) any {
	switch v := v.(type) {
	case string:
		return c(v)
	case []any:
		list := make([]any, len(v))
		for i := range v {
			list[i] = c.value(v[i])
		}
		return list
	case map[string]any:
		members := make(map[string]any, len(v))
		for name := range v {
			members[name] = c.value(v[name])
		}
		return members
	}
	return v
}
