package credentials

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"mnsrelay/internal/setting"
)

// The variables that all of Alibaba Cloud's tools read.
const (
	VariableAccessKeyID     = "ALIBABA_CLOUD_ACCESS_KEY_ID"
	VariableAccessKeySecret = "ALIBABA_CLOUD_ACCESS_KEY_SECRET"
	VariableSecurityToken   = "ALIBABA_CLOUD_SECURITY_TOKEN" //nolint:gosec // G101: a name
	VariableRoleARN         = "ALIBABA_CLOUD_ROLE_ARN"
	VariableOIDCProviderARN = "ALIBABA_CLOUD_OIDC_PROVIDER_ARN"
	VariableOIDCTokenFile   = "ALIBABA_CLOUD_OIDC_TOKEN_FILE"
	VariableSessionName     = "ALIBABA_CLOUD_ROLE_SESSION_NAME"
	VariableSTSEndpoint     = "ALIBABA_CLOUD_STS_ENDPOINT"
	VariableRoleName        = "ALIBABA_CLOUD_ECS_METADATA"
	VariableNoMetadata      = "ALIBABA_CLOUD_ECS_METADATA_DISABLED"
	VariableURI             = "ALIBABA_CLOUD_CREDENTIALS_URI"
	VariableProfile         = "ALIBABA_CLOUD_PROFILE"
)

// chain finds keys in the usual places: the environment, a projected token (RRSA), the
// profile file of the command line, the ECS metadata server, a credentials URI. The first
// place that holds anything is the one, and its failure the chain's: going on to the next
// would sign as somebody else for as long as the first is out of order. The place that has
// given keys once is the only one from then on.
type chain struct {
	make func(*Config) (Provider, error)

	mu    sync.Mutex
	found string // the place that has given keys; empty: none yet
}

// metadataServer names that place.
const metadataServer = "the metadata server"

// place is where keys may be.
type place struct {
	name string
	// find gives the keys of the place; found is false where nothing is set up there.
	find func(ctx context.Context) (keys Keys, found bool, err error)
}

// probeTimeout is how long the chain waits for a metadata server, which most machines do
// not have.
const probeTimeout = time.Second

// errNoKeys says where the chain has looked.
var errNoKeys = errors.New("find keys: there are none in the environment (" + VariableAccessKeyID + " and " + VariableAccessKeySecret +
	"), no projected token (" + VariableOIDCTokenFile + ", " + VariableRoleARN + " and " + VariableOIDCProviderARN +
	"), no profile in ~/.aliyun/config.json, no role of an ECS instance and no " + VariableURI + ": set one of them up, or write credentials")

func (c *chain) places() []place {
	return []place{
		{"the environment", c.configured(environment)},
		{"the projected token", c.configured(rrsa)},
		{"the profile file", c.configured(profile)},
		{metadataServer, c.ofInstance},
		{"the credentials URI", c.configured(credentialsURI)},
	}
}

// Retrieve gives keys of the place that has them.
func (c *chain) Retrieve(ctx context.Context) (Keys, error) {
	c.mu.Lock()
	only := c.found
	c.mu.Unlock()
	for _, p := range c.places() {
		if only != "" && only != p.name {
			continue
		}
		keys, found, err := p.find(ctx)
		switch {
		case !found && only != "":
			return Keys{}, fmt.Errorf("find keys: %s had them and holds none now: put them back, or restart the relay to look elsewhere", p.name)
		case !found:
			continue
		case err == nil, p.name == metadataServer: // whose answer shows that it is there
			c.mu.Lock()
			c.found = p.name
			c.mu.Unlock()
		}
		return keys, err
	}
	return Keys{}, errNoKeys
}

// configured makes a place of what tells how keys are to be had; nil: nothing is set there.
func (c *chain) configured(read func() (*Config, error)) func(context.Context) (Keys, bool, error) {
	return func(ctx context.Context) (Keys, bool, error) {
		config, err := read()
		if config == nil {
			return Keys{}, err != nil, err
		}
		p, err := c.make(config)
		if err != nil {
			return Keys{}, true, err
		}
		keys, err := p.Retrieve(ctx)
		return keys, true, err
	}
}

// changes says that what the chain finds may be other keys the next time.
func (c *chain) changes() bool { return true }

// ofInstance asks the metadata server, if there is one.
func (c *chain) ofInstance(ctx context.Context) (keys Keys, found bool, err error) {
	if os.Getenv(VariableNoMetadata) == "true" {
		return Keys{}, false, nil
	}
	config := &Config{Type: TypeECSRAMRole}
	config.Defaults(os.Getenv)
	p, err := c.make(config)
	if err != nil {
		return Keys{}, true, err
	}
	c.mu.Lock()
	known := c.found == metadataServer || config.RoleName != ""
	c.mu.Unlock()
	if !known {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, probeTimeout)
		defer cancel()
	}
	keys, err = p.Retrieve(ctx)
	if e, is := errors.AsType[*Error](err); is && !known && (e.Status == 0 || e.Status == http.StatusNotFound) {
		return Keys{}, false, nil // no server, or an instance without a role
	}
	return keys, true, err
}

// configured gives the first place that something was set for: the environment, RRSA, the
// profile file; nil: none of them.
func configured() (*Config, error) {
	for _, read := range []func() (*Config, error){environment, rrsa, profile} {
		if c, err := read(); c != nil || err != nil {
			return c, err
		}
	}
	return nil, nil //nolint:nilnil // nothing is set
}

// environment gives the keys of the environment.
func environment() (*Config, error) {
	id, secret := os.Getenv(VariableAccessKeyID), os.Getenv(VariableAccessKeySecret)
	switch {
	case id == "" && secret == "":
		return nil, nil //nolint:nilnil // nothing is set
	case id == "" || secret == "":
		return nil, errors.New("find keys in the environment: one of " + VariableAccessKeyID + " and " + VariableAccessKeySecret + " is set: set both, or neither")
	}
	return &Config{
		Type:            TypeStatic,
		AccessKeyID:     setting.NewSecret(id),
		AccessKeySecret: setting.NewSecret(secret),
		SecurityToken:   setting.NewSecret(os.Getenv(VariableSecurityToken)),
	}, nil
}

// rrsa gives the role that ACK has set up for the pod. A role alone is a setting of other
// tools too.
func rrsa() (*Config, error) {
	if os.Getenv(VariableOIDCTokenFile) == "" && os.Getenv(VariableOIDCProviderARN) == "" {
		return nil, nil //nolint:nilnil // nothing is set
	}
	return fromEnvironment(TypeOIDCRoleARN)
}

// credentialsURI gives the address that is asked last.
func credentialsURI() (*Config, error) {
	if os.Getenv(VariableURI) == "" {
		return nil, nil //nolint:nilnil // nothing is set
	}
	return fromEnvironment(TypeCredentialsURI)
}

func fromEnvironment(t Type) (*Config, error) {
	c := &Config{Type: t}
	c.Defaults(os.Getenv)
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("find keys in the environment: %w", err)
	}
	return c, nil
}

// profile reads the profile file of Alibaba Cloud's command line (aliyun configure); nil:
// there is none.
func profile() (*Config, error) {
	home, err := os.UserHomeDir()
	if err != nil {
		return nil, nil //nolint:nilerr,nilnil // no home, no profile
	}
	path := filepath.Join(home, ".aliyun", "config.json")
	data, err := setting.ReadAgain(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, nil //nolint:nilnil // there is none
	case err != nil:
		return nil, fmt.Errorf("read the profile file: %w", err)
	}
	var file struct {
		Current  string         `json:"current"`
		Profiles []profileEntry `json:"profiles"`
	}
	if json.Unmarshal(data, &file) != nil {
		return nil, fmt.Errorf("read the profile file: %s is no profile file of aliyun configure", path)
	}
	name := os.Getenv(VariableProfile)
	if name == "" {
		name = file.Current
	}
	c, err := profileNamed(file.Profiles, name, nil)
	if err != nil {
		return nil, fmt.Errorf("read the profile file %s: %w", path, err)
	}
	return c, nil
}

// profileEntry is one profile, as aliyun configure writes it.
type profileEntry struct {
	Name            string `json:"name"`
	Mode            string `json:"mode"`
	AccessKeyID     string `json:"access_key_id"`
	AccessKeySecret string `json:"access_key_secret"`
	STSToken        string `json:"sts_token"`
	RAMRoleARN      string `json:"ram_role_arn"`
	SessionName     string `json:"ram_session_name"`
	ExternalID      string `json:"external_id"`
	ExpiredSeconds  int    `json:"expired_seconds"`
	RAMRoleName     string `json:"ram_role_name"`
	SourceProfile   string `json:"source_profile"`
	OIDCProviderARN string `json:"oidc_provider_arn"`
	OIDCTokenFile   string `json:"oidc_token_file"`
	URI             string `json:"credentials_uri"`
}

// profileNamed makes the configuration of a profile; via are those that lead to it.
func profileNamed(all []profileEntry, name string, via []string) (*Config, error) {
	i := slices.IndexFunc(all, func(p profileEntry) bool { return p.Name == name })
	switch {
	case i < 0:
		return nil, fmt.Errorf("there is no profile %q", name)
	case slices.Contains(via, name):
		return nil, fmt.Errorf("the profile %q has itself as its source", name)
	}
	p := all[i]
	keys := func() *Config {
		return &Config{
			Type: TypeStatic, AccessKeyID: setting.NewSecret(p.AccessKeyID),
			AccessKeySecret: setting.NewSecret(p.AccessKeySecret), SecurityToken: setting.NewSecret(p.STSToken),
		}
	}
	duration := time.Duration(p.ExpiredSeconds) * time.Second
	var c *Config
	switch p.Mode {
	case "AK", "StsToken":
		c = keys()
	case "RamRoleArn":
		c = &Config{Type: TypeRAMRoleARN, RoleARN: p.RAMRoleARN, SessionName: p.SessionName, ExternalID: p.ExternalID, Duration: duration, Base: keys()}
	case "ChainableRamRoleArn":
		base, err := profileNamed(all, p.SourceProfile, append(via, name))
		if err != nil {
			return nil, err
		}
		c = &Config{Type: TypeRAMRoleARN, RoleARN: p.RAMRoleARN, SessionName: p.SessionName, ExternalID: p.ExternalID, Duration: duration, Base: base}
	case "EcsRamRole":
		c = &Config{Type: TypeECSRAMRole, RoleName: p.RAMRoleName}
	case "OIDC":
		c = &Config{Type: TypeOIDCRoleARN, RoleARN: p.RAMRoleARN, SessionName: p.SessionName, OIDCProviderARN: p.OIDCProviderARN, OIDCTokenFile: p.OIDCTokenFile, Duration: duration}
	case "CredentialsURI":
		c = &Config{Type: TypeCredentialsURI, URI: setting.NewURL(p.URI)}
	default:
		return nil, fmt.Errorf("the profile %q has the mode %q, which a service cannot use: choose one of AK, StsToken, RamRoleArn, ChainableRamRoleArn, EcsRamRole, OIDC and CredentialsURI", name, p.Mode)
	}
	c.Defaults(os.Getenv)
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("the profile %q: %w", name, err)
	}
	return c, nil
}
