package broker

import "strings"

// EventPrefix begins the names of the attributes of an event in binary mode, in application
// properties (CloudEvents AMQP protocol binding, 3.1.3.1) and, since the binding is for AMQP 1.0
// alone, in the headers of AMQP 0-9-1. Version 1.0.2 has a colon there; the next one prefers
// this, which selectors of JMS can name, and has readers know both.
const EventPrefix = "cloudEvents_"

// CutEventPrefix gives what follows the prefix of the CloudEvents binding in a name. With the
// other separator of the binding, of which a message has one kind, it is no name of an
// extension.
func CutEventPrefix(name string) (rest string, found bool) {
	rest, found = strings.CutPrefix(name, "cloudEvents")
	if !found || !strings.ContainsAny(rest[:min(len(rest), 1)], "_:") {
		return "", false
	}
	return strings.TrimPrefix(rest, "_"), true
}
