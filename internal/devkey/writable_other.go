//go:build !unix

package devkey

// writable leaves it to the attempt.
func writable(string) error { return nil }
