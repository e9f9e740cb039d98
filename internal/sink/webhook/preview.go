package webhook

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"strings"

	"mnsrelay/internal/relay"
)

var _ relay.Previewer = (*Sink)(nil)

// Address is part of relay.Addressed: the path of the URL, with {{...}} where a message
// decides it. It is concealed where a part of the URL was brought into the configuration.
func (s *Sink) Address() string {
	e := s.poster.endpoint
	if !e.written {
		return "/" + relay.Masked
	}
	path := e.url.EscapedPath()
	if e.template != nil {
		_, path, _ = strings.Cut(e.template.Sample("{{...}}"), "://")
		path = path[min(len(path), strings.IndexAny(path+"/", "/?#")):]
		path = path[:strings.IndexAny(path+"?", "?#")]
	}
	if path == "" {
		return "/"
	}
	return path
}

// Preview is the request of a message, as it would be signed now. Where messages share
// requests it is that of a message alone. The body is shown before its compression.
func (s *Sink) Preview(m *relay.Message) (relay.Preview, error) {
	p := s.poster
	var request *http.Request
	var body []byte
	if s.gather == nil {
		var err error
		if request, body, err = p.newRequest(context.Background(), m); err != nil {
			return relay.Preview{}, err
		}
	} else {
		only := &item{message: *m}
		var err error
		if only.json, err = p.format.Element(m); err != nil {
			return relay.Preview{}, err
		}
		request, body = p.newBatchRequest(context.Background(), []*item{only})
	}
	url := p.endpoint.show + "/" + relay.Masked
	if p.endpoint.written {
		url = request.URL.String()
	}
	fields := []relay.Field{{Name: "method", Value: request.Method}, {Name: "url", Value: url}}
	for _, name := range slices.Sorted(maps.Keys(request.Header)) {
		value := request.Header.Get(name)
		if name == "Authorization" || slices.Contains(p.secret, name) {
			value = relay.Masked
		}
		fields = append(fields, relay.Field{Name: "headers." + strings.ToLower(name), Value: value})
	}
	return relay.Preview{Fields: fields, Body: body}, nil
}
