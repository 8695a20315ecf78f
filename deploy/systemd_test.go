package deploy

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The package is installed, run, upgraded and removed under a systemd of its own, in namespaces and over an overlay of
// this machine's files.
func TestInstalledPackage(t *testing.T) {
	packages, _ := dist(t)
	need(t, "dpkg")
	need(t, "ip")
	if os.Geteuid() != 0 {
		t.Skip("only root may make the namespaces")
	}
	if _, err := os.Stat("/lib/systemd/systemd"); err != nil {
		t.Skip(err)
	}
	group := cgroup(t)
	exchange := t.TempDir()
	check, err := os.ReadFile("testdata/check.sh")
	if err != nil {
		t.Fatal(err)
	}
	cert, key := certificate(t)
	for name, text := range map[string]string{"check.sh": string(check), "tls.crt": cert, "tls.key": key} {
		if err := os.WriteFile(filepath.Join(exchange, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-eux", "testdata/boot.sh", one(t, packages+"/*.deb"), exchange)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS |
			syscall.CLONE_NEWIPC | syscall.CLONE_NEWCGROUP,
		UseCgroupFD: true,
		CgroupFD:    int(group.Fd()),
		Pdeathsig:   syscall.SIGKILL,
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = 10 * time.Second
	switch err := cmd.Start(); {
	case errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSYS):
		t.Skip("no namespaces here:", err)
	case err != nil:
		t.Fatal(err)
	}
	limit := time.AfterFunc(90*time.Second, func() { _ = cmd.Process.Kill() })
	defer limit.Stop()
	err = cmd.Wait()
	log, _ := os.ReadFile(filepath.Join(exchange, "log"))
	if !strings.Contains(string(log), "\nall of it\n") {
		t.Errorf("systemd ended with %v\n%s\ncheck.sh:\n%s", err, &out, log)
	}
}

// cgroup makes a control group, in which systemd makes its own, and removes it after the test.
func cgroup(t *testing.T) *os.File {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Skip(err)
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if f[2] != "cgroup2" {
			continue
		}
		dir, err := os.MkdirTemp(f[1], "felix-test-")
		if err != nil {
			t.Skip(err)
		}
		t.Cleanup(func() { removeCgroup(t, dir) })
		group, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = group.Close() })
		return group
	}
	t.Skip("there is no cgroup2")
	return nil
}

// removeCgroup removes a control group with those in it. Its processes are dead, and may still be reaped.
func removeCgroup(t *testing.T, dir string) {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	for i := len(dirs) - 1; i >= 0 && err == nil; i-- {
		for range 100 {
			if err = os.Remove(dirs[i]); !errors.Is(err, syscall.EBUSY) {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	if err != nil {
		t.Error(err)
	}
}
