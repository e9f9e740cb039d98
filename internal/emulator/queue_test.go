package emulator_test

import (
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/emulator"
)

func sendXML(content string) string {
	return `<?xml version="1.0"?><Message xmlns="http://mns.aliyuncs.com/doc/v1/">` + content + `</Message>`
}

func TestVisibilityClock(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, emulator.Config{})
		sent := time.Now().UnixMilli()
		id := sendBody(t, s, "x")
		<-time.After(5 * time.Second)

		first := receiveOne(t, s)
		received := time.Now().UnixMilli()
		digest := md5.Sum([]byte("x"))
		require.Equal(t, replyMessage{
			MessageID: id, MessageBody: "x", MessageBodyMD5: strings.ToUpper(hex.EncodeToString(digest[:])),
			ReceiptHandle: first.ReceiptHandle, EnqueueTime: sent, FirstDequeueTime: received,
			NextVisibleTime: received + 30_000, DequeueCount: 1, Priority: 8,
		}, first)
		require.Equal(t, emulator.QueueStats{Inactive: 1, Sent: 1, Received: 1}, stats(t, s))

		<-time.After(29_999 * time.Millisecond)
		require.Empty(t, receive(t, s, ""), "leased to the last millisecond")
		<-time.After(time.Millisecond)
		second := receiveOne(t, s)
		require.Equal(t, 2, second.DequeueCount)
		require.Equal(t, received, second.FirstDequeueTime)
		require.Equal(t, received+60_000, second.NextVisibleTime)
		require.NotEqual(t, first.ReceiptHandle, second.ReceiptHandle)

		dead := mns(t, s, http.MethodDelete, deletePath(first.ReceiptHandle), "")
		require.Equal(t, http.StatusNotFound, dead.status)
		require.Equal(t, "MessageNotExist", dead.Code)
		require.Equal(t, http.StatusNoContent, mns(t, s, http.MethodDelete, deletePath(second.ReceiptHandle), "").status)
		require.Equal(t, http.StatusNotFound, mns(t, s, http.MethodDelete, deletePath(second.ReceiptHandle), "").status, "deleted twice")
		require.Equal(t, emulator.QueueStats{Sent: 1, Received: 2, Redelivered: 1, Deleted: 1}, stats(t, s))
	})
}

func TestHandleDiesWithItsLease(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, emulator.Config{})
		sendBody(t, s, "x")
		handle := receiveOne(t, s).ReceiptHandle
		<-time.After(30 * time.Second)
		// Nobody has received it again, and still:
		require.Equal(t, "MessageNotExist", mns(t, s, http.MethodDelete, deletePath(handle), "").Code)
		require.Equal(t, "MessageNotExist", mns(t, s, http.MethodPut, visibilityPath(handle, 10), "").Code)
		require.Equal(t, 1, stats(t, s).Active)
	})
}

func TestChangeVisibility(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, emulator.Config{})
		sendBody(t, s, "x")
		old := receiveOne(t, s).ReceiptHandle
		<-time.After(20 * time.Second)
		changed := mns(t, s, http.MethodPut, visibilityPath(old, 60), "")
		require.Equal(t, http.StatusOK, changed.status)
		require.Equal(t, "ChangeVisibility", changed.XMLName.Local)
		require.Equal(t, time.Now().UnixMilli()+60_000, changed.NextVisibleTime)
		require.NotEqual(t, old, changed.ReceiptHandle)
		require.Equal(t, "MessageNotExist", mns(t, s, http.MethodPut, visibilityPath(old, 60), "").Code, "the old handle is dead")

		<-time.After(59 * time.Second)
		require.Empty(t, receive(t, s, ""))
		shorter := mns(t, s, http.MethodPut, messagesPath("?ReceiptHandle="+changed.ReceiptHandle+"&VisibilityTimeout=5"), "")
		require.Equal(t, http.StatusOK, shorter.status, "the names as the Go SDK writes them")
		<-time.After(5 * time.Second)
		require.Equal(t, 2, receiveOne(t, s).DequeueCount, "a visibility change is no receive")
	})
}

// A message whose lease is renewed holds nobody up whose lease ends before.
func TestVisibilityChangeAmongOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, emulator.Config{})
		for _, body := range []string{"long", "usual", "short"} {
			sendBody(t, s, body)
		}
		got := receive(t, s, "?numOfMessages=3")
		mns(t, s, http.MethodPut, visibilityPath(got[0].ReceiptHandle, 100), "")
		mns(t, s, http.MethodPut, visibilityPath(got[2].ReceiptHandle, 10), "")
		start := time.Now()
		for _, want := range []struct {
			body string
			in   time.Duration
		}{{"short", 10 * time.Second}, {"usual", 30 * time.Second}, {"long", 100 * time.Second}} {
			var m []replyMessage
			for len(m) == 0 {
				m = receive(t, s, "?waitseconds=30")
			}
			require.Equal(t, want.body, m[0].MessageBody)
			require.Equal(t, want.in, time.Since(start))
			require.Equal(t, http.StatusNoContent, mns(t, s, http.MethodDelete, deletePath(m[0].ReceiptHandle), "").status)
		}
	})
}

func TestHandlesOfOtherQueues(t *testing.T) {
	t.Parallel()
	s := newServer(t, emulator.Config{Queues: map[string]emulator.QueueConfig{queueName: {}, "other": {}}})
	_, err := s.Send("other", []byte("x"))
	require.NoError(t, err)
	foreign := mns(t, s, http.MethodGet, "/queues/other/messages", "").Messages[0].ReceiptHandle
	for _, handle := range []string{foreign, "", "1-", "1-AAAA", "2-MS0xLTE=", "not%20a%20handle"} {
		got := mns(t, s, http.MethodDelete, deletePath(handle), "")
		require.Equal(t, http.StatusBadRequest, got.status, handle)
		require.Equal(t, "ReceiptHandleError", got.Code, handle)
	}
}

func TestDelay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, emulator.Config{Queues: map[string]emulator.QueueConfig{queueName: {Delay: 10 * time.Second}}})
		plain := mns(t, s, http.MethodPost, messagesPath(""), sendXML("<MessageBody>queue's</MessageBody>"))
		require.Equal(t, http.StatusCreated, plain.status)
		require.NotEmpty(t, plain.Messages[0].ReceiptHandle, "a delayed message has a handle")
		own := mns(t, s, http.MethodPost, messagesPath(""), sendXML("<MessageBody>own</MessageBody><DelaySeconds>3</DelaySeconds>"))
		require.Equal(t, http.StatusCreated, own.status)
		none := mns(t, s, http.MethodPost, messagesPath(""), sendXML("<MessageBody>none</MessageBody><DelaySeconds>0</DelaySeconds>"))
		require.Empty(t, none.Messages[0].ReceiptHandle)
		cancelled := mns(t, s, http.MethodPost, messagesPath(""), sendXML("<MessageBody>cancelled</MessageBody>"))
		require.Equal(t, http.StatusNoContent, mns(t, s, http.MethodDelete, deletePath(cancelled.Messages[0].ReceiptHandle), "").status)

		require.Equal(t, emulator.QueueStats{Active: 1, Delayed: 2, Sent: 4, Deleted: 1}, stats(t, s))
		require.Equal(t, "none", receiveOne(t, s).MessageBody)
		<-time.After(3 * time.Second)
		require.Equal(t, "own", receiveOne(t, s).MessageBody)
		require.Empty(t, receive(t, s, ""))
		<-time.After(7 * time.Second)
		require.Equal(t, "queue's", receiveOne(t, s).MessageBody)
		require.Equal(t, "MessageNotExist", mns(t, s, http.MethodDelete, deletePath(plain.Messages[0].ReceiptHandle), "").Code)
	})
}

func TestPriorityThenOrder(t *testing.T) {
	t.Parallel()
	s := newServer(t, emulator.Config{})
	for i, priority := range []int{16, 8, 1, 8, 1} {
		_, err := s.SendAll(queueName, []emulator.Message{{Body: []byte(strconv.Itoa(i)), Priority: priority}})
		require.NoError(t, err)
	}
	var peeked, got []string
	for _, m := range mns(t, s, http.MethodGet, messagesPath("?peekonly=true&numOfMessages=16"), "").Messages {
		peeked = append(peeked, m.MessageBody)
	}
	for _, m := range receive(t, s, "?numOfMessages=16") {
		got = append(got, m.MessageBody)
	}
	require.Equal(t, []string{"2", "4", "1", "3", "0"}, got)
	require.Equal(t, got, peeked)
}

func TestPeekChangesNothing(t *testing.T) {
	t.Parallel()
	s := newServer(t, emulator.Config{})
	id := sendBody(t, s, "x")
	for range 3 {
		got := mns(t, s, http.MethodGet, messagesPath("?peekonly=true"), "")
		require.Equal(t, http.StatusOK, got.status)
		require.NotContains(t, got.raw, "ReceiptHandle")
		require.NotContains(t, got.raw, "NextVisibleTime")
		require.Equal(t, id, got.Messages[0].MessageID)
		require.Zero(t, got.Messages[0].DequeueCount)
		require.Zero(t, got.Messages[0].FirstDequeueTime)
	}
	require.Equal(t, 1, receiveOne(t, s).DequeueCount)
	require.Equal(t, "MessageNotExist", mns(t, s, http.MethodGet, messagesPath("?peekonly=true"), "").Code, "leased ones are not shown")
}

func TestRetention(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, emulator.Config{Queues: map[string]emulator.QueueConfig{
			queueName: {MessageRetentionPeriod: time.Minute, VisibilityTimeout: time.Hour},
		}})
		sendBody(t, s, "leased")
		handle := receiveOne(t, s).ReceiptHandle
		sendBody(t, s, "visible")
		_, err := s.SendAll(queueName, []emulator.Message{{Body: []byte("delayed"), Delay: 2 * time.Minute}})
		require.NoError(t, err)
		<-time.After(30 * time.Second)
		sendBody(t, s, "younger")
		<-time.After(30 * time.Second)
		require.Equal(t, emulator.QueueStats{Active: 1, Sent: 4, Received: 1, Expired: 3}, stats(t, s))
		require.Equal(t, "MessageNotExist", mns(t, s, http.MethodDelete, deletePath(handle), "").Code)
		require.Equal(t, "younger", receiveOne(t, s).MessageBody)
	})
}

func TestBatchDeleteNamesOnlyTheFailed(t *testing.T) {
	t.Parallel()
	s := newServer(t, emulator.Config{})
	for i := range 3 {
		sendBody(t, s, strconv.Itoa(i))
	}
	got := receive(t, s, "?numOfMessages=3")
	document := func(handles ...string) string {
		return "<ReceiptHandles><ReceiptHandle>" + strings.Join(handles, "</ReceiptHandle><ReceiptHandle>") + "</ReceiptHandle></ReceiptHandles>"
	}
	a, b, c := got[0].ReceiptHandle, got[1].ReceiptHandle, got[2].ReceiptHandle
	require.Equal(t, http.StatusNoContent, mns(t, s, http.MethodDelete, messagesPath(""), document(a)).status)
	partial := mns(t, s, http.MethodDelete, messagesPath(""), document(b, a, "gar&lt;bage", c))
	require.Equal(t, http.StatusNotFound, partial.status)
	require.Equal(t, "Errors", partial.XMLName.Local)
	require.Equal(t, []replyError{
		{"MessageNotExist", "Message not exist.", a},
		{"ReceiptHandleError", "The receipt handle you provide is not valid.", "gar<bage"},
	}, partial.Errors)
	require.Equal(t, emulator.QueueStats{Sent: 3, Received: 3, Deleted: 3}, stats(t, s))
}

// Any text that XML can carry comes out as it went in, however it was written.
func TestBodies(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ content, body string }{
		"plain":              {"abc", "abc"},
		"empty":              {"", ""},
		"entities":           {"&lt;a&gt; &amp;amp; &quot;&apos;", `<a> &amp; "'`},
		"references":         {"&#65;&#x42;&#x4E2D;&#13;&#10;&#9;", "AB中\r\n\t"},
		"cdata":              {"<![CDATA[<a>&amp;]]>", "<a>&amp;"},
		"cdata twice":        {"a<![CDATA[]]]]><![CDATA[>]]>b", "a]]>b"},
		"comment between":    {"a<!-- - -->b", "ab"},
		"line ends":          {"a\r\nb\rc\n", "a\nb\nc\n"},
		"white space":        {"  \n\t ", "  \n\t "},
		"beyond the plane":   {"😀\u00a0é", "😀\u00a0é"},
		"instruction inside": {"a<?x y?>b", "ab"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, emulator.Config{})
			sent := mns(t, s, http.MethodPost, messagesPath(""), sendXML("<MessageBody>"+c.content+"</MessageBody>"))
			require.Equal(t, http.StatusCreated, sent.status, sent.raw)
			digest := md5.Sum([]byte(c.body))
			got := receiveOne(t, s)
			require.Equal(t, c.body, got.MessageBody)
			require.Equal(t, strings.ToUpper(hex.EncodeToString(digest[:])), got.MessageBodyMD5)
			require.Equal(t, got.MessageBodyMD5, sent.Messages[0].MessageBodyMD5)
		})
	}
}

func TestSendRefusesWhatXMLCannotCarry(t *testing.T) {
	t.Parallel()
	s := newServer(t, emulator.Config{})
	for _, body := range []string{"\x00", "a\x1b", "\xff", "\uFFFE"} {
		_, err := s.Send(queueName, []byte(body))
		require.ErrorContains(t, err, "encode the body as base64", "%q", body)
		got := mns(t, s, http.MethodPost, messagesPath(""), sendXML("<MessageBody>"+body+"</MessageBody>"))
		require.Equal(t, "MalformedXML", got.Code, "%q", body)
	}
	_, err := s.SendBase64(queueName, []byte{0, 0xff})
	require.NoError(t, err)
	require.Equal(t, "AP8=", receiveOne(t, s).MessageBody)
}

func TestLimits(t *testing.T) {
	t.Parallel()
	many := func(n int, one string) string { return strings.Repeat(one, n) }
	entry := "<Message><MessageBody>x</MessageBody></Message>"
	for name, c := range map[string]struct {
		method, path, body string
		status             int
		code               string
	}{
		"largest body":           {"POST", messagesPath(""), sendXML("<MessageBody>" + many(65536, "&lt;") + "</MessageBody>"), 201, ""},
		"body too large":         {"POST", messagesPath(""), sendXML("<MessageBody>" + many(65537, "x") + "</MessageBody>"), 400, "InvalidArgument"},
		"no body":                {"POST", messagesPath(""), sendXML(""), 400, "InvalidArgument"},
		"priority 0":             {"POST", messagesPath(""), sendXML("<MessageBody/><Priority>0</Priority>"), 400, "InvalidArgument"},
		"priority 17":            {"POST", messagesPath(""), sendXML("<MessageBody/><Priority>17</Priority>"), 400, "InvalidArgument"},
		"priority of words":      {"POST", messagesPath(""), sendXML("<MessageBody/><Priority>high</Priority>"), 400, "InvalidArgument"},
		"longest delay":          {"POST", messagesPath(""), sendXML("<MessageBody/><DelaySeconds>604800</DelaySeconds>"), 201, ""},
		"delay too long":         {"POST", messagesPath(""), sendXML("<MessageBody/><DelaySeconds>604801</DelaySeconds>"), 400, "InvalidArgument"},
		"unknown element":        {"POST", messagesPath(""), sendXML("<MessageBody/><New><a>1</a></New>"), 201, ""},
		"batch of 16":            {"POST", messagesPath(""), "<Messages>" + many(16, entry) + "</Messages>", 201, ""},
		"batch of 17":            {"POST", messagesPath(""), "<Messages>" + many(17, entry) + "</Messages>", 400, "InvalidArgument"},
		"batch of none":          {"POST", messagesPath(""), "<Messages></Messages>", 400, "InvalidArgument"},
		"other document":         {"POST", messagesPath(""), "<Order/>", 400, "InvalidArgument"},
		"cut document":           {"POST", messagesPath(""), "<Message><MessageBody>", 400, "MalformedXML"},
		"nothing":                {"POST", messagesPath(""), "", 400, "MalformedXML"},
		"document type":          {"POST", messagesPath(""), "<!DOCTYPE a><Message/>", 400, "MalformedXML"},
		"two documents":          {"POST", messagesPath(""), entry + entry, 400, "MalformedXML"},
		"receive 0":              {"GET", messagesPath("?numOfMessages=0"), "", 400, "InvalidArgument"},
		"receive 17":             {"GET", messagesPath("?numOfMessages=17"), "", 400, "InvalidArgument"},
		"receive some":           {"GET", messagesPath("?numOfMessages=some"), "", 400, "InvalidQueryString"},
		"wait 31":                {"GET", messagesPath("?waitseconds=31"), "", 400, "InvalidArgument"},
		"wait -1":                {"GET", messagesPath("?waitseconds=-1"), "", 400, "InvalidArgument"},
		"empty":                  {"GET", messagesPath("?waitseconds=0"), "", 404, "MessageNotExist"},
		"empty batch":            {"GET", messagesPath("?numOfMessages=16"), "", 404, "MessageNotExist"},
		"peek 17":                {"GET", messagesPath("?peekonly=true&numOfMessages=17"), "", 400, "InvalidArgument"},
		"visibility 0":           {"PUT", visibilityPath("1-x", 0), "", 400, "InvalidArgument"},
		"visibility 43201":       {"PUT", visibilityPath("1-x", 43201), "", 400, "InvalidArgument"},
		"visibility without one": {"PUT", messagesPath("?receiptHandle=1-x"), "", 400, "MissingVisibilityTimeout"},
		"visibility of nothing":  {"PUT", messagesPath("?visibilityTimeout=1"), "", 400, "MissingReceiptHandle"},
		"delete nothing":         {"DELETE", messagesPath(""), "", 400, "MissingReceiptHandle"},
		"delete 17":              {"DELETE", messagesPath(""), "<ReceiptHandles>" + many(17, "<ReceiptHandle>1-x</ReceiptHandle>") + "</ReceiptHandles>", 400, "InvalidArgument"},
		"no queue":               {"GET", "/queues/none/messages", "", 404, "QueueNotExist"},
		"no queue to send to":    {"POST", "/queues/none/messages", oneMessage, 404, "QueueNotExist"},
		"no queue to look at":    {"GET", "/queues/none", "", 404, "QueueNotExist"},
		"no queue to change":     {"PUT", "/queues/none?metaoverride=true", "<Queue/>", 404, "QueueNotExist"},
		"no queue to delete":     {"DELETE", "/queues/none", "", 404, "QueueNotExist"},
		"queue name":             {"PUT", "/queues/a_b", "", 400, "InvalidQueueName"},
		"long queue name":        {"PUT", "/queues/" + many(257, "a"), "", 400, "QueueNameLengthError"},
		"queue visibility":       {"PUT", "/queues/new", "<Queue><VisibilityTimeout>43201</VisibilityTimeout></Queue>", 400, "InvalidArgument"},
		"queue size":             {"PUT", "/queues/new", "<Queue><MaximumMessageSize>65537</MaximumMessageSize></Queue>", 400, "InvalidArgument"},
		"queue retention":        {"PUT", "/queues/new", "<Queue><MessageRetentionPeriod>59</MessageRetentionPeriod></Queue>", 400, "InvalidArgument"},
		"queue wait":             {"PUT", "/queues/new", "<Queue><PollingWaitSeconds>31</PollingWaitSeconds></Queue>", 400, "InvalidArgument"},
		"new queue":              {"PUT", "/queues/new", "", 201, ""},
		"topics":                 {"GET", "/topics", "", 400, "InvalidRequestURL"},
		"other method":           {"PATCH", messagesPath(""), "", 400, "InvalidRequestURL"},
		"hostile path":           {"GET", "/queues/" + queueName + "/%00%1b%ff<", "", 400, "InvalidRequestURL"},
		"other path":             {"GET", messagesPath("/1"), "", 400, "InvalidRequestURL"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := mns(t, newServer(t, emulator.Config{}), c.method, c.path, c.body)
			require.Equal(t, c.status, got.status, got.raw)
			require.Equal(t, c.code, got.Code)
		})
	}
}

func TestQueueAttributes(t *testing.T) {
	t.Parallel()
	for _, hide := range []bool{false, true} {
		s := newServer(t, emulator.Config{HideCounts: hide})
		_, err := s.SendAll(queueName, []emulator.Message{{Body: []byte("a")}, {Body: []byte("b")}, {Body: []byte("c"), Delay: time.Minute}})
		require.NoError(t, err)
		receiveOne(t, s)
		got := mns(t, s, http.MethodGet, "/queues/"+queueName, "")
		require.Equal(t, http.StatusOK, got.status)
		require.Equal(t, queueName, got.QueueName)
		counts := []string{got.ActiveMessages, got.InactiveMessages, got.DelayMessages}
		if hide {
			require.Equal(t, []string{"0", "0", "0"}, counts)
		} else {
			require.Equal(t, []string{"1", "1", "1"}, counts)
		}
		require.Contains(t, got.raw, "<VisibilityTimeout>30</VisibilityTimeout>")
	}
}

// The smaller size that a queue is given counts at once, for sends to come.
func TestSetQueueAttributes(t *testing.T) {
	t.Parallel()
	s := newServer(t, emulator.Config{})
	set := mns(t, s, http.MethodPut, "/queues/"+queueName+"?metaoverride=true",
		"<Queue><MaximumMessageSize>1024</MaximumMessageSize><LoggingEnabled>true</LoggingEnabled></Queue>")
	require.Equal(t, http.StatusNoContent, set.status)
	got := mns(t, s, http.MethodGet, "/queues/"+queueName, "")
	require.Contains(t, got.raw, "<MaximumMessageSize>1024</MaximumMessageSize>")
	require.Contains(t, got.raw, "<VisibilityTimeout>30</VisibilityTimeout>", "what was not named stays")
	require.Contains(t, got.raw, "<LoggingEnabled>True</LoggingEnabled>")
	_, err := s.Send(queueName, make([]byte, 1025))
	require.Error(t, err)
	wrong := mns(t, s, http.MethodPut, "/queues/"+queueName+"?metaoverride=true", "<Queue><VisibilityTimeout>0</VisibilityTimeout></Queue>")
	require.Equal(t, "InvalidArgument", wrong.Code)
}

func TestConcurrentReceiversGetDisjointMessages(t *testing.T) {
	t.Parallel()
	const total = 2000
	s := newServer(t, emulator.Config{})
	var senders, receivers sync.WaitGroup
	for sender := range 4 {
		senders.Go(func() {
			for i := range total / 4 {
				_, err := s.Send(queueName, fmt.Appendf(nil, "%d-%d", sender, i))
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	var mu sync.Mutex
	seen := map[string]int{}
	for range 4 {
		receivers.Go(func() {
			for {
				mu.Lock()
				enough := len(seen) == total
				mu.Unlock()
				if enough {
					return
				}
				got := mns(t, s, http.MethodGet, messagesPath("?numOfMessages=16&waitseconds=1"), "")
				for _, m := range got.Messages {
					mu.Lock()
					seen[m.MessageBody]++
					mu.Unlock()
					if deleted := mns(t, s, http.MethodDelete, deletePath(m.ReceiptHandle), ""); deleted.status != http.StatusNoContent {
						t.Error(deleted.raw)
					}
				}
			}
		})
	}
	senders.Wait()
	receivers.Wait()
	require.Len(t, seen, total)
	for body, n := range seen {
		require.Equal(t, 1, n, body)
	}
	require.Equal(t, emulator.QueueStats{Sent: total, Received: total, Deleted: total}, stats(t, s))
}
