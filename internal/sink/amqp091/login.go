package amqp091

import (
	"context"
	"errors"
	"fmt"
	"time"

	"mnsrelay/internal/broker"

	amqp "github.com/rabbitmq/amqp091-go"
)

// login is how we say who we are, by SASL PLAIN (RFC 4616) or EXTERNAL (RFC 4422).
type login struct {
	target     target
	properties amqp.Table
}

// Mechanism also announces that we understand a refusal that comes as
// connection.close; without it RabbitMQ hangs up on wrong credentials without a
// word, after seconds. The library sets the capabilities itself and asks for the
// mechanism afterwards, so this is where another can be added.
func (l *login) Mechanism() string {
	if capabilities, ok := l.properties["capabilities"].(amqp.Table); ok {
		capabilities["authentication_failure_close"] = true
	}
	if l.target.sasl == SASLExternal {
		return "EXTERNAL"
	}
	return "PLAIN"
}

// Response holds the password as its file has it now.
func (l *login) Response() string {
	if l.target.sasl == SASLExternal {
		return ""
	}
	return "\x00" + l.target.Username + "\x00" + l.target.Password.Current()
}

// loginError says that the broker ended the connection over the login; refused: that it
// refused us, and did not only hang up.
func loginError(t target, refused bool) error {
	var message string
	switch {
	case t.sasl == SASLExternal && refused:
		message = "the broker refuses the client certificate: it knows no user of that name"
	case t.sasl == SASLExternal:
		message = "the broker hung up during the login by client certificate: it is going down, or it knows no user of that name"
	case refused:
		message = fmt.Sprintf("the broker refuses the user %q: check username and password", t.Username)
	default:
		message = fmt.Sprintf("the broker hung up during the login of the user %q: it is going down, or username and password are wrong", t.Username)
	}
	return &broker.LoginError{Message: message, Refused: refused}
}

// handshakeError says why the handshake failed.
func handshakeError(ctx context.Context, err error, t target, timeout time.Duration) error {
	var refusal *amqp.Error
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("log in: no answer within %v", timeout)
	case errors.Is(err, amqp.ErrSASL):
		return fmt.Errorf("log in: the broker does not offer the mechanism %s", (&login{target: t}).Mechanism())
	case !errors.As(err, &refusal):
		return fmt.Errorf("log in: %w", err)
	case refusal.Code == amqp.AccessRefused:
		return loginError(t, refusal.Server)
	case refusal.Code == amqp.NotAllowed, refusal.Code == amqp.InvalidPath:
		return fmt.Errorf("open vhost %q: %w: create it, or give the user permissions in it", t.vhost, brokerError{refusal})
	}
	return fmt.Errorf("log in: %w", brokerError{refusal})
}
