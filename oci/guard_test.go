package oci

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// atOnce is what an answer may take that waits for nothing; the tests' clock
// stands still while anything computes.
const atOnce = 10 * time.Millisecond

// hangs answers nothing.
func hangs(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true }

// TestBreakerOpens: an upstream that has failed often enough is not asked any
// more: what is here is given at once and says that it is old, and what is not
// is unavailable, which is not the same as missing.
func TestBreakerOpens(t *testing.T) {
	for name, fails := range map[string]func(http.ResponseWriter, *http.Request) bool{"500": answers(500), "hang": hangs} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testBreakerOpens(t, fails) })
		})
	}
}

func testBreakerOpens(t *testing.T, fails func(http.ResponseWriter, *http.Request) bool) {
	w, up := one(t)
	up.image(t, "library/a", "a", "x")
	w.pull("a", "x")
	up.set(fails)
	pass(time.Hour)
	var all sync.WaitGroup
	for i := range 30 {
		all.Go(func() { w.do("GET", fmt.Sprintf("/v2/r%d/manifests/t", i)) })
	}
	all.Wait()
	up.took()
	for range 3 {
		begun := time.Now()
		rec := w.get("/v2/a/manifests/x", 200, "")
		if h := rec.Header(); !strings.HasPrefix(h.Get("Warning"), "299 - ") || !strings.Contains(h.Get("Cache-Status"), "fwd=stale") {
			t.Errorf("%v", h)
		}
		if took := time.Since(begun); took > atOnce {
			t.Errorf("an old answer took %v", took)
		}
		begun = time.Now()
		rec = w.get("/v2/a/manifests/unknown", 503, "UNAVAILABLE")
		if after, err := strconv.Atoi(rec.Header().Get("Retry-After")); err != nil || after < 1 || after > 5 {
			t.Errorf("Retry-After: %q", rec.Header().Get("Retry-After"))
		}
		if took := time.Since(begun); took > atOnce {
			t.Errorf("a refusal took %v", took)
		}
	}
	if asked := up.took(); len(asked) != 0 {
		t.Errorf("asked %v", asked)
	}
	up.set(nil)
	pass(time.Minute)
	w.get("/v2/a/manifests/unknown", 404, "MANIFEST_UNKNOWN")
	if rec := w.get("/v2/a/manifests/x", 200, ""); rec.Header().Get("Warning") != "" {
		t.Errorf("healed, and still %v", rec.Header())
	}
}

// TestLeftAlone: what an upstream that is overloaded is not asked for is what
// nobody waits for.
func TestLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, up := one(t)
		up.image(t, "library/a", "a", "x")
		w.pull("a", "x")
		pass(90 * time.Second) // past its fresh time, within that for refreshing it
		up.set(answers(503, "Retry-After", "60"))
		w.get("/v2/a/manifests/y", 503, "UNAVAILABLE")
		up.took()
		w.get("/v2/a/manifests/x", 200, "")
		synctest.Wait()
		if asked := up.took(); len(asked) != 0 {
			t.Errorf("asked %v for a revalidation", asked)
		}
		w.get("/v2/a/manifests/z", 503, "UNAVAILABLE")
		wantAsked(t, up, "for a client", "GET /v2/library/a/manifests/z")
	})
}

// TestConnections: no more requests are open than are configured.
func TestConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var open, most atomic.Int64
		up := newUpstream()
		up.image(t, "library/a", "a", "x")
		slow := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			most.Store(max(most.Load(), open.Add(1)))
			defer open.Add(-1)
			pass(time.Second)
			up.ServeHTTP(rw, r)
		})
		w := newWeir(t, network{"hub.test": slow}, Options{Default: hub}, Registry{Name: hub, URL: "http://hub.test", Connections: 3})
		var all sync.WaitGroup
		for i := range 12 {
			all.Go(func() { w.do("GET", fmt.Sprint("/v2/a/manifests/t", i)) })
		}
		all.Wait()
		if most.Load() != 3 {
			t.Errorf("%d were open at once, want 3", most.Load())
		}
	})
}

// TestTimesAddUp: however slow each step behind is, a client has an answer
// within 25 s.
func TestTimesAddUp(t *testing.T) {
	after := func(d time.Duration, next http.HandlerFunc) http.HandlerFunc {
		return func(rw http.ResponseWriter, r *http.Request) {
			select {
			case <-time.After(d):
				next(rw, r)
			case <-r.Context().Done():
			}
		}
	}
	challenge := func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Www-Authenticate", `Bearer realm="http://auth.test/token",service="s"`)
		rw.WriteHeader(401)
	}
	token := func(rw http.ResponseWriter, _ *http.Request) { io.WriteString(rw, `{"token":"t"}`) }
	again := func(rw http.ResponseWriter, r *http.Request) {
		http.Redirect(rw, r, r.URL.Path+"x", http.StatusTemporaryRedirect)
	}
	refuseHEAD := func(rw http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			rw.WriteHeader(405)
			return
		}
		rw.WriteHeader(500)
	}
	for name, net := range map[string]network{
		"challenge, token, challenge": {"hub.test": after(9*time.Second, challenge), "auth.test": after(14*time.Second, token)},
		"token hangs":                 {"hub.test": after(14*time.Second, challenge), "auth.test": after(time.Hour, token)},
		"redirects":                   {"hub.test": after(4*time.Second, again)},
		"HEAD, then GET":              {"hub.test": after(14*time.Second, refuseHEAD)},
		"hangs":                       {"hub.test": after(time.Hour, again)},
	} {
		for _, busy := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", busy ", busy), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWeir(t, net, Options{Default: hub}, Registry{Name: hub, URL: "http://hub.test", Connections: 1})
					var all sync.WaitGroup
					timed := func(target string) {
						begun := time.Now()
						rec := w.do("GET", target)
						if took := time.Since(begun); took > 25*time.Second || rec.Code == 404 || rec.Code == 200 {
							t.Errorf("%s: %d after %v", target, rec.Code, took)
						}
					}
					if busy { // one has the slot, others wait for it
						for i := range 4 {
							all.Go(func() { timed(fmt.Sprint("/v2/a/manifests/t", i)) })
						}
					}
					for _, target := range []string{"/v2/a/manifests/x", "/v2/a/blobs/" + sha256Of, "/v2/a/tags/list", "/v2/a/referrers/" + sha256Of} {
						all.Go(func() { timed(target) })
					}
					all.Wait()
					pass(2 * time.Minute) // questions end later than those who asked
				})
			})
		}
	}
}
