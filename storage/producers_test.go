package storage

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/felix-mq/felix/internal/vfs"
)

func producerID(n int) (id ProducerID) {
	copy(id[:], fmt.Sprintf("producer %d", n))
	return id
}

// appendFrom appends a batch of one record and waits for its end.
func appendFrom(t *testing.T, l *Log, from Origin, payload string) (duplicate bool, err error) {
	t.Helper()
	done := make(chan error, 1)
	_, duplicate, err = appendOnce(l, from, [][]byte{[]byte(payload)}, ClassDevice, func(err error) { done <- err })
	if err == nil {
		err = <-done
	}
	return duplicate, err
}

// appendOnce appends a batch of an origin, and leaves the commit to the committer.
func appendOnce(l *Log, from Origin, batch [][]byte, class Class, done func(error)) (first uint64, duplicate bool, err error) {
	first, duplicate, err = l.AppendLater(&from, batch, class, done)
	if err == nil {
		l.s.Commit(false)
	}
	return first, duplicate, err
}

// later is [Log.AppendLater] of a batch of nobody.
func later(l *Log) func(batch [][]byte, class Class, done func(error)) (uint64, error) {
	return func(batch [][]byte, class Class, done func(error)) (uint64, error) {
		first, _, err := l.AppendLater(nil, batch, class, done)
		return first, err
	}
}

func openLogOf(t *testing.T, fs vfs.FS) (*Store, *Log) {
	t.Helper()
	return openLogWith(t, small(fs))
}

// openLogWith opens a store and a log in it.
func openLogWith(t *testing.T, o Options) (*Store, *Log) {
	t.Helper()
	s, err := Open("data", o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := s.Log(key(0))
	if err != nil {
		t.Fatal(err)
	}
	return s, l
}

// TestProducerWindow compares what is said of a producer's numbers with a model.
func TestProducerWindow(t *testing.T) {
	dice := rand.New(rand.NewPCG(1, 2))
	for _, complete := range []bool{true, false} {
		p := &producers{complete: complete}
		id, have := producerID(1), map[uint64]bool{}
		base := uint64(5000) * uint64(dice.IntN(2))
		if !complete {
			base += 77
		}
		first, last := base, base
		p.record(id, base)
		have[base] = true
		for range 5000 {
			seq := last - min(last, uint64(dice.IntN(1200))) + uint64(dice.IntN(1300))
			if dice.IntN(200) == 0 {
				seq = last + uint64(dice.IntN(3000))
			}
			last = max(last, seq)
			floor := last - min(last, SequenceWindow-1)
			if !complete {
				floor = max(floor, first)
			}
			has, err := p.look(Origin{Producer: id, Sequence: seq, Repeated: true})
			switch {
			case seq < floor && !errors.Is(err, ErrOldSequence):
				t.Fatalf("number %d, last %d: got %v, %v, want %v", seq, last, has, err, ErrOldSequence)
			case seq >= floor && (err != nil || has != have[seq]):
				t.Fatalf("number %d, last %d: got %v, %v, want %v", seq, last, has, err, have[seq])
			}
			if err == nil && !has {
				p.record(id, seq)
				have[seq] = true
			} else {
				last = p.known[id].Value.(*producer).last
			}
			if dice.IntN(100) == 0 { // through the file
				again, tail, ok := parseProducers(p.encode(9, 33), 9)
				if !ok || tail != 33 || !reflect.DeepEqual(again.encode(9, 33), p.encode(9, 33)) {
					t.Fatalf("the file is read as %v, %d, %v", again, tail, ok)
				}
				again.stored = false
				p = again
			}
		}
	}
	p := &producers{}
	p.record(producerID(1), math.MaxUint64-1)
	p.record(producerID(1), math.MaxUint64)
	if has, err := p.look(Origin{Producer: producerID(1), Sequence: math.MaxUint64}); !has || err != nil {
		t.Errorf("the last number: %v, %v", has, err)
	}
}

// TestForgottenProducer forgets the producer that has appended nothing for longest, and says so of its next repeated
// batch, and of that of a producer that is new.
func TestForgottenProducer(t *testing.T) {
	s, l := openLogOf(t, &vfs.Mem{})
	for i := range MaxProducers {
		if _, err := appendFrom(t, l, Origin{Producer: producerID(i), Sequence: 1}, "x"); err != nil {
			t.Fatal(err)
		}
	}
	repeated := func(n int, seq uint64) error {
		_, err := appendFrom(t, l, Origin{Producer: producerID(n), Sequence: seq, Repeated: true}, "x")
		return err
	}
	if err := errors.Join(repeated(0, 2), repeated(MaxProducers, 1)); err != nil {
		t.Fatalf("all producers are known, and a repeated batch fails: %v", err)
	}
	if n := s.Stats().Forgotten; n != 1 || l.Producers() != MaxProducers {
		t.Errorf("%d forgotten, %d known", n, l.Producers())
	}
	for _, n := range []int{1, MaxProducers + 1} { // forgotten, new
		if err := repeated(n, 1); !errors.Is(err, ErrUnknownProducer) {
			t.Errorf("a repeated batch of producer %d: %v", n, err)
		}
	}
	if duplicate, err := appendFrom(t, l, Origin{Producer: producerID(1), Sequence: 2}, "x"); duplicate || err != nil {
		t.Errorf("the next batch of a forgotten producer: %v, %v", duplicate, err)
	}
	if err := repeated(1, 1); !errors.Is(err, ErrOldSequence) {
		t.Errorf("its batch before that: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestDuplicateWaits appends a batch again while the first append waits for the device. Both end together, and well or
// badly together.
func TestDuplicateWaits(t *testing.T) {
	for _, fails := range []bool{false, true} {
		held, release := make(chan struct{}, 16), make(chan struct{})
		var hold sync.Mutex
		armed := false
		broken := errors.New("broken")
		faulty := vfs.Faulty{FS: &vfs.Mem{}, Before: func(op vfs.Op, name string) error {
			hold.Lock()
			is := armed && op == vfs.OpSync && strings.HasSuffix(name, journalKind)
			hold.Unlock()
			if !is {
				return nil
			}
			held <- struct{}{}
			<-release
			if fails {
				return broken
			}
			return nil
		}}
		s, l := openLogOf(t, faulty)
		from := Origin{Producer: producerID(1), Sequence: 1}
		if _, err := appendFrom(t, l, from, "before"); err != nil {
			t.Fatal(err)
		}
		hold.Lock()
		armed = true
		hold.Unlock()
		from.Sequence = 2
		ends := make(chan string, 2)
		begin := func(name string, want bool) {
			_, duplicate, err := appendOnce(l, from, [][]byte{[]byte("once")}, ClassDevice, func(err error) { ends <- fmt.Sprint(name, errors.Is(err, ErrFailed)) })
			if duplicate != want || err != nil {
				t.Fatalf("%s: duplicate %v, error %v", name, duplicate, err)
			}
		}
		begin("first ", false)
		<-held
		from.Repeated = true
		begin("second ", true)
		if len(ends) > 0 {
			t.Error("a duplicate ended before the batch was on the device")
		}
		close(release)
		for _, name := range []string{"first ", "second "} {
			if got, want := <-ends, fmt.Sprint(name, fails); got != want {
				t.Errorf("fails %v: got %q, want %q", fails, got, want)
			}
		}
		if _, err := appendFrom(t, l, from, "again"); fails != errors.Is(err, ErrFailed) {
			t.Errorf("fails %v: afterwards %v", fails, err)
		}
		if err := s.Close(); fails != errors.Is(err, ErrFailed) {
			t.Errorf("fails %v: close: %v", fails, err)
		}
	}
}

// TestDuplicateWhenFull answers a batch that the log has although the device is nearly full.
func TestDuplicateWhenFull(t *testing.T) {
	mem := &vfs.Mem{}
	mem.SetFree(1 << 20)
	opt := small(mem)
	opt.Headroom = 1 << 10
	s, l := openLogWith(t, opt)
	defer s.Close()
	if _, err := appendFrom(t, l, Origin{Producer: producerID(1), Sequence: 1}, "x"); err != nil {
		t.Fatal(err)
	}
	mem.SetFree(1)
	s.checkSpace()
	if duplicate, err := appendFrom(t, l, Origin{Producer: producerID(1), Sequence: 1, Repeated: true}, "x"); !duplicate || err != nil {
		t.Errorf("a duplicate: %v, %v", duplicate, err)
	}
	if _, err := appendFrom(t, l, Origin{Producer: producerID(1), Sequence: 2, Repeated: true}, "x"); !errors.Is(err, ErrFull) {
		t.Errorf("a new batch: %v", err)
	}
}

// TestProducersFile damages, removes and exchanges the file that has what is known of producers. A log that cannot
// trust it knows nothing, and says so.
func TestProducersFile(t *testing.T) {
	mem := &vfs.Mem{}
	name := path.Join("data", key(0).Dir(), producersFile)
	var versions [][]byte
	for round := range 2 {
		s, l := openLogOf(t, mem)
		for i := range 3 {
			for k := range 3 {
				if _, err := appendFrom(t, l, Origin{Producer: producerID(i), Sequence: uint64(3*round + k)}, "x"); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		versions = append(versions, read(t, mem, name))
	}
	probe := func(what string, image *vfs.Mem, known bool) {
		t.Helper()
		s, l := openLogOf(t, image)
		tail := l.Bounds().Tail
		for i := range 3 {
			duplicate, err := appendFrom(t, l, Origin{Producer: producerID(i), Sequence: 5, Repeated: true}, "x")
			doubt := errors.Is(err, ErrUnknownProducer) || errors.Is(err, ErrOldSequence)
			if known && (!duplicate || err != nil) || !known && !doubt {
				t.Errorf("%s: duplicate %v, %v", what, duplicate, err)
			}
		}
		if l.Bounds().Tail != tail {
			t.Errorf("%s: a duplicate was appended", what)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	probe("as it was", clone(t, mem), true)
	for at := range int64(len(versions[1])) {
		image := clone(t, mem)
		flip(t, image, name, at)
		probe(fmt.Sprintf("byte %d flipped", at), image, false)
	}
	replace := func(what string, b []byte) {
		image := clone(t, mem)
		if err := image.Remove(name); err != nil {
			t.Fatal(err)
		}
		if b != nil {
			if err := vfs.WriteFile(image, name, b); err != nil {
				t.Fatal(err)
			}
		}
		probe(what, image, false)
		if _, err := image.Open(name); b != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: the file is still there: %v", what, err)
		}
	}
	replace("missing", nil)
	replace("older than the log", versions[0])
	replace("empty", []byte{})
	p, tail, ok := parseProducers(versions[1], storeEpoch(t, mem))
	if !ok {
		t.Fatal("the file cannot be read")
	}
	replace("newer than the log", p.encode(storeEpoch(t, mem), tail+1))
	replace("of another directory", p.encode(storeEpoch(t, mem)+1, tail))

	// The journal has records that come after the file, and a loss of power has taken others that the file knows of.
	s, l := openLogOf(t, mem)
	if _, err := appendFrom(t, l, Origin{Producer: producerID(0), Sequence: 6}, "x"); err != nil {
		t.Fatal(err)
	}
	image := clone(t, mem) // as after the end of the process
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	probe("with a journal", clone(t, image), true)
	for i, b := range [][]byte{p.encode(storeEpoch(t, mem), tail+1), p.encode(storeEpoch(t, mem), tail+2), versions[0]} {
		image := clone(t, image)
		if err := vfs.WriteFile(image, name, b); err != nil {
			t.Fatal(err)
		}
		probe(fmt.Sprint("with a journal, changed in way ", i), image, i == 0)
	}
}

func storeEpoch(t *testing.T, fs vfs.FS) uint64 {
	t.Helper()
	epoch, err := epochOf(fs, "data")
	if err != nil {
		t.Fatal(err)
	}
	return epoch
}

// attempt is a batch that a producer appends until it knows the end of it.
type attempt struct {
	from     Origin
	records  int
	acked    bool
	refused  bool
	repeated bool
}

func (a *attempt) batch() (batch [][]byte) {
	for k := range a.records {
		pad := strings.Repeat("x", int(a.from.Sequence*7+uint64(k)*13)%60)
		batch = append(batch, fmt.Appendf(nil, "%s/%d/%d/%d/%s", bytes.TrimRight(a.from.Producer[:], "\x00"), a.from.Sequence, k, a.records, pad))
	}
	return batch
}

// producing is what the producers of one log have done.
type producing struct {
	mu       sync.Mutex
	attempts []*attempt
	next     map[int]uint64 // by producer
	plain    int            // records of nobody
}

// give appends a batch, and reports false if the store accepts no more.
func (p *producing) give(t *testing.T, l *Log, a *attempt, class Class, done *sync.WaitGroup) bool {
	t.Helper()
	done.Add(1)
	from := a.from
	from.Repeated = a.repeated
	a.repeated = true
	_, _, err := appendOnce(l, from, a.batch(), class, func(err error) {
		defer done.Done()
		p.mu.Lock()
		defer p.mu.Unlock()
		a.acked = a.acked || err == nil
	})
	if err == nil {
		return true
	}
	done.Done()
	if errors.Is(err, ErrUnknownProducer) || errors.Is(err, ErrOldSequence) {
		p.mu.Lock()
		defer p.mu.Unlock()
		a.refused = true
		if class == ClassDevice {
			t.Errorf("%q, number %d: %v, although all of the log was on the device", a.from.Producer, a.from.Sequence, err)
		}
		return true
	}
	return false
}

// open returns the attempts whose end is not known.
func (p *producing) open() (open []*attempt) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range p.attempts {
		if !a.acked && !a.refused {
			open = append(open, a)
		}
	}
	return open
}

// produce repeats what is open, and appends some rounds more, until the file system crashes.
func produce(t *testing.T, fs vfs.FS, logs []*producing, rounds int, unsynced func(log int) bool) {
	t.Helper()
	s, err := Open("data", small(fs))
	if err != nil {
		if !errors.Is(err, vfs.ErrCrashed) {
			t.Fatalf("open: %v", err)
		}
		return
	}
	defer s.Close()
	var done sync.WaitGroup
	defer done.Wait()
	class := func(log int) Class {
		if unsynced(log) {
			return ClassOS
		}
		return ClassDevice
	}
	open := make([]*Log, len(logs))
	for i, p := range logs {
		if open[i], err = s.Log(key(i)); err != nil {
			if !errors.Is(err, vfs.ErrCrashed) {
				t.Fatalf("log: %v", err)
			}
			return
		}
		for _, a := range p.open() {
			if !p.give(t, open[i], a, class(i), &done) {
				return
			}
		}
	}
	for round := range rounds {
		for i, p := range logs {
			n := (round + i) % 4
			if n == 3 { // of nobody
				done.Add(1)
				p.plain++
				if _, err := open[i].Append([][]byte{fmt.Appendf(nil, "plain/%d", p.plain)}, class(i), func(error) { done.Done() }); err != nil {
					done.Done()
					return
				}
				continue
			}
			p.next[n] += 1 + uint64(round%3)/2 // some numbers are left out
			a := &attempt{from: Origin{Producer: producerID(10*i + n), Sequence: p.next[n]}, records: 1 + round%3}
			p.mu.Lock()
			p.attempts = append(p.attempts, a)
			p.mu.Unlock()
			if !p.give(t, open[i], a, class(i), &done) {
				return
			}
			if round%7 == 6 && !p.give(t, open[i], a, class(i), &done) {
				return
			}
		}
		if round%3 == 0 {
			done.Wait()
		}
	}
}

// checkProduced opens what a crash has left, repeats what is open, and compares the logs with the attempts, and with
// what the logs say of them.
func checkProduced(t *testing.T, fs vfs.FS, logs []*producing, unsynced func(log int) bool) {
	t.Helper()
	said := make([]map[*attempt]bool, len(logs))
	look := func(s *Store, i int, a *attempt) (has, sure bool) {
		l, err := s.Log(key(i))
		if err != nil {
			t.Fatal(err)
		}
		l.order.Lock()
		defer l.order.Unlock()
		from := a.from
		from.Repeated = true
		has, err = l.producers.look(from)
		return has, err == nil
	}
	s, err := Open("data", small(fs))
	if err != nil {
		t.Fatalf("open after the crash: %v", err)
	}
	before := make([]map[string]int, len(logs))
	for i, p := range logs {
		l, err := s.Log(key(i))
		if err != nil {
			t.Fatal(err)
		}
		before[i], said[i] = batches(t, l, unsynced(i)), map[*attempt]bool{}
		for _, a := range p.attempts {
			if has, sure := look(s, i, a); sure {
				said[i][a] = has
			}
		}
	}
	for i, p := range logs {
		for _, a := range p.attempts {
			n := before[i][name(a)]
			has, sure := said[i][a]
			switch {
			case n > 1:
				t.Errorf("log %d: %s is there %d times", i, name(a), n)
			case n < 0 && sure:
				t.Errorf("log %d: a part of %s is there, and the log says %v", i, name(a), has)
			case sure && has != (n == 1):
				t.Errorf("log %d: %s is there %d times, and the log says %v", i, name(a), n, has)
			case !sure && !unsynced(i):
				t.Errorf("log %d: nothing is known of %s, although all of the log was on the device", i, name(a))
			case a.acked && n == 0 && !unsynced(i):
				t.Errorf("log %d: %s was acknowledged and is lost", i, name(a))
			}
		}
	}
	if err := s.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	if t.Failed() {
		return
	}
	repeated := make([][]*attempt, len(logs))
	for i, p := range logs {
		repeated[i] = p.open()
	}
	produce(t, fs, logs, 0, unsynced)
	if s, err = Open("data", small(fs)); err != nil {
		t.Fatalf("open: %v", err)
	}
	for i, p := range logs {
		l, err := s.Log(key(i))
		if err != nil {
			t.Fatal(err)
		}
		after := batches(t, l, unsynced(i))
		for _, a := range repeated[i] {
			if n := after[name(a)]; a.acked && n != 1 || n > 1 {
				t.Errorf("log %d: %s was repeated, acknowledged %v, and is there %d times", i, name(a), a.acked, n)
			}
		}
		for _, a := range p.attempts {
			if has, sure := look(s, i, a); sure && (has != (after[name(a)] == 1) || after[name(a)] < 0) {
				t.Errorf("log %d: %s is there %d times, and after an orderly end the log says %v", i, name(a), after[name(a)], has)
			}
		}
	}
	if err := s.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
}

func name(a *attempt) string {
	return fmt.Sprintf("%s/%d", bytes.TrimRight(a.from.Producer[:], "\x00"), a.from.Sequence)
}

// batches reads a log and counts its batches. They must be whole, unless a loss of power may have left a part of one:
// of that there are -1.
func batches(t *testing.T, l *Log, torn bool) map[string]int {
	t.Helper()
	found := map[string]int{}
	r, err := l.Read(0)
	if err != nil {
		t.Fatal(err)
	}
	part, open := 0, "" // of the batch that has begun
	leave := func() {
		if open != "" && !torn {
			t.Fatalf("there are %d parts of %s alone", part, open)
		}
		if open != "" {
			found[open] = -1
		}
		part, open = 0, ""
	}
	for {
		records, err := r.Next(400)
		if err != nil {
			t.Fatal(err)
		}
		if len(records) == 0 {
			leave()
			return found
		}
		for _, rec := range records {
			f := strings.Split(string(rec.Payload), "/")
			if len(f) < 4 {
				leave()
				continue
			}
			of := f[0] + "/" + f[1]
			k, _ := strconv.Atoi(f[2])
			all, _ := strconv.Atoi(f[3])
			if of != open {
				leave()
			}
			if k != part {
				t.Fatalf("%q where part %d was to come", rec.Payload, part)
			}
			if part, open = part+1, of; part == all {
				found[of]++
				part, open = 0, ""
			}
		}
	}
}

// TestCrashesOfProducers crashes after every change of the file system while producers append, and repeats what they do
// not know the end of. Each batch is in the log once, if it is acknowledged, and at most once if it is not. The log
// says of none that it has it and has not, or the other way round; and where all was on the device it says so of every
// one.
func TestCrashesOfProducers(t *testing.T) {
	repeat := 1
	if n, err := strconv.Atoi(os.Getenv("FELIX_CRASHES")); err == nil {
		repeat = n
	}
	states := 0
	for seed := range repeat {
		for crash := 1; !t.Failed(); crash += sample(7) {
			ended := false
			for _, survival := range vfs.Survivals() {
				dice := rand.New(rand.NewPCG(uint64(seed), uint64(crash)*10+uint64(survival)))
				fs := &vfs.Mem{}
				logs := make([]*producing, 3)
				for i := range logs {
					logs[i] = &producing{next: map[int]uint64{}}
				}
				fs.CrashAfter(crash)
				unsynced := func(log int) bool { return log == 2 || crash%3 == 0 }
				produce(t, fs, logs, 40, unsynced)
				ended = fs.Changes() < crash
				fs = fs.Crash(survival, dice)
				for range dice.IntN(3) { // while the crash is being mended, or soon after
					fs.CrashAfter(1 + dice.IntN(60))
					produce(t, fs, logs, 3, unsynced)
					fs = fs.Crash(vfs.Survivals()[dice.IntN(4)], dice)
				}
				checkProduced(t, fs, logs, unsynced)
				states++
				if t.Failed() {
					t.Logf("seed %d, crash after %d changes, %v kept", seed, crash, survival)
					return
				}
			}
			if ended {
				break
			}
		}
	}
	t.Logf("%d states", states)
}

// TestManyProducers has producers of their own goroutines append each batch from two of them at once.
func TestManyProducers(t *testing.T) {
	s, err := Open(t.TempDir(), Options{SegmentBytes: 8 << 10, JournalBytes: 16 << 10, OpenFiles: 4})
	if err != nil {
		t.Fatal(err)
	}
	l, err := s.Log(key(0))
	if err != nil {
		t.Fatal(err)
	}
	const all, each = 8, 100
	var wg sync.WaitGroup
	for i := range all {
		for range 2 {
			wg.Go(func() {
				for k := range each {
					a := attempt{from: Origin{Producer: producerID(i), Sequence: uint64(k), Repeated: true}, records: 2}
					done := make(chan error, 1)
					if _, _, err := appendOnce(l, a.from, a.batch(), ClassOS, func(err error) { done <- err }); err != nil {
						t.Error(err)
						return
					}
					if err := <-done; err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	found := batches(t, l, false)
	for name, n := range found {
		if n != 1 {
			t.Errorf("%s is there %d times", name, n)
		}
	}
	if len(found) != all*each || l.Tail() != 2*all*each {
		t.Errorf("%d batches, tail %d", len(found), l.Tail())
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func FuzzProducers(f *testing.F) {
	p := &producers{complete: true}
	for i := range 5 {
		for k := range 3 {
			p.record(producerID(i%2), uint64(i*k*400))
		}
	}
	f.Add(p.encode(7, 42))
	f.Add((&producers{}).encode(7, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, tail, ok := parseProducers(b, 7); ok {
			if again := p.encode(7, tail); len(again) != len(b) {
				t.Errorf("%x was read as %x", b, again)
			}
			for id := range p.known {
				if _, err := p.look(Origin{Producer: id}); err != nil && !errors.Is(err, ErrOldSequence) {
					t.Error(err)
				}
				p.record(id, math.MaxUint64)
			}
		}
		if tags, ok := parseTags(nil, b); ok {
			var again []byte
			for _, x := range tags {
				again = appendTag(again, x)
			}
			if !bytes.Equal(again, b) {
				t.Errorf("%x was read as %x", b, again)
			}
		}
	})
}
