package relaytest

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/cloudevents/sdk-go/v2/binding"
	"github.com/cloudevents/sdk-go/v2/binding/format"
	"github.com/cloudevents/sdk-go/v2/binding/spec"
	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/stretchr/testify/require"
)

// ReadAMQPEvent has the official library read the event in an AMQP message, in structured
// mode where its content type says so and otherwise in binary mode from the properties with
// the prefix cloudEvents_, and checks that it is valid. The library's own package for AMQP is
// made for an older client; this is what it does, with that prefix.
func ReadAMQPEvent(t *testing.T, contentType string, properties map[string]any, body []byte) *event.Event {
	t.Helper()
	m := &amqpEvent{contentType: contentType, properties: properties, body: body}
	e, err := binding.ToEvent(t.Context(), m)
	require.NoError(t, err)
	require.NoError(t, e.Validate())
	return e
}

const eventPrefix = "cloudEvents_"

type amqpEvent struct {
	contentType string
	properties  map[string]any
	body        []byte
}

var (
	_ binding.Message               = (*amqpEvent)(nil)
	_ binding.MessageMetadataReader = (*amqpEvent)(nil)
)

func (m *amqpEvent) version() spec.Version {
	version, _ := m.properties[eventPrefix+"specversion"].(string)
	return spec.WithPrefix(eventPrefix).Version(version)
}

func (m *amqpEvent) ReadEncoding() binding.Encoding {
	switch {
	case format.IsFormat(m.contentType):
		return binding.EncodingStructured
	case m.version() != nil:
		return binding.EncodingBinary
	}
	return binding.EncodingUnknown
}

func (m *amqpEvent) ReadStructured(ctx context.Context, w binding.StructuredWriter) error {
	if m.ReadEncoding() != binding.EncodingStructured {
		return binding.ErrNotStructured
	}
	return w.SetStructuredEvent(ctx, format.Lookup(m.contentType), bytes.NewReader(m.body))
}

func (m *amqpEvent) ReadBinary(_ context.Context, w binding.BinaryWriter) error {
	if m.ReadEncoding() != binding.EncodingBinary {
		return binding.ErrNotBinary
	}
	version := m.version()
	if err := w.SetAttribute(version.AttributeFromKind(spec.DataContentType), m.contentType); err != nil {
		return err
	}
	for name, value := range m.properties {
		rest, found := strings.CutPrefix(name, eventPrefix)
		var err error
		switch attribute := version.Attribute(name); {
		case !found:
		case attribute != nil:
			err = w.SetAttribute(attribute, value)
		default:
			err = w.SetExtension(rest, value)
		}
		if err != nil {
			return err
		}
	}
	if len(m.body) == 0 {
		return nil
	}
	return w.SetData(bytes.NewReader(m.body))
}

// GetAttribute is part of binding.MessageMetadataReader.
func (m *amqpEvent) GetAttribute(kind spec.Kind) (spec.Attribute, any) {
	attribute := m.version().AttributeFromKind(kind)
	if attribute == nil {
		return nil, nil
	}
	return attribute, m.properties[attribute.PrefixedName()]
}

// GetExtension is part of binding.MessageMetadataReader.
func (m *amqpEvent) GetExtension(name string) any { return m.properties[eventPrefix+name] }

func (m *amqpEvent) Finish(error) error { return nil }
