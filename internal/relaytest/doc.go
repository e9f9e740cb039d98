// Package relaytest holds what tests of sources, sinks and ledgers share: the conformance
// suites that every one of them passes, and the means to break the way to a far side.
package relaytest
