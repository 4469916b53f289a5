package registry_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/cachetiers"
	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/names"
)

// authority is an upstream with documents by name; its fields change between
// calls of a test, never during one.
type authority struct {
	docs     map[registry.Name]string
	fail     error                     // every question fails
	slow     time.Duration             // every question takes this long
	old      time.Duration             // answers were confirmed this long ago; 0: the authority itself answers
	since    atomic.Pointer[time.Time] // what the last question asked for
	resolves atomic.Int64
	docsSent atomic.Int64
	opens    atomic.Int64
}

func (a *authority) Resolve(ctx context.Context, q registry.Question) (registry.Binding, io.ReadCloser, error) {
	n, have := q.Name, q.Have
	a.resolves.Add(1)
	if a.slow > 0 {
		select {
		case <-time.After(a.slow):
		case <-ctx.Done():
			return registry.Binding{}, nil, ctx.Err()
		}
	}
	if a.fail != nil {
		return registry.Binding{}, nil, a.fail
	}
	a.since.Store(&q.Since)
	doc, ok := a.docs[n]
	if !ok {
		return registry.Binding{}, nil, registry.Errorf(registry.ErrNotFound, "no such name")
	}
	d := registry.Descriptor{Digest: digest.FromString(doc), Size: int64(len(doc)), MediaType: "text/doc"}
	if have.Digest == d.Digest {
		have.Checked = a.checked()
		return have, nil, nil
	}
	a.docsSent.Add(1)
	return registry.Binding{Descriptor: d, Checked: a.checked()}, io.NopCloser(strings.NewReader(doc)), nil
}

func (a *authority) checked() time.Time {
	if a.old == 0 {
		return time.Time{}
	}
	return time.Now().Add(-a.old)
}

func (a *authority) Open(_ context.Context, w registry.Want) (registry.Blob, error) {
	a.opens.Add(1)
	if a.fail != nil {
		return nil, a.fail
	}
	for _, doc := range a.docs {
		if digest.FromString(doc) == w.Digest && w.From.Ref != "" {
			d := w.Descriptor
			d.Size = int64(len(doc))
			return registry.NewBytesBlob([]byte(doc), d, 0, -1, registry.Via{Fwd: "miss", Detail: "upstream"}), nil
		}
	}
	return nil, registry.Errorf(registry.ErrNotFound, "no such blob")
}

// guard admits what deny does not name, and remembers what it was asked.
type guard struct {
	deny  error
	mu    sync.Mutex
	calls []registry.Call
}

func (g *guard) Admit(_ context.Context, c *registry.Call) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.calls = append(g.calls, *c)
	return g.deny
}

type fixture struct {
	*registry.Service
	up    *authority
	guard *guard
	names *names.Memory
}

func newFixture() *fixture {
	f := &fixture{up: &authority{docs: map[registry.Name]string{}}, guard: &guard{}, names: &names.Memory{}}
	f.Service = &registry.Service{
		Names: f.names,
		Blobs: cachetiers.NewTier(new(cachetiers.Memory), f.up, cachetiers.Options{}),
		Guard: f.guard,
		Spaces: map[string]registry.Space{"oci": {
			Upstream: f.up,
			Policy: func(n registry.Name) registry.Policy {
				if strings.HasPrefix(n.Ref, "sha256:") {
					return registry.Policy{Fresh: time.Hour, Stale: time.Hour}
				}
				return registry.Policy{Fresh: time.Minute, Refresh: time.Minute, Stale: time.Hour, Negative: 10 * time.Second, MaxDoc: 1000}
			},
			// A document lists the words that begin with "sha256:".
			Lists: func(_ registry.Name, _ registry.Binding, doc io.Reader) (held []registry.Held, err error) {
				b, err := io.ReadAll(doc)
				if bytes.Contains(b, []byte("nonsense")) {
					return nil, registry.Errorf(registry.ErrInvalid, "nonsense")
				}
				for _, word := range strings.Fields(string(b)) {
					if strings.HasPrefix(word, "sha256:") {
						held = append(held, registry.Held{Ref: word, Descriptor: registry.Descriptor{Digest: digest.Digest(word), Size: 7}})
					}
				}
				return held, err
			},
		}},
	}
	return f
}

var latest = registry.Name{Space: "oci", Repo: "r", Ref: "latest"}

// get reads latest's document.
func (f *fixture) get(t *testing.T, n registry.Name) (string, registry.Via) {
	t.Helper()
	doc, via, err := f.getErr(n)
	if err != nil {
		t.Fatal(err)
	}
	return doc, via
}

func (f *fixture) getErr(n registry.Name) (string, registry.Via, error) {
	b, via, err := f.Document(context.Background(), &registry.Call{Action: registry.Pull, Name: n})
	if err != nil {
		return "", via, err
	}
	defer b.Close()
	doc, err := io.ReadAll(b)
	return string(doc), via, err
}

func (f *fixture) wantResolves(t *testing.T, n int64, when string) {
	t.Helper()
	if got := f.up.resolves.Load(); got != n {
		t.Errorf("%s: the upstream was asked %d times, want %d", when, got, n)
	}
}

// pass lets fake time pass; it is for use in a synctest bubble alone.
func pass(d time.Duration) { <-time.After(d) }

func TestFreshThenStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		f.up.docs[latest] = "one"
		if doc, via := f.get(t, latest); doc != "one" || via.String() != "weir; fwd=miss; detail=upstream" {
			t.Errorf("cold: %q %v", doc, via)
		}
		pass(59 * time.Second)
		if _, via := f.get(t, latest); !via.Hit() || via.Stale != 0 {
			t.Errorf("fresh: %v", via)
		}
		f.wantResolves(t, 1, "while fresh")

		// Just stale: the old answer at once, the new one the next time.
		f.up.docs[latest] = "two"
		pass(2 * time.Second)
		if doc, via := f.get(t, latest); doc != "one" || !via.Hit() || via.Stale == 0 {
			t.Errorf("just stale: %q %v", doc, via)
		}
		synctest.Wait()
		if doc, via := f.get(t, latest); doc != "two" || !via.Hit() || via.Stale != 0 {
			t.Errorf("refreshed: %q %v", doc, via)
		}
		f.wantResolves(t, 2, "refreshed in the background")

		// Long stale: the new answer, waited for.
		f.up.docs[latest] = "three"
		pass(10 * time.Minute)
		if doc, via := f.get(t, latest); doc != "three" || via.Fwd != "stale" {
			t.Errorf("long stale: %q %v", doc, via)
		}
		sent := f.up.docsSent.Load()
		pass(10 * time.Minute)
		if doc, _ := f.get(t, latest); doc != "three" || f.up.docsSent.Load() != sent {
			t.Errorf("unchanged: %q, sent again", doc)
		}
		f.wantResolves(t, 4, "revalidated twice")
	})
}

func TestOneQuestionForManyClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		f.up.docs[latest] = "one"
		f.up.slow = time.Second
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if doc, _, err := f.getErr(latest); doc != "one" || err != nil {
					t.Errorf("%q, %v", doc, err)
				}
			})
		}
		wg.Wait()
		f.wantResolves(t, 1, "cold, 50 clients")
	})
}

// TestFirstClientLeaves: the question goes on for the others.
func TestFirstClientLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		f.up.docs[latest] = "one"
		f.up.slow = 2 * time.Second
		ctx, cancel := context.WithCancel(context.Background())
		left := make(chan error)
		go func() {
			_, _, err := f.Resolve(ctx, &registry.Call{Name: latest})
			left <- err
		}()
		pass(time.Second)
		second := make(chan string)
		go func() { doc, _, _ := f.getErr(latest); second <- doc }()
		synctest.Wait()
		cancel()
		if err := <-left; !errors.Is(err, registry.ErrUnavailable) {
			t.Errorf("who left got %v", err)
		}
		if doc := <-second; doc != "one" {
			t.Errorf("who stayed got %q", doc)
		}
		f.wantResolves(t, 1, "one left, one stayed")
	})
}

func TestStaleIfError(t *testing.T) {
	for _, kind := range []error{registry.ErrUnavailable, registry.ErrLimited, registry.ErrDenied, registry.ErrUnauthenticated} {
		t.Run(kind.Error(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture()
				f.up.docs[latest] = "one"
				f.get(t, latest)
				f.up.fail = registry.Errorf(kind, "upstream says no")
				pass(10 * time.Minute)
				doc, via := f.get(t, latest)
				if doc != "one" || via.Warning == "" || via.Stale == 0 {
					t.Errorf("%q %+v", doc, via)
				}
				f.wantResolves(t, 2, "failed once")
				f.get(t, latest)
				f.wantResolves(t, 2, "right after a failure")
				pass(6 * time.Second)
				f.get(t, latest)
				f.wantResolves(t, 3, "a while after a failure")

				// Something unknown fails as the upstream did, and not as if it
				// did not exist.
				if _, _, err := f.getErr(registry.Name{Space: "oci", Repo: "r", Ref: "unknown"}); !errors.Is(err, kind) || errors.Is(err, registry.ErrNotFound) {
					t.Errorf("unknown name: %v", err)
				}
				// There is an end to it.
				pass(2 * time.Hour)
				if _, _, err := f.getErr(latest); err == nil {
					t.Error("served after the stale time")
				}
				f.up.fail = nil
				pass(6 * time.Second)
				if doc, via := f.get(t, latest); doc != "one" || via.Warning != "" {
					t.Errorf("recovered: %q %+v", doc, via)
				}
			})
		})
	}
}

// TestAgeAddsUpNot: an answer of a cache behind is as old here as it is there.
func TestAgeAddsUpNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		f.up.docs[latest] = "one"
		f.up.old = 40 * time.Second
		f.get(t, latest)
		pass(15 * time.Second)
		if _, via := f.get(t, latest); via.Stale != 0 {
			t.Errorf("stale after 55 s of 60: %+v", via)
		}
		f.wantResolves(t, 1, "fresh")
		pass(10 * time.Second)
		if _, via := f.get(t, latest); via.Stale != 5*time.Second {
			t.Errorf("after 65 s: %+v", via)
		}
		synctest.Wait()
		f.wantResolves(t, 2, "stale by the age it came with")

		// A clock behind that is ahead of this one makes nothing fresh for longer.
		f.up.old = -time.Hour
		pass(10 * time.Minute)
		f.get(t, latest)
		pass(3 * time.Minute)
		if _, via := f.get(t, latest); via.Hit() {
			t.Errorf("an answer from the future: %+v", via)
		}
	})
}

// TestOldBehind: the node behind has only an old answer. It is given with a
// warning, and not asked for with every call.
func TestOldBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		f.up.docs[latest] = "one"
		f.up.old = 10 * time.Minute
		if doc, via := f.get(t, latest); doc != "one" || via.Warning == "" || via.Stale != 9*time.Minute {
			t.Errorf("%q %+v", doc, via)
		}
		for range 5 {
			if doc, via := f.get(t, latest); doc != "one" || via.Warning == "" {
				t.Errorf("again: %q %+v", doc, via)
			}
		}
		f.wantResolves(t, 1, "asked anew at once")
		pass(6 * time.Second)
		f.get(t, latest)
		f.wantResolves(t, 2, "a while later")
		f.up.old = 0
		pass(6 * time.Second)
		f.get(t, latest)
		if _, via := f.get(t, latest); via.Warning != "" || !via.Hit() {
			t.Errorf("recovered: %+v", via)
		}
	})
}

// TestSinceTravels: what a client knows to be newer is asked for behind too.
func TestSinceTravels(t *testing.T) {
	f := newFixture()
	f.up.docs[latest] = "one"
	f.get(t, latest)
	since := time.Now()
	if _, _, err := f.Resolve(t.Context(), &registry.Call{Name: latest, Since: since}); err != nil || !f.up.since.Load().Equal(since) {
		t.Errorf("asked since %v, %v", f.up.since.Load(), err)
	}
}

// TestHangingUpstream: who could have an old answer gets it within seconds, and
// who could not gets an error before its own patience ends.
func TestHangingUpstream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		f.up.docs[latest] = "one"
		f.get(t, latest)
		f.up.slow = time.Hour
		pass(10 * time.Minute)
		start := time.Now()
		if doc, via := f.get(t, latest); doc != "one" || via.Warning == "" {
			t.Errorf("%q %+v", doc, via)
		}
		if took := time.Since(start); took > 4*time.Second {
			t.Errorf("an old answer took %v", took)
		}
		start = time.Now()
		if doc, via := f.get(t, latest); doc != "one" || via.Warning == "" || time.Since(start) > 0 {
			t.Errorf("the next one had to wait too, %v: %q %+v", time.Since(start), doc, via)
		}
		_, _, err := f.getErr(registry.Name{Space: "oci", Repo: "r", Ref: "unknown"})
		if !errors.Is(err, registry.ErrUnavailable) || registry.RetryAfter(err) == 0 {
			t.Errorf("no answer at all: %v", err)
		}
		if took := time.Since(start); took > 25*time.Second {
			t.Errorf("an error took %v", took)
		}
		pass(time.Hour)
	})
}

func TestRetryAfterIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		f.up.fail = &registry.Error{Kind: registry.ErrLimited, After: 30 * time.Second}
		for range 5 {
			if _, _, err := f.getErr(latest); !errors.Is(err, registry.ErrLimited) || registry.RetryAfter(err) != 30*time.Second {
				t.Fatalf("%v, after %v", err, registry.RetryAfter(err))
			}
		}
		f.wantResolves(t, 1, "while it is limited")
		pass(31 * time.Second)
		f.getErr(latest)
		f.wantResolves(t, 2, "after the time it named")
		// Hours are not believed.
		f.up.fail = &registry.Error{Kind: registry.ErrLimited, After: 6 * time.Hour}
		pass(31 * time.Second)
		f.getErr(latest)
		pass(61 * time.Second)
		f.up.fail = nil
		f.up.docs[latest] = "one"
		f.get(t, latest)
	})
}

func TestNotFoundIsRememberedBriefly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		for range 3 {
			if _, _, err := f.getErr(latest); !errors.Is(err, registry.ErrNotFound) {
				t.Fatal(err)
			}
		}
		f.wantResolves(t, 1, "remembered")
		f.up.docs[latest] = "one"
		// Who knows that it must be there is not told the old answer.
		b, _, err := f.Resolve(context.Background(), &registry.Call{Name: latest, Since: time.Now()})
		if err != nil || b.Size != 3 {
			t.Errorf("%+v, %v", b, err)
		}
	})
}

// TestTakenBack: a name that the authority no longer has is not served when
// the authority is gone.
func TestTakenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		f.up.docs[latest] = "one"
		f.get(t, latest)
		delete(f.up.docs, latest)
		pass(10 * time.Minute)
		if _, _, err := f.getErr(latest); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("taken back: %v", err)
		}
		pass(10 * time.Minute)
		f.up.fail = registry.Errorf(registry.ErrUnavailable, "gone")
		if _, _, err := f.getErr(latest); !errors.Is(err, registry.ErrUnavailable) {
			t.Errorf("taken back, then gone: %v", err)
		}
	})
}

func TestSinceAsksOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		f.up.docs[latest] = "one"
		f.get(t, latest)
		f.up.docs[latest] = "two"
		pass(10 * time.Second)
		for range 3 {
			b, _, err := f.Resolve(context.Background(), &registry.Call{Name: latest, Since: time.Now().Add(-5 * time.Second)})
			if err != nil || b.Digest != digest.FromString("two") {
				t.Errorf("%+v, %v", b, err)
			}
		}
		f.wantResolves(t, 2, "asked for something newer three times")
	})
}

// TestGuard: nobody unentitled makes weir ask, or learns what there is; and
// the guard sees the binding before anything is opened.
func TestGuard(t *testing.T) {
	f := newFixture()
	f.up.docs[latest] = "one"
	f.guard.deny = registry.Errorf(registry.ErrDenied, "no")
	c := &registry.Call{Name: latest}
	if _, _, err := f.Document(context.Background(), c); !errors.Is(err, registry.ErrDenied) {
		t.Fatal(err)
	}
	f.wantResolves(t, 0, "denied")
	f.guard.deny = nil
	f.get(t, latest)
	f.guard.calls = nil
	f.get(t, latest)
	if n := len(f.guard.calls); n != 2 || !f.guard.calls[0].Binding.Zero() || f.guard.calls[1].Binding.Digest != digest.FromString("one") {
		t.Errorf("the guard saw %+v", f.guard.calls)
	}
	// What is here already is no more open than what is not.
	f.guard.deny = registry.Errorf(registry.ErrDenied, "no")
	_, _, cached := f.Document(context.Background(), &registry.Call{Name: latest})
	_, _, unknown := f.Document(context.Background(), &registry.Call{Name: registry.Name{Space: "oci", Repo: "r", Ref: "x"}})
	if fmt.Sprint(cached) != fmt.Sprint(unknown) {
		t.Errorf("denied differently: %v, %v", cached, unknown)
	}
	f.guard.deny = nil
	b, _, err := f.Resolve(context.Background(), &registry.Call{Name: latest})
	if err != nil {
		t.Fatal(err)
	}
	f.guard.deny = registry.Errorf(registry.ErrDenied, "no longer")
	if _, err := f.Open(context.Background(), &registry.Call{Name: latest, Binding: b}, 0, -1); !errors.Is(err, registry.ErrDenied) {
		t.Errorf("opened after the right was gone: %v", err)
	}
}

func (nobody) Open(context.Context, registry.Want) (registry.Blob, error) {
	return nil, registry.Errorf(registry.ErrNotFound, "nobody has it")
}

// TestPastStaleWaits: with no old answer to fall back on, a slow upstream is
// waited for as if nothing were known.
func TestPastStaleWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		f.up.docs[latest] = "one"
		f.get(t, latest)
		pass(2 * time.Hour)
		f.up.slow = 5 * time.Second
		if doc, via := f.get(t, latest); doc != "one" || via.Warning != "" {
			t.Errorf("%q %+v", doc, via)
		}
	})
}

// TestQuestionsAreBounded: clients that leave do not leave a question each.
func TestQuestionsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		f.up.slow = 15 * time.Second
		for i := range 5000 {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			_, _, err := f.Resolve(ctx, &registry.Call{Name: registry.Name{Space: "oci", Repo: "r", Ref: fmt.Sprint(i)}})
			if !errors.Is(err, registry.ErrUnavailable) {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if n := f.up.resolves.Load(); n > 1024 {
			t.Errorf("%d questions are open for clients that have left", n)
		}
		pass(time.Minute)
	})
}

func (liar) Resolve(context.Context, registry.Question) (registry.Binding, io.ReadCloser, error) {
	return registry.Binding{Descriptor: registry.Descriptor{Digest: digest.FromString("one"), Size: 3}}, io.NopCloser(strings.NewReader("two")), nil
}

func TestBindingOfAnotherUpstream(t *testing.T) {
	f := newFixture()
	f.up.docs[latest] = "one"
	f.get(t, latest)
	sp := f.Spaces["oci"]
	sp.Owns = func(registry.Name, registry.Binding) bool { return false }
	f.Spaces["oci"] = sp
	f.up.docs[latest] = "two"
	if doc, _ := f.get(t, latest); doc != "two" {
		t.Errorf("%q is the other upstream's", doc)
	}
}

func TestUnknownSpace(t *testing.T) {
	f := newFixture()
	if _, _, err := f.getErr(registry.Name{Space: "pypi", Repo: "r"}); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("%v", err)
	}
}

// TestFirm: a node in front gets no answer that is just past its time while a
// client of this node does.
func TestFirm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		f.up.docs[latest] = "one"
		f.get(t, latest)
		f.up.docs[latest] = "two"
		<-time.After(90 * time.Second) // past its minute, within the next
		c := registry.Call{Action: registry.Pull, Name: latest, Firm: true}
		if b, _, err := f.Resolve(t.Context(), &c); err != nil || b.Digest != digest.FromString("two") {
			t.Errorf("%v, %v", b.Digest, err)
		}
		f.up.docs[latest] = "three"
		<-time.After(90 * time.Second)
		c = registry.Call{Action: registry.Pull, Name: latest}
		if b, via, err := f.Resolve(t.Context(), &c); err != nil || b.Digest != digest.FromString("two") || via.Stale == 0 {
			t.Errorf("%v, %+v, %v", b.Digest, via, err)
		}
		if err := f.Drain(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// TestNoWardenNoCost: a guard that takes nothing back costs a call nothing.
func TestNoWardenNoCost(t *testing.T) {
	f := newFixture()
	f.up.docs[latest] = "one"
	f.get(t, latest)
	f.Guard = admitAll{}
	c := &registry.Call{Action: registry.Pull, Name: latest}
	if _, _, err := f.Resolve(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	open := func(open func() (registry.Blob, error)) float64 {
		return testing.AllocsPerRun(200, func() {
			b, err := open()
			if err != nil {
				t.Fatal(err)
			}
			b.Close()
		})
	}
	w := registry.Whole(c.Name, c.Binding)
	bare := open(func() (registry.Blob, error) { return f.Blobs.Open(t.Context(), w) })
	through := open(func() (registry.Blob, error) { return f.Open(t.Context(), c, 0, -1) })
	if through > bare+1 { // one is the service's own
		t.Errorf("%v allocations, and %v without the service", through, bare)
	}
}

type admitAll struct{}

func (admitAll) Admit(context.Context, *registry.Call) error { return nil }
