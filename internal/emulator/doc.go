// Package emulator is a server that speaks the protocols of Alibaba Cloud that a
// consumer of MNS (now Simple Message Queue) needs, on one address: MNS itself, and
// what it can get credentials from: Dybaseapi's QueryTokenForMnsQueue, AssumeRole and
// AssumeRoleWithOIDC of STS, the metadata server of ECS, and a credentials URI.
// Consumers are tested against it: third-party clients work unchanged, and what they
// get wrong shows here as it would there.
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
// # Credentials
//
// Whatever issued a credential, it is kept in one place: MNS, Dybaseapi and AssumeRole
// accept it until it ends, it can be revoked, and Config.IssuedPolicies say what it may
// do at MNS. All expiries follow the server's clock with its offset.
//
// # Addresses
//
// MNS is served below /queues, the RPC services at /, the metadata server below
// /latest, the credentials URI at /credentials, and the controls of the emulator below
// /_emulator/. The last three know no authentication: listen on loopback. The
// official Go SDK for MNS wants an endpoint of exactly five pieces between dots;
// "http://127.0.0.1:8080/." is one, and every path is normalised here.
package emulator
