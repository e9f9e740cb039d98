package main

import (
	"context"
	"crypto/tls"
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
	"mnsrelay/internal/config"
	"mnsrelay/internal/httpapi"
)

func newHealthcheck() *cobra.Command {
	var address, path string
	var ready, insecure bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "healthcheck [--ready] [--url URL | --config FILE]",
		Short: "Ask a relay on this machine whether it is well",
		Long: `Asks /livez, or /readyz with --ready, and exits 0 if the answer is 200, 1 otherwise.
It is made for a container's HEALTHCHECK, where there is neither shell nor curl.

A relay with server.tls is asked by https://. On this machine its certificate is not checked: it may
name another host, and nothing secret is sent. That of a --url is, unless --insecure is written.`,
		Example: `  mnsrelay healthcheck
  mnsrelay healthcheck --ready --config mnsrelay.yaml
  mnsrelay healthcheck --url http://10.0.0.7:8080/readyz
  mnsrelay healthcheck --url https://10.0.0.7:8080/readyz --insecure`,
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
				if address, err = localURL(cfg.Server, probe); err != nil {
					return err
				}
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			p := prober{insecure: insecure || path != "", out: cmd.OutOrStdout()}
			if address == "" {
				return p.askHere(ctx, "127.0.0.1:8080"+probe)
			}
			if u, err := url.Parse(address); err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
				return usagef(cmd, "--url is not an address: write http://127.0.0.1:8080/livez")
			}
			return p.ask(ctx, address)
		},
	}
	cmd.Flags().StringVar(&address, "url", "", "the whole `URL` of the probe (default http://127.0.0.1:8080/livez)")
	cmd.Flags().StringVarP(&path, "config", "c", "", "take port and TLS from this `FILE` of configuration")
	cmd.Flags().BoolVar(&insecure, "insecure", false, "do not check the certificate of an https:// URL, as the kubelet's probes do not")
	cmd.Flags().BoolVar(&ready, "ready", false, "ask whether everything has worked once, not only whether the process lives")
	cmd.Flags().DurationVar(&timeout, "timeout", 3*time.Second, "how long to wait for the answer")
	return cmd
}

// localURL is where a relay with these settings is asked from the same machine.
func localURL(server config.Server, probe string) (string, error) {
	host, port, err := net.SplitHostPort(server.Listen)
	if err != nil {
		return "", fmt.Errorf("read server.listen: %w", err)
	}
	if port == "0" {
		return "", fmt.Errorf("server.listen is %q, so the port is not known: use --url", server.Listen)
	}
	if ip := net.ParseIP(host); host == "" || (ip != nil && ip.IsUnspecified()) {
		host = "127.0.0.1"
	}
	scheme := "https"
	if server.TLS.IsZero() {
		scheme = "http"
	}
	return scheme + "://" + net.JoinHostPort(host, port) + probe, nil
}

// errNotOurs is wrapped where what answers 400 is no relay: it may be one with TLS, which
// cannot answer otherwise to who speaks without.
var errNotOurs = errors.New("no relay answers so")

// prober asks a probe.
type prober struct {
	insecure bool // the certificate is not checked
	out      io.Writer
}

// askHere asks a relay on this machine of which nothing is known, at an address without
// its scheme.
func (p prober) askHere(ctx context.Context, address string) error {
	err := p.ask(ctx, "http://"+address)
	if errors.Is(err, errNotOurs) {
		p.insecure = true
		return p.ask(ctx, "https://"+address)
	}
	return err
}

func (p prober) ask(ctx context.Context, address string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, http.NoBody)
	if err != nil {
		return fmt.Errorf("ask %s: %w", address, err)
	}
	// A proxy of the environment is none of a probe's business.
	transport := &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: p.insecure}, //nolint:gosec // Nothing secret is sent; see the help.
	}
	res, err := transport.RoundTrip(req)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("ask %s: %w; no relay listens there: start it, or write --url or --config to say where it is", address, err)
	}
	if err != nil {
		return fmt.Errorf("ask %s: %w", address, err)
	}
	defer func() { _ = res.Body.Close() }()
	instance := res.Header.Get(httpapi.HeaderInstance)
	if res.StatusCode == http.StatusOK {
		_, err = fmt.Fprintf(p.out, "ok: %s\n", instance)
		return err
	}
	if res.StatusCode == http.StatusBadRequest && instance == "" {
		return fmt.Errorf("ask %s: the answer is %s: %w", address, res.Status, errNotOurs)
	}
	var problem api.Problem
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&problem); err != nil || problem.Detail == "" {
		return fmt.Errorf("ask %s: the answer is %s", address, res.Status)
	}
	return fmt.Errorf("%s: %s", res.Status, problem.Detail)
}
