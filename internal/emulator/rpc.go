package emulator

import (
	"crypto/hmac"
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
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
	}
}

// authenticateRPC checks a request as the RPC services do: version, timestamp,
// signature, nonce, security token.
func (s *Server) authenticateRPC(c *call, version string) *wireError {
	for _, name := range []string{"Version", "AccessKeyId", "Signature", "SignatureMethod", "SignatureVersion", "SignatureNonce", "Timestamp"} {
		if c.params.Get(name) == "" {
			return badRequest("Missing"+name, name+" is mandatory for this action.")
		}
	}
	if c.params.Get("Version") != version {
		return badRequest("InvalidVersion", "Specified parameter Version is not valid.")
	}
	if method := c.params.Get("SignatureMethod"); method != "HMAC-SHA1" || c.params.Get("SignatureVersion") != "1.0" {
		return badRequest("InvalidParameter.SignatureMethod", "The emulator checks HMAC-SHA1 signatures of version 1.0.")
	}
	now := s.wireTime()
	timestamp, err := time.Parse(rpcTime, c.params.Get("Timestamp"))
	if err != nil {
		return badRequest("InvalidTimeStamp.Format", "Specified time stamp or date value is not well formatted.")
	}
	if now.Sub(timestamp).Abs() > maxSkew {
		return badRequest("InvalidTimeStamp.Expired", "Specified time stamp or date value is expired.")
	}
	key := s.credentials.get(c.params.Get("AccessKeyId"))
	if key == nil {
		return &wireError{http.StatusNotFound, "InvalidAccessKeyId.NotFound", "Specified access key is not found."}
	}
	text := rpcStringToSign(c.Method, c.params)
	sent, err := base64.StdEncoding.DecodeString(c.params.Get("Signature"))
	if err != nil || !hmac.Equal(sent, sign(key.secret+"&", text)) {
		// SDKs compare the text after the colon with their own, to say which of the
		// two, secret or text, is wrong.
		return badRequest("SignatureDoesNotMatch", "Specified signature is not matched with our calculation. server string to sign is:"+text)
	}
	if err := key.checkToken(c.params.Get("SecurityToken"), now, http.StatusBadRequest); err != nil {
		return err
	}
	if !s.nonces.use(key.id+" "+c.params.Get("SignatureNonce"), now) {
		return badRequest("SignatureNonceUsed", "Specified signature nonce was used already.")
	}
	if key.kind == tokenCredential {
		return &wireError{http.StatusForbidden, "NoPermission", "A token for MNS queues is good for MNS only."}
	}
	return nil
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
	if err := s.authenticateRPC(c, dybaseVersion); err != nil {
		return failed(err)
	}
	if c.params.Get("MessageType") == "" {
		return failed(badRequest("MissingMessageType", "MessageType is mandatory for this action."))
	}
	token := s.credentials.issue(tokenCredential, loadPolicy(&s.tokenPolicy), s.wireTime(), s.config.TokenLife)
	return rpcAnswer(c, http.StatusOK, okCode, &tokenAnswer{
		RequestID: s.rpcRequestID(s.nextRequestID()), Code: okCode, Message: okCode,
		MessageTokenDTO: &messageTokenDTO{
			AccessKeyID: token.id, AccessKeySecret: token.secret, SecurityToken: token.token,
			CreateTime: beijing(token.created), ExpireTime: beijing(token.expires),
		},
	})
}

// roleAnswer is what AssumeRole answers.
type roleAnswer struct {
	XMLName         xml.Name        `json:"-" xml:"AssumeRoleResponse"`
	RequestID       string          `json:"RequestId" xml:"RequestId"`
	AssumedRoleUser assumedRoleUser `json:"AssumedRoleUser" xml:"AssumedRoleUser"`
	Credentials     roleCredentials `json:"Credentials" xml:"Credentials"`
}

type assumedRoleUser struct {
	ARN           string `json:"Arn" xml:"Arn"`
	AssumedRoleID string `json:"AssumedRoleId" xml:"AssumedRoleId"`
}

type roleCredentials struct {
	AccessKeyID     string `json:"AccessKeyId" xml:"AccessKeyId"`
	AccessKeySecret string `json:"AccessKeySecret" xml:"AccessKeySecret"`
	SecurityToken   string `json:"SecurityToken" xml:"SecurityToken"`
	Expiration      string `json:"Expiration" xml:"Expiration"`
}

// Limits of AssumeRole.
const (
	minSession     = 15 * time.Minute
	maxSession     = 12 * time.Hour
	defaultSession = time.Hour
)

// assumeRole is STS: AssumeRole. Every role of the account exists and trusts every
// key; the session may do what the server's policy allows.
func (s *Server) assumeRole(c *call) answer {
	if err := s.authenticateRPC(c, stsVersion); err != nil {
		return failed(err)
	}
	arn, session := c.params.Get("RoleArn"), c.params.Get("RoleSessionName")
	for name, value := range map[string]string{"RoleArn": arn, "RoleSessionName": session} {
		if value == "" {
			return failed(badRequest("Missing"+name, name+" is mandatory for this action."))
		}
	}
	role, found := strings.CutPrefix(arn, "acs:ram::"+s.config.AccountID+":role/")
	if !found || role == "" {
		return failed(wireErrorf(http.StatusNotFound, "EntityNotExist.Role", "The specified Role not exists: the emulator's are acs:ram::%s:role/NAME.", s.config.AccountID))
	}
	if !regexp.MustCompile(`^[A-Za-z0-9.@_-]{2,64}$`).MatchString(session) {
		return failed(badRequest("InvalidParameter.RoleSessionName", "The parameter RoleSessionName is wrongly formed."))
	}
	life := defaultSession
	if seconds := c.params.Get("DurationSeconds"); seconds != "" {
		n, err := strconv.Atoi(seconds)
		life = time.Duration(n) * time.Second
		if err != nil || life < minSession || life > maxSession {
			return failed(badRequest("InvalidParameter.DurationSeconds", "The Min/Max value of DurationSeconds is 900/43200 seconds."))
		}
	}
	// The life in the configuration stands for the role's longest session, so that
	// renewal can be tested in seconds.
	token := s.credentials.issue(roleCredential, PolicyFull, s.wireTime(), min(life, s.config.TokenLife))
	return rpcAnswer(c, http.StatusOK, okCode, &roleAnswer{
		RequestID: s.rpcRequestID(s.nextRequestID()),
		AssumedRoleUser: assumedRoleUser{
			ARN:           "acs:ram::" + s.config.AccountID + ":role/" + role + "/" + session,
			AssumedRoleID: "3" + s.config.AccountID + ":" + session,
		},
		Credentials: roleCredentials{
			AccessKeyID: token.id, AccessKeySecret: token.secret, SecurityToken: token.token,
			Expiration: token.expires.UTC().Format(rpcTime),
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
	if c.op == OpSTS {
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
