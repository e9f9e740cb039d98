// Package relaytest holds what tests of the core, of sinks and of ledgers share: the
// conformance suites that every sink and every ledger passes, a source in memory, and the means to break the way to a far side.
package relaytest
