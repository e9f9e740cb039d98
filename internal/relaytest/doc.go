// Package relaytest holds what tests of the core, of sources, of sinks and of ledgers share: the
// conformance suites that each of these passes, a source in memory, and the means to break the
// way to a far side.
package relaytest
