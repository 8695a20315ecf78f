package envconfig

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/felix-mq/felix/ring"
)

type settings struct {
	Size   int           `env:"T_SIZE" unit:"bytes" min:"10" max:"100" doc:"a size"`
	Wait   time.Duration `env:"T_WAIT_MS" unit:"ms" min:"1ms" max:"1h" doc:"a wait"`
	Window uint64        `env:"T_WINDOW" min:"5" doc:"a window"`
	Policy ring.Overflow `env:"T_POLICY" doc:"a policy"`
	On     bool          `env:"T_ON" doc:"a switch"`
	Names  []string      `env:"T_NAMES" doc:"names"`
	Bind   string        `env:"T_BIND" doc:"an address"`
	Inner  func()
}

func defaults() settings {
	return settings{Size: 50, Wait: time.Second, Window: 7, Policy: ring.DropOld, Names: []string{"a"}}
}

func TestLoad(t *testing.T) {
	s := defaults()
	if err := load(map[string]string{}, &s); err != nil {
		t.Fatal(err)
	}
	if d := defaults(); s.Size != d.Size || s.Wait != d.Wait || s.Policy != d.Policy || !slices.Equal(s.Names, d.Names) {
		t.Errorf("an empty environment changed the defaults: %+v", s)
	}
	err := load(map[string]string{
		"T_SIZE": "100", "T_WAIT_MS": "250", "T_WINDOW": "9", "T_POLICY": "block", "T_ON": "true", "T_NAMES": "x,y",
	}, &s)
	if err != nil {
		t.Fatal(err)
	}
	if s.Size != 100 || s.Wait != 250*time.Millisecond || s.Window != 9 || s.Policy != ring.Block || !s.On || !slices.Equal(s.Names, []string{"x", "y"}) {
		t.Errorf("read %+v", s)
	}
	s.Bind = "here"
	if err := load(map[string]string{"T_SIZE": ""}, &s); err != nil || s.Bind != "here" || s.Size != 100 {
		t.Errorf("read %q, %d, %v", s.Bind, s.Size, err)
	}
	if err := load(map[string]string{"T_BIND": ""}, &s); err != nil || s.Bind != "" {
		t.Errorf("a text that is set and empty is %q, %v", s.Bind, err)
	}
	if err := load(map[string]string{"T_WAIT_MS": "2s"}, &s); err != nil || s.Wait != 2*time.Second {
		t.Errorf("read %v, %v", s.Wait, err)
	}
}

func TestLoadReportsEveryProblem(t *testing.T) {
	s := defaults()
	err := load(map[string]string{
		"T_SIZE": "many", "T_WAIT_MS": "soon", "T_WINDOW": "4", "T_POLICY": "sometimes", "T_ON": "perhaps",
	}, &s)
	if err == nil {
		t.Fatal("bad values were accepted")
	}
	for _, name := range []string{"T_SIZE", "T_WAIT_MS", "T_WINDOW: 4 is less than 5", "T_POLICY", "T_ON"} {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("error does not mention %s: %v", name, err)
		}
	}
	s = defaults()
	if err := load(map[string]string{"T_SIZE": "101"}, &s); err == nil || !strings.Contains(err.Error(), "T_SIZE: 101 is more than 100") {
		t.Errorf("got %v", err)
	}
}

func TestDescribe(t *testing.T) {
	s := defaults()
	vars := Describe(&s)
	if len(vars) != 7 {
		t.Fatalf("%d variables, want 7", len(vars))
	}
	if v := vars[1]; v.Name != "T_WAIT_MS" || v.Unit != "ms" || v.Default != "1s" || v.Doc != "a wait" {
		t.Errorf("got %+v", v)
	}
	if v := vars[3]; v.Default != "drop_old" {
		t.Errorf("got %+v", v)
	}
}
