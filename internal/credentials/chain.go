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
	VariableRoleName        = "ALIBABA_CLOUD_ECS_METADATA"
	VariableNoMetadata      = "ALIBABA_CLOUD_ECS_METADATA_DISABLED"
	VariableURI             = "ALIBABA_CLOUD_CREDENTIALS_URI"
	VariableProfile         = "ALIBABA_CLOUD_PROFILE"
)

// chain finds keys in the usual places: the environment, a projected token (RRSA), the
// profile file of the command line, the ECS metadata server, a credentials URI. The first
// place that holds anything is the one, and its failure the chain's: going on to the next
// would sign as somebody else for as long as the first is out of order.
type chain struct {
	make func(*Config) (Provider, error)

	mu       sync.Mutex
	instance Provider // the metadata server, once it has answered
}

// probeTimeout is how long the chain waits for a metadata server, which most machines do
// not have.
const probeTimeout = time.Second

// errNoKeys says where the chain has looked.
var errNoKeys = errors.New("find keys: there are none in the environment (" + VariableAccessKeyID + " and " + VariableAccessKeySecret +
	"), no projected token (" + VariableOIDCTokenFile + ", " + VariableRoleARN + " and " + VariableOIDCProviderARN +
	"), no profile in ~/.aliyun/config.json, no role of an ECS instance and no " + VariableURI + ": set one of them up, or write credentials")

// Retrieve gives keys of the place that has them.
func (c *chain) Retrieve(ctx context.Context) (Keys, error) {
	config, err := configured()
	if err != nil {
		return Keys{}, err
	}
	if config == nil {
		keys, found, err := c.ofInstance(ctx)
		switch {
		case found:
			return keys, err
		case os.Getenv(VariableURI) == "":
			return Keys{}, errNoKeys
		}
		config = &Config{Type: TypeCredentialsURI}
		config.Defaults(os.Getenv)
		if err := config.Validate(); err != nil {
			return Keys{}, fmt.Errorf("find keys: %s: %w", VariableURI, err)
		}
	}
	p, err := c.make(config)
	if err != nil {
		return Keys{}, err
	}
	return p.Retrieve(ctx)
}

// changes says that what the chain finds may be other keys the next time.
func (c *chain) changes() bool { return true }

// ofInstance asks the metadata server, if there is one.
func (c *chain) ofInstance(ctx context.Context) (keys Keys, found bool, err error) {
	if os.Getenv(VariableNoMetadata) == "true" {
		return Keys{}, false, nil
	}
	c.mu.Lock()
	known := c.instance
	c.mu.Unlock()
	if known != nil {
		keys, err = known.Retrieve(ctx)
		return keys, true, err
	}
	config := &Config{Type: TypeECSRAMRole}
	config.Defaults(os.Getenv)
	p, err := c.make(config)
	if err != nil {
		return Keys{}, false, err
	}
	probe, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	keys, err = p.Retrieve(probe)
	if e, is := errors.AsType[*Error](err); is && (e.Status == 0 || e.Status == http.StatusNotFound) {
		return Keys{}, false, nil // no server, or an instance without a role
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.instance = p
	return keys, true, err
}

// configured gives the first place that something was set for: the environment, RRSA, the
// profile file; nil: none of them.
func configured() (*Config, error) {
	switch {
	case os.Getenv(VariableAccessKeyID) != "" && os.Getenv(VariableAccessKeySecret) != "":
		return &Config{
			Type:            TypeStatic,
			AccessKeyID:     setting.NewSecret(os.Getenv(VariableAccessKeyID)),
			AccessKeySecret: setting.NewSecret(os.Getenv(VariableAccessKeySecret)),
			SecurityToken:   setting.NewSecret(os.Getenv(VariableSecurityToken)),
		}, nil
	case os.Getenv(VariableOIDCTokenFile) != "" && os.Getenv(VariableOIDCProviderARN) != "" && os.Getenv(VariableRoleARN) != "":
		c := &Config{Type: TypeOIDCRoleARN}
		c.Defaults(os.Getenv)
		if err := c.Validate(); err != nil {
			return nil, fmt.Errorf("find keys in the environment: %w", err)
		}
		return c, nil
	}
	return profile()
}

// profile reads the profile file of Alibaba Cloud's command line (aliyun configure); nil:
// there is none.
func profile() (*Config, error) {
	home, err := os.UserHomeDir()
	if err != nil {
		return nil, nil //nolint:nilerr,nilnil // no home, no profile
	}
	path := filepath.Join(home, ".aliyun", "config.json")
	data, err := setting.ReadFile(path)
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
