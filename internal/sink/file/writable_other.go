//go:build !unix

package file

// writable cannot ask here: the start will tell.
func writable(string) error { return nil }
