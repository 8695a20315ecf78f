//go:build !unix

package felixtest_test

import "testing"

// withoutDescriptors has no way to do so here.
func withoutDescriptors(_ *testing.T, f func()) { f() }
