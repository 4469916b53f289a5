package audit_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weir-registry/weir/conformance/lab"
	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/audit"
)

// disk is a file system that can go wrong.
type disk struct {
	mu      sync.Mutex
	fail    error         // of everything; guarded by mu
	half    bool          // a write that fails has written a half; guarded by mu
	noTrim  bool          // Truncate fails; guarded by mu
	blocked chan struct{} // what writes wait for; guarded by mu
}

func (d *disk) set(change func(d *disk)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change(d)
}

func (d *disk) open(path string) (audit.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fail != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: d.fail}
	}
	f, err := audit.OpenFile(path)
	return &diskFile{f, d}, err
}

type diskFile struct {
	audit.File
	d *disk
}

func (f *diskFile) Write(p []byte) (int, error) {
	f.d.mu.Lock()
	fail, half, blocked := f.d.fail, f.d.half, f.d.blocked
	f.d.mu.Unlock()
	if blocked != nil {
		<-blocked
	}
	if fail == nil {
		return f.File.Write(p)
	}
	if half {
		n, _ := f.File.Write(p[:len(p)/2])
		return n, fail
	}
	return 0, fail
}

func (f *diskFile) Truncate(size int64) error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.d.noTrim {
		return syscall.EIO
	}
	return f.File.Truncate(size)
}

// meter counts events.
type meter struct {
	registry.Meter
	mu     sync.Mutex
	counts map[string]int // guarded by mu
}

func (m *meter) Event(what, _ string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.counts == nil {
		m.counts = map[string]int{}
	}
	m.counts[what]++
}

func (m *meter) count(what string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.counts[what]
}

// TestSlowDisk has a disk that takes nothing for a while: nobody waits, what does
// not fit is counted, and the log says so.
func TestSlowDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	synctest.Test(t, func(t *testing.T) {
		d := &disk{blocked: make(chan struct{})}
		m := &meter{}
		l := open(t, audit.WithOpen(audit.Options{File: path, Meter: m}, d.open))
		const many = 3 * audit.QueueLength
		start := time.Now()
		for i := range many {
			l.Record(audit.Event{Version: uint64(i + 1), Decision: audit.Change})
		}
		if took := time.Since(start); took != 0 { // it is fake time, which passes only for who waits
			t.Errorf("recording waited for %v", took)
		}
		close(d.blocked)
		d.set(func(d *disk) { d.blocked = nil })
		synctest.Wait()
		l.Record(audit.Event{Version: many + 1, Decision: audit.Change})
		closeLog(t, l)
		lines, lost := 0, 0
		var last uint64
		for _, e := range read(t, path) {
			if e.Decision == audit.Lost {
				lost += int(e.Count)
				if want := fmt.Sprintf("%d events were lost", e.Count); e.Why != want {
					t.Errorf("the log says %q", e.Why)
				}
				continue
			}
			lines++
			if e.Version <= last {
				t.Errorf("line %d came after %d", e.Version, last)
			}
			last = e.Version
		}
		if lines+lost != many+1 || lost == 0 || lines < audit.QueueLength || last != many+1 {
			t.Errorf("%d lines and %d lost of %d, the last %d", lines, lost, many+1, last)
		}
		if n := m.count("audit events lost"); n != lost {
			t.Errorf("the meter was told of %d, the log of %d", n, lost)
		}
	})
}

// TestFullDisk has a disk that is full, in all the ways that happens.
func TestFullDisk(t *testing.T) {
	for _, c := range []struct {
		name                  string
		half, noTrim, atStart bool
		fail                  error
	}{
		{name: "full", fail: syscall.ENOSPC}, {name: "half a write", half: true, fail: syscall.ENOSPC},
		{name: "half a write that stays", half: true, noTrim: true, fail: syscall.EIO},
		{name: "read-only at the start", atStart: true, fail: syscall.EROFS},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "audit.log")
			synctest.Test(t, func(t *testing.T) {
				d, m := &disk{}, &meter{}
				if c.atStart {
					d.fail = c.fail
				}
				l := open(t, audit.WithOpen(audit.Options{File: path, Size: 1000, Keep: 100, Meter: m}, d.open))
				record := func(from, to int) {
					for i := from; i <= to; i++ {
						l.Record(audit.Event{Version: uint64(i), Decision: audit.Change})
					}
					synctest.Wait()
				}
				if !c.atStart {
					record(1, 20)
				}
				d.set(func(d *disk) { d.fail, d.half, d.noTrim = c.fail, c.half, c.noTrim })
				record(21, 40)
				time.Sleep(10 * time.Second)
				if n := m.count("the audit log cannot be written"); n != 1 {
					t.Errorf("the meter was told %d times", n)
				}
				d.set(func(d *disk) { d.fail, d.noTrim = nil, false })
				time.Sleep(2 * time.Second)
				record(41, 50)
				closeLog(t, l)
				want := uint64(1)
				if c.atStart {
					want = 21
				}
				for _, e := range read(t, path) {
					if e.Version != want {
						t.Fatalf("line %d came where %d should", e.Version, want)
					}
					want++
				}
				if want != 51 {
					t.Errorf("the last line is %d", want-1)
				}
			})
		})
	}
}

// TestFullAtClose says how many were lost.
func TestFullAtClose(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	d := &disk{}
	l := open(t, audit.WithOpen(audit.Options{File: path}, d.open))
	d.set(func(d *disk) { d.fail = syscall.ENOSPC })
	for range 7 {
		l.Record(audit.Event{Decision: audit.Change})
	}
	g := l.Guard(&warden{err: registry.ErrDenied})
	for range 3 {
		_ = g.Admit(t.Context(), call())
	}
	if err := l.Close(); !errors.Is(err, registry.ErrNoRoom) || !strings.Contains(err.Error(), "10 events") {
		t.Error(err)
	}
}

// TestDevFull is a real device that is full.
func TestDevFull(t *testing.T) {
	l := open(t, audit.Options{File: "/dev/full"})
	for range 10 {
		l.Record(audit.Event{Decision: audit.Change})
	}
	if err := l.Close(); !errors.Is(err, registry.ErrNoRoom) {
		t.Error(err)
	}
}

// TestMovedAway goes on in a new file when somebody has taken the old one.
func TestMovedAway(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := open(t, audit.Options{File: path})
	l.Record(audit.Event{Version: 1})
	lab.Eventually(t, 10*time.Second, "the first line", func() error {
		if data, err := os.ReadFile(path); err != nil || len(data) == 0 {
			return fmt.Errorf("%q, %w", data, err)
		}
		return nil
	})
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	lab.Eventually(t, 10*time.Second, "a line in a new file", func() error {
		l.Record(audit.Event{Version: 2})
		_, err := os.Stat(path)
		return err
	})
	closeLog(t, l)
	if got := read(t, path); got[0].Version != 1 || got[len(got)-1].Version != 2 {
		t.Errorf("%+v", got)
	}
}

// TestKilled kills a process that writes, again and again.
func TestKilled(t *testing.T) {
	if path := os.Getenv("AUDIT_KILLED"); path != "" {
		writeUntilKilled(t, path)
	}
	rounds := 5
	if n, err := strconv.Atoi(os.Getenv("WEIR_SOAK")); err == nil {
		rounds = n
	}
	path := filepath.Join(t.TempDir(), "audit.log")
	for round := range rounds {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
		cmd.Env = append(os.Environ(), "AUDIT_KILLED="+path, fmt.Sprint("AUDIT_ROUND=", round))
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lab.Eventually(t, 20*time.Second, "files are put aside", func() error {
			data, err := os.ReadFile(path + ".2")
			if err == nil && !bytes.Contains(data, fmt.Appendf(nil, `"action":"round %d"`, round)) {
				err = errors.New("not of this round")
			}
			return err
		})
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		// A write that was under way may have left the beginning of a line, which
		// whoever opens the log next removes.
		closeLog(t, open(t, audit.Options{File: path}))
		next := map[string]uint64{}
		for _, e := range read(t, path) {
			// The oldest may have been dropped, so the first line may be any.
			if n, ok := next[e.Action]; ok && e.Version != n {
				t.Fatalf("round %d: %s: line %d came where %d should", round, e.Action, e.Version, n)
			}
			next[e.Action] = e.Version + 1
		}
	}
}

// writeUntilKilled closes the log now and then, so that never more is recorded
// than the queue takes.
func writeUntilKilled(t *testing.T, path string) {
	for i := 1; ; {
		l := open(t, audit.Options{File: path, Size: 64 << 10, Keep: 900})
		for range audit.QueueLength / 2 {
			l.Record(audit.Event{Action: "round " + os.Getenv("AUDIT_ROUND"), Version: uint64(i), Why: strings.Repeat("x", i%300)})
			i++
		}
		closeLog(t, l)
	}
}
