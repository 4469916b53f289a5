package audit_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/audit"
)

// warden says what it is told to say.
type warden struct {
	err     error
	revoked func(error)
}

func (w *warden) Admit(context.Context, *registry.Call) error { return w.err }

func (w *warden) Watch(_ *registry.Call, revoked func(error)) (stop func()) {
	w.revoked = revoked
	return func() { w.revoked = nil }
}

func open(t testing.TB, o audit.Options) *audit.Log {
	t.Helper()
	l, err := audit.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func closeLog(t testing.TB, l *audit.Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// read reads every line of the files of a log, oldest first.
func read(t testing.TB, path string) []audit.Event {
	t.Helper()
	var events []audit.Event
	for n := 1000; n >= 0; n-- {
		name := path
		if n > 0 {
			name = fmt.Sprintf("%s.%d", path, n)
		}
		data, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		if len(data) > 0 && data[len(data)-1] != '\n' {
			t.Fatalf("%s does not end with a whole line: %q", name, data[max(len(data)-100, 0):])
		}
		for line := range bytes.Lines(data) {
			var e audit.Event
			dec := json.NewDecoder(bytes.NewReader(line))
			dec.DisallowUnknownFields()
			if err := dec.Decode(&e); err != nil {
				t.Fatalf("%s: %q: %v", name, line, err)
			}
			events = append(events, e)
		}
	}
	return events
}

func call() *registry.Call {
	return &registry.Call{
		Who:    registry.Principal{Name: "anna", UID: "u1", Token: "t1"},
		Action: registry.Pull,
		Name:   registry.Name{Space: "oci", Repo: "docker.io/library/alpine", Ref: "3"},
		Addr:   netip.MustParseAddr("192.0.2.7"), Agent: "docker/29",
	}
}

// bound is call as it is admitted the second time.
func bound() *registry.Call {
	c := call()
	c.Binding = registry.Binding{Descriptor: registry.Descriptor{Digest: "sha256:abc"}, Checked: time.Unix(1, 0)}
	return c
}

func TestRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "audit.log")
	at := time.Date(2026, 5, 1, 12, 0, 0, 123456789, time.UTC)
	l := open(t, audit.Options{File: path, Allowed: true, Node: "edge1", Version: func() uint64 { return 42 }, Now: func() time.Time { return at }})
	w := &warden{}
	g := l.Guard(w)
	if err := g.Admit(t.Context(), call()); err != nil { // no line: it is admitted again
		t.Error(err)
	}
	if err := g.Admit(t.Context(), bound()); err != nil {
		t.Error(err)
	}
	w.err = registry.Errorf(registry.ErrDenied, "not for anna")
	if err := g.Admit(t.Context(), bound()); !errors.Is(err, registry.ErrDenied) {
		t.Error(err)
	}
	w.err = registry.Errorf(registry.ErrUnavailable, "who knows")
	anyone := call()
	anyone.Who = registry.Principal{}
	if err := g.Admit(t.Context(), anyone); !errors.Is(err, registry.ErrUnavailable) {
		t.Error(err)
	}
	told := 0
	stop := g.Watch(bound(), func(error) { told++ })
	w.revoked(registry.Errorf(registry.ErrUnauthenticated, "token revoked"))
	stop()
	full := audit.Event{Time: at.Add(time.Second), Who: "root", UID: "u0", Token: "t0", Tier: true, Action: "token revoke", Repo: "user:anna", Ref: "t1",
		Digest: "d", From: netip.MustParseAddr("2001:db8::1"), Agent: "weir", Decision: audit.Change, Why: "lost", Version: 7, Node: "other", Count: 3}
	l.Record(full)
	closeLog(t, l)
	l.Record(full) // too late, and counted
	if err := l.Close(); !errors.Is(err, registry.ErrNoRoom) {
		t.Errorf("closed again: %v", err)
	}
	base := audit.Event{Time: at, Who: "anna", UID: "u1", Token: "t1", Action: "pull", Repo: "oci:docker.io/library/alpine", Ref: "3",
		Digest: "sha256:abc", From: call().Addr, Agent: "docker/29", Version: 42, Node: "edge1"}
	allow, deny, fail, cut := base, base, base, base
	allow.Decision = audit.Allow
	deny.Decision, deny.Why = audit.Deny, "not for anna"
	fail.Decision, fail.Why, fail.Who, fail.UID, fail.Token, fail.Digest = audit.Fail, "who knows", "anonymous", "", "", ""
	cut.Decision, cut.Why = audit.Cut, "token revoked"
	want := []audit.Event{allow, deny, fail, cut, full}
	if got := read(t, path); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if told != 1 {
		t.Errorf("the transfer was told %d times", told)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// TestAllowed counts the lines of admitted calls.
func TestAllowed(t *testing.T) {
	named := call()
	named.Binding.Digest = "sha256:what-the-client-says"
	push, node := call(), call()
	push.Action = registry.Push
	node.Who = registry.Principal{Name: "edge2", Node: true}
	for _, c := range []struct {
		call  *registry.Call
		lines int
	}{{call(), 0}, {named, 0}, {bound(), 1}, {push, 1}, {node, 1}} {
		for _, allowed := range []bool{true, false} {
			path := filepath.Join(t.TempDir(), "audit.log")
			l := open(t, audit.Options{File: path, Allowed: allowed})
			if err := l.Guard(&warden{}).Admit(t.Context(), c.call); err != nil {
				t.Error(err)
			}
			closeLog(t, l)
			want := c.lines
			if !allowed {
				want = 0
			}
			if got := read(t, path); len(got) != want {
				t.Errorf("%+v, allowed %v: %d lines, want %d", c.call, allowed, len(got), want)
			}
		}
	}
}

// TestWhetherIsNoEvent: what is only asked about is not written down, whatever is
// answered.
func TestWhetherIsNoEvent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := open(t, audit.Options{File: path, Allowed: true})
	for _, err := range []error{nil, registry.ErrDenied} {
		c := bound()
		c.Whether = true
		if got := l.Guard(&warden{err: err}).Admit(t.Context(), c); !errors.Is(got, err) {
			t.Errorf("answered %v, not %v", got, err)
		}
	}
	closeLog(t, l)
	if got := read(t, path); len(got) != 0 {
		t.Errorf("%+v", got)
	}
}

// TestForgedLines has clients that try to write lines, or to a terminal.
func TestForgedLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := open(t, audit.Options{File: path})
	g := l.Guard(&warden{err: registry.ErrDenied})
	evil := []string{
		"x\n{\"decision\":\"allow\"}\n", "x\r\n", "\u2028\u2029\u0085\v\f", "\x00\x1b[2Jgone", "\u009b2J\u009d0;title\u009c", "\x7f\b\b\b",
		"\u202egpj.exe\u2066\u200b\ufeff", "\U000e0041\U000e007f", "\"},{\"who\":\"root", `\n\u000a\`, "<script>&", "\xff\xfe\xc3", "\xed\xa0\x80",
	}
	for i, text := range evil {
		c := call()
		c.Agent, c.Name.Ref, c.Who.Name, c.Name.Repo = text, text, text, fmt.Sprint(text, i)
		_ = g.Admit(t.Context(), c)
		l.Record(audit.Event{Action: text, Why: text, Decision: text, Token: text, Node: text})
	}
	closeLog(t, l)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(data) {
		for _, r := range string(bytes.TrimSuffix(line, []byte("\n"))) {
			if !unicode.IsPrint(r) && r != '\ufffd' || unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) {
				t.Fatalf("a line has %q in it: %q", r, line)
			}
		}
	}
	events := read(t, path)
	if len(events) != 2*len(evil) {
		t.Fatalf("%d lines, want %d", len(events), 2*len(evil))
	}
	for i, text := range evil {
		if utf8.ValidString(text) && (events[2*i].Agent != text || events[2*i].Ref != text || events[2*i+1].Why != text) {
			t.Errorf("%q has become %+v", text, events[2*i])
		}
	}
}

func TestLongTexts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := open(t, audit.Options{File: path})
	long := strings.Repeat("é", 1<<20)
	l.Record(audit.Event{Who: long, Action: long, Repo: long, Ref: long, Digest: long, Agent: long, Why: long, UID: long, Token: long, Node: long, Decision: audit.Change})
	l.Record(audit.Event{Agent: strings.Repeat("a", 256)})
	closeLog(t, l)
	info, err := os.Stat(path)
	if err != nil || info.Size() > 5000 {
		t.Errorf("%d bytes, %v", info.Size(), err)
	}
	got := read(t, path)
	if len(got[0].Agent) > 256 || !strings.HasSuffix(got[0].Agent, "é…") || len(got[1].Agent) != 256 {
		t.Errorf("cut to %q, %q", got[0].Agent, got[1].Agent)
	}
}

// TestRotation has many write while files are put aside, and finds every line,
// those of each writer in order, and no file that is too long.
func TestRotation(t *testing.T) {
	const workers, rounds, size = 8, 400, 4096
	path := filepath.Join(t.TempDir(), "audit.log")
	l := open(t, audit.Options{File: path, Size: size, Keep: 900})
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			for i := range rounds {
				l.Record(audit.Event{Who: fmt.Sprint(w), Version: uint64(i + 1), Action: "x", Why: strings.Repeat("y", i%50)})
			}
		})
	}
	group.Wait()
	closeLog(t, l)
	next := map[string]uint64{}
	for _, e := range read(t, path) {
		if next[e.Who]++; e.Version != next[e.Who] {
			t.Fatalf("writer %s: line %d came where %d should", e.Who, e.Version, next[e.Who])
		}
	}
	for w := range workers {
		if n := next[fmt.Sprint(w)]; n != rounds {
			t.Errorf("writer %d: %d lines of %d", w, n, rounds)
		}
	}
	files, _ := filepath.Glob(path + "*")
	for _, name := range files {
		if info, err := os.Stat(name); err != nil || info.Size() > size || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %d bytes, mode %v, %v", name, info.Size(), info.Mode(), err)
		}
	}
	if len(files) < 10 {
		t.Errorf("only %d files", len(files))
	}
}

// TestKeep keeps the newest files, whatever was there before.
func TestKeep(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.log")
	for name, data := range map[string]string{".1": "{}\n", ".4": "{}\n", ".5": "{}\n", ".6": "{}\n"} { // 2 and 3 are missing
		if err := os.WriteFile(path+name, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l := open(t, audit.Options{File: path, Size: 200, Keep: 3})
	for i := range 50 {
		l.Record(audit.Event{Version: uint64(i + 1), Why: strings.Repeat("x", 100)})
	}
	closeLog(t, l)
	files, _ := filepath.Glob(path + "*")
	if want := []string{path, path + ".1", path + ".2", path + ".3"}; !reflect.DeepEqual(files, want) {
		t.Errorf("there are %v", files)
	}
	events := read(t, path)
	if len(events) < 4 {
		t.Fatalf("%d lines", len(events))
	}
	for i, e := range events {
		if want := uint64(50 - len(events) + i + 1); e.Version != want {
			t.Errorf("line %d is %d, want %d", i, e.Version, want)
		}
	}
}

// TestHalfRotated begins where a shift of names ended in the middle.
func TestHalfRotated(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	line := func(v int) []byte { return fmt.Appendf(nil, `{"version":%d}`+"\n", v) }
	for name, v := range map[string]int{".3": 1, ".1": 2, "": 3} {
		if err := os.WriteFile(path+name, line(v), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l := open(t, audit.Options{File: path, Size: 20, Keep: 3})
	l.Record(audit.Event{Version: 4})
	closeLog(t, l)
	var got []uint64
	for _, e := range read(t, path) {
		got = append(got, e.Version)
	}
	if fmt.Sprint(got) != "[1 2 3 4]" {
		t.Errorf("lines %v", got)
	}
}

// TestTornLine opens files that end in the middle of a line, or are one.
func TestTornLine(t *testing.T) {
	for _, c := range []struct{ before, keeps string }{
		{"{}\n{\"who\":\"ann", "{}\n"}, {"{\"who\"", ""}, {"{}\n", "{}\n"}, {"{}\n" + strings.Repeat("x", 200<<10), "{}\n"}, {strings.Repeat("x", 64<<10), ""},
	} {
		path := filepath.Join(t.TempDir(), "audit.log")
		if err := os.WriteFile(path, []byte(c.before), 0o600); err != nil {
			t.Fatal(err)
		}
		l := open(t, audit.Options{File: path})
		l.Record(audit.Event{Who: "next"})
		closeLog(t, l)
		data, _ := os.ReadFile(path)
		after, ok := strings.CutPrefix(string(data), c.keeps)
		if !ok || strings.Count(after, "\n") != 1 || !strings.HasPrefix(after, `{"time":`) {
			t.Errorf("%.30q has become %.100q", c.before, data)
		}
	}
}

// TestFolds has a client that does not give up.
func TestFolds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	synctest.Test(t, func(t *testing.T) {
		l := open(t, audit.Options{File: path})
		g := l.Guard(&warden{err: registry.ErrDenied})
		other := call()
		other.Name.Repo = "docker.io/library/busybox"
		begun := time.Now()
		for range 1000 {
			_ = g.Admit(t.Context(), call())
			time.Sleep(3 * time.Millisecond)
		}
		_ = g.Admit(t.Context(), other)
		time.Sleep(5 * time.Second)
		if got := read(t, path); len(got) < 5 || len(got) > 10 {
			t.Errorf("%d lines for 1,001 refusals in 3 s", len(got))
		}
		_ = g.Admit(t.Context(), call()) // is nobody's second any more
		closeLog(t, l)
		counts := map[string]int64{}
		var last audit.Event
		for _, e := range read(t, path) {
			counts[e.Repo] += max(e.Count, 1)
			if e.Time.Before(begun) {
				t.Errorf("a line is of %v", e.Time)
			}
			last = e
		}
		if counts["oci:docker.io/library/alpine"] != 1001 || counts["oci:docker.io/library/busybox"] != 1 || last.Count != 0 {
			t.Errorf("%v, last %+v", counts, last)
		}
	})
}

// TestFlood has a client that asks for something else each time, with as much text
// as it may, and guesses names: it makes no more lines than there are for one
// address, what others do has its own, and no refusal goes uncounted.
func TestFlood(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	synctest.Test(t, func(t *testing.T) {
		l := open(t, audit.Options{File: path})
		g := l.Guard(&warden{err: registry.ErrDenied})
		const seconds, each = 5, 400
		for i := range seconds * each {
			c := call()
			c.Name.Repo, c.Agent = fmt.Sprintf("docker.io/x%d/%s", i, strings.Repeat("a", 400)), strings.Repeat("A", 250)
			_ = g.Admit(t.Context(), c)
			l.Record(audit.Event{Action: "login", Decision: audit.Deny, Repo: fmt.Sprintf("account:x%d", i), From: c.Addr})
			time.Sleep(time.Second / each)
		}
		other := call()
		other.Addr = netip.MustParseAddr("2001:db8::1")
		_ = g.Admit(t.Context(), other)
		l.Record(audit.Event{Action: "user add", Decision: audit.Change, Repo: "user:eve"})
		closeLog(t, l)
		var lines, from, change int
		var all int64
		for _, e := range read(t, path) {
			lines++
			switch {
			case e.Decision == audit.Change:
				change++
			case e.From == other.Addr:
				from++
			default:
				all += max(e.Count, 1)
			}
		}
		if lines > (seconds+1)*22+2 || from != 1 || change != 1 || all != 2*seconds*each {
			t.Errorf("%d lines, of them %d of another address and %d of a change, for %d refusals", lines, from, change, all)
		}
	})
}

// TestFloodFromEverywhere is the same from ever new addresses, all at
// once.
func TestFloodFromEverywhere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	synctest.Test(t, func(t *testing.T) {
		l := open(t, audit.Options{File: path})
		g := l.Guard(&warden{err: registry.ErrDenied})
		const many = 20_000
		for i := range many {
			c := call()
			c.Addr = netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
			_ = g.Admit(t.Context(), c)
		}
		closeLog(t, l)
		var all int64
		got := read(t, path)
		for _, e := range got {
			all += max(e.Count, 1)
		}
		if len(got) > 202 || all != many {
			t.Errorf("%d lines for %d refusals", len(got), all)
		}
	})
}

func TestNone(t *testing.T) {
	var l *audit.Log
	w := &warden{}
	if l.Guard(w) != registry.Warden(w) {
		t.Error("no log guards")
	}
	l.Record(audit.Event{})
	closeLog(t, l)
	for what, o := range map[string]audit.Options{"no file": {}, "a size below 0": {File: "x", Size: -1}, "a keep below 0": {File: "x", Keep: -1}} {
		if _, err := audit.Open(o); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := audit.Open(audit.Options{File: t.TempDir()}); !errors.Is(err, registry.ErrUnavailable) {
		t.Errorf("a directory: %v", err)
	}
}

func FuzzRecord(f *testing.F) {
	f.Add("docker\n", "x", "y\u2028", []byte{0xff})
	path := filepath.Join(f.TempDir(), "audit.log")
	f.Fuzz(func(t *testing.T, agent, who, why string, ref []byte) {
		_ = os.Remove(path)
		l := open(t, audit.Options{File: path})
		l.Record(audit.Event{Agent: agent, Who: who, Why: why, Ref: string(ref), Decision: audit.Deny})
		closeLog(t, l)
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		s := bufio.NewScanner(bytes.NewReader(data))
		n := 0
		for s.Scan() {
			var e audit.Event
			if err := json.Unmarshal(s.Bytes(), &e); err != nil || e.Decision != audit.Deny {
				t.Fatalf("%q: %v", s.Bytes(), err)
			}
			if len(agent) <= 256 && utf8.ValidString(agent) && e.Agent != agent {
				t.Fatalf("%q has become %q", agent, e.Agent)
			}
			n++
		}
		if n != 1 {
			t.Fatalf("%d lines", n)
		}
	})
}
