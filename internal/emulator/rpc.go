package emulator

import (
	"crypto/hmac"
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// The versions of the APIs (Dybaseapi and STS: common parameters).
const (
	dybaseVersion = "2017-05-25"
	stsVersion    = "2015-04-01"
)

// Forms of time: RPC requests and STS use UTC, Dybaseapi the time of Beijing without
// naming the zone.
const (
	rpcTime     = "2006-01-02T15:04:05Z"
	beijingTime = "2006-01-02 15:04:05"
)

func beijing(t time.Time) string {
	return t.In(time.FixedZone("Asia/Shanghai", 8*60*60)).Format(beijingTime)
}

// classifyRPC finds the operation of a request to Dybaseapi or STS, from Action in
// the query or the form.
func (c *call) classifyRPC() {
	_, rawQuery := requestTarget(c.Request)
	params, err := url.ParseQuery(rawQuery)
	if err != nil {
		params = url.Values{}
	}
	if strings.HasPrefix(c.Header.Get("Content-Type"), "application/x-www-form-urlencoded") {
		if form, err := url.ParseQuery(string(c.body)); err == nil {
			maps.Copy(params, form)
		}
	}
	c.params = params
	c.op = OpUnknown
	if c.Method != http.MethodGet && c.Method != http.MethodPost {
		return
	}
	switch params.Get("Action") {
	case "QueryTokenForMnsQueue":
		c.op, c.handler = OpToken, (*Server).queryToken
	case "AssumeRole":
		c.op, c.handler = OpSTS, (*Server).assumeRole
	case "AssumeRoleWithOIDC":
		c.op, c.handler = OpOIDC, (*Server).assumeRoleWithOIDC
	case "GetCallerIdentity":
		c.op, c.handler = OpIdentity, (*Server).callerIdentity
	}
}

// checkRPC checks what comes before the signature: that the parameters are there, and
// version and timestamp.
func (s *Server) checkRPC(c *call, version string, mandatory ...string) *wireError {
	if err := c.missing("Missing", "%s is mandatory for this action.", mandatory...); err != nil {
		return err
	}
	if c.params.Get("Version") != version {
		return badRequest("InvalidVersion", "Specified parameter Version is not valid.")
	}
	timestamp, err := time.Parse(rpcTime, c.params.Get("Timestamp"))
	if err != nil {
		return badRequest("InvalidTimeStamp.Format", "Specified time stamp or date value is not well formatted.")
	}
	if s.wireTime().Sub(timestamp).Abs() > maxSkew {
		return badRequest("InvalidTimeStamp.Expired", "Specified time stamp or date value is expired.")
	}
	return nil
}

// authenticateRPC checks a request as the RPC services do: version, timestamp,
// signature, nonce, security token. It gives who signed.
func (s *Server) authenticateRPC(c *call, version string) (*credential, *wireError) {
	if err := s.checkRPC(c, version, "Version", "AccessKeyId", "Signature", "SignatureMethod", "SignatureVersion", "SignatureNonce", "Timestamp"); err != nil {
		return nil, err
	}
	if method := c.params.Get("SignatureMethod"); method != "HMAC-SHA1" || c.params.Get("SignatureVersion") != "1.0" {
		return nil, badRequest("InvalidParameter.SignatureMethod", "The emulator checks HMAC-SHA1 signatures of version 1.0.")
	}
	now := s.wireTime()
	key := s.credentials.get(c.params.Get("AccessKeyId"))
	if key == nil {
		return nil, &wireError{http.StatusNotFound, "InvalidAccessKeyId.NotFound", "Specified access key is not found."}
	}
	text := rpcStringToSign(c.Method, c.params)
	sent, err := base64.StdEncoding.DecodeString(c.params.Get("Signature"))
	if err != nil || !hmac.Equal(sent, sign(key.secret+"&", text)) {
		// SDKs compare the text after the colon with their own, to say which of the
		// two, secret or text, is wrong.
		return nil, badRequest("SignatureDoesNotMatch", "Specified signature is not matched with our calculation. server string to sign is:"+text)
	}
	if err := key.checkToken(c.params.Get("SecurityToken"), now, http.StatusBadRequest); err != nil {
		return nil, err
	}
	if !s.nonces.use(key.id+" "+c.params.Get("SignatureNonce"), now) {
		return nil, badRequest("SignatureNonceUsed", "Specified signature nonce was used already.")
	}
	if key.issuer == OpToken {
		return nil, &wireError{http.StatusForbidden, "NoPermission", "A token for MNS queues is good for MNS only."}
	}
	return key, nil
}

// rpcStringToSign is the text that a request to an RPC service signs (Alibaba Cloud:
// RPC signature method).
func rpcStringToSign(method string, params url.Values) string {
	names := make([]string, 0, len(params))
	for name := range params {
		if name != "Signature" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	var query strings.Builder
	for i, name := range names {
		if i > 0 {
			query.WriteByte('&')
		}
		query.WriteString(percentEncode(name) + "=" + percentEncode(params.Get(name)))
	}
	return method + "&" + percentEncode("/") + "&" + percentEncode(query.String())
}

// percentEncode is RFC 3986's: all but letters, digits and -_.~ is encoded.
func percentEncode(s string) string {
	return strings.NewReplacer("+", "%20", "*", "%2A", "%7E", "~").Replace(url.QueryEscape(s))
}

// tokenAnswer is what QueryTokenForMnsQueue answers.
type tokenAnswer struct {
	XMLName         xml.Name         `json:"-" xml:"QueryTokenForMnsQueueResponse"`
	RequestID       string           `json:"RequestId" xml:"RequestId"`
	Code            string           `json:"Code" xml:"Code"`
	Message         string           `json:"Message" xml:"Message"`
	MessageTokenDTO *messageTokenDTO `json:"MessageTokenDTO,omitempty" xml:"MessageTokenDTO,omitempty"`
}

type messageTokenDTO struct {
	AccessKeyID     string `json:"AccessKeyId" xml:"AccessKeyId"`
	AccessKeySecret string `json:"AccessKeySecret" xml:"AccessKeySecret"`
	SecurityToken   string `json:"SecurityToken" xml:"SecurityToken"`
	CreateTime      string `json:"CreateTime" xml:"CreateTime"`
	ExpireTime      string `json:"ExpireTime" xml:"ExpireTime"`
}

// queryToken is Dybaseapi: QueryTokenForMnsQueue.
func (s *Server) queryToken(c *call) answer {
	if _, err := s.authenticateRPC(c, dybaseVersion); err != nil {
		return failed(err)
	}
	if c.params.Get("MessageType") == "" {
		return failed(badRequest("MissingMessageType", "MessageType is mandatory for this action."))
	}
	token := s.issue(OpToken, "", s.config.TokenLife)
	return rpcAnswer(c, http.StatusOK, okCode, &tokenAnswer{
		RequestID: s.rpcRequestID(s.nextRequestID()), Code: okCode, Message: okCode,
		MessageTokenDTO: &messageTokenDTO{
			AccessKeyID: token.id, AccessKeySecret: token.secret, SecurityToken: token.token,
			CreateTime: beijing(token.created), ExpireTime: beijing(token.expires),
		},
	})
}

// rpcRequestID gives a request id the form of the RPC services: that of a UUID.
func (s *Server) rpcRequestID(id string) string {
	return id[:8] + "-" + id[8:12] + "-" + id[12:16] + "-" + id[16:20] + "-" + id[20:] + "00000000"
}

// rpcError is the error document of the RPC services.
type rpcError struct {
	XMLName   xml.Name `json:"-" xml:"Error"`
	RequestID string   `json:"RequestId" xml:"RequestId"`
	HostID    string   `json:"HostId" xml:"HostId"`
	Code      string   `json:"Code" xml:"Code"`
	Message   string   `json:"Message" xml:"Message"`
}

// renderRPCError writes err; with status 200 it is the form in which Dybaseapi says
// no: the usual answer without a token.
func (s *Server) renderRPCError(c *call, requestID string, err *wireError) answer {
	id := s.rpcRequestID(requestID)
	if err.status == http.StatusOK && c.op == OpToken {
		return rpcAnswer(c, err.status, err.code, &tokenAnswer{RequestID: id, Code: err.code, Message: err.message})
	}
	host := "dybaseapi.aliyuncs.com"
	if c.op == OpSTS || c.op == OpOIDC || c.op == OpIdentity {
		host = "sts.aliyuncs.com"
	}
	return rpcAnswer(c, err.status, err.code, &rpcError{RequestID: id, HostID: host, Code: err.code, Message: err.message})
}

// rpcAnswer writes document in the form that Format asks for: XML without it.
func rpcAnswer(c *call, status int, code string, document any) answer {
	a := answer{status: status, code: code}
	var err error
	if strings.EqualFold(c.params.Get("Format"), "JSON") {
		a.contentType = typeJSON
		a.body, err = json.Marshal(document)
	} else {
		a.contentType = typeXML
		a.body, err = xml.Marshal(document)
		a.body = append([]byte(xmlHeader), a.body...)
	}
	if err != nil { // structs of strings can be written
		panic(err)
	}
	return a
}
