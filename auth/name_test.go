package auth

import (
	"errors"
	"strings"
	"testing"
)

func TestValidName(t *testing.T) {
	for _, name := range []string{"a", "Z", "0", "a.b_c-d", "0-", strings.Repeat("x", 128), "snapshot"} {
		if err := ValidName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{
		"", ".a", "_a", "-a", "a/b", "a:b", "a*", "a b", "a\x00", "é", "a\xff", "a%", strings.Repeat("x", 129), "a\n",
	} {
		err := ValidName(name)
		e, ok := errors.AsType[*NameError](err)
		if !ok || e.Name != name || e.Reserved {
			t.Errorf("%q: got %v", name, err)
		}
	}
	if n := len(ValidName(strings.Repeat("\x00", 70_000)).Error()); n > 1000 {
		t.Errorf("the error of a long name has %d bytes", n)
	}
}

func TestValidTenant(t *testing.T) {
	for _, id := range []string{"snapshot", "changes"} {
		err := ValidTenant(id)
		if e, ok := errors.AsType[*NameError](err); !ok || !e.Reserved || e.Name != id {
			t.Errorf("%q: got %v", id, err)
		}
	}
	if err := ValidTenant("Snapshot"); err != nil {
		t.Error(err)
	}
	if err := ValidTenant("a/b"); err == nil {
		t.Error("a/b is accepted")
	}
}
