package emulator_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	ali_mns "github.com/aliyun/aliyun-mns-go-sdk"
	alicredentials "github.com/aliyun/credentials-go/credentials"
	"github.com/aliyun/credentials-go/credentials/providers"
	"github.com/stretchr/testify/require"

	"mnsrelay/internal/emulator"
)

const rolesPath = "/latest/meta-data/ram/security-credentials/"

const (
	ttlHeader   = "X-aliyun-ecs-metadata-token-ttl-seconds"
	tokenHeader = "X-aliyun-ecs-metadata-token"
)

// metadata does a request as it is documented.
func metadata(t *testing.T, s *emulator.Server, method, path string, header map[string]string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	r := httptest.NewRequestWithContext(t.Context(), method, path, http.NoBody)
	for name, value := range header {
		r.Header.Set(name, value)
	}
	s.ServeHTTP(w, r)
	return w
}

func metadataToken(t *testing.T, s *emulator.Server, seconds string) map[string]string {
	t.Helper()
	w := metadata(t, s, http.MethodPut, "/latest/api/token", map[string]string{ttlHeader: seconds})
	require.Equal(t, http.StatusOK, w.Code, w.Body.String())
	require.NotEmpty(t, w.Body.String())
	return map[string]string{tokenHeader: w.Body.String()}
}

func parseCredentials(t *testing.T, w *httptest.ResponseRecorder) (k key, expiration string) {
	t.Helper()
	require.Equal(t, http.StatusOK, w.Code, w.Body.String())
	var got struct {
		Code            string
		AccessKeyID     string `json:"AccessKeyId"`
		AccessKeySecret string
		SecurityToken   string
		Expiration      string
		LastUpdated     string
	}
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &got))
	require.Equal(t, "Success", got.Code)
	_, err := time.Parse(time.RFC3339, got.LastUpdated)
	require.NoError(t, err)
	return key{got.AccessKeyID, got.AccessKeySecret, got.SecurityToken}, got.Expiration
}

func TestMetadata(t *testing.T) {
	t.Parallel()
	s := newServer(t, emulator.Config{InstanceRole: "relay"})
	w := metadata(t, s, http.MethodGet, rolesPath, metadataToken(t, s, "21600"))
	require.Equal(t, http.StatusOK, w.Code)
	require.Equal(t, "relay", w.Body.String())
	require.Equal(t, "relay", metadata(t, s, http.MethodGet, rolesPath[:len(rolesPath)-1], nil).Body.String())
	require.NotEmpty(t, w.Header().Get("Date"))
	k, _ := parseCredentials(t, metadata(t, s, http.MethodGet, rolesPath+"relay", metadataToken(t, s, "1")))
	require.Equal(t, 201, do(t, s, k.request(t.Context(), http.MethodPost, "", messagesPath(""), oneMessage)).status)
	require.Equal(t, map[emulator.Op]map[string]int64{
		emulator.OpMetadataToken: {"OK": 2}, emulator.OpMetadata: {"OK": 3}, emulator.OpSend: {"OK": 1},
	}, s.Requests())
}

func TestMetadataRefuses(t *testing.T) {
	t.Parallel()
	s := newServer(t, emulator.Config{InstanceRole: "relay"})
	refuse := func(status int, w *httptest.ResponseRecorder) {
		t.Helper()
		require.Equal(t, status, w.Code, w.Body.String())
		require.Equal(t, "text/html", w.Header().Get("Content-Type"))
		require.Contains(t, w.Body.String(), http.StatusText(status)[:3])
	}
	put := func(header map[string]string) *httptest.ResponseRecorder {
		return metadata(t, s, http.MethodPut, "/latest/api/token", header)
	}
	for _, seconds := range []string{"0", "21601", "-1", "1h", ""} {
		w := put(map[string]string{ttlHeader: seconds})
		require.Equal(t, http.StatusBadRequest, w.Code, seconds)
		require.Contains(t, w.Body.String(), "400 - Missing or Invalid Parameters")
	}
	require.Equal(t, http.StatusBadRequest, put(nil).Code)
	refuse(http.StatusForbidden, put(map[string]string{ttlHeader: "60", "X-Forwarded-For": "10.0.0.1"}))
	refuse(http.StatusMethodNotAllowed, metadata(t, s, http.MethodGet, "/latest/api/token", map[string]string{ttlHeader: "60"}))
	refuse(http.StatusMethodNotAllowed, metadata(t, s, http.MethodPost, rolesPath, nil))

	get := func(path string, header map[string]string) *httptest.ResponseRecorder {
		return metadata(t, s, http.MethodGet, path, header)
	}
	refuse(http.StatusNotFound, get(rolesPath+"other", nil))
	refuse(http.StatusNotFound, get("/latest/meta-data/ram/security-credentialsrelay", nil))
	refuse(http.StatusNotFound, get("/latest/meta-data/instance-id", nil))
	refuse(http.StatusNotFound, get("/latest", nil))
	refuse(http.StatusUnauthorized, get(rolesPath, map[string]string{tokenHeader: "aaa"}))

	s.RequireMetadataToken(true)
	refuse(http.StatusForbidden, get(rolesPath, nil))
	refuse(http.StatusForbidden, get(rolesPath+"relay", nil))
	refuse(http.StatusUnauthorized, get(rolesPath+"relay", map[string]string{tokenHeader: "aaa"}))
	require.Equal(t, http.StatusOK, get(rolesPath+"relay", metadataToken(t, s, "60")).Code)
	s.RequireMetadataToken(false)
	require.Equal(t, http.StatusOK, get(rolesPath+"relay", nil).Code)

	require.NoError(t, s.SetInstanceRole(""))
	refuse(http.StatusNotFound, get(rolesPath, nil))
	refuse(http.StatusNotFound, get(rolesPath+"relay", nil))
	require.NoError(t, s.SetInstanceRole("other"))
	require.Equal(t, http.StatusOK, get(rolesPath+"other", nil).Code)
	require.Error(t, s.SetInstanceRole("a b"))

	hardened := newServer(t, emulator.Config{InstanceRole: "relay", MetadataTokenRequired: true})
	refuse(http.StatusForbidden, metadata(t, hardened, http.MethodGet, rolesPath, nil))
}

func TestMetadataTokenEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, emulator.Config{InstanceRole: "relay"})
		token := metadataToken(t, s, "5")
		s.SetClockOffset(time.Hour) // it lives as long as before
		<-time.After(5*time.Second - time.Millisecond)
		require.Equal(t, http.StatusOK, metadata(t, s, http.MethodGet, rolesPath, token).Code)
		<-time.After(time.Millisecond)
		require.Equal(t, http.StatusUnauthorized, metadata(t, s, http.MethodGet, rolesPath, token).Code)
		metadataToken(t, s, "5")
		require.Equal(t, http.StatusUnauthorized, metadata(t, s, http.MethodGet, rolesPath, token).Code)
	})
}

// The metadata server renews credentials by itself: until then everybody gets the
// same ones.
func TestMetadataRenewsCredentials(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, emulator.Config{InstanceRole: "relay", TokenLife: 10 * time.Second})
		get := func() key {
			k, _ := parseCredentials(t, metadata(t, s, http.MethodGet, rolesPath+"relay", nil))
			return k
		}
		first := get()
		<-time.After(5*time.Second - time.Millisecond)
		require.Equal(t, first, get())
		<-time.After(time.Millisecond)
		second := get()
		require.NotEqual(t, first, second)
		for _, k := range []key{first, second} {
			require.Equal(t, "MessageNotExist", do(t, s, k.request(t.Context(), http.MethodGet, "", messagesPath(""), "")).Code, "the old ones stay good")
		}
		<-time.After(5 * time.Second)
		require.Equal(t, "SecurityTokenExpired", do(t, s, first.request(t.Context(), http.MethodGet, "", messagesPath(""), "")).Code)
		third := get()
		s.RevokeTokens()
		require.NotEqual(t, third, get())
		fourth := get()
		s.SetClockOffset(-time.Hour)
		_, expiration := parseCredentials(t, metadata(t, s, http.MethodGet, rolesPath+"relay", nil))
		require.NotEqual(t, fourth, get())
		require.Equal(t, time.Now().Add(10*time.Second-time.Hour).UTC().Format(time.RFC3339), expiration)
	})
	s := newServer(t, emulator.Config{InstanceRole: "relay", TokenLife: 12 * time.Hour})
	_, expiration := parseCredentials(t, metadata(t, s, http.MethodGet, rolesPath+"relay", nil))
	expires, err := time.Parse(time.RFC3339, expiration)
	require.NoError(t, err)
	require.WithinDuration(t, time.Now().Add(6*time.Hour), expires, 5*time.Second)
}

func TestCredentialsURI(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, emulator.Config{TokenLife: 3 * time.Second})
		k, expiration := parseCredentials(t, metadata(t, s, http.MethodGet, "/credentials?role=any", nil))
		require.Equal(t, time.Now().Add(3*time.Second).UTC().Format(time.RFC3339), expiration)
		receive := func() string {
			return do(t, s, k.request(t.Context(), http.MethodGet, "", messagesPath(""), "")).Code
		}
		require.Equal(t, "MessageNotExist", receive())
		<-time.After(3 * time.Second)
		require.Equal(t, "SecurityTokenExpired", receive())
		w := metadata(t, s, http.MethodPost, "/credentials", nil)
		require.Equal(t, http.StatusMethodNotAllowed, w.Code)
		require.JSONEq(t, `{"Code":"MethodNotAllowed","Message":"Credentials are there to GET."}`, w.Body.String())
	})
}

func works(t *testing.T, url string, k key) {
	t.Helper()
	_, err := ali_mns.NewMNSQueue(queueName, mnsClient(url, k)).SendMessage(ali_mns.MessageSendRequest{MessageBody: "x", Priority: 8})
	require.NoError(t, err)
}

func TestCredentialsURIClient(t *testing.T) {
	t.Parallel()
	s, url := startServer(t, emulator.Config{})
	client, err := alicredentials.NewCredential(new(alicredentials.Config).SetType("credentials_uri").SetURLCredential(url + "/credentials"))
	require.NoError(t, err)
	got, err := client.GetCredential()
	require.NoError(t, err)
	works(t, url, key{*got.AccessKeyId, *got.AccessKeySecret, *got.SecurityToken})
	addFault(t, s, emulator.Fault{Operation: emulator.OpURI, Status: 200, Code: "Forbidden"})
	client, err = alicredentials.NewCredential(new(alicredentials.Config).SetType("credentials_uri").SetURLCredential(url + "/credentials"))
	require.NoError(t, err)
	_, err = client.GetCredential()
	require.ErrorContains(t, err, "refresh credentials from")
}

// The official client has the address of the metadata server in it: the emulator
// stands in for a proxy.
func TestMetadataClient(t *testing.T) {
	t.Parallel()
	s, url := startServer(t, emulator.Config{InstanceRole: "relay", MetadataTokenRequired: true})
	get := func() (*providers.Credentials, error) {
		client, err := providers.NewECSRAMRoleCredentialsProviderBuilder().
			WithDisableIMDSv1(true).WithHttpOptions(&providers.HttpOptions{Proxy: url}).Build()
		require.NoError(t, err)
		return client.GetCredentials()
	}
	got, err := get()
	require.NoError(t, err)
	works(t, url, key{got.AccessKeyId, got.AccessKeySecret, got.SecurityToken})
	require.Equal(t, map[string]int64{"OK": 2}, s.Requests()[emulator.OpMetadata])
	require.Equal(t, map[string]int64{"OK": 2}, s.Requests()[emulator.OpMetadataToken])
	require.NoError(t, s.SetInstanceRole(""))
	_, err = get()
	require.ErrorContains(t, err, "get role name failed")
}
