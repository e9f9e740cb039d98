package amqp091

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"mnsrelay/internal/expr"
	"mnsrelay/internal/setting"
)

// Properties are those of AMQP 0-9-1 beside the headers, the message id, the timestamp
// and the delivery mode. Each may hold {{ }} templates and is left out where it comes to
// nothing. Texts are at most 255 bytes.
type Properties struct {
	// ContentType is by default what the body is: application/json, text/plain or
	// application/octet-stream. An event as JSON has that of events whatever this says.
	ContentType string `yaml:"content_type"`
	// ContentEncoding is how the body is encoded, such as gzip.
	ContentEncoding string `yaml:"content_encoding"`
	// Priority is a whole number, 0 to 255.
	Priority string `yaml:"priority"`
	// Expiration is after what time in a queue the broker drops the message: a duration,
	// or a whole number of milliseconds; at most 4294967295 ms.
	Expiration string `yaml:"expiration"`
	// Type is what kind of message it is.
	Type string `yaml:"type"`
	// AppID names the program that sends.
	AppID string `yaml:"app_id"`
	// UserID has to be the user that the relay logs in as: RabbitMQ refuses any other.
	UserID string `yaml:"user_id"`
	// CorrelationID says what the message belongs to. With acknowledge: reply the relay sets it.
	CorrelationID string `yaml:"correlation_id"`
}

// properties are compiled.
type properties struct {
	// fixed are the same for every message.
	fixed amqp.Publishing
	// varying are those that each message decides.
	varying []property
}

type property struct {
	name, source string
	value        *expr.Template
	set          func(p *amqp.Publishing, text string) error
}

// compile reports every problem at once, joined.
func (p *Properties) compile() (*properties, error) {
	compiled := &properties{}
	var problems []error
	for _, property := range []property{
		{name: "content_type", source: p.ContentType, set: shortString(func(p *amqp.Publishing) *string { return &p.ContentType })},
		{name: "content_encoding", source: p.ContentEncoding, set: shortString(func(p *amqp.Publishing) *string { return &p.ContentEncoding })},
		{name: "priority", source: p.Priority, set: setPriority},
		{name: "expiration", source: p.Expiration, set: setExpiration},
		{name: "type", source: p.Type, set: shortString(func(p *amqp.Publishing) *string { return &p.Type })},
		{name: "app_id", source: p.AppID, set: shortString(func(p *amqp.Publishing) *string { return &p.AppId })},
		{name: "user_id", source: p.UserID, set: shortString(func(p *amqp.Publishing) *string { return &p.UserId })},
		{name: "correlation_id", source: p.CorrelationID, set: shortString(func(p *amqp.Publishing) *string { return &p.CorrelationId })},
	} {
		path := "properties." + property.name
		template, err := expr.CompileSetting(path, property.source)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		if !template.Literal() {
			property.value = template
			compiled.varying = append(compiled.varying, property)
			continue
		}
		if err := property.set(&compiled.fixed, template.Sample("")); err != nil {
			problems = append(problems, setting.Problemf(path, "%v", err))
		}
	}
	return compiled, errors.Join(problems...)
}

// shortString sets a property of text.
func shortString(of func(p *amqp.Publishing) *string) func(p *amqp.Publishing, text string) error {
	return func(p *amqp.Publishing, text string) error {
		if len(text) > maxShortString {
			return fmt.Errorf("%d bytes long, at most %d fit", len(text), maxShortString)
		}
		*of(p) = text
		return nil
	}
}

func setPriority(p *amqp.Publishing, text string) error {
	if text == "" {
		return nil
	}
	priority, err := strconv.ParseUint(text, 10, 8)
	if err != nil {
		return errors.New("must be a whole number from 0 to 255")
	}
	p.Priority = uint8(priority)
	return nil
}

func setExpiration(p *amqp.Publishing, text string) error {
	if text == "" {
		return nil
	}
	ms, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		var d time.Duration
		if d, err = time.ParseDuration(text); err == nil && d > 0 {
			ms = max(d.Milliseconds(), 1) // 0 is dropped at once
		} else {
			ms = d.Milliseconds()
		}
	}
	// RabbitMQ ends the channel over what is no number, negative or larger.
	if err != nil || ms < 0 || ms > math.MaxUint32 {
		return errors.New("must be a duration, as in 10m, or a whole number of milliseconds, at most 4294967295")
	}
	p.Expiration = strconv.FormatInt(ms, 10)
	return nil
}
