package emulator_test

import (
	"crypto/md5"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/emulator"
)

const oneMessage = `<Message xmlns="http://mns.aliyuncs.com/doc/v1/"><MessageBody>x</MessageBody></Message>`

func TestSignature(t *testing.T) {
	t.Parallel()
	rawDigest := md5.Sum([]byte(oneMessage))
	gmt := func(shift time.Duration) string { return time.Now().Add(shift).UTC().Format(http.TimeFormat) }
	for name, c := range map[string]struct {
		key    *key
		change func(http.Header) // before the signature
		spoil  func(*http.Request)
		status int
		code   string
	}{
		"right":          {status: 201},
		"raw digest":     {change: func(h http.Header) { h.Set("Content-MD5", base64.StdEncoding.EncodeToString(rawDigest[:])) }, status: 201},
		"no digest":      {change: func(h http.Header) { h.Del("Content-MD5") }, status: 201},
		"no type":        {change: func(h http.Header) { h.Del("Content-Type") }, status: 201},
		"x-mns-date too": {change: func(h http.Header) { h.Set("X-Mns-Date", gmt(0)) }, status: 201},
		"x-mns-date alone": {change: func(h http.Header) {
			h.Del("Date")
			h.Set("X-Mns-Date", gmt(0))
		}, status: 201},
		"x-mns-date counts":  {change: func(h http.Header) { h.Set("X-Mns-Date", gmt(-16*time.Minute)) }, status: 408, code: "TimeExpired"},
		"other mns headers":  {change: func(h http.Header) { h.Set("X-Mns-Zone", "b"); h.Set("X-Mns-Area", "a") }, status: 201},
		"14 minutes behind":  {change: func(h http.Header) { h.Set("Date", gmt(-14*time.Minute)) }, status: 201},
		"14 minutes ahead":   {change: func(h http.Header) { h.Set("Date", gmt(14*time.Minute)) }, status: 201},
		"16 minutes behind":  {change: func(h http.Header) { h.Set("Date", gmt(-16*time.Minute)) }, status: 408, code: "TimeExpired"},
		"16 minutes ahead":   {change: func(h http.Header) { h.Set("Date", gmt(16*time.Minute)) }, status: 408, code: "TimeExpired"},
		"date of no form":    {change: func(h http.Header) { h.Set("Date", "yesterday") }, status: 400, code: "InvalidDateHeader"},
		"no date":            {change: func(h http.Header) { h.Del("Date") }, status: 400, code: "MissingDateHeader"},
		"no version":         {change: func(h http.Header) { h.Del("X-Mns-Version") }, status: 400, code: "MissingVersionHeader"},
		"other version":      {change: func(h http.Header) { h.Set("X-Mns-Version", "2014-01-01") }, status: 400, code: "InvalidVersionHeader"},
		"digest of other":    {change: func(h http.Header) { h.Set("Content-MD5", "AAAAAAAAAAAAAAAAAAAAAA==") }, status: 400, code: "InvalidDegist"},
		"digest not base64":  {change: func(h http.Header) { h.Set("Content-MD5", "!") }, status: 400, code: "InvalidDegist"},
		"wrong secret":       {key: &key{id: emulator.DemoAccessKeyID, secret: "wrong"}, status: 403, code: "SignatureDoesNotMatch"},
		"unknown id":         {key: &key{id: "nobody", secret: "x"}, status: 403, code: "InvalidAccessKeyId"},
		"token of a key":     {key: &key{id: emulator.DemoAccessKeyID, secret: emulator.DemoAccessKeySecret, token: "t"}, status: 403, code: "InvalidSecurityToken"},
		"no authorization":   {spoil: func(r *http.Request) { r.Header.Del("Authorization") }, status: 400, code: "MissingAuthorizationHeader"},
		"other scheme":       {spoil: func(r *http.Request) { r.Header.Set("Authorization", "Basic YTpi") }, status: 400, code: "InvalidAuthorizationHeader"},
		"signature of bytes": {spoil: func(r *http.Request) { r.Header.Set("Authorization", "MNS emulator:!") }, status: 403, code: "SignatureDoesNotMatch"},
		"header after":       {spoil: func(r *http.Request) { r.Header.Set("X-Mns-Late", "1") }, status: 403, code: "SignatureDoesNotMatch"},
		"date after":         {spoil: func(r *http.Request) { r.Header.Set("Date", gmt(time.Minute)) }, status: 403, code: "SignatureDoesNotMatch"},
		"method after":       {spoil: func(r *http.Request) { r.Method = http.MethodPut }, status: 403, code: "SignatureDoesNotMatch"},
		"query after":        {spoil: func(r *http.Request) { r.RequestURI += "?a=b" }, status: 403, code: "SignatureDoesNotMatch"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, emulator.Config{})
			k := demoKey()
			if c.key != nil {
				k = *c.key
			}
			r := k.request(t.Context(), http.MethodPost, "", messagesPath(""), oneMessage)
			if c.change != nil {
				c.change(r.Header)
				k.sign(r, messagesPath(""))
			}
			if c.spoil != nil {
				c.spoil(r)
			}
			got := do(t, s, r)
			require.Equal(t, c.status, got.status, got.raw)
			require.Equal(t, c.code, got.Code)
			if c.code != "" {
				require.Equal(t, "Error", got.XMLName.Local)
				require.NotEmpty(t, got.Message)
				require.NotEmpty(t, got.HostID)
				require.Equal(t, got.header.Get("X-Mns-Request-Id"), got.RequestID)
				require.Zero(t, stats(t, s).Sent)
			}
			require.NotEmpty(t, got.header.Get("Date"))
		})
	}
}

// What the SDK really sends where its endpoint is http://host/. : it signs
// /queues/... and requests /./queues/... or the normal form of that.
func TestSignatureOfPathsThatAreNotNormal(t *testing.T) {
	t.Parallel()
	s := newServer(t, emulator.Config{})
	for _, prefix := range []string{"", "/", "/.", "//.", "/.//."} {
		for _, signed := range []string{messagesPath(""), prefix + messagesPath("")} {
			k := demoKey()
			r := k.request(t.Context(), http.MethodPost, "", messagesPath(""), oneMessage)
			r.RequestURI = prefix + messagesPath("")
			k.sign(r, signed)
			require.Equal(t, http.StatusCreated, do(t, s, r).status, "sent %s, signed %s", r.RequestURI, signed)
		}
	}
	r := demoKey().request(t.Context(), http.MethodPost, "", messagesPath(""), oneMessage)
	r.RequestURI = "http://mns.example.com" + messagesPath("")
	require.Equal(t, http.StatusCreated, do(t, s, r).status, "absolute form")
}

// A request to Dybaseapi with the given parameters, signed by the algorithm that
// Alibaba Cloud documents, in the query or in a form.
func rpcRequest(t *testing.T, method string, k key, inForm bool, change func(url.Values)) *http.Request {
	t.Helper()
	params := url.Values{
		"Action": {"QueryTokenForMnsQueue"}, "Version": {"2017-05-25"}, "Format": {"JSON"}, "MessageType": {"Sms Report*~"},
		"AccessKeyId": {k.id}, "SignatureMethod": {"HMAC-SHA1"}, "SignatureVersion": {"1.0"},
		"SignatureNonce": {"n"}, "Timestamp": {time.Now().UTC().Format("2006-01-02T15:04:05Z")},
	}
	if change != nil {
		change(params)
	}
	encode := func(s string) string {
		return strings.NewReplacer("+", "%20", "*", "%2A", "%7E", "~").Replace(s)
	}
	text := method + "&%2F&" + encode(url.QueryEscape(encode(params.Encode())))
	if params.Get("Signature") == "" {
		params.Set("Signature", rpcSignature(k.secret, text))
	}
	if inForm {
		r := httptest.NewRequestWithContext(t.Context(), method, "/", strings.NewReader(params.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		return r
	}
	return httptest.NewRequestWithContext(t.Context(), method, "/?"+params.Encode(), http.NoBody)
}

func TestRPCSignature(t *testing.T) {
	t.Parallel()
	stamp := func(shift time.Duration) func(url.Values) {
		return func(p url.Values) {
			p.Set("Timestamp", time.Now().Add(shift).UTC().Format("2006-01-02T15:04:05Z"))
		}
	}
	set := func(name, value string) func(url.Values) { return func(p url.Values) { p.Set(name, value) } }
	for name, c := range map[string]struct {
		method string
		form   bool
		key    *key
		change func(url.Values)
		status int
		code   string
	}{
		"right":               {status: 200, code: "OK"},
		"get":                 {method: http.MethodGet, status: 200, code: "OK"},
		"form":                {form: true, status: 200, code: "OK"},
		"14 minutes behind":   {change: stamp(-14 * time.Minute), status: 200, code: "OK"},
		"16 minutes behind":   {change: stamp(-16 * time.Minute), status: 400, code: "InvalidTimeStamp.Expired"},
		"16 minutes ahead":    {change: stamp(16 * time.Minute), status: 400, code: "InvalidTimeStamp.Expired"},
		"time of no form":     {change: set("Timestamp", "now"), status: 400, code: "InvalidTimeStamp.Format"},
		"other version":       {change: set("Version", "2015-04-01"), status: 400, code: "InvalidVersion"},
		"other action":        {change: set("Action", "SendSms"), status: 404, code: "InvalidAction.NotFound"},
		"other method":        {change: set("SignatureMethod", "HMAC-SHA256"), status: 400, code: "InvalidParameter.SignatureMethod"},
		"no nonce":            {change: set("SignatureNonce", ""), status: 400, code: "MissingSignatureNonce"},
		"no message type":     {change: set("MessageType", ""), status: 400, code: "MissingMessageType"},
		"wrong secret":        {key: &key{id: emulator.DemoAccessKeyID, secret: "wrong"}, status: 400, code: "SignatureDoesNotMatch"},
		"signature of no use": {change: set("Signature", "!"), status: 400, code: "SignatureDoesNotMatch"},
		"unknown id":          {key: &key{id: "nobody", secret: "x"}, status: 404, code: "InvalidAccessKeyId.NotFound"},
		"token of a key":      {change: set("SecurityToken", "t"), status: 400, code: "InvalidSecurityToken.MismatchWithAccessKey"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, emulator.Config{})
			k := demoKey()
			if c.key != nil {
				k = *c.key
			}
			if c.method == "" {
				c.method = http.MethodPost
			}
			status, got := rpc(t, s, rpcRequest(t, c.method, k, c.form, c.change))
			require.Equal(t, c.status, status, got)
			require.Equal(t, c.code, got.Code)
			require.NotEmpty(t, got.RequestID)
			require.Equal(t, c.code == "OK", got.MessageTokenDTO != nil)
		})
	}
}

func TestRPCNonceIsGoodOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, emulator.Config{})
		ask := func() string {
			_, got := rpc(t, s, rpcRequest(t, http.MethodPost, demoKey(), false, nil))
			return got.Code
		}
		require.Equal(t, "OK", ask())
		require.Equal(t, "SignatureNonceUsed", ask())
		<-time.After(29 * time.Minute)
		require.Equal(t, "SignatureNonceUsed", ask())
		<-time.After(31 * time.Minute)
		require.Equal(t, "OK", ask(), "a request of then would be too old now")
	})
}

// Without Format the RPC services answer XML.
func TestRPCAnswersXML(t *testing.T) {
	t.Parallel()
	s := newServer(t, emulator.Config{})
	w := httptest.NewRecorder()
	s.ServeHTTP(w, rpcRequest(t, http.MethodPost, demoKey(), false, func(p url.Values) { p.Del("Format") }))
	require.Equal(t, http.StatusOK, w.Code)
	require.Contains(t, w.Body.String(), "<QueryTokenForMnsQueueResponse><RequestId>")
	require.Contains(t, w.Body.String(), "<MessageTokenDTO><AccessKeyId>STS.")
}
