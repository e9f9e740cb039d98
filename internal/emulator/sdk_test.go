package emulator_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/auth/credentials"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/errors"
	"github.com/aliyun/alibaba-cloud-sdk-go/services/dybaseapi"
	"github.com/aliyun/alibaba-cloud-sdk-go/services/sts"
	ali_mns "github.com/aliyun/aliyun-mns-go-sdk"
	"github.com/stretchr/testify/require"

	"mnsrelay/internal/emulator"
)

func mnsClient(url string, k key) ali_mns.MNSClient {
	return ali_mns.NewAliMNSClientWithConfig(ali_mns.AliMNSClientConfig{
		// Five pieces between dots, which its constructor wants.
		EndPoint:        url + "/.",
		AccessKeyId:     k.id,
		AccessKeySecret: k.secret,
		Token:           k.token,
	})
}

// answered runs one of the SDK's receive functions, which answer on channels.
func answered[R any](t *testing.T, f func(chan R, chan error)) (R, error) {
	t.Helper()
	answers, errs := make(chan R, 1), make(chan error, 1)
	f(answers, errs)
	select {
	case r := <-answers:
		return r, nil
	case err := <-errs:
		var none R
		return none, err
	}
}

func dybase(t *testing.T, url string, k key) *dybaseapi.Client {
	t.Helper()
	client, err := dybaseapi.NewClientWithOptions("cn-hangzhou", sdk.NewConfig(),
		credentials.NewStsTokenCredential(k.id, k.secret, k.token))
	require.NoError(t, err)
	client.Domain = strings.TrimPrefix(url, "http://")
	return client
}

func token(t *testing.T, url string, k key) (*dybaseapi.QueryTokenForMnsQueueResponse, error) {
	t.Helper()
	request := dybaseapi.CreateQueryTokenForMnsQueueRequest()
	request.MessageType = "SmsReport"
	request.Scheme = "http"
	return dybase(t, url, k).QueryTokenForMnsQueue(request)
}

func tokenKey(t *testing.T, url string) key {
	t.Helper()
	response, err := token(t, url, demoKey())
	require.NoError(t, err)
	require.Equal(t, "OK", response.Code)
	dto := response.MessageTokenDTO
	return key{dto.AccessKeyId, dto.AccessKeySecret, dto.SecurityToken}
}

// The official SDK's queue API, every operation, over the wire.
func TestOfficialSDK(t *testing.T) {
	t.Parallel()
	s, url := startServer(t, emulator.Config{Queues: map[string]emulator.QueueConfig{}})
	client := mnsClient(url, demoKey())

	manager := ali_mns.NewMNSQueueManager(client)
	require.NoError(t, manager.CreateQueue("sdk", 0, 65536, 345600, 30, 0, 2))
	require.ErrorContains(t, manager.CreateQueue("sdk", 0, 65536, 345600, 30, 0, 2), "already exist, and the attribute is the same")
	require.ErrorContains(t, manager.CreateQueue("sdk", 0, 65536, 345600, 31, 0, 2), "QueueAlreadyExist")
	require.NoError(t, manager.SetQueueAttributes("sdk", 0, 2048, 345600, 45, 0, 2))
	attributes, err := manager.GetQueueAttributes("sdk")
	require.NoError(t, err)
	require.Equal(t, "sdk", attributes.QueueName)
	require.EqualValues(t, 45, attributes.VisibilityTimeout)
	require.EqualValues(t, 2048, attributes.MaxMessageSize)
	for i := range 3 {
		require.NoError(t, manager.CreateSimpleQueue(fmt.Sprintf("page-%d", i)))
	}
	list, err := manager.ListQueue("", 2, "page-")
	require.NoError(t, err)
	require.Len(t, list.Queues, 2)
	list, err = manager.ListQueue(list.NextMarker, 2, "page-")
	require.NoError(t, err)
	require.Len(t, list.Queues, 1)
	require.Equal(t, url+"/queues/page-2", list.Queues[0].QueueURL)
	require.Empty(t, list.NextMarker)
	details, err := manager.ListQueueDetail("", 10, "page-")
	require.NoError(t, err)
	require.Len(t, details.Attrs, 3)
	require.EqualValues(t, 30, details.Attrs[0].VisibilityTimeout)

	queue := ali_mns.NewMNSQueue("sdk", client)
	sent, err := queue.SendMessage(ali_mns.MessageSendRequest{MessageBody: "one <&> \r\n \"二\"", Priority: 8})
	require.NoError(t, err)
	require.NotEmpty(t, sent.RequestId)
	batch, err := queue.BatchSendMessage(
		ali_mns.MessageSendRequest{MessageBody: "two", Priority: 8},
		ali_mns.MessageSendRequest{MessageBody: "late", Priority: 8, DelaySeconds: 60})
	require.NoError(t, err)
	require.Len(t, batch.Messages, 2)

	peeked, err := answered(t, queue.PeekMessage)
	require.NoError(t, err)
	require.Equal(t, sent.MessageId, peeked.MessageId)
	require.Empty(t, peeked.ReceiptHandle)
	allPeeked, err := answered(t, func(r chan ali_mns.BatchMessageReceiveResponse, e chan error) { queue.BatchPeekMessage(r, e, 16) })
	require.NoError(t, err)
	require.Len(t, allPeeked.Messages, 2)

	first, err := answered(t, func(r chan ali_mns.MessageReceiveResponse, e chan error) { queue.ReceiveMessage(r, e, 1) })
	require.NoError(t, err)
	require.Equal(t, "one <&> \r\n \"二\"", first.MessageBody)
	require.Equal(t, sent.MessageBodyMD5, first.MessageBodyMD5)
	require.EqualValues(t, 1, first.DequeueCount)
	changed, err := queue.ChangeMessageVisibility(first.ReceiptHandle, 60)
	require.NoError(t, err)
	require.NotEqual(t, first.ReceiptHandle, changed.ReceiptHandle)
	require.Greater(t, changed.NextVisibleTime, first.NextVisibleTime)
	require.ErrorContains(t, queue.DeleteMessage(first.ReceiptHandle), "MessageNotExist")
	require.NoError(t, queue.DeleteMessage(changed.ReceiptHandle))

	rest, err := answered(t, func(r chan ali_mns.BatchMessageReceiveResponse, e chan error) { queue.BatchReceiveMessage(r, e, 16, 1) })
	require.NoError(t, err)
	require.Len(t, rest.Messages, 1)
	failures, err := queue.BatchDeleteMessage(rest.Messages[0].ReceiptHandle, changed.ReceiptHandle)
	require.Error(t, err)
	require.Len(t, failures.FailedMessages, 1)
	require.Equal(t, changed.ReceiptHandle, failures.FailedMessages[0].ReceiptHandle)
	require.Equal(t, "MessageNotExist", failures.FailedMessages[0].ErrorCode)

	got, found := s.QueueStats("sdk")
	require.True(t, found)
	require.Equal(t, emulator.QueueStats{Delayed: 1, Sent: 3, Received: 2, Deleted: 2}, got)
	require.NoError(t, manager.DeleteQueue("sdk"))
	_, err = manager.GetQueueAttributes("sdk")
	require.ErrorContains(t, err, "QueueNotExist")
}

func TestOfficialSDKWrongKeys(t *testing.T) {
	t.Parallel()
	_, url := startServer(t, emulator.Config{})
	for name, c := range map[string]struct {
		key  key
		code string
	}{
		"secret": {key{id: emulator.DemoAccessKeyID, secret: "wrong"}, "SignatureDoesNotMatch"},
		"id":     {key{id: "nobody", secret: "wrong"}, "InvalidAccessKeyId"},
		"token":  {key{id: emulator.DemoAccessKeyID, secret: emulator.DemoAccessKeySecret, token: "t"}, "InvalidSecurityToken"},
	} {
		_, err := ali_mns.NewMNSQueue(queueName, mnsClient(url, c.key)).SendMessage(ali_mns.MessageSendRequest{MessageBody: "x", Priority: 8})
		require.ErrorContains(t, err, c.code, name)
	}
}

func TestDybaseapiClient(t *testing.T) {
	t.Parallel()
	s, url := startServer(t, emulator.Config{TokenLife: 3 * time.Second})

	before := time.Now().Truncate(time.Second)
	response, err := token(t, url, demoKey())
	require.NoError(t, err)
	require.Equal(t, "OK", response.Code)
	dto := response.MessageTokenDTO
	beijing := time.FixedZone("", 8*60*60)
	created, err := time.ParseInLocation("2006-01-02 15:04:05", dto.CreateTime, beijing)
	require.NoError(t, err)
	expires, err := time.ParseInLocation("2006-01-02 15:04:05", dto.ExpireTime, beijing)
	require.NoError(t, err)
	require.False(t, created.Before(before))
	require.Equal(t, 3*time.Second, expires.Sub(created))

	queue := ali_mns.NewMNSQueue(queueName, mnsClient(url, key{dto.AccessKeyId, dto.AccessKeySecret, dto.SecurityToken}))
	_, err = queue.SendMessage(ali_mns.MessageSendRequest{MessageBody: "x", Priority: 8})
	require.NoError(t, err)
	require.Equal(t, 1, s.RevokeTokens())
	_, err = queue.SendMessage(ali_mns.MessageSendRequest{MessageBody: "x", Priority: 8})
	require.ErrorContains(t, err, "SecurityTokenExpired")

	_, err = token(t, url, key{id: emulator.DemoAccessKeyID, secret: "wrong"})
	var server *errors.ServerError
	require.ErrorAs(t, err, &server)
	require.Equal(t, "SignatureDoesNotMatch", server.ErrorCode())
	// The SDK found that both made the same text to sign: the secret is wrong.
	require.Contains(t, server.Recommend(), "InvalidAccessKeySecret")

	_, err = token(t, url, key{id: "nobody", secret: "wrong"})
	require.ErrorAs(t, err, &server)
	require.Equal(t, "InvalidAccessKeyId.NotFound", server.ErrorCode())
	require.Equal(t, 404, server.HttpStatus())

	_, err = token(t, url, tokenKey(t, url))
	require.ErrorAs(t, err, &server)
	require.Equal(t, "NoPermission", server.ErrorCode())
}

// Code other than OK comes with status 200: the SDK gives no error.
func TestDybaseapiSaysNo(t *testing.T) {
	t.Parallel()
	s, url := startServer(t, emulator.Config{})
	_, err := s.AddFault(emulator.Fault{Operation: emulator.OpToken, Status: 200, Code: "isv.NO_PERMISSION", Message: "no"})
	require.NoError(t, err)
	response, err := token(t, url, demoKey())
	require.NoError(t, err)
	require.Equal(t, "isv.NO_PERMISSION", response.Code)
	require.Equal(t, "no", response.Message)
	require.Empty(t, response.MessageTokenDTO)
	require.Equal(t, map[emulator.Op]map[string]int64{emulator.OpToken: {"isv.NO_PERMISSION": 1}}, s.Requests())
}

func TestAssumeRole(t *testing.T) {
	t.Parallel()
	_, url := startServer(t, emulator.Config{TokenLife: time.Minute})
	client, err := sts.NewClientWithAccessKey("cn-hangzhou", emulator.DemoAccessKeyID, emulator.DemoAccessKeySecret)
	require.NoError(t, err)
	client.Domain = strings.TrimPrefix(url, "http://")
	request := sts.CreateAssumeRoleRequest()
	request.Scheme = "http"
	request.RoleArn = "acs:ram::" + emulator.DefaultAccountID + ":role/relay"
	request.RoleSessionName = "relay"
	request.DurationSeconds = "900"
	response, err := client.AssumeRole(request)
	require.NoError(t, err)
	expires, err := time.Parse(time.RFC3339, response.Credentials.Expiration)
	require.NoError(t, err)
	require.WithinDuration(t, time.Now().Add(time.Minute), expires, 5*time.Second)
	require.Equal(t, request.RoleArn+"/relay", response.AssumedRoleUser.Arn)

	session := key{response.Credentials.AccessKeyId, response.Credentials.AccessKeySecret, response.Credentials.SecurityToken}
	_, err = ali_mns.NewMNSQueue(queueName, mnsClient(url, session)).SendMessage(ali_mns.MessageSendRequest{MessageBody: "x", Priority: 8})
	require.NoError(t, err, "a session signs for MNS")
	_, err = token(t, url, session)
	require.NoError(t, err, "and for Dybaseapi")

	var server *errors.ServerError
	request.RoleArn = "acs:ram::1:role/relay"
	_, err = client.AssumeRole(request)
	require.ErrorAs(t, err, &server)
	require.Equal(t, "EntityNotExist.Role", server.ErrorCode())
	request.RoleArn, request.DurationSeconds = "acs:ram::"+emulator.DefaultAccountID+":role/relay", "60"
	_, err = client.AssumeRole(request)
	require.ErrorAs(t, err, &server)
	require.Equal(t, "InvalidParameter.DurationSeconds", server.ErrorCode())
}
