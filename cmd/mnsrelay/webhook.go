package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"mnsrelay/internal/config"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink/webhook"
)

func newWebhook() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "webhook",
		Short:   "Check what a webhook receives",
		Long:    `For the developers of receivers: whether a request that was captured is one of the relay's.`,
		Example: `  mnsrelay webhook verify --secret-file /run/secrets/hook request.http`,
	}
	group(cmd)
	cmd.AddCommand(newWebhookVerify())
	return cmd
}

// secretVariable is where webhook verify finds a secret that no flag gives.
const secretVariable = "MNSRELAY_WEBHOOK_SECRET" //nolint:gosec // A name.

func newWebhookVerify() *cobra.Command {
	var (
		files              []string
		configFile, sink   string
		tolerance, skipped = 5 * time.Minute, false
	)
	cmd := &cobra.Command{
		Use:   "verify REQUEST",
		Short: "Check the signature of a request that was captured",
		Long: `Reads a request as it came (request line, headers, an empty line, body) from a file, or from
standard input for -, and checks its signature after Standard Webhooks, so that a receiver's
developer can tell a wrong secret from a body that was changed on its way.

The secret is taken from a file, from a sink of a configuration, or from the variable
` + secretVariable + `; never from the command line, which others can read.`,
		Example: `  mnsrelay webhook verify --secret-file /run/secrets/hook request.http
  mnsrelay webhook verify --config mnsrelay.yaml --sink hook --any-time request.http`,
		ValidArgsFunction: anyFile,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef(cmd, "name one file with a captured request, or - for standard input")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if (configFile == "") != (sink == "") {
				return usagef(cmd, "--config and --sink belong together: write both")
			}
			if tolerance <= 0 {
				return usagef(cmd, "--tolerance must be more than 0; --any-time leaves the time unchecked")
			}
			if skipped {
				tolerance = 0
			}
			keys, err := verifyingKeys(cmd, files, configFile, sink)
			if err != nil {
				return err
			}
			header, body, err := readCaptured(cmd.InOrStdin(), args[0])
			if err != nil {
				return fmt.Errorf("read the request: %w", err)
			}
			if err := webhook.Verify(keys, header, body, time.Now(), tolerance); err != nil {
				return fmt.Errorf("the signature is not valid: %w", err)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "the signature is valid: message %s, %d bytes, signed at %s\n",
				header.Get(webhook.HeaderID), len(body), signedAt(header))
			return err
		},
	}
	cmd.Flags().StringArrayVar(&files, "secret-file", nil, "`FILE` with a secret; may be given more than once")
	cmd.Flags().StringVarP(&configFile, "config", "c", "", "`FILE` of the configuration that has the secrets, with --sink")
	cmd.Flags().StringVar(&sink, "sink", "", "`NAME` of the sink whose secrets are used, with --config")
	cmd.Flags().DurationVar(&tolerance, "tolerance", tolerance, "how far the time of the signature may be from now")
	cmd.Flags().BoolVar(&skipped, "any-time", false, "accept a request of any age")
	return cmd
}

func signedAt(h http.Header) string {
	seconds, _ := strconv.ParseInt(h.Get(webhook.HeaderTimestamp), 10, 64)
	return time.Unix(seconds, 0).UTC().Format(time.RFC3339)
}

// verifyingKeys gathers the secrets that a command line names.
func verifyingKeys(cmd *cobra.Command, files []string, configFile, sink string) (keys []webhook.Key, err error) {
	add := func(from, text string) error {
		key, err := webhook.ParseKey(text)
		if err != nil {
			return fmt.Errorf("the secret of %s %w", from, err)
		}
		keys = append(keys, key)
		return nil
	}
	for _, path := range files {
		data, err := setting.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read the secret: %w", err)
		}
		if err := add(path, string(data)); err != nil {
			return nil, err
		}
	}
	if configFile != "" {
		loaded, _, err := config.Load(configFile)
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(loaded.Sinks, func(s config.Sink) bool { return s.Name == sink })
		if i < 0 {
			var names []string
			for _, s := range loaded.Sinks {
				names = append(names, s.Name)
			}
			return nil, usagef(cmd, "%s has no sink %q; it has: %s", configFile, sink, strings.Join(names, ", "))
		}
		hook, is := loaded.Sinks[i].Settings.(*webhook.Config)
		if !is || len(hook.Signing.Secrets) == 0 {
			return nil, fmt.Errorf("the sink %q signs nothing: it has no signing.secrets", sink)
		}
		for _, secret := range hook.Signing.Secrets {
			if err := add("the sink "+sink, secret.Reveal()); err != nil {
				return nil, err
			}
		}
	}
	if text := os.Getenv(secretVariable); len(keys) == 0 && text != "" {
		if err := add(secretVariable, text); err != nil {
			return nil, err
		}
	}
	if len(keys) == 0 {
		return nil, usagef(cmd, "no secret is given: write --secret-file FILE, or --config FILE --sink NAME, or set %s", secretVariable)
	}
	return keys, nil
}

// maxCaptured bounds a captured request, in bytes.
const maxCaptured = 16 << 20

// readCaptured reads a request and gives its headers, and its body without content encoding.
func readCaptured(stdin io.Reader, path string) (http.Header, []byte, error) {
	if path != "-" {
		f, err := os.Open(path) //nolint:gosec // The user names it.
		if err != nil {
			return nil, nil, err
		}
		defer func() { _ = f.Close() }()
		stdin = f
	}
	data, err := io.ReadAll(io.LimitReader(stdin, maxCaptured+1))
	switch {
	case err != nil:
		return nil, nil, err
	case len(data) > maxCaptured:
		return nil, nil, fmt.Errorf("it is larger than %d MiB", maxCaptured>>20)
	}
	reader := textproto.NewReader(bufio.NewReader(bytes.NewReader(data)))
	first, err := reader.ReadLine()
	if err != nil {
		return nil, nil, errors.New("it is empty")
	}
	if !strings.Contains(first, " HTTP/") {
		return nil, nil, errors.New("its first line is not a request line, as in POST /sms HTTP/1.1")
	}
	mime, err := reader.ReadMIMEHeader()
	if err != nil {
		return nil, nil, fmt.Errorf("its headers do not end with an empty line, or one of them has no colon: %w", err)
	}
	header := http.Header(mime)
	if header.Get("Transfer-Encoding") != "" {
		return nil, nil, errors.New("its body has a transfer encoding; capture it as the receiver sees it, with a Content-Length")
	}
	body, err := io.ReadAll(reader.R)
	if err != nil {
		return nil, nil, err
	}
	if text := header.Get("Content-Length"); text != "" {
		n, err := strconv.Atoi(text)
		switch {
		case err != nil || n < 0:
			return nil, nil, errors.New("its Content-Length is not a number")
		case n > len(body):
			return nil, nil, fmt.Errorf("its body has %d bytes of the %d in Content-Length: it was not captured whole", len(body), n)
		}
		body = body[:n] // an editor may have added a line end
	}
	if header.Get("Content-Encoding") == "gzip" {
		unpacked, err := gzip.NewReader(bytes.NewReader(body))
		if err != nil {
			return nil, nil, errors.New("its body is not gzip, as Content-Encoding says: the receiver may have unpacked it; remove that header and Content-Length")
		}
		if body, err = io.ReadAll(io.LimitReader(unpacked, maxCaptured)); err != nil {
			return nil, nil, fmt.Errorf("unpack its body: %w", err)
		}
	}
	return header, body, nil
}
