package main

import (
	"encoding/json"
	"fmt"
	"io"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"mnsrelay/internal/mns"
	"mnsrelay/internal/relay"
)

func newQueuePeek() *cobra.Command {
	var f queueFlags
	var most int
	var body string
	cmd := &cobra.Command{
		Use:   "peek",
		Short: "Show messages without taking them",
		Long: `Prints the first messages that are visible, a line of JSON each, and leaves them as they are:
no lease, no receive counted. The body is decoded as a source does it: "body" where it is text,
"body_base64" where it is not. Messages under lease are not shown.`,
		Example: `  mnsrelay queue peek --endpoint http://127.0.0.1:8090 --queue orders
  mnsrelay queue peek --config mnsrelay.yaml --source orders --max 1 | jq -r .body`,
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
				return explain(err)
			}
			if body == "" {
				body = source.Body
			}
			decoder := &mns.Decoder{Body: mns.BodyEncoding(body), Unwrap: source.Unwrap != "none"}
			for _, m := range messages {
				if err := printPeeked(cmd.OutOrStdout(), decoder, m); err != nil {
					return err
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
	cmd.Flags().StringVar(&body, "body", "", "how bodies are encoded: auto, base64 or raw (default: as the source says, or auto)")
	return cmd
}

// printPeeked prints a message as it would be delivered. One whose body is not what
// it should be is shown as it is in the queue, with the error.
func printPeeked(w io.Writer, decoder *mns.Decoder, m relay.Message) error {
	line := struct {
		ID         string            `json:"id"`
		Attempt    int               `json:"attempt"`
		EnqueuedAt string            `json:"enqueued_at"`
		Attributes map[string]string `json:"attributes,omitempty"`
		Error      string            `json:"error,omitempty"`
		Body       *string           `json:"body,omitempty"`
		BodyBase64 []byte            `json:"body_base64,omitempty"`
	}{ID: m.ID, Attempt: m.Attempt, EnqueuedAt: m.EnqueuedAtText()}
	decoded, err := decoder.Decode(m)
	if err != nil {
		line.Error = err.Error()
		decoded.Body = m.Body
	}
	line.Attributes = decoded.Attributes
	if text := string(decoded.Body); utf8.ValidString(text) {
		line.Body = &text
	} else {
		line.BodyBase64 = decoded.Body
	}
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(line); err != nil {
		return fmt.Errorf("print message %q: %w", m.ID, err)
	}
	return nil
}
