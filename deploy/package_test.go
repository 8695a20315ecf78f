package deploy

import (
	"bytes"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
)

const version, revision = "v0.0.1-test", "feedface"

var temp string

func TestMain(m *testing.M) {
	var err error
	if temp, err = os.MkdirTemp("", "felix-deploy-"); err != nil {
		panic(err)
	}
	code := m.Run()
	_ = os.RemoveAll(temp)
	os.Exit(code)
}

// makePackage runs `make package` for this machine, once, and returns its DIST.
var makePackage = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("make", "-C", "..", "package", "ARCHS="+runtime.GOARCH, "PGO=off", "DIST="+temp,
		"VERSION="+version, "REVISION="+revision).CombinedOutput()
	if err != nil {
		return "", &exec.Error{Name: "make package: " + string(out), Err: err}
	}
	return temp, nil
})

// dist returns the directory with the packages, and that with the binaries in them.
func dist(t *testing.T) (packages, binaries string) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("packages are for Linux")
	}
	dir, err := makePackage()
	if err != nil {
		t.Fatal(err)
	}
	return dir, filepath.Join(dir, "linux_"+runtime.GOARCH)
}

// need skips the test if a program is not installed.
func need(t *testing.T, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Skip(err)
	}
}

// output runs a command, which must succeed, and returns what it printed.
func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// one returns the only file that matches.
func one(t *testing.T, pattern string) string {
	t.Helper()
	names, err := filepath.Glob(pattern)
	if err != nil || len(names) != 1 {
		t.Fatalf("%s: %q, %v", pattern, names, err)
	}
	return names[0]
}

func TestBinaries(t *testing.T) {
	_, dir := dist(t)
	commands, err := os.ReadDir("../cmd")
	if err != nil {
		t.Fatal(err)
	}
	for _, command := range commands {
		name := "felix-" + command.Name()
		if name == "felix-felix" {
			name = "felix"
		}
		path := filepath.Join(dir, name)
		file, err := elf.Open(path)
		if err != nil {
			t.Error(err)
			continue
		}
		defer file.Close()
		for _, p := range file.Progs {
			if p.Type == elf.PT_INTERP {
				t.Errorf("%s is loaded by an interpreter", name)
			}
		}
		if libs, err := file.ImportedLibraries(); len(libs) > 0 {
			t.Errorf("%s needs %q, %v", name, libs, err)
		}
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if root, err := filepath.Abs(".."); err != nil || bytes.Contains(content, []byte(root+"/")) {
			t.Errorf("%s has %s in it, %v", name, root, err)
		}
		if out := output(t, path, "--version"); !strings.Contains(out, version+" (commit "+revision+", go") {
			t.Errorf("%s --version: %s", name, out)
		}
	}
}

// Links in packaged documents lead to others of the package, or to the web.
func TestDocuments(t *testing.T) {
	packages, _ := dist(t)
	links := regexp.MustCompile(`\]\(([^)#\s]+)`)
	checked := 0
	err := filepath.WalkDir(filepath.Join(packages, "doc"), func(name string, entry os.DirEntry, err error) error {
		if err != nil || filepath.Ext(name) != ".md" {
			return err
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		for _, link := range links.FindAllSubmatch(text, -1) {
			target := string(link[1])
			if strings.Contains(target, "://") {
				continue
			}
			checked++
			if _, err := os.Stat(filepath.Join(filepath.Dir(name), target)); err != nil || !filepath.IsLocal(strings.TrimPrefix(filepath.Join(filepath.Dir(name), target), packages+"/")) {
				t.Errorf("%s: link to %s: %v", name, target, err)
			}
		}
		return nil
	})
	if err != nil || checked == 0 {
		t.Errorf("%d links: %v", checked, err)
	}
}

// The manual is what man can format, and completions are scripts of their shells.
func TestManual(t *testing.T) {
	packages, _ := dist(t)
	dir := filepath.Join(packages, "command")
	page := filepath.Join(t.TempDir(), "felix.1")
	if err := os.WriteFile(page, []byte(output(t, "gzip", "-dc", filepath.Join(dir, "man", "felix-dev.1.gz"))), 0o644); err != nil {
		t.Fatal(err)
	}
	output(t, "bash", "-n", filepath.Join(dir, "felix.bash"))
	t.Run("man", func(t *testing.T) {
		need(t, "man")
		if text := output(t, "man", "--warnings", "-l", page); !strings.Contains(text, "Run a broker for development") {
			t.Errorf("man shows %q", text)
		}
	})
}

func TestDeb(t *testing.T) {
	need(t, "dpkg-deb")
	packages, _ := dist(t)
	deb := one(t, packages+"/*.deb")
	fields := output(t, "dpkg-deb", "--field", deb, "Package", "Version", "Architecture")
	if want := "Package: felix\nVersion: 0.0.1~test\nArchitecture: " + runtime.GOARCH + "\n"; fields != want {
		t.Errorf("fields %q, want %q", fields, want)
	}
	checkContents(t, "dpkg-deb", output(t, "dpkg-deb", "--contents", deb))
	dir := t.TempDir()
	output(t, "dpkg-deb", "--control", deb, dir)
	conffiles, err := os.ReadFile(filepath.Join(dir, "conffiles"))
	if err != nil || string(conffiles) != "/etc/felix/catalog.yml\n/etc/felix/config.yml\n" {
		t.Errorf("configuration files %q, %v", conffiles, err)
	}
}

func TestRPM(t *testing.T) {
	need(t, "rpm")
	packages, _ := dist(t)
	rpm := one(t, packages+"/*.rpm")
	checkContents(t, "rpm", output(t, "rpm", "-qlvp", rpm))
	if out := output(t, "rpm", "-qcp", rpm); out != "/etc/felix/catalog.yml\n/etc/felix/config.yml\n" {
		t.Errorf("configuration files %q", out)
	}
	if out := output(t, "rpm", "-qp", "--requires", rpm); strings.Contains(out, ".so") {
		t.Errorf("requires %s", out)
	}
}

// checkContents looks for the files of the package, and their modes, in a listing.
func checkContents(t *testing.T, tool, list string) {
	t.Helper()
	for path, mode := range map[string]string{
		"/usr/bin/felix-broker":                        "-rwxr-xr-x",
		"/usr/lib/systemd/system/felix-broker.service": "-rw-r--r--",
		"/usr/lib/sysusers.d/felix.conf":               "-rw-r--r--",
		"/usr/lib/sysctl.d/90-felix.conf":              "-rw-r--r--",
		"/etc/felix/config.yml":                        "-rw-r--r--",
		"/etc/felix/catalog.yml":                       "-rw-r--r--",
		"/etc/felix/tls":                               "drwxr-x---",
		"/usr/share/doc/felix/operate/deployment.md":   "-rw-r--r--",
		"/usr/share/man/man1/felix.1.gz":               "-rw-r--r--",
		"/usr/share/man/man1/felix-cache-put.1.gz":     "-rw-r--r--",
		"/usr/share/bash-completion/completions/felix": "-rw-r--r--",
	} {
		line := regexp.MustCompile(`(?m)^(\S{10}) .* \.?` + regexp.QuoteMeta(path) + `/?$`).FindStringSubmatch(list)
		if line == nil || line[1] != mode {
			t.Errorf("%s: %s is %q, want %s", tool, path, line, mode)
		}
	}
}
