// Package relay is the core: what a message, a source and a sink are, and the way of
// a message from one to the other. It imports no other package of this module.
package relay
