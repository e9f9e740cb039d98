package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"mnsrelay/api"
	"mnsrelay/internal/httpapi"
)

func newHealthcheck() *cobra.Command {
	var address, path string
	var ready bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "healthcheck [--ready] [--url URL | --config FILE]",
		Short: "Ask a relay on this machine whether it is well",
		Long: `Asks /livez, or /readyz with --ready, and exits 0 if the answer is 200, 1 otherwise.
It is made for a container's HEALTHCHECK, where there is neither shell nor curl.`,
		Example: `  mnsrelay healthcheck
  mnsrelay healthcheck --ready --config mnsrelay.yaml
  mnsrelay healthcheck --url http://10.0.0.7:8080/readyz`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(exclusive(cmd, "url", "config"), exclusive(cmd, "url", "ready")); err != nil {
				return err
			}
			probe := "/livez"
			if ready {
				probe = "/readyz"
			}
			if path != "" {
				cfg, err := load(cmd, path)
				if err != nil {
					return err
				}
				if address, err = localURL(cfg.Server.Listen, probe); err != nil {
					return err
				}
			}
			if address == "" {
				address = "http://127.0.0.1:8080" + probe
			}
			if u, err := url.Parse(address); err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
				return usagef(cmd, "--url is not an address: write http://127.0.0.1:8080/livez")
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			return askProbe(ctx, address, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&address, "url", "", "the whole `URL` of the probe (default http://127.0.0.1:8080/livez)")
	cmd.Flags().StringVarP(&path, "config", "c", "", "take the port from this `FILE` of configuration")
	cmd.Flags().BoolVar(&ready, "ready", false, "ask whether everything has worked once, not only whether the process lives")
	cmd.Flags().DurationVar(&timeout, "timeout", 3*time.Second, "how long to wait for the answer")
	return cmd
}

// localURL is where a relay that listens at listen is asked from the same machine.
func localURL(listen, probe string) (string, error) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "", fmt.Errorf("read server.listen: %w", err)
	}
	if port == "0" {
		return "", fmt.Errorf("server.listen is %q, so the port is not known: use --url", listen)
	}
	if ip := net.ParseIP(host); host == "" || (ip != nil && ip.IsUnspecified()) {
		host = "127.0.0.1"
	}
	return "http://" + net.JoinHostPort(host, port) + probe, nil
}

func askProbe(ctx context.Context, address string, out io.Writer) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, http.NoBody)
	if err != nil {
		return fmt.Errorf("ask %s: %w", address, err)
	}
	// A proxy of the environment is none of a probe's business.
	transport := &http.Transport{DisableKeepAlives: true}
	res, err := transport.RoundTrip(req)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("ask %s: %w; no relay listens there: start it, or write --url or --config to say where it is", address, err)
	}
	if err != nil {
		return fmt.Errorf("ask %s: %w", address, err)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode == http.StatusOK {
		_, err = fmt.Fprintf(out, "ok: %s\n", res.Header.Get(httpapi.HeaderInstance))
		return err
	}
	var problem api.Problem
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&problem); err != nil || problem.Detail == "" {
		return fmt.Errorf("ask %s: the answer is %s", address, res.Status)
	}
	return fmt.Errorf("%s: %s", res.Status, problem.Detail)
}
