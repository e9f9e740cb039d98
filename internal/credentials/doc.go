// Package credentials gets the keys with which requests to MNS are signed and keeps
// them fresh.
//
// A Provider fetches keys once: static ones from the configuration, or a token for
// an Alicom queue from Dybaseapi (mns_token), which itself is asked with other keys,
// its base. A Refresher owns one Provider: it fetches in the background, well before
// the keys end, and hands out the newest keys without ever waiting for a fetch, so
// that a request in flight notices nothing of a change. Keys that came late are no
// reason to stop: the old ones serve until they really end.
//
// What a server says about time is believed only after a check: Dybaseapi names the
// end of a token in Beijing time without a zone, and the clock of the machine may be
// wrong. The end is therefore kept as a duration from the moment of the answer, on
// the monotonic clock.
//
// No error, log line, status or format verb shows a secret. The OpenAPI SDK puts
// signatures and tokens into its errors, so none of its texts is passed on: an Error
// is made of the code, the status, the request id and a message that was cleaned.
package credentials
