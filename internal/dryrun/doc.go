// Package dryrun tells what a configuration would do with a message: which routes take it
// and why, what each sink would send, and what becomes of it in the queue. Nothing is
// connected to and nothing is sent: sinks are made and bound as the relay makes them, and
// asked for a preview (relay.Previewer) in the place of a delivery.
//
// Explain is for one message and people; fixtures (ReadFixtures) hold messages with the
// deliveries that are expected, for tests that run with every change of a configuration.
package dryrun
