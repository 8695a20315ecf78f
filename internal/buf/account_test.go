package buf

import (
	"sync"
	"testing"
)

func TestAccount(t *testing.T) {
	process := NewAccount(300<<10, nil)
	a, b := NewAccount(256<<10, process), NewAccount(256<<10, process)
	if !a.Charge(200<<10) || a.Charge(57<<10) {
		t.Error("the account's own limit is not what decides")
	}
	if b.Charge(150 << 10) {
		t.Error("the parent's limit does not hold")
	}
	if a.Used() != 200<<10 || b.Used() != 0 || process.Used() != 200<<10 {
		t.Errorf("used %d, %d, %d: a refused charge left something", a.Used(), b.Used(), process.Used())
	}
	for range 3 {
		if !b.Charge(Spare) {
			t.Error("the parent refused what everybody needs")
		}
	}
	if process.Used() != (200+3*64)<<10 {
		t.Errorf("%d bytes of the process", process.Used())
	}
	a.SetLimit(100 << 10)
	if a.Charge(1) {
		t.Error("charged above a limit that was lowered")
	}
	a.Release(200 << 10)
	b.Release(3 * Spare)
	if a.Used() != 0 || b.Used() != 0 || process.Used() != 0 {
		t.Errorf("used %d, %d, %d at the end", a.Used(), b.Used(), process.Used())
	}
}

func TestAccountConcurrently(t *testing.T) {
	process := NewAccount(1<<20, nil)
	var wg sync.WaitGroup
	for range 8 {
		a := NewAccount(512<<10, process)
		for range 2 {
			wg.Go(func() {
				for i := range 2000 {
					n := 1 + i*97%(200<<10)
					if a.Charge(n) {
						if a.Used() > 512<<10+8*(200<<10) {
							t.Error("far above the limit")
						}
						a.Release(n)
					}
				}
			})
		}
	}
	wg.Wait()
	if process.Used() != 0 {
		t.Errorf("%d bytes left", process.Used())
	}
}
