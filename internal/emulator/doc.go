// Package emulator is a server that speaks three protocols of Alibaba Cloud on one
// address: MNS (now Simple Message Queue), Dybaseapi's QueryTokenForMnsQueue, and
// AssumeRole of STS. Consumers of MNS are tested against it: third-party clients
// work unchanged, and what they get wrong shows here as it would there.
//
// # Faithfulness
//
// Signatures, digests, dates, nonces and tokens are checked. A message has a
// visibility clock: a receive leases it until NextVisibleTime, counts the receive
// and makes a new receipt handle; the handle dies with the lease or with the next
// visibility change. Delays, priorities, retention, long polls, partial batch
// deletes, limits and error documents are those of MNS. Where Alibaba documents
// nothing, the choice is named at its place in the code.
//
// # Design
//
// A request is answered in five steps: find the operation from method, path and
// query; apply a fault if one matches; authenticate; run the operation, which gives
// an answer in memory; write the answer, or what a fault leaves of it.
//
// All state of a queue is behind that queue's mutex. A message is in one place: a
// FIFO of its priority while it is visible, a heap ordered by the time at which it
// becomes visible while it is not. No goroutine moves messages: every call first
// brings the queue up to the present. Only while polls wait does a timer run, for
// the first message that becomes visible.
//
// Waiting polls are served in the order they came: whoever makes messages visible
// leases them to the first poll directly, so no wake-up is lost or shared. A poll
// whose client has gone gives back what it was handed, as if it had never received.
//
// The receive, send and delete paths write and read XML without reflection; bodies
// are kept in the form in which they go out.
//
// # Addresses
//
// MNS is served below /queues, the two RPC services at /, and the controls of the
// emulator below /_emulator/ without authentication: listen on loopback. The
// official Go SDK for MNS wants an endpoint of exactly five pieces between dots;
// "http://127.0.0.1:8080/." is one, and every path is normalised here.
package emulator
