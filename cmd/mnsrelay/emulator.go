package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"mnsrelay/internal/emulator"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/telemetry"
)

// emulatorRole is the role of the instance whose metadata is served. Every other role
// can be assumed too.
const emulatorRole = "mnsrelay"

type emulatorFlags struct {
	listen      string
	queues      []string
	keys        []string
	tokenLife   time.Duration
	tokenPolicy string
	visibility  time.Duration
	hideCounts  bool
	verbose     bool
}

func newEmulator() *cobra.Command {
	var f emulatorFlags
	cmd := &cobra.Command{
		Use:   "emulator",
		Short: "Serve MNS queues and their tokens on this machine, to test consumers against",
		Long: `Serves MNS and what hands out its credentials on one address: Dybaseapi's QueryTokenForMnsQueue,
STS's AssumeRole and AssumeRoleWithOIDC, the metadata server of an ECS instance and a credentials
URI. Signatures are checked, tokens expire, messages have leases and receipt handles that change.
Any client of MNS works against it. Queues live in memory and are gone when it ends.

Faults are injected, and requests counted, over HTTP under /_emulator/. That is open to everyone
who reaches the address, so listen on loopback.`,
		Example: `  mnsrelay emulator
  mnsrelay emulator --listen 127.0.0.1:8090 --queue orders --queue invoices --token-life 10s`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, _, release := stopOnSignals(cmd.Context())
			defer release()
			return runEmulator(ctx, cmd, f)
		},
	}
	cmd.Flags().StringVar(&f.listen, "listen", "127.0.0.1:8090", "the `ADDRESS` to listen at")
	cmd.Flags().StringArrayVar(&f.queues, "queue", nil, "a queue's `NAME`, as often as you like (default Alicom-Queue-"+emulator.DefaultAccountID+"-SmsReport)")
	cmd.Flags().StringArrayVar(&f.keys, "access-key", nil, "keys that clients sign with, `ID:SECRET`, as often as you like (default "+emulator.DemoAccessKeyID+":"+emulator.DemoAccessKeySecret+")")
	cmd.Flags().DurationVar(&f.tokenLife, "token-life", emulator.DefaultTokenLife, "how long tokens and sessions live at most, whole seconds from 2s")
	cmd.Flags().StringVar(&f.tokenPolicy, "token-policy", string(emulator.PolicyFull), "the `POLICY` of tokens and sessions: full or receive-and-delete")
	cmd.Flags().DurationVar(&f.visibility, "visibility-timeout", 0, "how long a received message stays invisible (default 30s)")
	cmd.Flags().BoolVar(&f.hideCounts, "hide-counts", false, "give 0 for the counts of messages, as newer servers do")
	oneOf(cmd, "token-policy", string(emulator.PolicyFull), string(emulator.PolicyReceiveDelete))
	cmd.Flags().BoolVar(&f.verbose, "verbose", false, "log every request")
	return cmd
}

func (f emulatorFlags) config() (emulator.Config, error) {
	policy := emulator.Policy(f.tokenPolicy)
	if policy != emulator.PolicyFull && policy != emulator.PolicyReceiveDelete {
		return emulator.Config{}, fmt.Errorf("--token-policy %q is none: write %s or %s", policy, emulator.PolicyFull, emulator.PolicyReceiveDelete)
	}
	cfg := emulator.Config{
		Queues:      map[string]emulator.QueueConfig{},
		TokenLife:   f.tokenLife,
		TokenPolicy: policy,
		IssuedPolicies: map[emulator.Op]emulator.Policy{
			emulator.OpSTS: policy, emulator.OpOIDC: policy, emulator.OpMetadata: policy, emulator.OpURI: policy,
		},
		InstanceRole: emulatorRole,
		HideCounts:   f.hideCounts,
	}
	for _, name := range f.queues {
		cfg.Queues[name] = emulator.QueueConfig{VisibilityTimeout: f.visibility}
	}
	for _, key := range f.keys {
		id, secret, found := strings.Cut(key, ":")
		if !found {
			return cfg, errors.New("--access-key wants ID:SECRET")
		}
		cfg.AccessKeys = append(cfg.AccessKeys, emulator.AccessKey{ID: id, Secret: setting.NewSecret(secret)})
	}
	return cfg, nil
}

func runEmulator(ctx context.Context, cmd *cobra.Command, f emulatorFlags) (err error) {
	if len(f.queues) == 0 {
		f.queues = []string{"Alicom-Queue-" + emulator.DefaultAccountID + "-SmsReport"}
	}
	cfg, err := f.config()
	if err != nil {
		return usagef(cmd, "%w", err)
	}
	level := "info"
	if f.verbose {
		level = "debug"
	}
	cfg.Log, _, err = telemetry.NewLogger(level, telemetry.FormatConsole, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	server, err := emulator.New(cfg)
	if err != nil {
		return usagef(cmd, "%w", err)
	}
	url, err := server.Start(ctx, f.listen)
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%w: another program listens there, an emulator perhaps: write another --listen", err)
	}
	if err != nil {
		return err
	}
	//nolint:contextcheck // it closes because ctx has ended
	defer func() { err = errors.Join(err, server.Close()) }()
	if err := f.introduce(cmd.OutOrStdout(), url, server); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// introduce prints what to set so that a relay or another client uses the emulator.
func (f emulatorFlags) introduce(w io.Writer, url string, server *emulator.Server) error {
	id, secret := emulator.DemoAccessKeyID, emulator.DemoAccessKeySecret
	if len(f.keys) > 0 {
		id, _, _ = strings.Cut(f.keys[0], ":")
		secret = "'the secret of --access-key'"
	}
	queue := f.queues[0]
	signing := `{type: static, access_key_id: "${ALIBABA_CLOUD_ACCESS_KEY_ID}", access_key_secret: "${ALIBABA_CLOUD_ACCESS_KEY_SECRET}"}`
	if parts := strings.Split(queue, "-"); strings.HasPrefix(queue, "Alicom-Queue-") && len(parts) > 3 {
		signing = fmt.Sprintf("{type: mns_token, message_type: %s, endpoint: %s}", parts[3], url)
	}
	_, err := fmt.Fprintf(w, `The emulator is at %[1]s until Ctrl-C, with %[2]s: %[3]s

Set the keys:

  export ALIBABA_CLOUD_ACCESS_KEY_ID=%[4]s
  export ALIBABA_CLOUD_ACCESS_KEY_SECRET=%[5]s

Let a relay receive:

  sources:
    demo:
      preset: none
      endpoint: %[1]s
      queue: %[6]s
      credentials: %[7]s
      to: events

Send a message:

  mnsrelay queue send --endpoint %[1]s --queue %[6]s '{"success":true}'

Credentials come from these too:

  STS                %[1]s with role %[8]s
  OIDC token         curl -X POST %[1]s/_emulator/oidc-token -o token
                     for provider %[9]s
  ECS metadata       %[1]s/latest/
  credentials URI    %[1]s/credentials

The official Go SDK wants a slash at the end of the endpoint:

  %[1]s/

Faults and counts of requests: %[1]s/_emulator/
`, url, count(len(f.queues), "queue"), strings.Join(f.queues, ", "), id, secret, queue, signing,
		server.RoleARN(emulatorRole), server.OIDCProviderARN())
	return err
}
