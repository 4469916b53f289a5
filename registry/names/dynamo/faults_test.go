package dynamo_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/conformance/lab"
	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/names/dynamo"
)

var errInjected = errors.New("an injected failure of the network")

// A request is one that may be sent again.
type request struct {
	url    string
	header http.Header
	body   []byte
}

// write reports whether it changes something and may be repeated: what makes an
// item for a record is sent once.
func (r request) write() bool {
	op := r.header.Get("X-Amz-Target")
	return (strings.HasSuffix(op, ".PutItem") || strings.HasSuffix(op, ".DeleteItem")) && !bytes.Contains(r.body, []byte(`"n":{"N":"0"}`))
}

// isLog reports whether it puts a batch.
func (r request) isLog() bool { return r.write() && bytes.Contains(r.body, []byte(`{"S":"log"}`)) }

// A network loses requests, or their answers after the server has done what was
// asked, or brings requests once more, later.
type network struct {
	lose, deaf int // of 100 requests, so many
	again      int // of 100 writes
	// fault, if there is one, says what becomes of a request instead.
	fault func(r request) (before, after error)

	mu   sync.Mutex
	sent []request // all writes
	work sync.WaitGroup
}

func (n *network) client() *http.Client { return &http.Client{Transport: n, Timeout: 5 * time.Second} }

func (n *network) RoundTrip(req *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	req.Body.Close()
	r := request{req.URL.String(), req.Header.Clone(), body}
	var before, after error
	if n.fault != nil {
		before, after = n.fault(r)
	} else if rand.IntN(100) < n.lose {
		before = errInjected
	} else if rand.IntN(100) < n.deaf {
		after = errInjected
	}
	if r.write() {
		n.mu.Lock()
		n.sent = append(n.sent, r)
		n.mu.Unlock()
		if rand.IntN(100) < n.again {
			n.work.Go(func() {
				time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond) // as networks do
				_ = r.send()
			})
		}
	}
	if before != nil {
		return nil, before
	}
	req = req.Clone(req.Context())
	req.Body = io.NopCloser(bytes.NewReader(body))
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil || after == nil {
		return resp, err
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	return nil, after
}

// send sends the request once more, whatever comes of it.
func (r request) send() error {
	req, err := http.NewRequest(http.MethodPost, r.url, bytes.NewReader(r.body))
	if err != nil {
		return err
	}
	req.Header = r.header.Clone()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return errors.Join(err, resp.Body.Close())
}

// through is o by way of n.
func through(o dynamo.Options, n *network) dynamo.Options {
	o.Client, o.Backoff = n.client(), 2*time.Millisecond
	return o
}

// TestUnreliable has nodes with so bad a network that they often give up.
func TestUnreliable(t *testing.T) {
	s := start(t)
	o := s.fresh()
	sound := open(t, o)
	n := &network{lose: 12, deaf: 20, again: 10}
	var nodes []registry.Metadata
	for range 3 {
		var m *dynamo.DB
		lab.Eventually(t, 20*time.Second, "open by way of a bad network", func() (err error) {
			m, err = dynamo.Open(t.Context(), through(o, n))
			return err
		})
		nodes = append(nodes, m)
	}
	conformance.TestMetadataUnreliable(t, nodes, sound, 40*max(1, soak()))
	n.work.Wait()
	for _, m := range nodes {
		_ = m.(*dynamo.DB).Close()
	}
}

// soak is WEIR_SOAK.
func soak() int {
	n, _ := strconv.Atoi(os.Getenv("WEIR_SOAK"))
	return n
}

// TestTrimmed has a ring so small that it is gone round many times.
func TestTrimmed(t *testing.T) {
	s := start(t)
	o := s.fresh()
	o.Keep = 10
	conformance.TestMetadataTrimmed(t, open(t, o), 10)
	// One who comes late finds the end.
	late := open(t, o)
	r, err := late.Put(t.Context(), "late", 0, []byte("v"))
	if n, herr := late.Head(t.Context()); err != nil || herr != nil || n != r.Rev {
		t.Errorf("head is %d, %v after %+v, %v", n, herr, r, err)
	}
}

// TestLeftBehind has a node that knows an end of the log that is rounds ago.
func TestLeftBehind(t *testing.T) {
	s := start(t)
	o := s.fresh()
	o.Keep = 4
	behind, busy := open(t, o), open(t, o)
	first, err := behind.Put(t.Context(), "k", 0, []byte("first"))
	if err != nil {
		t.Fatal(err)
	}
	last := first
	for i := range 23 {
		if last, err = busy.Put(t.Context(), "k", last.Rev, []byte(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := behind.Put(t.Context(), "k", first.Rev, []byte("x")); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("put at an old rev: %v", err)
	}
	r, err := behind.Put(t.Context(), "k", last.Rev, []byte("behind"))
	if err != nil || r.Rev <= last.Rev {
		t.Errorf("put: %+v after %+v, %v", r, last, err)
	}
	if n, err := busy.Head(t.Context()); n != r.Rev || err != nil {
		t.Errorf("head is %d, %v; want %d", n, err, r.Rev)
	}
}

// TestWriterDies has a writer that dies between putting its batch and applying
// it: whoever comes next sees a change that has happened, in whole.
func TestWriterDies(t *testing.T) {
	s := start(t)
	for what, look := range map[string]func(t *testing.T, m registry.Metadata) uint64{
		"Head": func(t *testing.T, m registry.Metadata) uint64 { n, _ := m.Head(t.Context()); return n },
		"Changes": func(t *testing.T, m registry.Metadata) (n uint64) {
			for r, err := range m.Changes(t.Context(), 0) {
				if n = r.Rev; err != nil {
					t.Error(err)
				}
			}
			return n
		},
		"Put": func(t *testing.T, m registry.Metadata) uint64 {
			if _, err := m.Put(t.Context(), "other", 0, []byte("v")); err != nil {
				t.Error(err)
			}
			r, _ := m.Get(t.Context(), "k")
			return r.Rev
		},
	} {
		t.Run(what, func(t *testing.T) {
			o := s.fresh()
			m := open(t, o)
			old, err := m.Put(t.Context(), "k", 0, []byte("old"))
			if err != nil {
				t.Fatal(err)
			}
			dead := false // of the dying node alone, whose requests are one after the other
			n := &network{fault: func(r request) (before, after error) {
				if dead {
					return errInjected, nil
				}
				if dead = r.isLog(); dead {
					return nil, errInjected
				}
				return nil, nil
			}}
			dying, err := dynamo.Open(t.Context(), through(o, n))
			if err != nil {
				t.Fatal(err)
			}
			_, err = dying.Put(t.Context(), "k", old.Rev, []byte("new"))
			if !errors.Is(err, registry.ErrUnavailable) {
				t.Errorf("the dying writer's put: %v", err)
			}
			if err := dying.Close(); err != nil {
				t.Error(err)
			}
			rev := look(t, m)
			r, err := m.Get(t.Context(), "k")
			if err != nil || string(r.Value) != "new" || r.Rev != rev || rev <= old.Rev {
				t.Errorf("after %d was seen: %+v, %v", rev, r, err)
			}
		})
	}
}

// TestWhoLooksKnows loses the answer of a batch for good, and then asks the same
// node what has happened.
func TestWhoLooksKnows(t *testing.T) {
	s := start(t)
	o := s.fresh()
	deaf := false
	n := &network{fault: func(r request) (before, after error) {
		if deaf = deaf || r.isLog(); deaf {
			return nil, errInjected
		}
		return nil, nil
	}}
	m := open(t, through(o, n))
	if _, err := m.Put(t.Context(), "k", 0, []byte("v")); !errors.Is(err, registry.ErrUnavailable) {
		t.Fatalf("put: %v", err)
	}
	n.fault = nil
	if r, err := m.Get(t.Context(), "k"); err != nil || string(r.Value) != "v" {
		t.Errorf("get: %+v, %v", r, err)
	}
}

// TestEverythingAgain sends all writes there were once more, in any order: what
// is there must stay as it is, removed records and a ring gone round included.
func TestEverythingAgain(t *testing.T) {
	s := start(t)
	o := s.fresh()
	o.Keep = 20
	n := &network{deaf: 10}
	m := open(t, through(o, n))
	revs := map[string]uint64{}
	for i := range 90 {
		key := fmt.Sprintf("k%d", i%5)
		value := []byte(fmt.Sprint(i))
		if i%3 == 1 && revs[key] != 0 {
			value = nil
		}
		r, err := m.Put(t.Context(), key, revs[key], value)
		if err != nil {
			t.Fatal(err)
		}
		if revs[key] = r.Rev; value == nil {
			revs[key] = 0
		}
	}
	before := all(t, m)
	n.mu.Lock()
	again := slices.Clone(n.sent)
	n.mu.Unlock()
	rand.Shuffle(len(again), func(i, j int) { again[i], again[j] = again[j], again[i] })
	for _, r := range again {
		if err := r.send(); err != nil {
			t.Fatal(err)
		}
	}
	if after := all(t, open(t, o)); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	for _, key := range []string{"k0", "k1", "k2", "k3", "k4"} { // and it goes on
		if _, err := m.Put(t.Context(), key, revs[key], []byte("v")); err != nil {
			t.Errorf("put %s: %v", key, err)
		}
	}
}

// all is what a database has, as text.
func all(t *testing.T, m registry.Metadata) string {
	var b strings.Builder
	head, err := m.Head(t.Context())
	fmt.Fprintln(&b, "head", head, err)
	for r, err := range m.List(t.Context(), "", "") {
		fmt.Fprintf(&b, "%s %q %d %v\n", r.Key, r.Value, r.Rev, err)
	}
	for r, err := range m.Changes(t.Context(), head-20<<10) {
		fmt.Fprintf(&b, "change %s %q %d %v\n", r.Key, r.Value, r.Rev, err)
	}
	return b.String()
}

// TestOpenAtOnce has nodes make the same table at once.
func TestOpenAtOnce(t *testing.T) {
	s := start(t)
	o := s.fresh()
	var group sync.WaitGroup
	for i := range 5 {
		group.Go(func() {
			o := o
			o.Keep = 10 + i // the first one's counts
			m, err := dynamo.Open(context.Background(), o)
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := m.Put(context.Background(), fmt.Sprint(i), 0, []byte("v")); err != nil {
				t.Error(err)
			}
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	seen := 0
	for _, err := range open(t, o).List(t.Context(), "", "") {
		if seen++; err != nil {
			t.Error(err)
		}
	}
	if seen != 5 {
		t.Errorf("%d of 5 are there", seen)
	}
}

// TestUnreachable: a server that is not there is ErrUnavailable, to Open and
// afterwards.
func TestUnreachable(t *testing.T) {
	s := start(t)
	o := s.fresh()
	n := &network{}
	m := open(t, through(o, n))
	n.fault = func(request) (before, after error) { return errInjected, nil }
	_, err := m.Get(t.Context(), "k")
	_, err2 := m.Put(t.Context(), "k", 0, []byte("v"))
	_, err3 := m.Head(t.Context())
	_, err4 := dynamo.Open(t.Context(), through(o, n))
	for i, err := range []error{err, err2, err3, err4} {
		if !errors.Is(err, registry.ErrUnavailable) {
			t.Errorf("%d: %v", i, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	n.fault = func(request) (before, after error) { <-ctx.Done(); return nil, nil }
	if _, err := m.Put(ctx, "late", 0, []byte("v")); !errors.Is(err, registry.ErrUnavailable) {
		t.Errorf("put without an answer: %v", err)
	}
}
