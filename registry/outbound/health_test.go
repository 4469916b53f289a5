package outbound

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weir-registry/weir/registry"
)

// script is a network that answers as it is told to by then.
type script struct {
	mu     sync.Mutex
	answer func(*http.Request) (*http.Response, error) // guarded by mu
	asked  map[string]int                              // by host; guarded by mu
}

func (s *script) RoundTrip(r *http.Request) (*http.Response, error) {
	s.mu.Lock()
	answer := s.answer
	if s.asked == nil {
		s.asked = map[string]int{}
	}
	s.asked[r.URL.Host]++
	s.mu.Unlock()
	return answer(r)
}

func (s *script) set(answer func(*http.Request) (*http.Response, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

func (s *script) count(host string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[host]
}

// events counts what an operator would be told.
type events struct {
	registry.NoMeter
	mu   sync.Mutex
	seen []string
}

func (e *events) Event(what, who string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.seen = append(e.seen, what+" "+who)
}

func (e *events) String() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return strings.Join(e.seen, ", ")
}

// hang answers when the caller gives up.
func hang(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

func unreachable(*http.Request) (*http.Response, error) { return nil, errors.New("connection refused") }

// ask is one question about path, whose answer is closed.
func ask(t *testing.T, c *Client, path string, l Load) (int, error) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, "http://up.test"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(t.Context(), req, l)
	if err != nil {
		return 0, err
	}
	resp.Body.Close()
	return resp.StatusCode, nil
}

// TestBreaker: it opens by a share of failures, answers at once then, lets a
// few through after its time, and closes when they succeed.
func TestBreaker(t *testing.T) {
	for name, fails := range map[string]func(*http.Request) (*http.Response, error){
		"500": answer(500), "503": answer(503), "unreachable": unreachable, "hangs": hang,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testBreaker(t, fails) })
		})
	}
}

func testBreaker(t *testing.T, fails func(*http.Request) (*http.Response, error)) {
	net, told := &script{}, &events{}
	c := client(t, "http://up.test", Options{Transport: net, Meter: told, HeaderTimeout: time.Second})
	net.set(answer(200))
	for i := range breakLeast / 2 {
		ask(t, c, fmt.Sprint("/good/", i), Load{})
	}
	net.set(fails)
	n := 0
	for ; told.String() == "" && n < 3*breakLeast; n++ {
		ask(t, c, fmt.Sprint("/bad/", n), Load{})
	}
	if n != breakLeast/2 || told.String() != "breaker open up" {
		t.Fatalf("after %d failures: %q", n, told)
	}
	net.set(answer(200))
	asked, begun := net.count("up.test"), time.Now()
	for wait := breakDelay; wait > 0; wait -= time.Second {
		_, err := ask(t, c, "/good", Load{})
		if registry.KindOf(err) != registry.ErrUnavailable || registry.RetryAfter(err) != wait {
			t.Fatalf("%v before it is half open: %v, after %v", wait, err, registry.RetryAfter(err))
		}
		if p := registry.Public(err); p != "up fails too often, and is not asked at the moment" {
			t.Errorf("public: %q", p)
		}
		<-time.After(time.Second)
	}
	if got := net.count("up.test"); got != asked || time.Since(begun) != breakDelay {
		t.Fatalf("%d requests came through, in %v", got-asked, time.Since(begun))
	}
	// Half open: a failure opens it again, without a word.
	net.set(answer(500))
	for i := range 5 {
		ask(t, c, fmt.Sprint("/probe/", i), Load{})
	}
	if got := net.count("up.test") - asked; got != 1 || told.String() != "breaker open up" {
		t.Fatalf("%d probes, %q", got, told)
	}
	<-time.After(breakDelay)
	net.set(answer(404)) // an answer like any other
	for i := range breakProbes {
		if _, err := ask(t, c, "/probe", Load{}); err != nil {
			t.Fatalf("probe %d: %v", i, err)
		}
	}
	if told.String() != "breaker open up, breaker closed up" {
		t.Error(told)
	}
}

// TestBreakerStaysClosed: what says nothing about the health of an upstream.
func TestBreakerStaysClosed(t *testing.T) {
	for name, c := range map[string]struct {
		answer func(*http.Request) (*http.Response, error)
		path   string // one for all; "": another each time
		load   Load
		give   time.Duration // the caller gives up then
	}{
		"404": {answer: answer(404)}, "401": {answer: answer(401)}, "403": {answer: answer(403)}, "416": {answer: answer(416)},
		"501": {answer: answer(501)}, "429": {answer: answer(429)},
		"one that fails":    {answer: answer(500), path: "/one"},
		"one that hangs":    {answer: hang, path: "/one"},
		"one of many parts": {answer: answer(500), load: Load{Subject: "one"}},
		"impatient callers": {answer: hang, give: time.Millisecond},
		"a rule of ours":    {answer: answer(302, "Location", "ftp://elsewhere.test/")},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net, told := &script{answer: c.answer}, &events{}
				up := client(t, "http://up.test", Options{Transport: net, Meter: told, HeaderTimeout: time.Second})
				for i := range 3 * breakLeast {
					path := c.path
					if path == "" {
						path = fmt.Sprint("/", i)
					}
					ctx, cancel := context.WithCancel(t.Context())
					if c.give > 0 {
						time.AfterFunc(c.give, cancel)
					}
					req, _ := http.NewRequest(http.MethodGet, "http://up.test"+path, nil)
					if resp, err := up.Do(ctx, req, c.load); err == nil {
						resp.Body.Close()
					}
					cancel()
				}
				if told.String() != "" || net.count("up.test") < 3*breakLeast {
					t.Errorf("after %d requests: %q", net.count("up.test"), told)
				}
			})
		})
	}
}

// TestBreakerAtItsLimits: few failures, or old ones, or less than the share.
func TestBreakerAtItsLimits(t *testing.T) {
	for name, c := range map[string]struct {
		good, bad int
		every     time.Duration
		opens     bool
	}{
		"few": {bad: breakLeast - 1}, "enough": {bad: breakLeast, opens: true},
		"less than half": {good: breakLeast + 1, bad: breakLeast}, "half": {good: breakLeast, bad: breakLeast, opens: true},
		"slowly": {bad: 5 * breakLeast, every: breakWindow / 10},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net, told := &script{answer: answer(200)}, &events{}
				up := client(t, "http://up.test", Options{Transport: net, Meter: told})
				for i := range c.good + c.bad {
					if i == c.good {
						net.set(answer(500))
					}
					ask(t, up, fmt.Sprint("/", i), Load{})
					<-time.After(c.every)
				}
				if got := told.String() != ""; got != c.opens {
					t.Errorf("opened: %v", got)
				}
			})
		})
	}
}

// TestBreakerIsPerHost: a content network that is down is no reason not to ask
// the registry for manifests.
func TestBreakerIsPerHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, told := &script{}, &events{}
		net.set(func(r *http.Request) (*http.Response, error) {
			switch {
			case r.URL.Host == "cdn.test":
				return unreachable(r)
			case strings.HasPrefix(r.URL.Path, "/blobs/"):
				return answer(307, "Location", "http://cdn.test"+r.URL.Path)(r)
			}
			return answer(200)(r)
		})
		c := client(t, "http://up.test", Options{Transport: net, Meter: told})
		for i := range 2 * breakLeast {
			if _, err := ask(t, c, fmt.Sprint("/blobs/", i), Load{Blob: true}); err == nil {
				t.Fatal("a blob came from nowhere")
			}
		}
		if told.String() != "breaker open up" {
			t.Fatalf("%q", told)
		}
		if n := net.count("cdn.test"); n > breakLeast+retryFloat+2*breakLeast/retryShare {
			t.Errorf("the dead host was asked %d times", n)
		}
		if code, err := ask(t, c, "/manifests/x", Load{}); code != 200 || err != nil {
			t.Error(code, err)
		}
		if _, err := ask(t, c, "/blobs/x", Load{Blob: true}); registry.RetryAfter(err) != breakDelay {
			t.Errorf("%v, after %v", err, registry.RetryAfter(err))
		}
	})
}

// TestProbeWithoutOutcome: a caller who gives up on a probe must not leave the
// breaker waiting for its outcome.
func TestProbeWithoutOutcome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, told := &script{answer: answer(500)}, &events{}
		c := client(t, "http://up.test", Options{Transport: net, Meter: told})
		for i := range breakLeast {
			ask(t, c, fmt.Sprint("/", i), Load{})
		}
		net.set(hang)
		for range 2 * breakProbes {
			<-time.After(breakDelay)
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			req, _ := http.NewRequest(http.MethodGet, "http://up.test/", nil)
			if _, err := c.Do(ctx, req, Load{}); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatal(err)
			}
			cancel()
		}
		net.set(answer(200))
		<-time.After(breakDelay)
		for range breakProbes {
			if _, err := ask(t, c, "/", Load{}); err != nil {
				t.Fatal(err)
			}
		}
		if told.String() != "breaker open up, breaker closed up" {
			t.Error(told)
		}
	})
}

// TestLateAnswers: what was sent before the breaker opened says nothing about
// the time after.
func TestLateAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, told := &script{}, &events{}
		release := make(chan struct{})
		net.set(func(r *http.Request) (*http.Response, error) { <-release; return answer(500)(r) })
		c := client(t, "http://up.test", Options{Transport: net, Meter: told, HeaderTimeout: time.Minute})
		var late sync.WaitGroup
		for i := range 10 {
			late.Go(func() { ask(t, c, fmt.Sprint("/late/", i), Load{}) })
		}
		synctest.Wait()
		net.set(answer(500))
		for i := range breakLeast {
			ask(t, c, fmt.Sprint("/", i), Load{})
		}
		<-time.After(breakDelay)
		net.set(answer(200))
		ask(t, c, "/", Load{}) // half open
		close(release)
		late.Wait()
		if _, err := ask(t, c, "/", Load{}); err != nil || told.String() != "breaker open up, breaker closed up" {
			t.Errorf("%v, %q", err, told)
		}
	})
}

// TestSilentBodies count as failures, though their headers came.
func TestSilentBodies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, told := &script{}, &events{}
		net.set(func(r *http.Request) (*http.Response, error) {
			pr, pw := io.Pipe()
			context.AfterFunc(r.Context(), func() { pw.CloseWithError(r.Context().Err()) })
			return &http.Response{StatusCode: 200, Header: http.Header{}, Body: pr, ContentLength: -1, Request: r}, nil
		})
		c := client(t, "http://up.test", Options{Transport: net, Meter: told, IdleTimeout: time.Second})
		for i := range breakLeast {
			req, _ := http.NewRequest(http.MethodGet, fmt.Sprint("http://up.test/", i), nil)
			resp, err := c.Do(t.Context(), req, Load{})
			if err != nil {
				break
			}
			if _, err := io.ReadAll(resp.Body); !errors.Is(err, errSilent) {
				t.Fatal(err)
			}
			if _, active := c.slots.counts(); active != 0 {
				t.Fatal("a body that failed holds its slot")
			}
			resp.Body.Close()
		}
		if told.String() != "breaker open up" {
			t.Errorf("%q", told)
		}
	})
}

// TestRetryBudget: while every connection breaks, few requests are tried twice.
func TestRetryBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := &script{answer: func(r *http.Request) (*http.Response, error) {
			if strings.HasPrefix(r.URL.Path, "/good") {
				return answer(200)(r)
			}
			return nil, io.ErrUnexpectedEOF
		}}
		c := client(t, "http://up.test", Options{Transport: net})
		for range 100 { // always the same, so that the breaker stays closed
			ask(t, c, "/bad", Load{})
		}
		// Ten on credit, and one for each ten of the hundred.
		if n := net.count("up.test"); n < 100+retryFloat || n > 100+retryFloat+100/retryShare {
			t.Errorf("%d exchanges for 100 requests", n)
		}
		before := net.count("up.test")
		for range 10 * retryShare {
			ask(t, c, "/good", Load{})
		}
		for range retryFloat + 5 {
			ask(t, c, "/bad", Load{})
		}
		if n := net.count("up.test") - before - 10*retryShare - retryFloat - 5; n < retryFloat || n > retryFloat+1 {
			t.Errorf("%d retries after a good time, want %d", n, retryFloat)
		}
	})
}

// TestFailuresCountAgain: what failed in one window counts in the next.
func TestFailuresCountAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, told := &script{answer: answer(500)}, &events{}
		c := client(t, "http://up.test", Options{Transport: net, Meter: told})
		for round := range 2 {
			for i := range breakLeast - 1 + round {
				ask(t, c, fmt.Sprint("/", i), Load{})
			}
			if opened := told.String() != ""; opened != (round == 1) {
				t.Fatalf("round %d: opened: %v", round, opened)
			}
			<-time.After(breakWindow)
		}
	})
}
