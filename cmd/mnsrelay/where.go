package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"mnsrelay/api"
	"mnsrelay/internal/audit"
	"mnsrelay/internal/config"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

func newWhere() *cobra.Command {
	var w where
	cmd := &cobra.Command{
		Use:   "where ID|KEY",
		Short: "Find what became of a message",
		Long: `Reads the audit and prints what became of a message, in the order of time: which sinks have
confirmed it, whether it was dead-lettered, dropped or given up. The message is named by the id
that MNS gave it, or by the key that audit.key chooses; a key that is hashed is found with the
configuration that has the secret.

With --config it reads the file that audit.to names, and those that it was moved to. With --file it
reads that file, or standard input where it is -: a log will do, its other lines are passed over.
With --url it asks a running relay too, which knows what is in flight, what its ledger remembers
and what failed of late. It knows ids, and no keys but of what was found in the audit. That is
one process: where there are several replicas, the others may know more, so ask each.

Exit codes: 0 found, 1 not found, or a file or the relay could not be read, 2 wrong usage.`,
		Example: `  mnsrelay where '900619746936498440^0' --config mnsrelay.yaml
  mnsrelay where 5F290C926D472878-2-14D9529A8FA-200000001 --config mnsrelay.yaml --url http://127.0.0.1:8080
  mnsrelay where 5F290C926D472878-2-14D9529A8FA-200000001 --url https://relay-0:8080 --ca-file ca.pem
  kubectl logs -l app.kubernetes.io/name=mnsrelay --tail=-1 --max-log-requests=20 --since=24h | mnsrelay where '900619746936498440^0' --file -`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 || args[0] == "" {
				return usagef(cmd, "which message? write its id or its key, one")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return w.run(cmd, args[0]) },
	}
	configFlag(cmd, &w.config)
	cmd.Flags().StringArrayVar(&w.files, "file", nil, "read the `FILE`; - reads standard input; more than once for several")
	cmd.Flags().StringVar(&w.url, "url", "", "ask the relay whose API is at this `URL`, one process")
	cmd.Flags().StringVar(&w.caFile, "ca-file", "", "trust the certificates in this `FILE` for --url https://..., not the system's")
	jsonFlag(cmd, &w.asJSON)
	return cmd
}

// where are the flags of the command.
type where struct {
	config, url, caFile string
	files               []string
	asJSON              bool
}

func (w *where) run(cmd *cobra.Command, text string) error {
	client, err := w.client(cmd)
	if err != nil {
		return err
	}
	keys, files, err := w.sources(cmd)
	if err != nil {
		return err
	}
	search := keys.Search(text)
	// One that cannot be read takes nothing from what the others say.
	var unread error
	for _, file := range files {
		unread = errors.Join(unread, read(cmd.InOrStdin(), search, file))
	}
	search.Finish()
	states, unanswered := w.ask(cmd.Context(), client, text, search)
	unanswered = errors.Join(unread, unanswered)
	if w.asJSON {
		err = whereJSON(cmd.OutOrStdout(), search, states)
	} else {
		err = whereText(cmd.OutOrStdout(), search, states)
	}
	if err != nil {
		return err
	}
	if search.Torn > 0 {
		_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "note: %s that name it are not whole, as a crash or a full disk leaves them\n", count(search.Torn, "line"))
	}
	if unanswered != nil || len(search.Lines) > 0 || len(states) > 0 {
		return unanswered
	}
	_, _ = fmt.Fprintln(cmd.ErrOrStderr(), w.notFound(text, len(files) > 0, search))
	return errSilent
}

// sources tells how keys are made and which files to read.
func (w *where) sources(cmd *cobra.Command) (*audit.Keys, []string, error) {
	cfg := &config.Config{}
	if w.config != "" {
		var err error
		if cfg, err = load(cmd, w.config); err != nil {
			return nil, nil, err
		}
	}
	keys, err := audit.NewKeys(&cfg.Audit)
	if err != nil {
		return nil, nil, err
	}
	path := cfg.AuditFile()
	switch {
	case len(w.files) > 0:
		return keys, w.files, nil
	case path != "" && path != "-":
		files, err := audit.Files(path)
		if err != nil && w.url != "" {
			// The relay may know of it all the same.
			_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "note: %v\n", err)
			return keys, nil, nil
		}
		return keys, files, err
	case w.url != "":
		return keys, nil, nil
	case w.config == "":
		return nil, nil, usagef(cmd, "where to look? write --config FILE, or --file FILE with the audit or the log, or --url URL")
	case cfg.Audit.To == "":
		return nil, nil, fmt.Errorf("%s has no audit: write audit: {to: log} or the name of a file sink; what is delivered from then on can be found", w.config)
	}
	return nil, nil, usagef(cmd, "the audit of %s goes to the log: write --file LOG, or --file - and pipe the log in", w.config)
}

func read(stdin io.Reader, search *audit.Search, file string) error {
	if file == "-" {
		return search.Read(stdin)
	}
	from, err := audit.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: correct the name, or write --file - to read standard input", err)
	}
	if err != nil {
		return err
	}
	if err := search.Read(from); err != nil {
		_ = from.Close() // It says the same again.
		return fmt.Errorf("%w, in %s", err, file)
	}
	return from.Close()
}

// client makes the client that asks the relay, and checks where that is.
func (w *where) client(cmd *cobra.Command) (*http.Client, error) {
	u, err := url.Parse(w.url)
	switch {
	case w.url == "" && w.caFile != "":
		return nil, usagef(cmd, "--ca-file is for a relay: write --url https://... too")
	case w.url == "":
		return nil, nil //nolint:nilnil // no relay is asked
	case err != nil, u.Host == "", u.Scheme != "http" && u.Scheme != "https":
		example := "http://127.0.0.1:8080"
		if _, err := url.Parse("http://" + w.url); err == nil && !strings.Contains(w.url, "//") {
			example = "http://" + w.url
		}
		return nil, usagef(cmd, "--url is not an address: write %s", example)
	case u.Scheme == "http" && w.caFile != "":
		return nil, usagef(cmd, "--ca-file is for a relay with TLS: write https:// in --url, or leave it out")
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if w.caFile != "" {
		authority, err := os.ReadFile(w.caFile)
		if err != nil {
			return nil, fmt.Errorf("read --ca-file: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(authority) {
			return nil, fmt.Errorf("read --ca-file: %s holds no certificate", w.caFile)
		}
	}
	return &http.Client{
		// One answer is wanted, of the address that was written.
		Transport:     &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: config, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// ask gives what the relay knows of the messages that were found, or of the one that is
// named by its id; none: it knows of none.
func (w *where) ask(ctx context.Context, client *http.Client, text string, search *audit.Search) (states []api.MessageState, err error) {
	if client == nil {
		return nil, nil
	}
	const most = 16 // a key may be that of many
	ids := search.IDs()
	if len(ids) == 0 {
		ids = []string{text}
	}
	for _, id := range ids[max(0, len(ids)-most):] {
		state, found, err := askAbout(ctx, client, w.url, id)
		if err != nil {
			return nil, fmt.Errorf("ask the relay: %w", err)
		}
		if found {
			states = append(states, state)
		}
	}
	return states, nil
}

func askAbout(ctx context.Context, client *http.Client, base, id string) (state api.MessageState, found bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(base, "/")+"/api/v1/messages/"+url.PathEscape(id), http.NoBody)
	if err != nil {
		return state, false, err
	}
	response, err := client.Do(request)
	if authority := (x509.UnknownAuthorityError{}); errors.As(err, &authority) {
		return state, false, fmt.Errorf("%w: write --ca-file with the authority that issued the relay's certificate", err)
	}
	if err != nil {
		return state, false, setting.AdviseNetwork(err)
	}
	defer func() { _ = response.Body.Close() }()
	const most = 1 << 20
	body, err := io.ReadAll(io.LimitReader(response.Body, most))
	switch {
	case err != nil:
		return state, false, err
	case response.StatusCode == http.StatusNotFound && strings.HasPrefix(response.Header.Get("Content-Type"), "application/problem+json"):
		return state, false, nil
	case response.StatusCode == http.StatusBadRequest && strings.HasPrefix(base, "http:"):
		return state, false, fmt.Errorf("%s answers %s: with server.tls write https://", base, response.Status)
	case response.StatusCode != http.StatusOK:
		return state, false, fmt.Errorf("%s answers %s", base, response.Status)
	}
	if err := json.Unmarshal(body, &state); err != nil || state.Instance == "" {
		return state, false, fmt.Errorf("%s is no relay's API", base)
	}
	return state, true, nil
}

// notFound says what it means that nothing was found, of all that was asked: files, if
// readFiles is set, and the relay, if there is a URL.
func (w *where) notFound(text string, readFiles bool, search *audit.Search) string {
	var b strings.Builder
	_, _ = fmt.Fprintf(&b, "mnsrelay: nothing is known of %s.", strconv.Quote(text))
	switch {
	case search.First != "":
		_, _ = fmt.Fprintf(&b, " What was read of the audit is from %s to %s: in that time no sink has confirmed it.", search.First, search.Last)
	case readFiles:
		b.WriteString(" No line of an audit was read: nothing was delivered yet, or this is not where the audit goes.")
	}
	if w.url != "" {
		b.WriteString(" The relay that was asked, one process, has no message of this id: neither in flight nor in its ledger nor among the last failures, nor among what it saw last in shadow mode. It knows ids, and no keys.")
	}
	switch {
	case search.First != "" && w.url == "":
		b.WriteString(" It may be in its queue still, or fail (GET /api/v1/errors), or was delivered before or after.")
	case search.First != "":
		b.WriteString(" It may be in its queue still, or was delivered before or after, or another replica has it.")
	case w.url != "":
		b.WriteString(" It may be in its queue still, or another replica has it, or it was delivered and is forgotten; an audit remembers (audit.to).")
	}
	if search.Hashed {
		b.WriteString(" Keys are hashed in this audit: to look for a key, write --config FILE with its hash_secret.")
	}
	return b.String()
}

// happened is how an event is called for people.
func happened(event relay.AuditEvent) string {
	switch event {
	case relay.AuditDeadLettered:
		return "dead-lettered"
	case relay.AuditUnmatched:
		return "deleted as unmatched"
	case relay.AuditWouldDelete:
		return "would delete as unmatched"
	default: // as it is written, or of a later version
	}
	return strings.ReplaceAll(string(event), "_", " ")
}

// whereText prints a table; what a message could have put there is quoted.
func whereText(out io.Writer, search *audit.Search, states []api.MessageState) error {
	if search.Left > 0 {
		_, _ = fmt.Fprintf(out, "%s before these are left out\n", count(search.Left, "line"))
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if len(search.Lines) > 0 {
		_, _ = fmt.Fprintln(table, "TIME\tMESSAGE\tWHAT\tSOURCE\tROUTE\tSINK\tTARGET\tATTEMPT\tTOOK\tREASON")
	}
	for _, line := range search.Lines {
		took := ""
		if line.Seconds > 0 {
			took = time.Duration(line.Seconds * float64(time.Second)).Round(time.Millisecond / 10).String()
		}
		var cells []string
		for _, cell := range []string{
			line.Time, line.MessageID, happened(line.Audit), line.Source, line.Route, line.Sink, line.Target, strconv.Itoa(line.Attempt), took, line.Reason,
		} {
			cells = append(cells, cellText(cell))
		}
		_, _ = fmt.Fprintln(table, strings.Join(cells, "\t"))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for i := range states {
		if err := stateText(out, &states[i]); err != nil {
			return err
		}
	}
	return nil
}

// stateText prints what the relay knows of a message now.
func stateText(out io.Writer, state *api.MessageState) error {
	var b strings.Builder
	_, _ = fmt.Fprintf(&b, "%s knows of %s:\n", cellText(state.Instance), cellText(state.Id))
	for _, f := range state.InFlight {
		_, _ = fmt.Fprintf(&b, "  in flight, from source %s, attempt %d\n", cellText(f.Source), f.Attempt)
	}
	for _, p := range state.Previews {
		_, _ = fmt.Fprintf(&b, "  seen by source %s in shadow mode, which takes nothing: %s\n", cellText(p.Source), previewText(&p.Preview))
	}
	for _, c := range state.Confirmed {
		_, _ = fmt.Fprintf(&b, "  confirmed by sink %s of route %s, and not deleted from source %s yet\n", cellText(c.Sink), cellText(c.Route), cellText(c.Source))
	}
	for _, f := range state.Failures {
		to := "before any sink"
		if f.Sink != "" {
			to = "at sink " + f.Sink
		}
		_, _ = fmt.Fprintf(&b, "  %s  %s %s, attempt %d: %s\n", f.Time.UTC().Format(relay.EnqueuedAtFormat), f.Outcome, cellText(to), f.Attempt, cellText(f.Text))
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// previewText says where a message would go.
func previewText(p *api.Preview) string {
	parts := make([]string, 0, len(p.Deliveries))
	for _, d := range p.Deliveries {
		if d.Reason != "" {
			parts = append(parts, "sink "+cellText(d.Sink)+" would reject it: "+cellText(d.Text))
			continue
		}
		parts = append(parts, "sink "+cellText(d.Sink)+" would get it")
	}
	if len(parts) == 0 {
		return cellText(p.End)
	}
	return strings.Join(parts, "; ") + ". " + cellText(p.End)
}

// cellText keeps what a message has in its id from moving the cursor, or the columns.
func cellText(text string) string {
	if text == "" {
		return "-"
	}
	if quoted := strconv.Quote(text); quoted[1:len(quoted)-1] != text {
		return quoted
	}
	return text
}

// whereJSON prints the same for programs.
func whereJSON(out io.Writer, search *audit.Search, states []api.MessageState) error {
	if states == nil {
		states = []api.MessageState{}
	}
	return printJSON(out, struct {
		Events []audit.Line       `json:"events"`
		Left   int                `json:"left_out"`
		Relay  []api.MessageState `json:"relay"`
	}{append([]audit.Line{}, search.Lines...), search.Left, states})
}
