package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"mnsrelay/internal/mns"
	"mnsrelay/internal/relay"
)

func newQueuePeek() *cobra.Command {
	var f queueFlags
	var most int
	var body string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "peek",
		Short: "Show messages without taking them",
		Long: `Shows the first messages that are visible, and leaves them as they are: no lease, no receive
counted. Messages under lease are not shown.

Bodies are decoded as a source does it: base64 becomes what it encodes, and a topic's notification
its message, with the attributes of the notification.

On a terminal it prints for people. Elsewhere, and with --json, it prints a line of JSON for each
message, as "explain --message" reads it: "body" where it is text, "body_base64" where it is
not, "error" where the body is not what it should be. --json=false prints for people everywhere.`,
		Example: `  mnsrelay queue peek --endpoint http://127.0.0.1:8090 --queue orders
  mnsrelay queue peek --config mnsrelay.yaml --source orders --max 1 | jq -r .body
  mnsrelay queue peek --config mnsrelay.yaml --source orders --json=false > messages.txt`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if most < 1 || most > mns.MaxBatch {
				return usagef(cmd, "--max must be from 1 to %d", mns.MaxBatch)
			}
			switch mns.BodyEncoding(body) {
			case "", mns.BodyAuto, mns.BodyBase64, mns.BodyRaw:
			default:
				return usagef(cmd, "there is no encoding %q: write %s, %s or %s", body, mns.BodyAuto, mns.BodyBase64, mns.BodyRaw)
			}
			queue, source, err := f.open(cmd)
			if err != nil {
				return err
			}
			defer queue.Close()
			messages, err := queue.Peek(cmd.Context(), most)
			if err != nil {
				return advise(err)
			}
			if body == "" {
				body = source.Body
			}
			decoder := &mns.Decoder{Body: mns.BodyEncoding(body), Unwrap: source.Unwrap != "none"}
			out := cmd.OutOrStdout()
			if !cmd.Flags().Changed("json") {
				asJSON = !isTerminal(out)
			}
			for _, m := range messages {
				p := peek(decoder, m)
				if asJSON {
					err = printJSONLine(out, p)
				} else {
					err = p.print(out, painterFor(out), time.Now())
				}
				if err != nil {
					return fmt.Errorf("print message %q: %w", m.ID, err)
				}
			}
			if len(messages) == 0 {
				_, err = fmt.Fprintln(cmd.ErrOrStderr(), "there is no visible message")
			}
			return err
		},
	}
	f.add(cmd)
	cmd.Flags().IntVar(&most, "max", mns.MaxBatch, "show up to `N` messages, 1 to 16")
	cmd.Flags().StringVar(&body, "body", "", "the `ENCODING` of bodies: auto, base64 or raw (default: as the source says, or auto)")
	oneOf(cmd, "body", string(mns.BodyAuto), string(mns.BodyBase64), string(mns.BodyRaw))
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, a line for each message (default: unless it goes to a terminal)")
	return cmd
}

// shownMessage is a message as it would be delivered.
type shownMessage struct {
	ID         string            `json:"id"`
	Attempt    int               `json:"attempt"`
	EnqueuedAt string            `json:"enqueued_at"`
	Attributes map[string]string `json:"attributes,omitempty"`
	Error      string            `json:"error,omitempty"`
	Body       *string           `json:"body,omitempty"`
	BodyBase64 []byte            `json:"body_base64,omitempty"`

	at time.Time
}

// peek decodes a message. One whose body is not what it should be is shown as it is in the
// queue, with the error.
func peek(decoder *mns.Decoder, m relay.Message) shownMessage {
	p := shownMessage{ID: m.ID, Attempt: m.Attempt, EnqueuedAt: m.EnqueuedAtText(), at: m.EnqueuedAt}
	decoded, err := decoder.Decode(m)
	if err != nil {
		p.Error = err.Error()
		decoded.Body = m.Body
	}
	p.Attributes = decoded.Attributes
	if text := string(decoded.Body); utf8.ValidString(text) {
		p.Body = &text
	} else {
		p.BodyBase64 = decoded.Body
	}
	return p
}

// print prints a message for people: JSON in lines, and nothing that a terminal would obey.
func (p *shownMessage) print(w io.Writer, paint painter, now time.Time) error {
	var b strings.Builder
	_, _ = fmt.Fprintf(&b, "%s  attempt %d, enqueued at %s, %v ago\n", paint.paint(bold, "message "+shown(p.ID)), p.Attempt, p.EnqueuedAt,
		now.Sub(p.at).Round(time.Second))
	for _, name := range slices.Sorted(maps.Keys(p.Attributes)) {
		_, _ = fmt.Fprintf(&b, "  %s: %s\n", paint.paint(faint, "attributes."+shown(name)), oneLine(shown(p.Attributes[name])))
	}
	if p.Error != "" {
		b.WriteString("  " + paint.paint(red, oneLine(shown(p.Error))) + "\n")
	}
	switch {
	case p.Body == nil:
		_, _ = fmt.Fprintf(&b, "  %s\n    %s\n", paint.paint(faint, fmt.Sprintf("body, %d bytes, in base64:", len(p.BodyBase64))), base64.StdEncoding.EncodeToString(p.BodyBase64))
	case *p.Body == "":
		b.WriteString("  " + paint.paint(faint, "no body") + "\n")
	default:
		_, _ = fmt.Fprintf(&b, "  %s\n    %s\n", paint.paint(faint, fmt.Sprintf("body, %d bytes:", len(*p.Body))),
			strings.ReplaceAll(shown(readable(*p.Body)), "\n", "\n    "))
	}
	b.WriteByte('\n')
	_, err := io.WriteString(w, b.String())
	return err
}

// readable gives JSON in lines, and any other body as it is.
func readable(body string) string {
	var b bytes.Buffer
	if trimmed := strings.TrimSpace(body); strings.HasPrefix(trimmed, "{") || strings.HasPrefix(trimmed, "[") {
		if json.Indent(&b, []byte(trimmed), "", "  ") == nil {
			return b.String()
		}
	}
	return strings.TrimSuffix(body, "\n")
}
