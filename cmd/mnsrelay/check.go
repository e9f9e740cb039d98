package main

import (
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"mnsrelay/internal/check"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

func newCheck() *cobra.Command {
	var path, sts string
	var asJSON bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "check --config FILE",
		Short: "Try credentials, queues and sinks without a message",
		Long: `Tries all that a run needs and that can be tried without sending or receiving a message, from
where it is called: fetches the credentials, looks at the queues with them, connects and logs in
to the sinks. Nothing is made anywhere. A line for each thing, in the order of the file:

  ok         it is as it has to be
  failed     why, and what to do
  not known  only a message can tell

Whose keys they are is asked of STS, where the configuration does not say and the queue is one of
Alibaba Cloud's; --sts names another STS to ask, as in a VPC.

Exit codes: 0 nothing failed, 1 something failed, 2 wrong usage or configuration.`,
		Example: `  mnsrelay check --config mnsrelay.yaml
  mnsrelay check --config mnsrelay.yaml --json | jq '.lines[] | select(.verdict == "failed")'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			options := check.Options{Instance: agent(), Timeout: timeout}
			if timeout <= 0 {
				return usagef(cmd, "--timeout must be more than 0s")
			}
			if sts != "" {
				u, err := setting.NewURL(sts).Parse()
				if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
					return usagef(cmd, "--sts is not an address: write https://sts-vpc.REGION.aliyuncs.com")
				}
				options.STS = &url.URL{Scheme: u.Scheme, Host: u.Host}
			}
			cfg, err := load(cmd, path)
			if err != nil {
				return err
			}
			report, err := check.Run(cmd.Context(), cfg, options)
			if err != nil {
				return err
			}
			var b strings.Builder
			if asJSON {
				err = checkJSON(&b, report)
			} else {
				checkText(&b, report, painterFor(cmd.OutOrStdout()))
			}
			if err != nil {
				return err
			}
			if _, err := io.WriteString(cmd.OutOrStdout(), cfg.Conceal(b.String())); err != nil {
				return err
			}
			if report.Count(relay.Failed) > 0 {
				return errSilent
			}
			return nil
		},
	}
	configFlag(cmd, &path)
	jsonFlag(cmd, &asJSON)
	cmd.Flags().DurationVar(&timeout, "timeout", 10*time.Second, "how long one source or sink may take")
	cmd.Flags().StringVar(&sts, "sts", "", "the `URL` of the STS to ask whose keys they are")
	return cmd
}

// checkText prints a report for people.
func checkText(w io.Writer, r check.Report, p painter) {
	colours := map[relay.Verdict]colour{relay.OK: green, relay.Failed: red, relay.Unknown: yellow}
	for _, line := range r {
		verdict := p.paint(colours[line.Verdict], fmt.Sprintf("%-9s", verdictWord(line.Verdict)))
		_, _ = fmt.Fprintf(w, "%s  %s: %s: %s\n", verdict, strings.TrimSpace(string(line.Kind)+" "+line.Name), line.What, oneLine(line.Text))
	}
	_, _ = fmt.Fprintf(w, "%d ok, %d failed, %d not known\n", r.Count(relay.OK), r.Count(relay.Failed), r.Count(relay.Unknown))
}

func verdictWord(v relay.Verdict) string {
	if v == relay.Unknown {
		return "not known"
	}
	return string(v)
}

// oneLine keeps what a far side said from making lines of its own.
func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

// The shapes of the JSON.
type (
	reportJSON struct {
		OK    bool       `json:"ok"`
		Lines []lineJSON `json:"lines"`
	}
	lineJSON struct {
		Kind    check.Kind    `json:"kind"`
		Name    string        `json:"name,omitempty"`
		What    string        `json:"what"`
		Verdict relay.Verdict `json:"verdict"`
		Text    string        `json:"text"`
		Details fieldsJSON    `json:"details,omitempty"`
	}
)

// checkJSON prints a report for programs.
func checkJSON(w io.Writer, r check.Report) error {
	out := reportJSON{OK: r.Count(relay.Failed) == 0, Lines: make([]lineJSON, len(r))}
	for i, line := range r {
		out.Lines[i] = lineJSON{line.Kind, line.Name, line.What, line.Verdict, line.Text, line.Details}
	}
	return printJSON(w, out)
}
