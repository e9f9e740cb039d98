package emulator_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	neturl "net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/emulator"
)

func addFault(t *testing.T, s *emulator.Server, f emulator.Fault) func() {
	t.Helper()
	remove, err := s.AddFault(f)
	require.NoError(t, err)
	return remove
}

// Each operation can be made to fail alone.
func TestFaultOfEachOperation(t *testing.T) {
	t.Parallel()
	type attempt struct{ method, path, body string }
	attempts := map[emulator.Op]attempt{
		emulator.OpReceive:    {"GET", messagesPath("?numOfMessages=16"), ""},
		emulator.OpPeek:       {"GET", messagesPath("?peekonly=true"), ""},
		emulator.OpSend:       {"POST", messagesPath(""), oneMessage},
		emulator.OpDelete:     {"DELETE", deletePath("1-x"), ""},
		emulator.OpVisibility: {"PUT", visibilityPath("1-x", 1), ""},
		emulator.OpAttributes: {"GET", "/queues/" + queueName, ""},
		emulator.OpQueues:     {"PUT", "/queues/new", ""},
		emulator.OpUnknown:    {"GET", "/topics", ""},
	}
	for op := range attempts {
		s := newServer(t, emulator.Config{})
		remove := addFault(t, s, emulator.Fault{Operation: op, Status: 503, Code: "ServiceUnavailable", Message: "so <it> is"})
		for other, a := range attempts {
			got := mns(t, s, a.method, a.path, a.body)
			require.Equal(t, other == op, got.status == http.StatusServiceUnavailable, "%s at %s", op, other)
			if other == op {
				require.Equal(t, "ServiceUnavailable", got.Code)
				require.Equal(t, "so <it> is", got.Message)
				require.NotEmpty(t, got.RequestID)
			}
		}
		remove()
		a := attempts[op]
		require.NotEqual(t, http.StatusServiceUnavailable, mns(t, s, a.method, a.path, a.body).status)
	}
	s := newServer(t, emulator.Config{})
	addFault(t, s, emulator.Fault{Operation: emulator.OpToken, Status: 500, Code: "ServiceUnavailable"})
	status, got := rpc(t, s, rpcRequest(t, http.MethodPost, demoKey(), false, nil))
	require.Equal(t, http.StatusInternalServerError, status)
	require.Equal(t, "ServiceUnavailable", got.Code)
}

// What issues credentials can be made to fail alone, in each way that a client meets:
// an error, status 200 with a code that is none of success, a page, half an answer.
func TestFaultsOfCredentials(t *testing.T) {
	t.Parallel()
	requests := func(t *testing.T, s *emulator.Server) map[emulator.Op]*http.Request {
		t.Helper()
		get := func(method, path string) *http.Request {
			r := httptest.NewRequestWithContext(t.Context(), method, path, http.NoBody)
			r.Header.Set(ttlHeader, "60")
			return r
		}
		return map[emulator.Op]*http.Request{
			emulator.OpSTS: rpcRequest(t, http.MethodPost, demoKey(), false, func(p neturl.Values) {
				p.Set("Action", "AssumeRole")
				p.Set("Version", "2015-04-01")
				p.Set("RoleArn", s.RoleARN("relay"))
				p.Set("RoleSessionName", "test")
			}),
			emulator.OpOIDC: get(http.MethodPost, "/?"+neturl.Values{
				"Action": {"AssumeRoleWithOIDC"}, "Version": {"2015-04-01"}, "Format": {"JSON"}, "RoleSessionName": {"test"},
				"Timestamp": {time.Now().UTC().Format("2006-01-02T15:04:05Z")}, "RoleArn": {s.RoleARN("relay")},
				"OIDCProviderArn": {s.OIDCProviderARN()}, "OIDCToken": {s.MintOIDCToken(emulator.OIDCToken{})},
			}.Encode()),
			emulator.OpMetadataToken: get(http.MethodPut, "/latest/api/token"),
			emulator.OpMetadata:      get(http.MethodGet, rolesPath+"relay"),
			emulator.OpURI:           get(http.MethodGet, "/credentials"),
		}
	}
	ask := func(s *emulator.Server, r *http.Request) (int, string) {
		w := httptest.NewRecorder()
		func() {
			defer func() { _ = recover() }() // how a handler breaks a connection
			s.ServeHTTP(w, r)
		}()
		return w.Code, w.Body.String()
	}
	for op := range requests(t, newServer(t, emulator.Config{})) {
		t.Run(string(op), func(t *testing.T) {
			t.Parallel()
			s := newServer(t, emulator.Config{InstanceRole: "relay"})
			remove := addFault(t, s, emulator.Fault{Operation: op, Status: 503, Code: "ServiceUnavailable", Message: "so it is"})
			for other, r := range requests(t, s) {
				status, body := ask(s, r)
				if other != op {
					require.Equal(t, http.StatusOK, status, "%s: %s", other, body)
					continue
				}
				require.Equal(t, http.StatusServiceUnavailable, status)
				require.Contains(t, body, "so it is")
			}
			remove()
			remove = addFault(t, s, emulator.Fault{Operation: op, Status: 200, Code: "Denied", Message: "no"})
			status, body := ask(s, requests(t, s)[op])
			require.Equal(t, http.StatusOK, status)
			var got struct{ Code, AccessKeyID string }
			require.NoError(t, json.Unmarshal([]byte(body), &got))
			require.Equal(t, "Denied", got.Code)
			require.Empty(t, got.AccessKeyID)
			remove()
			addFault(t, s, emulator.Fault{Operation: op, Body: "<html>log in", Count: 1})
			status, body = ask(s, requests(t, s)[op])
			require.Equal(t, http.StatusOK, status)
			require.Equal(t, "<html>log in", body)
			addFault(t, s, emulator.Fault{Operation: op, Connection: emulator.CutBody, Count: 1})
			_, body = ask(s, requests(t, s)[op])
			require.NotEmpty(t, body)
			require.False(t, json.Valid([]byte(body)))
		})
	}
}

func TestFaultPerSecond(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, emulator.Config{})
		addFault(t, s, emulator.Fault{Operation: emulator.OpURI, PerSecond: 3, Status: 400, Code: "Throttling.User"})
		refused := func(n int) int {
			count := 0
			for range n {
				if metadata(t, s, http.MethodGet, "/credentials", nil).Code == http.StatusBadRequest {
					count++
				}
			}
			return count
		}
		require.Equal(t, 0, refused(1))
		<-time.After(500 * time.Millisecond)
		require.Equal(t, 2, refused(4))
		<-time.After(500 * time.Millisecond)
		require.Equal(t, 1, refused(2), "any second counts, not the clock's")
		<-time.After(time.Hour)
		require.Equal(t, 0, refused(3))
		require.EqualValues(t, 3, s.Faults()[0].Hits)
	})
}

func TestFaultOfOneQueueAndCount(t *testing.T) {
	t.Parallel()
	s := newServer(t, emulator.Config{Queues: map[string]emulator.QueueConfig{queueName: {}, "other": {}}})
	addFault(t, s, emulator.Fault{Queue: queueName, Status: 500, Count: 2})
	status := func(queue string) int { return mns(t, s, http.MethodGet, "/queues/"+queue, "").status }
	require.Equal(t, 200, status("other"))
	require.Equal(t, []int{500, 500, 200}, []int{status(queueName), status(queueName), status(queueName)})
	require.EqualValues(t, 2, s.Faults()[0].Hits)
	require.Equal(t, map[string]int64{"InternalError": 2, "OK": 2}, s.Requests()[emulator.OpAttributes])
	s.ResetRequests()
	require.Empty(t, s.Requests())
}

func TestFaultRate(t *testing.T) {
	t.Parallel()
	s := newServer(t, emulator.Config{})
	addFault(t, s, emulator.Fault{Status: 500, Rate: 0.3})
	failed := 0
	for range 2000 {
		if mns(t, s, http.MethodGet, "/queues/"+queueName, "").status == http.StatusInternalServerError {
			failed++
		}
	}
	require.InDelta(t, 600, failed, 150) // seven standard deviations
}

func TestFaultDelays(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, emulator.Config{})
		sendBody(t, s, "x")
		addFault(t, s, emulator.Fault{Operation: emulator.OpReceive, Delay: emulator.Duration(2 * time.Second), AnswerDelay: emulator.Duration(3 * time.Second)})
		start := time.Now()
		m := receiveOne(t, s)
		require.Equal(t, 5*time.Second, time.Since(start))
		require.Equal(t, start.Add(2*time.Second).UnixMilli(), m.FirstDequeueTime, "the lease was taken between the two")
	})
}

func TestFaultBody(t *testing.T) {
	t.Parallel()
	s := newServer(t, emulator.Config{})
	addFault(t, s, emulator.Fault{Status: 502, Body: "<html>bad gateway"})
	w := httptest.NewRecorder()
	s.ServeHTTP(w, demoKey().request(t.Context(), http.MethodGet, "", messagesPath(""), ""))
	require.Equal(t, http.StatusBadGateway, w.Code)
	require.Equal(t, "text/html", w.Header().Get("Content-Type"))
	require.Equal(t, "<html>bad gateway", w.Body.String())
	require.Equal(t, map[string]int64{"502": 1}, s.Requests()[emulator.OpReceive])
}

func TestFaultsOfConnections(t *testing.T) {
	t.Parallel()
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	try := func(t *testing.T, url string) (string, error) {
		t.Helper()
		response, err := transport.RoundTrip(demoKey().request(t.Context(), http.MethodGet, url, messagesPath(""), ""))
		if err != nil {
			return "", err
		}
		defer func() { _ = response.Body.Close() }()
		body, err := io.ReadAll(response.Body)
		return string(body), err
	}
	for connection, c := range map[emulator.Connection]struct {
		leased int
		code   string
	}{
		emulator.DropBefore: {0, "dropped"},
		emulator.DropAfter:  {1, "dropped"},
		emulator.CutBody:    {1, "cut"},
	} {
		t.Run(string(connection), func(t *testing.T) {
			t.Parallel()
			s, url := startServer(t, emulator.Config{})
			sendBody(t, s, "x")
			addFault(t, s, emulator.Fault{Operation: emulator.OpReceive, Connection: connection, Count: 1})
			body, err := try(t, url)
			require.Error(t, err)
			require.Equal(t, c.leased, stats(t, s).Inactive)
			require.Equal(t, map[string]int64{c.code: 1}, s.Requests()[emulator.OpReceive])
			if connection == emulator.CutBody {
				require.ErrorIs(t, err, io.ErrUnexpectedEOF)
				require.True(t, strings.HasPrefix(body, "<?xml"))
				require.NotContains(t, body, "</Message>")
			} else {
				require.ErrorIs(t, err, io.EOF)
			}
			_, err = try(t, url)
			require.NoError(t, err)
		})
	}
}

func TestFaultValidate(t *testing.T) {
	t.Parallel()
	s := newServer(t, emulator.Config{})
	for words, f := range map[string]emulator.Fault{
		"does nothing":                  {},
		`there is no operation "eat"`:   {Operation: "eat", Status: 500},
		"99 is no status":               {Status: 99},
		"needs the HTTP status":         {Code: "InternalError"},
		"not both":                      {Status: 500, Code: "a", Body: "b"},
		`connection: there is no "cut"`: {Connection: "cut"},
		"delay: must not be negative":   {Delay: -1},
		"rate: ":                        {Status: 500, Rate: 1.1},
		"per_second: ":                  {Status: 500, PerSecond: -1},
		"count: ":                       {Status: 500, Count: -1},
	} {
		_, err := s.AddFault(f)
		require.ErrorContains(t, err, words)
	}
	require.Empty(t, s.Faults())
}
