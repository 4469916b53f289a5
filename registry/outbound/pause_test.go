package outbound

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weir-registry/weir/registry"
)

// TestLimited: two 429s with a Retry-After, about two things, stop all
// questions of the kind but a few probes.
func TestLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, told := &script{answer: answer(429, "Retry-After", "30")}, &events{}
		c := client(t, "http://up.test", Options{Transport: net, Meter: told})
		for i := range 3 {
			if code, err := ask(t, c, fmt.Sprint("/one/", i), Load{Subject: "one"}); code != 429 {
				t.Fatalf("%d: %d, %v", i, code, err)
			}
		}
		if told.String() != "" {
			t.Fatalf("one package that is limited: %q", told)
		}
		if code, _ := ask(t, c, "/two", Load{}); code != 429 || told.String() != "rate limited up" {
			t.Fatalf("%d, %q", code, told)
		}
		before := net.count("up.test")
		for i := range 300 { // 30 s
			_, err := ask(t, c, fmt.Sprint("/", i), Load{})
			if err != nil && registry.KindOf(err) != registry.ErrLimited {
				t.Fatal(err)
			}
			if after := registry.RetryAfter(err); err != nil && (after < time.Second || after > 50*time.Second) {
				t.Fatalf("after %v", after)
			}
			<-time.After(100 * time.Millisecond)
		}
		if n := net.count("up.test") - before; n < 2 || n > pauseProbes {
			t.Errorf("%d probes within the Retry-After", n)
		}
	})
}

// TestLimitedKinds: whoever limits manifests may well give blobs, and the
// other way around.
func TestLimitedKinds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := &script{answer: func(r *http.Request) (*http.Response, error) {
			if strings.HasPrefix(r.URL.Path, "/manifests/") {
				return answer(429, "Retry-After", "60")(r)
			}
			if strings.HasPrefix(r.URL.Path, "/blobs/") && r.URL.Host == "up.test" {
				return answer(307, "Location", "http://cdn.test"+r.URL.Path)(r)
			}
			return answer(200)(r)
		}}
		c := client(t, "http://up.test", Options{Transport: net})
		for i := range 5 {
			ask(t, c, fmt.Sprint("/manifests/", i), Load{})
		}
		if _, err := ask(t, c, "/manifests/x", Load{}); registry.KindOf(err) != registry.ErrLimited {
			t.Fatalf("%v", err)
		}
		if code, err := ask(t, c, "/blobs/x", Load{Blob: true}); code != 200 {
			t.Errorf("a blob: %d, %v", code, err)
		}
	})
}

// TestLimitLifts: when a probe gets an answer, so may all.
func TestLimitLifts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := &script{answer: answer(429, "Retry-After", "60")}
		c := client(t, "http://up.test", Options{Transport: net})
		for i := range 5 {
			ask(t, c, fmt.Sprint("/", i), Load{})
		}
		net.set(answer(200))
		if _, err := ask(t, c, "/x", Load{}); registry.KindOf(err) != registry.ErrLimited {
			t.Fatal(err)
		}
		<-time.After(time.Minute / pauseProbes)
		if _, err := ask(t, c, "/x", Load{Background: true}); registry.KindOf(err) != registry.ErrLimited {
			t.Errorf("a probe that nobody waits for: %v", err)
		}
		for i := range 10 {
			if code, err := ask(t, c, fmt.Sprint("/", i), Load{}); code != 200 {
				t.Fatalf("%d: %v", code, err)
			}
		}
		if code, err := ask(t, c, "/x", Load{Background: true}); code != 200 {
			t.Errorf("%d: %v", code, err)
		}
	})
}

// TestLeftAlone: while an upstream has said that it is overloaded, nobody asks
// it who need not; and what it says counts for a minute at most.
func TestLeftAlone(t *testing.T) {
	for code, want := range map[int]error{503: registry.ErrUnavailable, 429: registry.ErrUnavailable} {
		synctest.Test(t, func(t *testing.T) {
			net := &script{answer: answer(code, "Retry-After", "3600")}
			c := client(t, "http://up.test", Options{Transport: net})
			ask(t, c, "/one", Load{})
			net.set(answer(503)) // nothing that would end the pause
			for _, l := range []Load{{Background: true}, {Background: true, Blob: true}} {
				_, err := ask(t, c, "/two", l)
				if !l.Blob && (registry.KindOf(err) != want || registry.RetryAfter(err) != time.Minute) {
					t.Errorf("%d: %v, after %v", code, err, registry.RetryAfter(err))
				}
				if l.Blob && err != nil {
					t.Errorf("%d for documents stops blobs: %v", code, err)
				}
			}
			if got, err := ask(t, c, "/two", Load{}); got != 503 {
				t.Errorf("%d: someone who waits is refused: %v", code, err)
			}
			<-time.After(longestPause)
			if got, err := ask(t, c, "/three", Load{Background: true}); got != 503 {
				t.Errorf("%d: an hour is not bounded: %v", code, err)
			}
		})
	}
}

// TestHostsAreBounded: redirects may name any number of hosts.
func TestHostsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := &script{answer: func(r *http.Request) (*http.Response, error) {
			if r.URL.Host == "up.test" {
				return answer(302, "Location", "http://h"+r.URL.Path[1:]+".test/")(r)
			}
			return answer(200)(r)
		}}
		c := client(t, "http://up.test", Options{Transport: net})
		for i := range 3 * maxHosts {
			if _, err := ask(t, c, fmt.Sprint("/", i), Load{}); err != nil {
				t.Fatal(err)
			}
			<-time.After(time.Second)
		}
		if n := len(c.hosts.m); n != maxHosts || c.hosts.m["up.test:80"] == nil {
			t.Errorf("%d hosts are known", n)
		}
	})
}

// TestOldAnswersLiftNothing: an answer to what was asked before a limit was
// reached does not say that there is none.
func TestOldAnswersLiftNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		net := &script{answer: func(r *http.Request) (*http.Response, error) {
			if r.URL.Path == "/old" {
				<-release
				return answer(200)(r)
			}
			return answer(429, "Retry-After", "60")(r)
		}}
		c := client(t, "http://up.test", Options{Transport: net})
		done := make(chan int)
		go func() { code, _ := ask(t, c, "/old", Load{}); done <- code }()
		synctest.Wait()
		for i := range 3 {
			ask(t, c, fmt.Sprint("/", i), Load{})
		}
		close(release)
		if code := <-done; code != 200 {
			t.Fatal(code)
		}
		if _, err := ask(t, c, "/x", Load{}); registry.KindOf(err) != registry.ErrLimited {
			t.Errorf("%v", err)
		}
	})
}
