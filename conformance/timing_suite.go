package conformance

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"testing"
	"time"
)

// A Secret is two requests that someone without the right to either must not be
// able to tell apart: for what is here because of others, and for what is nowhere.
// They must be of one length.
type Secret struct {
	Name         string
	Here, Absent string // paths
}

const (
	// quickSamples and soakSamples are how many requests of each kind are timed.
	quickSamples = 400
	soakSamples  = 10_000
	// leastP is how probable it must at least be, if there is no difference, that
	// so much of one is seen.
	leastP = 0.001
	// quickDiff and soakDiff are up to what part of the median two medians may
	// differ: less than noise makes of it from one run to the next.
	quickDiff = 0.25
	soakDiff  = 0.05
)

// timingSamples is how many to take: as in a test, or as WEIR_SOAK wants it.
func timingSamples() int {
	if os.Getenv("WEIR_SOAK") != "" {
		return soakSamples
	}
	return quickSamples
}

// TestIndistinguishable checks that a client of handler with this User-Agent is
// told the same of both of each of the secrets, by status, header, body and time.
func TestIndistinguishable(t *testing.T, handler http.Handler, agent string, secrets []Secret) {
	s := serveTracked(t, handler, time.Minute)
	for _, secret := range secrets {
		t.Run(secret.Name, func(t *testing.T) {
			if len(secret.Here) != len(secret.Absent) {
				t.Fatal("the requests differ in length")
			}
			for _, method := range []string{http.MethodGet, http.MethodHead} {
				var found string
				// What chance does once in a thousand tries it does not do twice.
				for try := range 2 {
					here, absent := s.time(t, method, agent, secret, timingSamples())
					if found = compare(here, absent); found == "" {
						t.Logf("%s: medians %.1f and %.1f µs, p = %.2g", method, median(here), median(absent), mannWhitney(here, absent))
						break
					}
					t.Logf("%s, try %d: %s", method, try, found)
				}
				if found != "" {
					t.Errorf("%s tells them apart: %s", method, found)
				}
			}
		})
	}
}

// compare says what tells two lists of times apart, or "".
func compare(a, b []float64) string {
	p := mannWhitney(a, b)
	ma, mb := median(a), median(b)
	text := fmt.Sprintf("medians %.1f and %.1f µs, p = %.2g, of %d samples each", ma, mb, p, len(a))
	limit := quickDiff
	if len(a) >= soakSamples {
		limit = soakDiff
	}
	if p < leastP || math.Abs(ma-mb) > limit*min(ma, mb) {
		return text
	}
	return ""
}

var varies = regexp.MustCompile(`(?m)^(X-Request-Id|Date): .*$|"request":"[0-9a-f]+"`)

// time sends n requests of each kind over one connection, mixed, and gives how long
// each took in microseconds.
func (s *trackedServer) time(t *testing.T, method, agent string, secret Secret, n int) (here, absent []float64) {
	t.Helper()
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	<-s.conns
	in := bufio.NewReader(conn)
	var said string
	order := rand.New(rand.NewPCG(1, uint64(n)))
	for i := 0; len(here) < n || len(absent) < n; i++ {
		isHere := order.IntN(2) == 0
		target, times := secret.Absent, &absent
		if isHere {
			target, times = secret.Here, &here
		}
		req, err := http.NewRequest(method, "http://"+s.addr+target, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("User-Agent", agent)
		text := fmt.Appendf(nil, "%s %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: %s\r\n\r\n", method, target, s.addr, agent)
		begun := time.Now()
		if _, err := conn.Write(text); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(in, req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		took := time.Since(begun)
		if err != nil {
			t.Fatal(err)
		}
		var head headText
		_ = resp.Header.Write(&head)
		now := varies.ReplaceAllString(resp.Status+"\n"+string(head)+string(body), "")
		if said == "" {
			said = now
		}
		if now != said {
			t.Fatalf("two answers:\n%s\n%s", said, now)
		}
		if i >= n/10 { // the first warm up what is between
			*times = append(*times, float64(took.Nanoseconds())/1000)
		}
	}
	return here[:n], absent[:n]
}

type headText []byte

func (h *headText) Write(p []byte) (int, error) {
	*h = append(*h, p...)
	return len(p), nil
}

func median(v []float64) float64 {
	sorted := slices.Sorted(slices.Values(v))
	return sorted[len(sorted)/2]
}

// mannWhitney is the probability that two lists of the same distribution differ in
// rank by as much as a and b do: the two-sided U test, by the normal approximation
// with the correction for ties.
func mannWhitney(a, b []float64) float64 {
	type value struct {
		v     float64
		first bool
	}
	all := make([]value, 0, len(a)+len(b))
	for _, v := range a {
		all = append(all, value{v, true})
	}
	for _, v := range b {
		all = append(all, value{v, false})
	}
	slices.SortFunc(all, func(x, y value) int { return cmp.Compare(x.v, y.v) })
	ranks, ties := 0.0, 0.0
	for i := 0; i < len(all); {
		j := i
		for j < len(all) && all[j].v == all[i].v {
			j++
		}
		same := float64(j - i)
		ties += same*same*same - same
		for ; i < j; i++ {
			if all[i].first {
				ranks += float64(j) - (same-1)/2 // the mean of their ranks, from 1 on
			}
		}
	}
	n, m := float64(len(a)), float64(len(b))
	u := ranks - n*(n+1)/2
	total := n + m
	sigma := math.Sqrt(n * m / 12 * (total + 1 - ties/(total*(total-1))))
	if sigma == 0 {
		return 1
	}
	return math.Erfc(math.Abs(u-n*m/2) / sigma / math.Sqrt2)
}

// TimingNotices checks that TestIndistinguishable would find a handler that takes
// so much longer for what is here.
func TimingNotices(t *testing.T, extra time.Duration) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/here" {
			for begun := time.Now(); time.Since(begun) < extra; {
			}
		}
		w.Header().Set("Content-Length", strconv.Itoa(0))
		w.WriteHeader(http.StatusForbidden)
	})
	s := serveTracked(t, h, time.Minute)
	here, absent := s.time(t, http.MethodGet, "x", Secret{Here: "/here", Absent: "/none"}, timingSamples())
	if found := compare(here, absent); found == "" {
		t.Errorf("%v more are not noticed: medians %.1f and %.1f µs", extra, median(here), median(absent))
	} else {
		t.Logf("%v more: %s", extra, found)
	}
}
