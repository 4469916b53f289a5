package origin_test

import (
	"bytes"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/weir-registry/weir/cachetiers/origin"
	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/conformance/lab"
	"github.com/weir-registry/weir/registry"
)

// TestFaults puts a proxy between the real clients and their servers, and
// breaks what passes.
func TestFaults(t *testing.T) {
	for _, p := range []place{s3Place(t), gcsPlace(t)} {
		t.Run(p.name, func(t *testing.T) {
			for _, c := range []struct {
				name string
				run  func(*testing.T, place)
			}{
				{"LostAnswers", lostAnswers},
				{"LostForGood", lostForGood},
				{"CutGet", cutGet},
				{"Refusals", refusals},
				{"MissingBucket", missingBucket},
				{"RetriedAway", retriedAway},
				{"Silence", silence},
				{"DeadServer", deadServer},
				{"Requests", requests},
			} {
				t.Run(c.name, func(t *testing.T) {
					defer p.proxy.Inject()
					p.proxy.Inject()
					c.run(t, p)
				})
			}
		})
	}
}

// large is put in three parts.
const large = 11 << 20

// lostAnswers: the answer to one write is lost, be it to the object, to the
// beginning of its parts or to their end.
func lostAnswers(t *testing.T, p place) {
	for _, size := range []int{0, 1000, large} {
		for _, method := range []string{http.MethodPut, http.MethodPost} {
			store := newStore(t, p.open(t))
			data := conformance.Bytes(uint64(size), size)
			p.proxy.Inject(lab.Fault{Method: method, Lost: true, Times: 1})
			if _, err := commit(store, data); err != nil {
				if registry.KindOf(err) != registry.ErrUnavailable {
					t.Errorf("%d bytes, %s lost: %v", size, method, err)
				}
				p.proxy.Inject()
				if _, err := commit(store, data); err != nil {
					t.Errorf("%d bytes, %s lost, again: %v", size, method, err)
				}
			}
			p.proxy.Inject()
			if got, err := read(store, conformance.Describe("", data), 0, -1); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes, %s lost: then read %d, %v", size, method, len(got), err)
			}
		}
	}
}

// lostForGood: all answers to writes are lost. What was done is found by
// looking; what was not is an error, and nothing wrong is to be read.
func lostForGood(t *testing.T, p place) {
	for _, size := range []int{1000, large} {
		store := newStore(t, p.open(t))
		data := conformance.Bytes(uint64(size), size)
		p.proxy.Inject(lab.Fault{Method: http.MethodPut, Lost: true}, lab.Fault{Method: http.MethodPost, Lost: true})
		_, committed := commit(store, data)
		if committed != nil {
			wantKind(t, committed, registry.ErrUnavailable, "all answers lost")
		}
		got, err := read(store, conformance.Describe("", data), 0, -1)
		if err == nil && !bytes.Equal(got, data) || err != nil && registry.KindOf(err) != registry.ErrNotFound {
			t.Errorf("with %d bytes: read %d, %v", size, len(got), err)
		}
		if committed == nil && err != nil {
			t.Errorf("committed, and then: %v", err)
		}
		p.proxy.Inject()
		if _, err := commit(store, data); err != nil {
			t.Errorf("again: %v", err)
		}
	}
}

// cutGet: a body whose connection breaks either is continued by the library or
// fails, and what was given before is right.
func cutGet(t *testing.T, p place) {
	store := newStore(t, p.open(t))
	data := conformance.Bytes(1, 2_000_000)
	d, err := commit(store, data)
	if err != nil {
		t.Fatal(err)
	}
	for _, times := range []int{1, 3} {
		p.proxy.Inject(lab.Fault{Method: http.MethodGet, Truncate: true, After: 700_000, Times: times})
		got, err := read(store, d, 100, -1)
		if err != nil {
			wantKind(t, err, registry.ErrUnavailable, "a body that was cut")
		}
		if len(got) < 600_000 || !bytes.Equal(got, data[100:100+len(got)]) || err == nil && len(got) != len(data)-100 {
			t.Errorf("cut %d times: %d bytes, %v", times, len(got), err)
		}
		p.proxy.Inject()
		rest, err := read(store, d, int64(100+len(got)), -1)
		if err != nil || !bytes.Equal(append(got, rest...), data[100:]) {
			t.Errorf("opened again where it was: %d bytes, %v", len(rest), err)
		}
	}
}

// refusals are of the kind they should be, say what to do, and are never "not
// found".
func refusals(t *testing.T, p place) {
	store := newStore(t, p.open(t))
	d, err := commit(store, []byte("here"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what  string
		fault lab.Fault
		kind  error
		says  string
	}{
		{"403", lab.Fault{Status: 403}, registry.ErrUnavailable, "credentials"},
		{"401", lab.Fault{Status: 401}, registry.ErrUnavailable, "credentials"},
		{"500", lab.Fault{Status: 500}, registry.ErrUnavailable, "500"},
		{"507", lab.Fault{Status: 507}, registry.ErrNoRoom, "delete from the bucket"},
		{"full", p.full, registry.ErrNoRoom, "quota"},
		{"slow", p.slow, registry.ErrLimited, "too often"},
	} {
		if c.what != "full" && c.what != "507" { // these are said to writes
			p.proxy.Inject(c.fault)
			_, err := read(store, d, 0, -1)
			wantKind(t, err, c.kind, "read: "+c.what)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: the log says %v", c.what, err)
			}
			if c.what == "slow" && registry.RetryAfter(err) != 7*time.Second {
				t.Errorf("Retry-After: %v", registry.RetryAfter(err))
			}
			if strings.Contains(registry.Public(err), "weir-blobs") || strings.Contains(registry.Public(err), "127.0.0.1") {
				t.Errorf("%s: clients read %q", c.what, registry.Public(err))
			}
			_, err = read(store, d, 0, 0)
			if kind := registry.KindOf(err); kind != c.kind && (kind != registry.ErrUnavailable || c.what != "slow") {
				t.Errorf("look: %s: %v", c.what, err) // the answer to a HEAD has no word for being slow
			}
		}
		put, post := c.fault, c.fault
		put.Method, post.Method = http.MethodPut, http.MethodPost
		for _, size := range []int{1000, large} {
			p.proxy.Inject(put, post)
			data := conformance.Bytes(uint64(size)+7, size)
			_, err = commit(store, data)
			wantKind(t, err, c.kind, "put: "+c.what)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("put: %s: the log says %v", c.what, err)
			}
			p.proxy.Inject()
			_, err = read(store, conformance.Describe("", data), 0, -1)
			wantKind(t, err, registry.ErrNotFound, "read what was refused: "+c.what)
		}
	}
}

func missingBucket(t *testing.T, p place) {
	store := newStore(t, p.at(t, "no-such-bucket"))
	d := conformance.Describe("", []byte("a"))
	for _, length := range []int64{-1, 1, 0} {
		_, err := read(store, d, 0, length)
		wantKind(t, err, registry.ErrUnavailable, "read from a bucket that does not exist")
		if err == nil || !strings.Contains(err.Error(), "make it, or correct origin.blobs") {
			t.Errorf("the log says %v", err)
		}
	}
	_, err := commit(store, []byte("a"))
	wantKind(t, err, registry.ErrUnavailable, "put into a bucket that does not exist")
}

// retriedAway: a server that says "slow down" once is asked again, and nobody
// learns of it.
func retriedAway(t *testing.T, p place) {
	store := newStore(t, p.open(t))
	slow := p.slow
	slow.Times, slow.Header = 1, nil
	for _, size := range []int{1000, large} {
		data := conformance.Bytes(uint64(size)+8, size)
		put, post := slow, slow
		put.Method, post.Method = http.MethodPut, http.MethodPost
		p.proxy.Inject(put, post)
		d, err := commit(store, data)
		if err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		p.proxy.Inject(slow)
		if got, err := read(store, d, 0, -1); err != nil || !bytes.Equal(got, data) {
			t.Errorf("read %d of %d bytes, %v", len(got), size, err)
		}
	}
}

// silence: a server that never answers, and bodies that stop, end by time.
func silence(t *testing.T, p place) {
	b := p.open(t)
	store, err := origin.NewStore(b, origin.StoreOptions{Spool: t.TempDir(), Answer: 300 * time.Millisecond,
		Idle: 300 * time.Millisecond, PutIdle: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	data := conformance.Bytes(11, 1_000_000)
	d, err := commit(newStore(t, b), data)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	p.proxy.Inject(lab.Fault{Hang: true})
	_, err = read(store, d, 0, -1)
	wantKind(t, err, registry.ErrUnavailable, "no answer to a get")
	_, err = read(store, d, 0, 0)
	wantKind(t, err, registry.ErrUnavailable, "no answer to a look")
	p.proxy.Inject(lab.Fault{Method: http.MethodPut, Hang: true}, lab.Fault{Method: http.MethodPost, Hang: true})
	_, err = commit(store, data[1:])
	wantKind(t, err, registry.ErrUnavailable, "no answer to a put")
	p.proxy.Inject(lab.Fault{Method: http.MethodGet, Stall: true, After: 500_000})
	got, err := read(store, d, 0, -1)
	wantKind(t, err, registry.ErrUnavailable, "a body that stops")
	if !bytes.Equal(got, data[:len(got)]) || len(got) == 0 {
		t.Errorf("%d bytes before it stopped", len(got))
	}
	if err == nil || !strings.Contains(err.Error(), "no answer in time") {
		t.Errorf("the log says %v", err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %v to be sure", took)
	}
}

func deadServer(t *testing.T, p place) {
	store := newStore(t, p.open(t))
	d, err := commit(store, []byte("here"))
	if err != nil {
		t.Fatal(err)
	}
	p.proxy.Down()
	_, err = read(store, d, 0, -1)
	wantKind(t, err, registry.ErrUnavailable, "read from a dead server")
	_, err = commit(store, []byte("there"))
	wantKind(t, err, registry.ErrUnavailable, "put into a dead server")
	p.proxy.Up()
	if _, err := read(store, d, 0, -1); err != nil {
		t.Errorf("it is back: %v", err)
	}
	if _, err := commit(store, []byte("there")); err != nil {
		t.Errorf("it is back: %v", err)
	}
}

// requests counts what things cost.
func requests(t *testing.T, p place) {
	store := newStore(t, p.open(t))
	data := conformance.Bytes(12, large)
	p.proxy.Reset()
	d, err := commit(store, data)
	if err != nil {
		t.Fatal(err)
	}
	puts := 0
	for _, s := range p.proxy.Seen("", "") {
		if s.Method == http.MethodPut || s.Method == http.MethodPost {
			puts++
		}
	}
	most := map[string]int{"s3": 3 + 2, "gcs": 11 + 2}[p.name] // parts and their frame; chunks of 1 MiB and theirs
	if puts != most {
		t.Errorf("%d requests to put %d bytes, want %d", puts, large, most)
	}
	p.proxy.Reset()
	if _, err := commit(store, data); err != nil {
		t.Fatal(err)
	}
	if n := len(p.proxy.Seen("", "")); n != 1 {
		t.Errorf("%d requests to put what is there, want 1", n)
	}
	p.proxy.Reset()
	if got, err := read(store, d, 1000, 5000); err != nil || !bytes.Equal(got, data[1000:6000]) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if seen := p.proxy.Seen("", ""); len(seen) != 1 || seen[0].Bytes != 5000 {
		t.Errorf("%d requests for a run of 5,000 bytes, %d sent", len(seen), seen[0].Bytes)
	}
}
