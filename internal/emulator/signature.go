package emulator

import (
	"bytes"
	"crypto/hmac"
	"crypto/md5"  //nolint:gosec // G501: MNS's Content-MD5.
	"crypto/sha1" //nolint:gosec // G505: MNS and the RPC services sign with HMAC-SHA1.
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"slices"
	"strings"
	"time"
)

const (
	mnsVersion = "2015-06-06"
	// maxSkew is how far a request's date may be from the server's time.
	maxSkew = 15 * time.Minute
)

func badRequest(code, message string) *wireError {
	return &wireError{http.StatusBadRequest, code, message}
}

// authenticate checks a request to MNS as MNS does (MNS: request signatures): its
// version, date, digest, signature and security token.
func (s *Server) authenticate(c *call) (*credential, *wireError) {
	h := c.Header
	switch version := h.Get("X-Mns-Version"); version {
	case mnsVersion:
	case "":
		return nil, badRequest("MissingVersionHeader", "x-mns-version header is required.")
	default:
		return nil, badRequest("InvalidVersionHeader", "The x-mns-version header you provided is invalid.")
	}
	if err := s.checkDate(h); err != nil {
		return nil, err
	}
	authorization := h.Get("Authorization")
	if authorization == "" {
		return nil, badRequest("MissingAuthorizationHeader", "Authorization header is required.")
	}
	scheme, rest, _ := strings.Cut(authorization, " ")
	id, signature, found := strings.Cut(rest, ":")
	if scheme != "MNS" || !found || id == "" || signature == "" {
		return nil, badRequest("InvalidAuthorizationHeader", "The Authorization header format is invalid: write MNS, a space, the access key id, a colon and the signature.")
	}
	if !checkDigest(h.Get("Content-Md5"), c.body) {
		// The spelling is MNS's own.
		return nil, badRequest("InvalidDegist", "The Content-MD5 you specified is invalid.")
	}
	key := s.credentials.get(id)
	if key == nil {
		return nil, &wireError{http.StatusForbidden, "InvalidAccessKeyId", "The AccessKey Id you provided is not exist."}
	}
	if !checkSignature(c, key.secret, signature) {
		return nil, &wireError{http.StatusForbidden, "SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided. Check your key and signing method."}
	}
	return key, key.checkToken(h.Get("Security-Token"), s.wireTime(), http.StatusForbidden)
}

func (s *Server) checkDate(h http.Header) *wireError {
	date := h.Get("X-Mns-Date")
	if date == "" {
		date = h.Get("Date")
	}
	if date == "" {
		return badRequest("MissingDateHeader", "Date header is required.")
	}
	t, err := http.ParseTime(date)
	if err != nil {
		return badRequest("InvalidDateHeader", "The Date header format is invalid.")
	}
	if skew := s.wireTime().Sub(t).Abs(); skew > maxSkew {
		return wireErrorf(http.StatusRequestTimeout, "TimeExpired", "The http request you sent is expired: its date is %v from the server's.", skew.Round(time.Second))
	}
	return nil
}

// checkDigest accepts base64 of the digest and of its hexadecimal form: clients of
// MNS send either.
func checkDigest(header string, body []byte) bool {
	if header == "" {
		return true
	}
	sent, err := base64.StdEncoding.DecodeString(header)
	if err != nil {
		return false
	}
	digest := md5.Sum(body) //nolint:gosec // G401: MNS's Content-MD5.
	return bytes.Equal(sent, digest[:]) || strings.EqualFold(string(sent), hex.EncodeToString(digest[:]))
}

// checkSignature tries the resource as it was sent and, where that differs, its
// normal form: a client whose endpoint has a path of its own signs without it.
func checkSignature(c *call, secret, signature string) bool {
	sent, err := base64.StdEncoding.DecodeString(signature)
	if err != nil {
		return false
	}
	rawPath, rawQuery := requestTarget(c.Request)
	if rawQuery != "" {
		rawQuery = "?" + rawQuery
	}
	resources := []string{rawPath + rawQuery}
	if clean := cleanPath(rawPath); clean != rawPath {
		resources = append(resources, clean+rawQuery)
	}
	dates := []string{c.Header.Get("Date")}
	if date := c.Header.Get("X-Mns-Date"); date != "" && date != dates[0] {
		dates = append(dates, date)
	}
	headers := mnsHeaders(c.Header)
	for _, resource := range resources {
		for _, date := range dates {
			signed := c.Method + "\n" + c.Header.Get("Content-Md5") + "\n" + c.Header.Get("Content-Type") + "\n" + date + "\n" + headers + resource
			if hmac.Equal(sent, sign(secret, signed)) {
				return true
			}
		}
	}
	return false
}

func sign(secret, text string) []byte {
	mac := hmac.New(sha1.New, []byte(secret))
	mac.Write([]byte(text))
	return mac.Sum(nil)
}

// mnsHeaders gives the x-mns- headers in lower case, sorted, a line each.
func mnsHeaders(h http.Header) string {
	var lines []string
	for name, values := range h {
		if strings.HasPrefix(name, "X-Mns-") {
			lines = append(lines, strings.ToLower(name)+":"+strings.TrimSpace(strings.Join(values, ","))+"\n")
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}
