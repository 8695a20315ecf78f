// Package plant makes builds of this module with faults in them, for tests of what is to find them.
package plant

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// Overlay returns the flag that makes go build see a package of the module in whose root the test runs with
// declarations added to it and with statements at the beginning of functions. A function is named by how its line
// begins, such as "func ParseHeader(", and that line ends with the brace. The files themselves stay as they are.
func Overlay(t *testing.T, room, declarations string, statements map[string]string) (flag string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(room, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	dir, found, replaced := t.TempDir(), 0, make(map[string]string)
	write := func(name string, text []byte) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		before := found
		for function, s := range statements {
			if at := bytes.Index(text, []byte("\n"+function)); at >= 0 {
				brace := at + 1 + bytes.IndexByte(text[at+1:], '\n')
				text = append(text[:brace:brace], append([]byte("\n"+s), text[brace:]...)...)
				found++
			}
		}
		if found > before {
			replaced[file] = write(filepath.Base(file), text)
		}
	}
	if found != len(statements) {
		t.Fatalf("%d of the functions %v are in %s", found, statements, room)
	}
	replaced[filepath.Join(room, "planted.go")] = write("planted.go", []byte("package "+filepath.Base(room)+"\n\n"+declarations))
	text, err := json.Marshal(map[string]any{"Replace": replaced})
	if err != nil {
		t.Fatal(err)
	}
	return "-overlay=" + write("overlay.json", text)
}
