package credentials

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// metadataAddress is where an ECS instance asks for its own metadata.
const metadataAddress = "http://100.100.100.200"

const (
	opMetadata = "GetInstanceRAMRole"
	// metadataTokenTTL is how many seconds a metadata token is asked for: it is used at once.
	metadataTokenTTL = "60"
	metadataRoles    = "/latest/meta-data/ram/security-credentials/"
)

// ecsRole gets the keys of the RAM role of an ECS instance from its metadata server, in
// the mode that wants a token of its own first (ECS: security-hardened mode, called IMDSv2
// elsewhere), and without one only where the server does not know such tokens.
type ecsRole struct {
	name     string // empty: the server tells
	endpoint *url.URL
	plain    *plain
}

func newECSRole(name string, endpoint *url.URL) *ecsRole {
	// The address is the instance's own: no proxy has a way to it.
	return &ecsRole{name: name, endpoint: endpoint, plain: newPlain(metadataServer, nil)}
}

// Retrieve asks for the keys of the role.
func (p *ecsRole) Retrieve(ctx context.Context) (Keys, error) {
	keys, err := p.ask(ctx)
	if err != nil {
		return Keys{}, fmt.Errorf("get keys of the instance's role: %w", err)
	}
	return keys, nil
}

func (p *ecsRole) ask(ctx context.Context) (Keys, error) {
	token, err := p.token(ctx)
	if err != nil {
		return Keys{}, err
	}
	name := p.name
	if name == "" {
		r, err := p.get(ctx, token, metadataRoles)
		if err != nil {
			return Keys{}, err
		}
		name = strings.TrimSpace(string(r.body))
		switch {
		case r.status == http.StatusNotFound, r.status == http.StatusOK && name == "":
			return Keys{}, p.refused(r, "the instance has no RAM role: bind one to it")
		case r.status != http.StatusOK, !isRoleName(name):
			return Keys{}, p.refused(r, notOf(p.plain.service))
		}
	}
	r, err := p.get(ctx, token, metadataRoles+url.PathEscape(name))
	switch {
	case err != nil:
		return Keys{}, err
	case r.status != http.StatusOK:
		return Keys{}, p.refused(r, "the instance does not have the role "+name+": bind it, or leave role_name out")
	}
	return p.plain.readGrant(opMetadata, r)
}

// token asks for a metadata token; a server without them gives none.
func (p *ecsRole) token(ctx context.Context) (string, error) {
	request, err := newRequest(ctx, http.MethodPut, at(p.endpoint, "/latest/api/token"), "")
	if err != nil {
		return "", err
	}
	request.Header.Set("X-aliyun-ecs-metadata-token-ttl-seconds", metadataTokenTTL)
	r, err := p.plain.do(ctx, opMetadata, request)
	switch {
	case err != nil:
		return "", err
	case r.status == http.StatusOK:
		token := strings.TrimSpace(string(r.body))
		if token == "" || strings.ContainsFunc(token, func(c rune) bool { return c <= ' ' || c > '~' }) {
			return "", p.refused(r, notOf(p.plain.service))
		}
		return token, nil
	case r.status == http.StatusNotFound, r.status == http.StatusMethodNotAllowed:
		return "", nil
	}
	return "", p.refused(r, "it gives no metadata token")
}

func (p *ecsRole) get(ctx context.Context, token, path string) (*response, error) {
	request, err := newRequest(ctx, http.MethodGet, at(p.endpoint, path), "")
	if err != nil {
		return nil, err
	}
	if token != "" {
		request.Header.Set("X-aliyun-ecs-metadata-token", token)
	}
	return p.plain.do(ctx, opMetadata, request)
}

func (p *ecsRole) refused(r *response, message string) error {
	return &Error{Op: opMetadata, Status: r.status, Message: message}
}

// uriKeys gets keys from an address of the operator's own.
type uriKeys struct {
	address string
	plain   *plain
}

func newURIKeys(address *url.URL) *uriKeys {
	// Its path and query may be what guards the keys.
	var secrets []string
	for _, values := range address.Query() {
		for _, value := range values {
			secrets = append(secrets, value, url.QueryEscape(value))
		}
	}
	secrets = append(secrets, address.RawQuery, strings.Trim(address.EscapedPath(), "/"), strings.Trim(address.Path, "/"))
	secrets = slices.DeleteFunc(secrets, func(s string) bool { return s == "" })
	// The longest first: what holds another is gone before that one would break it up.
	slices.SortFunc(secrets, func(a, b string) int { return len(b) - len(a) })
	return &uriKeys{address: address.String(), plain: newPlain("the credentials URI", http.ProxyFromEnvironment, secrets...)}
}

const opURI = "GetCredentials"

// Retrieve asks the address.
func (p *uriKeys) Retrieve(ctx context.Context) (Keys, error) {
	request, err := newRequest(ctx, http.MethodGet, p.address, "")
	if err != nil {
		return Keys{}, errors.New("get keys from the credentials URI: not an address")
	}
	r, err := p.plain.do(ctx, opURI, request)
	if err == nil {
		var keys Keys
		if keys, err = p.plain.readGrant(opURI, r); err == nil {
			return keys, nil
		}
	}
	return Keys{}, fmt.Errorf("get keys from the credentials URI: %w", err)
}
