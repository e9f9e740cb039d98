package emulator_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha1"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/emulator"
)

const queueName = "orders"

// newServer makes an emulator that is not listening: requests go to ServeHTTP.
func newServer(t *testing.T, config emulator.Config) *emulator.Server {
	t.Helper()
	if config.Queues == nil {
		config.Queues = map[string]emulator.QueueConfig{queueName: {}}
	}
	s, err := emulator.New(config)
	require.NoError(t, err)
	return s
}

// startServer makes an emulator that listens on a free port.
func startServer(t *testing.T, config emulator.Config) (*emulator.Server, string) {
	t.Helper()
	s := newServer(t, config)
	url, err := s.Start(t.Context(), "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s, url
}

// key signs requests.
type key struct{ id, secret, token string }

func demoKey() key {
	return key{id: emulator.DemoAccessKeyID, secret: emulator.DemoAccessKeySecret}
}

// request makes a signed request to MNS as the official SDKs do, at the present
// time.
func (k key) request(ctx context.Context, method, base, resource, body string) *http.Request {
	r := httptest.NewRequestWithContext(ctx, method, base+resource, strings.NewReader(body))
	if base != "" { // for a client
		r.RequestURI = ""
	}
	if body == "" {
		r.Body, r.ContentLength = http.NoBody, 0
	}
	digest := md5.Sum([]byte(body))
	r.Header.Set("Content-MD5", base64.StdEncoding.EncodeToString([]byte(hex.EncodeToString(digest[:]))))
	r.Header.Set("Content-Type", "application/xml")
	r.Header.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	r.Header.Set("x-mns-version", "2015-06-06")
	if k.token != "" {
		r.Header.Set("security-token", k.token)
	}
	k.sign(r, resource)
	return r
}

// sign is an implementation of its own of the signature that MNS documents.
func (k key) sign(r *http.Request, resource string) {
	var headers []string
	for name := range r.Header {
		if name := strings.ToLower(name); strings.HasPrefix(name, "x-mns-") {
			headers = append(headers, name+":"+r.Header.Get(name)+"\n")
		}
	}
	slices.Sort(headers)
	mac := hmac.New(sha1.New, []byte(k.secret))
	_, _ = fmt.Fprintf(mac, "%s\n%s\n%s\n%s\n%s%s", r.Method, r.Header.Get("Content-MD5"),
		r.Header.Get("Content-Type"), r.Header.Get("Date"), strings.Join(headers, ""), resource)
	r.Header.Set("Authorization", "MNS "+k.id+":"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
}

// reply is an answer, read with encoding/xml.
type reply struct {
	XMLName          xml.Name
	Code             string
	Message          string
	RequestID        string `xml:"RequestId"`
	HostID           string `xml:"HostId"`
	NextMarker       string
	Queues           []replyQueue   `xml:"Queue"`
	Errors           []replyError   `xml:"Error"`
	Messages         []replyMessage `xml:"-"`
	ReceiptHandle    string
	NextVisibleTime  int64
	QueueName        string
	ActiveMessages   string
	InactiveMessages string
	DelayMessages    string

	status int
	header http.Header
	raw    string
}

type replyQueue struct{ QueueURL string }

type replyError struct{ ErrorCode, ErrorMessage, ReceiptHandle string }

type replyMessage struct {
	MessageID        string `xml:"MessageId"`
	MessageBodyMD5   string
	MessageBody      string
	ReceiptHandle    string
	EnqueueTime      int64
	NextVisibleTime  int64
	FirstDequeueTime int64
	DequeueCount     int
	Priority         int
}

func parseReply(t *testing.T, status int, header http.Header, body []byte) reply {
	t.Helper()
	r := reply{status: status, header: header, raw: string(body)}
	if len(body) == 0 {
		return r
	}
	// Message is a code's text in an error and an element in a list: two readings.
	var root struct{ XMLName xml.Name }
	require.NoError(t, xml.Unmarshal(body, &root), r.raw)
	r.XMLName = root.XMLName
	switch root.XMLName.Local {
	case "Messages":
		var list struct {
			Message []replyMessage
		}
		require.NoError(t, xml.Unmarshal(body, &list))
		r.Messages = list.Message
	case "Message":
		var one replyMessage
		require.NoError(t, xml.Unmarshal(body, &one))
		r.Messages = []replyMessage{one}
	default:
		require.NoError(t, xml.Unmarshal(body, &r))
	}
	require.Equal(t, "http://mns.aliyuncs.com/doc/v1/", r.XMLName.Space)
	return r
}

// do sends a request to ServeHTTP.
func do(t *testing.T, s *emulator.Server, r *http.Request) reply {
	t.Helper()
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return parseReply(t, w.Code, w.Header(), w.Body.Bytes())
}

// mns does a request signed with the demo key.
func mns(t *testing.T, s *emulator.Server, method, resource, body string) reply {
	t.Helper()
	return do(t, s, demoKey().request(t.Context(), method, "", resource, body))
}

func messagesPath(query string) string { return "/queues/" + queueName + "/messages" + query }

func receive(t *testing.T, s *emulator.Server, query string) []replyMessage {
	t.Helper()
	got := mns(t, s, http.MethodGet, messagesPath(query), "")
	if got.status == http.StatusNotFound {
		require.Equal(t, "MessageNotExist", got.Code)
		return nil
	}
	require.Equal(t, http.StatusOK, got.status, got.raw)
	return got.Messages
}

func receiveOne(t *testing.T, s *emulator.Server) replyMessage {
	t.Helper()
	messages := receive(t, s, "")
	require.Len(t, messages, 1)
	return messages[0]
}

func sendBody(t *testing.T, s *emulator.Server, body string) string {
	t.Helper()
	id, err := s.Send(queueName, []byte(body))
	require.NoError(t, err)
	return id
}

func stats(t *testing.T, s *emulator.Server) emulator.QueueStats {
	t.Helper()
	got, found := s.QueueStats(queueName)
	require.True(t, found)
	return got
}

func deletePath(handle string) string { return messagesPath("?ReceiptHandle=" + handle) }

func visibilityPath(handle string, seconds int) string {
	return messagesPath(fmt.Sprintf("?receiptHandle=%s&visibilityTimeout=%d", handle, seconds))
}

// control calls a control of the emulator and gives status and body.
func control(t *testing.T, s *emulator.Server, method, path, body string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	r := httptest.NewRequestWithContext(t.Context(), method, "/_emulator"+path, bytes.NewBufferString(body))
	s.ServeHTTP(w, r)
	answer, err := io.ReadAll(w.Body)
	require.NoError(t, err)
	return w.Code, string(answer)
}

// rpcReply is an answer of Dybaseapi or STS.
type rpcReply struct {
	RequestID       string `json:"RequestId"`
	Code, Message   string
	MessageTokenDTO *struct {
		AccessKeyID     string `json:"AccessKeyId"`
		AccessKeySecret string
		SecurityToken   string
		CreateTime      string
		ExpireTime      string
	}
}

func rpc(t *testing.T, s *emulator.Server, r *http.Request) (int, rpcReply) {
	t.Helper()
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	var got rpcReply
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &got), w.Body.String())
	return w.Code, got
}

func rpcSignature(secret, text string) string {
	mac := hmac.New(sha1.New, []byte(secret+"&"))
	_, _ = mac.Write([]byte(text))
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// issueToken asks for a token without a connection, so that it works where time is
// simulated.
func issueToken(t *testing.T, s *emulator.Server) key {
	t.Helper()
	_, got := rpc(t, s, rpcRequest(t, http.MethodPost, demoKey(), false, func(p url.Values) {
		p.Set("SignatureNonce", rand.Text())
	}))
	require.Equal(t, "OK", got.Code)
	dto := got.MessageTokenDTO
	return key{dto.AccessKeyID, dto.AccessKeySecret, dto.SecurityToken}
}
