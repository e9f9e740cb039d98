package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"mnsrelay/internal/config"
	"mnsrelay/internal/credentials"
	"mnsrelay/internal/mns"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

func newQueue() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "queue",
		Short: "Send to a queue, look into it, count it, move its messages",
		Long: `Works on one queue, with the keys of ALIBABA_CLOUD_ACCESS_KEY_ID and _SECRET (and
ALIBABA_CLOUD_SECURITY_TOKEN), or on a source of a configuration with the credentials it has there.
For a queue named Alicom-Queue-... without --endpoint, the address is known and a token is fetched.`,
		Example: `  mnsrelay queue stats --endpoint https://1234.mns.cn-hangzhou.aliyuncs.com --queue orders
  mnsrelay queue peek --config mnsrelay.yaml --source sms-report`,
	}
	group(cmd)
	cmd.AddCommand(newQueueSend(), newQueuePeek(), newQueueStats(), newQueueRedrive())
	return cmd
}

// queueFlags say which queue a command is about.
type queueFlags struct {
	endpoint string
	queue    string
	config   string
	source   string
	timeout  time.Duration
}

func (f *queueFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.queue, "queue", "", "the queue's `NAME`")
	f.addCommon(cmd)
}

// addCommon adds all but the name of the queue.
func (f *queueFlags) addCommon(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.endpoint, "endpoint", "", "the `URL` of the MNS server")
	cmd.Flags().StringVarP(&f.config, "config", "c", "", "take queue and credentials from this `FILE` of configuration")
	cmd.Flags().StringVar(&f.source, "source", "", "the `NAME` of the source in it; may be left out where there is one")
	cmd.Flags().DurationVar(&f.timeout, "timeout", 10*time.Second, "how long one request may take, and the fetching of a token")
}

// open makes the client of the queue, with keys that were fetched just now, and tells
// the source that it stands for. Close the client after use.
func (f *queueFlags) open(cmd *cobra.Command) (*mns.Queue, config.Source, error) {
	source, err := f.find(cmd)
	if err != nil {
		return nil, source, err
	}
	queue, err := f.client(cmd, &source)
	return queue, source, err
}

// client makes the client of a source.
func (f *queueFlags) client(cmd *cobra.Command, source *config.Source) (*mns.Queue, error) {
	cfg, err := f.settings(cmd, source)
	if err != nil {
		return nil, err
	}
	provider, err := source.Credentials.Provider(source.Queue)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), f.timeout)
	defer cancel()
	keys, err := provider.Retrieve(ctx)
	if err != nil {
		return nil, err
	}
	return mns.NewQueue(cfg, mns.Deps{Credentials: fixedKeys{keys}})
}

// settings are those of a source's client.
func (f *queueFlags) settings(cmd *cobra.Command, source *config.Source) (mns.Config, error) {
	cfg := mns.Config{
		Name: source.Name, Endpoint: source.Endpoint.Reveal(), Queue: source.Queue, RequestTimeout: f.timeout,
	}
	err := cfg.Validate()
	if problem, found := errors.AsType[*setting.Problem](err); found {
		return cfg, usagef(cmd, "--%s %s", problem.Path, problem.Message)
	}
	return cfg, err
}

// find gives the source that the flags name, or one made of them.
func (f *queueFlags) find(cmd *cobra.Command) (config.Source, error) {
	sources, err := f.candidates(cmd)
	if err != nil {
		return config.Source{}, err
	}
	return f.choose(cmd, sources)
}

// candidates gives the sources of the configuration, or the one that is made of the flags.
func (f *queueFlags) candidates(cmd *cobra.Command) (config.Sources, error) {
	if err := errors.Join(exclusive(cmd, "config", "endpoint"), exclusive(cmd, "config", "queue")); err != nil {
		return nil, err
	}
	if f.config != "" {
		cfg, err := load(cmd, f.config)
		if err != nil {
			return nil, err
		}
		return cfg.Sources, nil
	}
	source, err := f.made(cmd)
	return config.Sources{source}, err
}

// made makes a source of the flags.
func (f *queueFlags) made(cmd *cobra.Command) (config.Source, error) {
	switch {
	case f.source != "":
		return config.Source{}, usagef(cmd, "--source is a name in a configuration: write --config FILE too")
	case f.queue == "":
		return config.Source{}, usagef(cmd, "which queue? write --endpoint URL --queue NAME, or --config FILE --source NAME")
	}
	source := config.Source{
		Name: f.queue, Queue: f.queue, Endpoint: setting.NewURL(f.endpoint),
		Credentials: credentials.Config{Type: credentials.TypeDefault},
	}
	if f.endpoint != "" {
		return source, nil
	}
	preset, found := credentials.PresetFor(f.queue)
	if !found {
		return source, usagef(cmd, "where is the queue? write --endpoint https://ACCOUNT.mns.REGION.aliyuncs.com")
	}
	source.Endpoint = setting.NewURL(preset.MNSEndpoint)
	source.Credentials = credentials.Config{
		Type:        credentials.TypeMNSToken,
		MessageType: credentials.MessageType(f.queue),
		Region:      preset.Region,
		Endpoint:    setting.NewURL(preset.TokenEndpoint),
	}
	source.Credentials.Defaults(os.Getenv)
	return source, nil
}

func (f *queueFlags) choose(cmd *cobra.Command, sources config.Sources) (config.Source, error) {
	names := make([]string, 0, len(sources))
	for _, s := range sources {
		if s.Name == f.source || (f.source == "" && len(sources) == 1) {
			return s, nil
		}
		names = append(names, s.Name)
	}
	if f.source == "" {
		return config.Source{}, usagef(cmd, "which source? write --source with one of: %s", strings.Join(names, ", "))
	}
	return config.Source{}, usagef(cmd, "%s has no source %q; it has: %s", f.config, f.source, strings.Join(names, ", "))
}

// fixedKeys are those of a command, which ends before they do.
type fixedKeys struct{ keys credentials.Keys }

var _ mns.Credentials = fixedKeys{}

// Current is part of mns.Credentials.
func (k fixedKeys) Current() (credentials.Keys, error) { return k.keys, nil }

// Refused is part of mns.Credentials; the command reports the error itself.
func (k fixedKeys) Refused(credentials.Keys) {}

// advise adds to the error of a request what the user can do about it.
func advise(err error) error {
	var answer *mns.Error
	switch {
	case err == nil || !errors.As(err, &answer):
		return err
	case answer.Code == "QueueNotExist":
		return fmt.Errorf("%w; queues belong to one account and one region: check the endpoint and the name", err)
	case answer.Code == "AccessDenied" || errors.Is(err, relay.ErrNotPermitted):
		return fmt.Errorf("%w; the keys may not do this: tokens of Alicom queues may only receive and delete", err)
	case answer.Class() == relay.ClassAuth:
		return fmt.Errorf("%w; check the access key's id and secret", err)
	default:
		return setting.AdviseNetwork(err)
	}
}
