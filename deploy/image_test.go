package deploy

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"maps"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// command returns the command in the JSON list that follows a word of the Dockerfile.
func command(t *testing.T, word string) (command []string) {
	t.Helper()
	file, err := os.ReadFile("Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^` + word + ` .*?(\[.*\])$`).FindSubmatch(file)
	if m == nil {
		t.Fatalf("the Dockerfile has no %s", word)
	}
	if err := json.Unmarshal(m[1], &command); err != nil {
		t.Fatal(err)
	}
	return command
}

func project(t *testing.T) *types.Project {
	t.Helper()
	dir, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	p, err := loader.LoadWithContext(t.Context(), types.ConfigDetails{
		WorkingDir: dir, ConfigFiles: []types.ConfigFile{{Filename: filepath.Join(dir, "compose.yaml")}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// image is a directory like the image's: nothing is in it but the broker, no shell, no user, no temporary files.
type image struct{ root string }

func newImage(t *testing.T) image {
	t.Helper()
	_, bin := dist(t)
	if os.Geteuid() != 0 {
		t.Skip("only root may change the root directory")
	}
	m := image{t.TempDir()}
	err := errors.Join(
		os.Chmod(filepath.Dir(m.root), 0o755),
		os.MkdirAll(m.root+"/usr/bin", 0o755),
		os.Link(filepath.Join(bin, "felix-broker"), m.root+"/usr/bin/felix-broker"),
	)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// write makes a file, as the volumes of a container do.
func (m image) write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(m.root+path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(m.root+path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// command returns a command that runs in the image, as its user.
func (m image) command(t *testing.T, environ []string, command ...string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
	cmd.Env, cmd.Dir = environ, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: m.root, Credential: &syscall.Credential{Uid: 65532, Gid: 65532}}
	return cmd
}

// run starts the entry point with arguments, on addresses that nobody has, and expects the image's health check, the
// probes of the chart, use, and the end on SIGTERM to succeed. use is given the broker's output.
func (m image) run(t *testing.T, args, environ []string, use func(stdout *json.Decoder)) {
	t.Helper()
	addr := freeAddr(t)
	environ = append(environ, "FELIX_QUIC_BIND=127.0.0.1:0", "FELIX_BROKER_METRICS_BIND="+addr)
	broker := m.command(t, environ, append(command(t, "ENTRYPOINT"), args...)...)
	stdout, printed, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdout.Close()
	_ = stdout.SetReadDeadline(time.Now().Add(time.Minute))
	var log bytes.Buffer
	broker.Stdout, broker.Stderr = printed, &log
	err = broker.Start()
	_ = printed.Close()
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- broker.Wait() }()
	health := command(t, "HEALTHCHECK")
	limit := time.After(20 * time.Second)
	for healthy := false; !healthy; {
		out, err := m.command(t, environ, health...).CombinedOutput()
		healthy = err == nil
		select {
		case err := <-ended:
			t.Fatalf("broker: %v\n%s", err, &log)
		case <-limit:
			t.Fatalf("health check: %v: %s", err, out)
		case <-time.After(20 * time.Millisecond):
		}
	}
	for _, path := range probePaths(t) {
		if res, err := http.Get("http://" + addr + path); err != nil {
			t.Error(err)
		} else if res.Body.Close(); res.StatusCode != http.StatusOK {
			t.Errorf("probe %s: %s", path, res.Status)
		}
	}
	use(json.NewDecoder(stdout))
	if err := broker.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("broker: %v\n%s", err, &log)
	}
	if out, err := m.command(t, environ, health...).CombinedOutput(); err == nil {
		t.Errorf("the health check of a broker that is gone succeeds: %s", out)
	}
}

// The broker of the compose file carries the load of the load generator that is packaged with it.
func TestComposeBroker(t *testing.T) {
	m := newImage(t)
	_, bin := dist(t)
	m.run(t, project(t).Services["broker"].Command, nil, func(stdout *json.Decoder) {
		var ready struct {
			Addr, Tenant, Token string
			CA                  string `json:"ca_pem"`
		}
		if err := stdout.Decode(&ready); err != nil { // it is healthy before it has printed the line
			t.Error(err)
			return
		}
		m.write(t, "/ca.pem", ready.CA)
		output(t, filepath.Join(bin, "felix-loadgen"), "--addr", ready.Addr, "--tenant", ready.Tenant, "--token", ready.Token,
			"--ca", m.root+"/ca.pem", "--fanout", "2", "--batch", "64", "--total", "20000", "--warmup", "0s")
	})
}

// The broker of the pod starts with the settings that the chart makes of its values, and with the files that it mounts.
func TestPod(t *testing.T) {
	for name, values := range map[string]string{"default": "", "everything": everything} {
		t.Run(name, func(t *testing.T) {
			objects, err := render(t, values)
			if err != nil {
				t.Fatal(err)
			}
			cert, key := certificate(t)
			volumes := map[string]map[string]string{
				"felix-tls": {"tls.crt": cert, "tls.key": key, "ca.crt": cert},
				"token":     {"token": "secret"},
			}
			var pod corev1.PodSpec
			for _, object := range objects {
				switch o := object.(type) {
				case *corev1.ConfigMap:
					volumes[o.Name] = o.Data
				case *appsv1.StatefulSet:
					pod = o.Spec.Template.Spec
				}
			}
			m := newImage(t)
			container := pod.Containers[0]
			for _, mount := range container.VolumeMounts {
				v := pod.Volumes[slices.IndexFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == mount.Name })]
				var source string
				if v.Secret != nil {
					source = v.Secret.SecretName
				} else {
					source = v.ConfigMap.Name
				}
				for file, text := range volumes[source] {
					m.write(t, filepath.Join(mount.MountPath, file), text)
				}
			}
			var environ []string
			for _, v := range container.Env {
				environ = append(environ, v.Name+"="+v.Value)
			}
			validate := append(command(t, "ENTRYPOINT"), append(container.Args, "--validate-config")...)
			if out, err := m.command(t, environ, validate...).CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
			m.run(t, container.Args, environ, func(*json.Decoder) {})
		})
	}
}

// certificate returns a certificate for localhost, by itself, and its key.
func certificate(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	encode := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	return encode("CERTIFICATE", der), encode("PRIVATE KEY", pkcs8)
}

// freeAddr returns an address on loopback that nobody had a moment ago.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// What the Dockerfile takes from the tree is there, and make builds it.
func TestDockerfile(t *testing.T) {
	content, err := os.ReadFile("Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^COPY ([^-].*) \S+$`).FindAllStringSubmatch(string(content), -1) {
		for name := range strings.FieldsSeq(m[1]) {
			if _, err := os.Stat(filepath.Join("..", name)); err != nil {
				t.Error(err)
			}
		}
	}
	module, err := os.ReadFile("../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	builder := regexp.MustCompile(`golang:([0-9.]+)`).FindSubmatch(content)
	if wants := regexp.MustCompile(`(?m)^go ([0-9]+\.[0-9]+)`).FindSubmatch(module); builder == nil || !bytes.Equal(builder[1], wants[1]) {
		t.Errorf("built by %q, go.mod wants Go %s", builder, wants[1])
	}
}

// The compose file is one, and its parts find each other.
func TestCompose(t *testing.T) {
	p := project(t)
	if got := slices.Sorted(maps.Keys(p.Services)); !slices.Equal(got, []string{"broker", "grafana", "prometheus"}) {
		t.Errorf("services %q", got)
	}
	mounted := make(map[string]string) // source by target
	for name, s := range p.Services {
		if s.NetworkMode != "host" {
			t.Errorf("%s is not on the host's network, where the others look for it", name)
		}
		for _, v := range s.Volumes {
			if v.Type != types.VolumeTypeBind {
				continue
			}
			if _, err := os.Stat(v.Source); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			mounted[v.Target] = v.Source
		}
	}
	broker := p.Services["broker"]
	if _, err := os.Stat(filepath.Join(broker.Build.Context, broker.Build.Dockerfile)); err != nil {
		t.Error(err)
	}
	if broker.StopGracePeriod == nil || time.Duration(*broker.StopGracePeriod) < 30*time.Second {
		t.Errorf("killed after %v", broker.StopGracePeriod)
	}

	var prometheus struct {
		Configs []struct {
			Static []struct{ Targets []string } `json:"static_configs"`
		} `json:"scrape_configs"`
	}
	read(t, mounted["/etc/prometheus/prometheus.yml"], &prometheus)
	if want, got := *broker.Environment["FELIX_BROKER_METRICS_BIND"], prometheus.Configs[0].Static[0].Targets; !slices.Equal(got, []string{want}) {
		t.Errorf("Prometheus asks %q, the broker answers at %s", got, want)
	}
	var sources struct {
		List []struct{ UID, URL string } `json:"datasources"`
	}
	read(t, "grafana/provisioning/datasources/prometheus.yaml", &sources)
	if want := strings.TrimPrefix(sources.List[0].URL, "http://"); !slices.Contains(p.Services["prometheus"].Command, "--web.listen-address="+want) {
		t.Errorf("Grafana asks %s, Prometheus is %q", want, p.Services["prometheus"].Command)
	}
	var providers struct {
		List []struct{ Options struct{ Path string } } `json:"providers"`
	}
	read(t, "grafana/provisioning/dashboards/felix.yaml", &providers)
	home := *p.Services["grafana"].Environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
	if filepath.Dir(home) != providers.List[0].Options.Path || mounted[home] == "" {
		t.Errorf("Grafana looks for dashboards in %s; %s is %q", providers.List[0].Options.Path, home, mounted[home])
	}
}

func read(t *testing.T, path string, into any) {
	t.Helper()
	content, err := os.ReadFile(path)
	if err == nil {
		err = yaml.Unmarshal(content, into)
	}
	if err != nil {
		t.Fatal(err)
	}
}
