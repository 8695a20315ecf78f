package devkey

import (
	"crypto/ed25519"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestKeyIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key.pem")
	first, err := ReadOrMake(path)
	if err != nil {
		t.Fatal(err)
	}
	again, err := ReadOrMake(path)
	if err != nil || !first.Equal(again) || len(first) != ed25519.PrivateKeySize {
		t.Errorf("read back: %v, equal %t", err, first.Equal(again))
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestOtherFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key.pem")
	for content, want := range map[string]string{
		"no key": "no PEM block",
		"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n": path + ": ",
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadOrMake(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", content, err, want)
		}
	}
}
