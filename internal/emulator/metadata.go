package emulator

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
)

// Paths of the ECS metadata server and of the credentials URI.
const (
	metadataRoot      = "/latest"
	metadataTokenPath = metadataRoot + "/api/token"
	metadataRolesPath = metadataRoot + "/meta-data/ram/security-credentials"
	credentialsPath   = "/credentials"
)

// Headers of the metadata server (ECS: instance metadata).
const (
	metadataTTLHeader   = "X-Aliyun-Ecs-Metadata-Token-Ttl-Seconds"
	metadataTokenHeader = "X-Aliyun-Ecs-Metadata-Token" //nolint:gosec // G101: the name of a header.
)

const (
	maxMetadataTTL = 21600 // seconds
	// instanceLife is what the documented example of credentials lives (ECS: instance
	// metadata).
	instanceLife = 6 * time.Hour
)

// metadataServer is what the ECS metadata server remembers.
type metadataServer struct {
	mu            sync.Mutex
	role          string // empty: the instance has none
	tokenRequired bool
	tokens        map[string]time.Time // by the clock without the offset
	current       *credential          // of the role
}

// SetInstanceRole gives the ECS instance another role, or none.
func (s *Server) SetInstanceRole(name string) error {
	if name != "" {
		if _, _, found := s.role(s.RoleARN(name)); !found {
			return fmt.Errorf("there is no role %q", name)
		}
	}
	s.metadata.mu.Lock()
	defer s.metadata.mu.Unlock()
	s.metadata.role, s.metadata.current = name, nil
	s.log.Info("instance role set", zap.String("role", name))
	return nil
}

// RequireMetadataToken says whether the metadata server answers calls that bring no
// token of its own: ECS's security hardening mode, IMDSv2 only.
func (s *Server) RequireMetadataToken(required bool) {
	s.metadata.mu.Lock()
	defer s.metadata.mu.Unlock()
	s.metadata.tokenRequired = required
	s.log.Info("metadata token required", zap.Bool("required", required))
}

// classifyMetadata finds the operation of a request to the metadata server.
func (c *call) classifyMetadata(clean string) {
	c.op, c.handler = OpMetadata, (*Server).getMetadata
	if clean == metadataTokenPath {
		c.op, c.handler = OpMetadataToken, (*Server).putMetadataToken
	}
}

// putMetadataToken is PUT /latest/api/token. What it refuses is documented (ECS:
// instance metadata, FAQ), 405 seen (aliyun/credentials-nodejs, issue 111).
func (s *Server) putMetadataToken(c *call) answer {
	if c.Method != http.MethodPut {
		return failed(metadataRefused(http.StatusMethodNotAllowed, "Method Not Allowed"))
	}
	if len(c.Header.Values("X-Forwarded-For")) > 0 {
		return failed(metadataRefused(http.StatusForbidden, "Forbidden"))
	}
	seconds, err := strconv.Atoi(c.Header.Get(metadataTTLHeader))
	if err != nil || seconds < 1 || seconds > maxMetadataTTL {
		return failed(metadataRefused(http.StatusBadRequest, "Missing or Invalid Parameters"))
	}
	token, now := rand.Text()+rand.Text(), time.Now()
	s.metadata.mu.Lock()
	defer s.metadata.mu.Unlock()
	for old, expires := range s.metadata.tokens {
		if !now.Before(expires) {
			delete(s.metadata.tokens, old)
		}
	}
	s.metadata.tokens[token] = now.Add(time.Duration(seconds) * time.Second)
	if s.config.Issued != nil {
		s.config.Issued(token)
	}
	return answer{status: http.StatusOK, code: okCode, contentType: typeText, body: []byte(token)}
}

// getMetadata is GET of the instance's role and of its credentials. A token that the
// server never issued is answered 401 and no token in the security hardening mode 403
// (ECS: instance metadata); an expired token is answered like one that never was,
// which is not documented. Nor is what an instance without a role answers: it has no
// such path, as for a role that is not the instance's (aliyun/aliyun-cli, issue 525).
func (s *Server) getMetadata(c *call) answer {
	if c.Method != http.MethodGet {
		return failed(metadataRefused(http.StatusMethodNotAllowed, "Method Not Allowed"))
	}
	rawPath, _ := requestTarget(c.Request)
	name, found := strings.CutPrefix(cleanPath(rawPath)+"/", metadataRolesPath+"/")
	name = strings.TrimSuffix(name, "/")
	s.metadata.mu.Lock()
	defer s.metadata.mu.Unlock()
	if token := c.Header.Get(metadataTokenHeader); token != "" {
		if expires, found := s.metadata.tokens[token]; !found || !time.Now().Before(expires) {
			return failed(metadataRefused(http.StatusUnauthorized, "Unauthorized"))
		}
	} else if s.metadata.tokenRequired {
		return failed(metadataRefused(http.StatusForbidden, "Forbidden"))
	}
	role := s.metadata.role
	switch {
	case !found || role == "" || name != "" && name != role:
		return failed(metadataRefused(http.StatusNotFound, "Not Found"))
	case name == "":
		return answer{status: http.StatusOK, code: okCode, contentType: typeText, body: []byte(role)}
	}
	return credentialsAnswer(s.instanceCredential())
}

// instanceCredential gives the credential of the instance's role, the same one until
// half of its life is over: ECS renews it by itself, when is not documented. A
// revoked one, and one of another policy, is replaced at once. The caller holds the
// lock.
func (s *Server) instanceCredential() *credential {
	now, current := s.wireTime(), s.metadata.current
	if current == nil || !current.alive(now) || current.policy != s.issuedPolicy(OpMetadata) ||
		now.Before(current.created) || current.expires.Sub(now) <= current.expires.Sub(current.created)/2 {
		current = s.issue(OpMetadata, s.metadata.role, instanceLife)
		s.metadata.current = current
	}
	return current
}

// classifyURI finds the operation of a request to the credentials URI.
func (c *call) classifyURI() { c.op, c.handler = OpURI, (*Server).getCredentials }

// getCredentials is GET of the credentials URI, a protocol of the clients' own: what
// it refuses is not documented anywhere.
func (s *Server) getCredentials(c *call) answer {
	if c.Method != http.MethodGet {
		return failed(&wireError{http.StatusMethodNotAllowed, "MethodNotAllowed", "Credentials are there to GET."})
	}
	return credentialsAnswer(s.issue(OpURI, "", s.config.TokenLife))
}

// credentialsDocument is what the metadata server and the credentials URI answer (ECS:
// instance metadata; aliyun/credentials-go: README, credentials_uri).
type credentialsDocument struct {
	AccessKeyID     string `json:"AccessKeyId,omitempty"`
	AccessKeySecret string `json:"AccessKeySecret,omitempty"`
	Expiration      string `json:"Expiration,omitempty"`
	SecurityToken   string `json:"SecurityToken,omitempty"`
	LastUpdated     string `json:"LastUpdated,omitempty"`
	Code            string `json:"Code"`
	Message         string `json:"Message,omitempty"`
}

func jsonAnswer(status int, code string, document credentialsDocument) answer {
	body, err := json.Marshal(document)
	if err != nil { // a struct of strings can be written
		panic(err)
	}
	return answer{status: status, code: code, contentType: typeJSON, body: body}
}

func credentialsAnswer(c *credential) answer {
	return jsonAnswer(http.StatusOK, okCode, credentialsDocument{
		AccessKeyID: c.id, AccessKeySecret: c.secret, SecurityToken: c.token,
		Expiration: c.expires.UTC().Format(rpcTime), LastUpdated: c.created.UTC().Format(rpcTime), Code: "Success",
	})
}

func metadataRefused(status int, text string) *wireError {
	return &wireError{status, strconv.Itoa(status), text}
}

// renderMetadata writes an error as the metadata server's page. With status 200 it is
// JSON without credentials: how it says no where it answers at all.
func renderMetadata(err *wireError) answer {
	if err.status == http.StatusOK {
		return renderURI(err)
	}
	title := fmt.Sprintf("%d - %s", err.status, err.message)
	body := `<?xml version="1.0" encoding="iso-8859-1"?>` + "\n<html>\n <head>\n  <title>" + title + "</title>\n </head>\n <body>\n  <h1>" + title + "</h1>\n </body>\n</html>\n"
	return answer{status: err.status, code: err.code, contentType: "text/html", body: []byte(body)}
}

// renderURI writes an error as JSON.
func renderURI(err *wireError) answer {
	return jsonAnswer(err.status, err.code, credentialsDocument{Code: err.code, Message: err.message})
}
