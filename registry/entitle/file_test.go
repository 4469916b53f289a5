package entitle

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/weir-registry/weir/registry"
)

func TestSnapshot(t *testing.T) {
	m := people()
	for i := range 3000 { // several frames
		g := granting(name("g%d", i), "user:ann", "UA", name("pull oci:some/where/%d/*", i))
		m.put(uint64(10+i), keyGrant+g.ID, g)
	}
	m.put(7, "e/policy/new", "of a later version of weir")
	m.put(7, keyGrant+"bad", granting("bad", "user:ann", "UA", "delete oci:*"))
	b := m.snapshot(5000)
	r := open(t, Options{})
	rest := bytes.NewReader(append(slices.Clone(b), "what follows"...))
	if err := r.ReadSnapshot(iotest.OneByteReader(rest)); err != nil {
		t.Fatal(err)
	}
	if rest.Len() != len("what follows") {
		t.Errorf("%d bytes are left", rest.Len())
	}
	s := r.State()
	if s.Database != "db" || s.Version != 5000 || s.Records != len(m) || len(s.Hash) != 64 {
		t.Errorf("%+v", s)
	}
	var again bytes.Buffer
	if err := r.WriteSnapshot(&again); err != nil || !bytes.Equal(again.Bytes(), b) {
		t.Errorf("another snapshot: %v", err)
	}
	if err := admits(r, named("ann", "UA", "pull", "oci", "some/where/2999/x")); err != nil {
		t.Error(err)
	}
	if err := open(t, Options{}).WriteSnapshot(io.Discard); registry.KindOf(err) != registry.ErrUnavailable {
		t.Error(err)
	}
	if err := r.WriteSnapshot(iotest.TruncateWriter(&again, 10)); err != nil {
		t.Error(err)
	}
}

// TestSnapshotDamaged flips, cuts and repeats, and checks that the copy stays.
func TestSnapshotDamaged(t *testing.T) {
	m := people()
	b := m.snapshot(9)
	r := open(t, Options{})
	m.load(t, r, 8)
	before := r.State()
	try := func(b []byte, kind error, why string) {
		t.Helper()
		err := r.ReadSnapshot(bytes.NewReader(b))
		if registry.KindOf(err) != kind {
			t.Errorf("%s: %v, want %v", why, err, kind)
		}
		if r.State() != before {
			t.Fatalf("%s: the copy has changed", why)
		}
	}
	for i := range b {
		flipped := slices.Clone(b)
		flipped[i] ^= 0x10
		if err := r.ReadSnapshot(bytes.NewReader(flipped)); err == nil {
			t.Fatalf("byte %d flipped: no error", i)
		}
		if err := r.ReadSnapshot(bytes.NewReader(b[:i])); registry.KindOf(err) != registry.ErrUnavailable {
			t.Fatalf("cut at %d: %v", i, err)
		}
		if r.State() != before {
			t.Fatalf("byte %d: the copy has changed", i)
		}
	}
	try(m.snapshot(7), registry.ErrConflict, "older")
	other := people()
	other.put(1, keyDatabase, "db2")
	try(other.snapshot(100), registry.ErrConflict, "another database")
	nameless := people()
	delete(nameless, keyDatabase)
	try(nameless.snapshot(100), registry.ErrCorrupt, "no database")
	if err := r.ReadSnapshot(iotest.TimeoutReader(bytes.NewReader(b))); registry.KindOf(err) != registry.ErrUnavailable || !errors.Is(err, iotest.ErrTimeout) {
		t.Error(err)
	}
	r.limits.records = len(m) - 1
	try(b, registry.ErrTooLarge, "a record too many")
	r.limits = limits{records: len(m), bytes: r.view.Load().bytes - 1}
	try(b, registry.ErrTooLarge, "a byte too many")
	r.limits.bytes++
	if err := r.ReadSnapshot(bytes.NewReader(b)); err != nil {
		t.Error("at the limit: ", err)
	}
}

// TestApplyRefuses checks that what cannot be applied changes nothing.
func TestApplyRefuses(t *testing.T) {
	r, m := open(t, Options{}), people()
	if err := r.Apply([]registry.Delta{{Prev: 0, Version: 1}}); registry.KindOf(err) != registry.ErrGone {
		t.Error(err)
	}
	m.load(t, r, 8)
	good := registry.Delta{Prev: 8, Version: 9, Records: []registry.Record{{Key: keyGrant + "a", Rev: 9}}}
	long := "e/" + string(bytes.Repeat([]byte("k"), registry.MaxKey-2))
	value := bytes.Repeat([]byte(" "), registry.MaxValue)
	bad := func(recs ...registry.Record) registry.Delta {
		return registry.Delta{Prev: 9, Version: 10, Records: append([]registry.Record{{Key: keyGrant + "b", Rev: 10}}, recs...)}
	}
	for why, c := range map[string]struct {
		second registry.Delta
		kind   error
	}{
		"gap":              {registry.Delta{Prev: 10, Version: 11}, registry.ErrGone},
		"overlap":          {registry.Delta{Prev: 8, Version: 11}, registry.ErrGone},
		"backwards":        {registry.Delta{Prev: 9, Version: 9}, registry.ErrCorrupt},
		"foreign key":      {bad(registry.Record{Key: "s/password/ann", Value: []byte("x"), Rev: 10}), registry.ErrCorrupt},
		"long key":         {bad(registry.Record{Key: long + "k", Value: []byte("x"), Rev: 10}), registry.ErrCorrupt},
		"long value":       {bad(registry.Record{Key: "e/x", Value: append(value, 1), Rev: 10}), registry.ErrCorrupt},
		"no UTF-8":         {bad(registry.Record{Key: "e/\xff", Value: []byte("x"), Rev: 10}), registry.ErrCorrupt},
		"zero byte":        {bad(registry.Record{Key: "e/\x00", Value: []byte("x"), Rev: 10}), registry.ErrCorrupt},
		"no revision":      {bad(registry.Record{Key: "e/x", Value: []byte("x")}), registry.ErrCorrupt},
		"another database": {bad(registry.Record{Key: keyDatabase, Value: []byte(`"db2"`), Rev: 10}), registry.ErrConflict},
		"no database":      {bad(registry.Record{Key: keyDatabase, Rev: 10}), registry.ErrConflict},
	} {
		before := r.State()
		if err := r.Apply([]registry.Delta{good, c.second}); registry.KindOf(err) != c.kind {
			t.Errorf("%s: %v", why, err)
		}
		if _, ok := r.Deltas(8); !ok || r.State() != before || admits(r, named("ann", "UA", "pull", "oci", "ann/x")) != nil {
			t.Errorf("%s: something has changed", why)
		}
	}
	if err := r.Apply([]registry.Delta{good, bad(registry.Record{Key: long, Value: value, Rev: 10})}); err != nil {
		t.Error("at the limits: ", err)
	}
	if admits(r, named("ann", "UA", "pull", "oci", "ann/x")) == nil || admits(r, named("bob", "UB", "pull", "oci", "bob/x")) == nil {
		t.Error("not applied")
	}
}

// reopened closes r and opens what it left.
func reopened(t *testing.T, r *Replica) *Replica {
	t.Helper()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	return open(t, r.o)
}

func same(t *testing.T, a, b registry.Standing, why string) {
	t.Helper()
	// The time of the confirmation is kept to what two readings of the clock differ by.
	if a.Confirmed, b.Confirmed = a.Confirmed.Round(time.Second), b.Confirmed.Round(time.Second); !a.Confirmed.Equal(b.Confirmed) {
		t.Errorf("%s: confirmed %v, was %v", why, b.Confirmed, a.Confirmed)
	}
	a.Confirmed, b.Confirmed = time.Time{}, time.Time{}
	if a != b {
		t.Errorf("%s: %+v, was %+v", why, b, a)
	}
}

func TestFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := Options{File: filepath.Join(t.TempDir(), "entitlements"), MaxStaleness: time.Minute}
		r, m := open(t, o), people()
		m.load(t, r, 8)
		r = reopened(t, r)
		if admits(r, named("ann", "UA", "pull", "oci", "ann/x")) == nil {
			t.Error("never confirmed, and served after a restart")
		}
		confirm(t, r, time.Now())
		was := r.State()
		r = reopened(t, r)
		same(t, was, r.State(), "after a snapshot")
		for i := range uint64(50) {
			apply(t, r, m.put(10+i, keyGrant+name("g%d", i), granting(name("g%d", i), "user:bob", "UB", name("pull oci:%d", i))))
			time.Sleep(100 * time.Millisecond)
		}
		apply(t, r, m.put(100, keyGrant+"a", nil))
		synctest.Wait()
		if size := r.file.size; size == r.file.base {
			t.Error("nothing was appended")
		}
		was = r.State()
		r = reopened(t, r)
		same(t, was, r.State(), "after deltas")
		if err := admits(r, named("bob", "UB", "pull", "oci", "7")); err != nil {
			t.Error(err)
		}
		if admits(r, named("ann", "UA", "pull", "oci", "ann/x")) == nil {
			t.Error("a removal was lost")
		}
		// A restart does not renew the lease.
		time.Sleep(40 * time.Second)
		r = reopened(t, r)
		if _, past := r.Stale(); past {
			t.Error("too early")
		}
		time.Sleep(20 * time.Second)
		if _, past := r.Stale(); !past || registry.KindOf(admits(r, named("bob", "UB", "pull", "oci", "7"))) != registry.ErrUnavailable {
			t.Error("a restart has renewed the lease")
		}
		r = reopened(t, r)
		if _, past := r.Stale(); !past {
			t.Error("a restart has renewed a lease that was over")
		}
		// Nor does a clock that was set back between two runs.
		confirm(t, r, time.Now())
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		o.Now = func() time.Time { return time.Now().Add(-time.Second) }
		r = open(t, o)
		if _, past := r.Stale(); !past {
			t.Error("the clock was set back, and the lease counts")
		}
		confirm(t, r, time.Now())
		if _, past := r.Stale(); past {
			t.Error("confirmed, and the lease does not count")
		}
		info, err := os.Stat(o.File)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Error(info.Mode(), err)
		}
	})
}

// TestFileGrows has more deltas than the file may have behind its snapshot.
func TestFileGrows(t *testing.T) {
	r, m := open(t, Options{File: filepath.Join(t.TempDir(), "entitlements")}), people()
	m.load(t, r, 8)
	r.stop() // nobody else writes the file
	r.work.Wait()
	blob := bytes.Repeat([]byte("x"), 100_000)
	for i := range uint64(120) {
		apply(t, r, m.put(10+i, "e/unknown/x", blob))
		if err := r.file.save(r, true); err != nil {
			t.Fatal(err)
		}
	}
	if r.file.size > logBytes+1<<20 {
		t.Errorf("the file has %d bytes", r.file.size)
	}
	was := r.State()
	same(t, was, reopened(t, r).State(), "grown")
}

// TestFileDamaged flips and cuts everywhere: what is opened is a version that
// there was, or nothing, and then the file is aside.
func TestFileDamaged(t *testing.T) {
	dir := t.TempDir()
	o := Options{File: filepath.Join(dir, "entitlements")}
	r, m := open(t, o), people()
	versions := map[registry.Standing]bool{{}: true}
	note := func(r *Replica) {
		s := r.State()
		s.Confirmed = time.Time{}
		versions[s] = true
	}
	m.load(t, r, 8)
	note(r)
	r = reopened(t, r)
	base := r.file.base
	for i := range uint64(3) {
		apply(t, r, m.put(10+i, keyGrant+name("g%d", i), granting(name("g%d", i), "user:bob", "UB", name("pull oci:%d", i))))
		note(r)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(o.File)
	if err != nil {
		t.Fatal(err)
	}
	try := func(b []byte, aside bool, why string) {
		t.Helper()
		if err := os.WriteFile(o.File, b, 0o600); err != nil {
			t.Fatal(err)
		}
		r := open(t, o)
		s := r.State()
		s.Confirmed = time.Time{}
		if !versions[s] {
			t.Fatalf("%s: %+v", why, s)
		}
		if s.Whole() == aside {
			t.Errorf("%s: whole %v", why, s.Whole())
		}
		damaged, _ := filepath.Glob(o.File + ".damaged-*")
		if len(damaged) > 0 != aside {
			t.Errorf("%s: set aside: %v", why, damaged)
		}
		for _, path := range damaged {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
		// It can be used, and kept.
		if !s.Whole() {
			people().load(t, r, 8)
		} else {
			apply(t, r, registry.Record{Key: keyGrant + "b", Rev: 1000})
		}
		was := r.State()
		same(t, was, reopened(t, r).State(), why)
	}
	step := max(len(whole)/60, 1)
	for i := 0; i < len(whole); i += step {
		flipped := slices.Clone(whole)
		flipped[i] ^= 4
		try(whole[:i], int64(i) < base, name("cut at %d", i))
		try(flipped, true, name("flipped at %d", i))
	}
	try(append(slices.Clone(whole), make([]byte, 100_000)...), false, "zeros at the end")
	try(append(slices.Clone(whole), bytes.Repeat([]byte{7}, 100)...), true, "rubbish at the end")
}

// TestFileKilled has a process killed while it applies deltas.
func TestFileKilled(t *testing.T) {
	if path := os.Getenv("ENTITLE_FILE"); path != "" {
		killMe(t, path)
		return
	}
	rounds := 3
	if n, err := strconv.Atoi(os.Getenv("WEIR_SOAK")); err == nil {
		rounds = n
	}
	path := filepath.Join(t.TempDir(), "entitlements")
	last := uint64(0)
	for range rounds {
		cmd := exec.Command(os.Args[0], "-test.run=^TestFileKilled$")
		cmd.Env = append(os.Environ(), "ENTITLE_FILE="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, 40)); err != nil { // so far it has come
			t.Fatal(err)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		r := open(t, Options{File: path})
		if s := r.State(); s.Version <= last || s.Database != "db" {
			t.Fatalf("%+v, was at %d", s, last)
		}
		last = r.State().Version
		if damaged, _ := filepath.Glob(path + ".damaged-*"); len(damaged) > 0 {
			t.Fatal(damaged)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// killMe applies deltas until it is killed, and says with a byte when another
// hundred are there.
func killMe(t *testing.T, path string) {
	r, m := open(t, Options{File: path}), people()
	if !r.State().Whole() {
		m.load(t, r, 8)
	}
	for {
		for range 100 {
			v := r.State().Version + 1
			apply(t, r, m.put(v, keyGrant+name("g%d", v%100), granting(name("g%d", v%100), "user:bob", "UB", name("pull oci:%d", v))))
		}
		if _, err := os.Stdout.Write([]byte(".")); err != nil {
			return
		}
	}
}

func TestOpenFails(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(Options{File: filepath.Join(dir, "none", "entitlements")}); err == nil {
		t.Error("there is no such directory")
	}
	if _, err := Open(Options{File: dir}); err == nil {
		t.Error("it is a directory")
	}
}

func FuzzReadSnapshot(f *testing.F) {
	b := people().snapshot(9)
	f.Add(b)
	f.Add(b[:60])
	f.Add([]byte(magic + "\x00\x00\x00\x01\x00\x00\x00\x00S"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := open(t, Options{})
		if err := r.ReadSnapshot(bytes.NewReader(b)); err != nil {
			if registry.KindOf(err) == nil || r.State().Whole() {
				t.Error(err, r.State())
			}
			return
		}
		var again bytes.Buffer
		if err := r.WriteSnapshot(&again); err != nil || open(t, Options{}).ReadSnapshot(&again) != nil {
			t.Error("what was read cannot be written and read again: ", err)
		}
	})
}

// FuzzApply takes deltas from bytes, as the file and the road between nodes do.
func FuzzApply(f *testing.F) {
	seed := func(d registry.Delta) { f.Add(appendDelta(nil, &d)) }
	m := people()
	seed(registry.Delta{Prev: 8, Version: 9, Records: []registry.Record{m[keyGrant+"a"], {Key: keyAccount + "ann", Rev: 9}}})
	seed(registry.Delta{Prev: 8, Version: 12, Records: []registry.Record{m.put(9, keyToken+"k", nil), m.put(9, "e/x", 1)}})
	snapshot := people().snapshot(8)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 {
			return
		}
		d, err := parseDelta(b)
		if err != nil {
			return
		}
		r := open(t, Options{})
		if err := r.ReadSnapshot(bytes.NewReader(snapshot)); err != nil {
			t.Fatal(err)
		}
		before := r.State()
		if err := r.Apply([]registry.Delta{d}); err != nil {
			if registry.KindOf(err) == nil || r.State() != before {
				t.Error(err)
			}
			return
		}
		var whole bytes.Buffer
		if err := r.WriteSnapshot(&whole); err != nil {
			t.Fatal(err)
		}
		other := open(t, Options{})
		if err := other.ReadSnapshot(&whole); err != nil || other.State() != r.State() {
			t.Errorf("%+v in a step, %+v whole: %v", r.State(), other.State(), err)
		}
	})
}
