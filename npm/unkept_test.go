package npm_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"testing"

	"github.com/weir-registry/weir/npm"
)

// invented calls n by as many made-up names as it keeps views for.
func invented(t *testing.T, n *node) {
	t.Helper()
	for i := range 64 {
		n.get("/npm/left", "Host", fmt.Sprintf("invented-%d.example", i)).is(t, 200)
	}
}

// TestOnlyViewsTakeABase: what makes no view of a packument does not count
// against the names that a node keeps views for.
func TestOnlyViewsTakeABase(t *testing.T) {
	up := lab(t)
	n := newNode(t, up.URL, nil)
	n.get("/npm/left").is(t, 200)
	for i := range 70 {
		host := fmt.Sprintf("invented-%d.example", i)
		for path, want := range map[string]int{"/npm/left/1.0.0": 200, "/npm/-/package/left/dist-tags": 200, "/npm/left/-/left-1.0.0.tgz": 200, "/npm/none": 404, "/npm/-/ping": 200} {
			n.get(path, "Host", host).is(t, want)
		}
	}
	before := n.bound()
	n.get("/npm/left", "Host", "real.example").is(t, 200)
	if after := n.bound(); after != before+1 {
		t.Errorf("%d names were bound for a view that is kept", after-before)
	}
	public := newNode(t, up.URL, func(_ *npm.Registry, c *npm.Config) { c.PublicURL = "https://packages.example" })
	invented(t, public)
	before = public.bound()
	public.get("/npm/left", "Host", "real.example", "Accept", corgiAccept).is(t, 200)
	if after := public.bound(); after != before+1 {
		t.Errorf("with a public URL: %d names were bound for a view that is kept", after-before)
	}
}

// TestUnkeptViews: a view that is not kept looks like one that is.
func TestUnkeptViews(t *testing.T) {
	up := lab(t)
	n := newNode(t, up.URL, nil)
	kept := n.get("/npm/left", "Host", "kept-0.example").is(t, 200)
	invented(t, n)
	before := n.bound()
	tags := map[string]bool{}
	for _, host := range []string{"real-1.example", "real-2.example"} {
		for _, accept := range []string{"application/json", corgiAccept} {
			for _, encoding := range []string{"gzip", "identity"} {
				header := []string{"Host", host, "Accept", accept, "Accept-Encoding", encoding}
				a := n.get("/npm/left", header...).is(t, 200)
				if got := at(a.json(t), "versions", "1.0.0", "dist", "tarball"); got != "http://"+host+"/npm/left/-/left-1.0.0.tgz" {
					t.Errorf("%s: %v", host, got)
				}
				if got := a.Header.Get("Content-Encoding"); (got == "gzip") != (encoding == "gzip") {
					t.Errorf("Content-Encoding %q for %s", got, encoding)
				}
				if got := a.Header.Get("Content-Length"); got != strconv.Itoa(len(a.raw)) {
					t.Errorf("Content-Length %q of %d", got, len(a.raw))
				}
				tag := a.Header.Get("ETag")
				if tag == "" || tags[tag] {
					t.Errorf("ETag %q again", tag)
				}
				tags[tag] = true
				again := n.get("/npm/left", append(header, "If-None-Match", tag)...).is(t, 304)
				if again.Header.Get("Content-Encoding") != "" || again.Header.Get("ETag") != tag {
					t.Errorf("304 with %v", again.Header)
				}
				head := n.do("HEAD", "/npm/left", nil, header...).is(t, 200)
				for _, k := range []string{"Content-Type", "Content-Encoding", "Content-Length", "ETag", "Vary", "Cache-Control", "Cache-Status"} {
					if head.Header.Get(k) != a.Header.Get(k) {
						t.Errorf("%s: HEAD %q, GET %q", k, head.Header.Get(k), a.Header.Get(k))
					}
				}
				for _, k := range []string{"Vary", "Cache-Control"} {
					if kept.Header.Get(k) != a.Header.Get(k) {
						t.Errorf("%s: %q when kept, else %q", k, kept.Header.Get(k), a.Header.Get(k))
					}
				}
			}
		}
	}
	if after := n.bound(); after != before {
		t.Errorf("%d names bound, then %d", before, after)
	}
	if open := n.near.stages.Load(); open != 0 {
		t.Errorf("%d stages are open", open)
	}
}

// A stalled client takes the header and then nothing.
type stalled struct {
	httptest.ResponseRecorder
	once    sync.Once
	started chan<- struct{}
	release <-chan struct{}
}

func (s *stalled) Write(p []byte) (int, error) {
	s.once.Do(func() { s.started <- struct{}{} })
	<-s.release
	return len(p), nil
}

func request(ctx context.Context, host string) *http.Request {
	r := httptest.NewRequestWithContext(ctx, "GET", "/npm/left", nil)
	r.Host = host
	return r
}

// TestSlowReadersHoldNoPlace: clients that do not read keep nobody else from
// an answer, whatever they call the node.
func TestSlowReadersHoldNoPlace(t *testing.T) {
	up := lab(t)
	n := newNode(t, up.URL, nil)
	invented(t, n)
	const slow = 12
	started, release := make(chan struct{}, slow), make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	let := sync.OnceFunc(func() { close(release) })
	defer let()
	for i := range slow {
		wg.Go(func() {
			w := &stalled{ResponseRecorder: *httptest.NewRecorder(), started: started, release: release}
			n.npm.ServeHTTP(w, request(t.Context(), fmt.Sprintf("slow-%d.example", i)))
		})
	}
	eventually(t, "answers to all of them begin", func() error {
		if len(started) < slow {
			return errNotYet
		}
		return nil
	})
	for i := range 5 {
		a := n.get("/npm/left", "Host", fmt.Sprintf("real-%d.example", i), "Accept-Encoding", "gzip").is(t, 200)
		if a.Header.Get("Content-Encoding") != "gzip" || a.Header.Get("Content-Length") == "" {
			t.Errorf("%v", a.Header)
		}
	}
	let()
	wg.Wait()
	if open := n.near.stages.Load(); open != 0 {
		t.Errorf("%d stages are open", open)
	}
}

// TestUnkeptViewsWait: more views at once than there are places wait their
// turn, or until their client is gone.
func TestUnkeptViewsWait(t *testing.T) {
	up := lab(t)
	n := newNode(t, up.URL, nil)
	invented(t, n)
	const all, places = 12, 4
	g := &gate{arrived: make(chan struct{}, 2*all), open: make(chan struct{})}
	n.near.gate.Store(g)
	codes := make(chan int, all)
	for i := range all {
		go func() {
			w := httptest.NewRecorder()
			n.npm.ServeHTTP(w, request(t.Context(), fmt.Sprintf("real-%d.example", i)))
			codes <- w.Code
		}()
	}
	for range places {
		<-g.arrived
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	w := httptest.NewRecorder()
	n.npm.ServeHTTP(w, request(gone, "gone.example"))
	if w.Code != 503 || w.Header().Get("Retry-After") == "" {
		t.Errorf("one who is gone: %d %v", w.Code, w.Header())
	}
	if len(g.arrived) > 0 {
		t.Errorf("%d more views are being made", len(g.arrived))
	}
	close(g.open)
	for range all {
		if code := <-codes; code != 200 {
			t.Errorf("one who waited: %d", code)
		}
	}
}
