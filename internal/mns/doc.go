// Package mns is the source: one MNS queue (Simple Message Queue), read through the
// official SDK's MNSClient.Send.
//
// Send signs and sends one request and gives the raw answer. It is used in place of
// the SDK's queue type, which spends five to fifteen times the processor time on a
// message, waits for ever on a wait of 0, loses the status of a gateway's error page
// and knows no context. Everything around Send is here:
//
//   - A lane is an MNSClient with a transport and one connection of its own, and
//     carries one call at a time; a Queue keeps its free lanes for the next call. So a
//     call that is cancelled closes its own connection, at once, and no other: polls
//     and settlements never share one. The transport writes the request and reads the
//     answer itself, where a fasthttp.HostClient would start a goroutine a client to
//     look after a pool of one, and would need its retries switched off.
//   - No request is ever sent twice by the transport: a receive that got no answer may
//     have leased a batch. A connection that was kept is asked whether the server has
//     closed it before anything is written to it, and is replaced then.
//   - The SDK's constructors panic on most addresses, so they are given a fixed one;
//     the transport dials the endpoint and sets the Host header. The signature covers
//     neither.
//   - The SDK signs with the local date. Where the server's clock, as its Date headers
//     tell, is a minute or more away, the transport sets the date and signs again.
//   - The SDK owns a fasthttp.Client a lane, which starts one goroutine while the lane is
//     in use. Nobody can end it; it ends by itself within two seconds of the last call,
//     and Close does not wait for it. It is the only goroutine that outlives a call.
//   - Answers are read by a scanner over the bytes of the answer. A body is copied
//     once, into memory of its own, so that one message that is held for long does not
//     hold its batch.
//
// Lease times are the server's. A clock keeps the bounds between which the offset of
// the two clocks lies, and a delivery's deadline is worked out with the bound that
// ends it earliest, less a second for the last request to get there.
//
// Deletes of several Settle calls share requests: full ones go at once, others after
// the linger. A delete that got no answer, or one that says that the server failed, is
// sent again while the lease lives. It is harmless to send it twice, and to send it
// late: a handle that is no longer valid is refused. So every delete is tried at least
// once, even after its deadline, which lies a second or more before the end of the
// lease.
//
// Only receive and delete are assumed to be allowed. A 403 to anything else, with keys
// that have received, is relay.ErrNotPermitted; it is remembered until the keys change
// and no reason to fetch new ones.
package mns
