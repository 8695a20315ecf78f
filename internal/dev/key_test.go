package dev

import (
	"crypto/ed25519"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestKeyIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key.pem")
	first, err := ReadOrMakeKey(path)
	if err != nil {
		t.Fatal(err)
	}
	again, err := ReadOrMakeKey(path)
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
		if _, err := ReadOrMakeKey(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", content, err, want)
		}
	}
}

func TestCheckMakesNothing(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("no key"), 0o600); err != nil {
		t.Fatal(err)
	}
	good := filepath.Join(dir, "key.pem")
	if err := CheckKey(good); err != nil {
		t.Errorf("a key that can be made: %v", err)
	}
	if _, err := os.Stat(good); err == nil {
		t.Error("Check has made the key")
	}
	if _, err := ReadOrMakeKey(good); err != nil {
		t.Fatal(err)
	}
	if err := CheckKey(good); err != nil {
		t.Errorf("a good key: %v", err)
	}
	for _, bad := range []string{file, dir, filepath.Join(dir, "none", "key.pem"), filepath.Join(file, "key.pem")} {
		if err := CheckKey(bad); err == nil {
			t.Errorf("%s passes", bad)
		}
		if _, err := ReadOrMakeKey(bad); err == nil {
			t.Errorf("%s can be used after all", bad)
		}
	}
}
