package emulator

import (
	"net/http"
	"net/url"
	"path"
	"strings"
)

// Op is a kind of request, as faults and request counts name it. A batch operation
// and the single one are the same kind.
type Op string

// The operations. OpQueues is create, delete, list and change of attributes.
const (
	OpReceive       Op = "receive"
	OpPeek          Op = "peek"
	OpSend          Op = "send"
	OpDelete        Op = "delete"
	OpVisibility    Op = "visibility"
	OpAttributes    Op = "attributes"
	OpQueues        Op = "queues"
	OpToken         Op = "token"          // Dybaseapi: QueryTokenForMnsQueue
	OpSTS           Op = "sts"            // STS: AssumeRole
	OpOIDC          Op = "oidc"           // STS: AssumeRoleWithOIDC
	OpIdentity      Op = "identity"       // STS: GetCallerIdentity
	OpMetadataToken Op = "metadata_token" // ECS: PUT /latest/api/token
	OpMetadata      Op = "metadata"       // ECS: everything else below /latest
	OpURI           Op = "uri"            // GET /credentials
	OpUnknown       Op = "unknown"
)

// Ops gives every operation.
func Ops() []Op {
	return []Op{
		OpReceive, OpPeek, OpSend, OpDelete, OpVisibility, OpAttributes, OpQueues,
		OpToken, OpSTS, OpOIDC, OpIdentity, OpMetadataToken, OpMetadata, OpURI, OpUnknown,
	}
}

// issuers gives the operations that issue credentials.
func issuers() []Op { return []Op{OpToken, OpSTS, OpOIDC, OpMetadata, OpURI} }

// mns says whether the operation is one of MNS, with its signature.
func (op Op) mns() bool {
	switch op {
	case OpToken, OpSTS, OpOIDC, OpIdentity, OpMetadataToken, OpMetadata, OpURI:
		return false
	default:
		return true
	}
}

// call is a request with what its address says about it.
type call struct {
	*http.Request
	op    Op
	queue string // its name; empty where the request names none
	// handler runs the operation; nil: no operation has such a request.
	handler func(*Server, *call) answer
	body    []byte
	params  url.Values // of an RPC: query and form
}

// requestTarget gives path and query of the request line as they were sent.
func requestTarget(r *http.Request) (rawPath, rawQuery string) {
	target := r.RequestURI
	if target == "" { // a request that did not come over the wire
		target = r.URL.RequestURI()
	}
	if !strings.HasPrefix(target, "/") { // absolute form, as sent to a proxy
		if _, rest, found := strings.Cut(target, "://"); found {
			_, rest, _ = strings.Cut(rest, "/")
			target = "/" + rest
		}
	}
	rawPath, rawQuery, _ = strings.Cut(target, "?")
	return rawPath, rawQuery
}

// cleanPath removes empty and dot segments: the official Go SDK's endpoint ends in
// "/." where it is no host of MNS.
func cleanPath(p string) string {
	if !strings.Contains(p, "//") && !strings.Contains(p, "/.") && (p == "/" || !strings.HasSuffix(p, "/")) {
		return p
	}
	return path.Clean("/" + p)
}

// param gives a parameter of the query, its name in any case: clients of MNS write
// ReceiptHandle and receiptHandle.
func (c *call) param(name string) (value string, found bool) {
	_, rawQuery := requestTarget(c.Request)
	for rawQuery != "" {
		var pair string
		pair, rawQuery, _ = strings.Cut(rawQuery, "&")
		key, value, _ := strings.Cut(pair, "=")
		if !strings.EqualFold(key, name) {
			continue
		}
		if strings.ContainsAny(value, "%+") {
			unescaped, err := url.QueryUnescape(value)
			if err != nil {
				return value, true
			}
			return unescaped, true
		}
		return value, true
	}
	return "", false
}

// classify finds the operation of a request to MNS.
func (c *call) classify() {
	rawPath, _ := requestTarget(c.Request)
	clean := cleanPath(rawPath)
	rest, found := strings.CutPrefix(clean, "/queues")
	if !found || rest != "" && rest[0] != '/' {
		c.op = OpUnknown
		return
	}
	name, below, _ := strings.Cut(strings.TrimPrefix(rest, "/"), "/")
	if unescaped, err := url.PathUnescape(name); err == nil {
		name = unescaped
	}
	c.queue = name
	c.op, c.handler = OpUnknown, nil
	switch {
	case name == "" && c.Method == http.MethodGet:
		c.op, c.handler = OpQueues, (*Server).listQueues
	case name == "":
	case below == "":
		switch c.Method {
		case http.MethodGet:
			c.op, c.handler = OpAttributes, (*Server).getQueueAttributes
		case http.MethodPut:
			c.op, c.handler = OpQueues, (*Server).putQueue
		case http.MethodDelete:
			c.op, c.handler = OpQueues, (*Server).deleteQueue
		}
	case below == "messages":
		switch c.Method {
		case http.MethodGet:
			if peek, _ := c.param("peekonly"); strings.EqualFold(peek, "true") {
				c.op, c.handler = OpPeek, (*Server).peekMessages
			} else {
				c.op, c.handler = OpReceive, (*Server).receiveMessages
			}
		case http.MethodPost:
			c.op, c.handler = OpSend, (*Server).sendMessages
		case http.MethodDelete:
			c.op, c.handler = OpDelete, (*Server).deleteMessages
		case http.MethodPut:
			c.op, c.handler = OpVisibility, (*Server).changeVisibility
		}
	}
}
