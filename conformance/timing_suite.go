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
	"strings"
	"testing"
	"time"
)

// A Secret is two requests that someone without the right to either must not be
// able to tell apart: for what is here because of others, and for what is nowhere.
// They must be of one length. An answer may name what was asked for: words of four
// letters and more that only one of the two paths has count as the same.
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

// TestIndistinguishable checks that a client of handler with this User-Agent is
// told the same of both of each of the secrets, by status, header, body and time.
func TestIndistinguishable(t *testing.T, handler http.Handler, agent string, secrets []Secret) {
	serveTracked(t, handler, time.Minute).asker(agent).indistinguishable(t, secrets)
}

// TestIndistinguishableAt is [TestIndistinguishable] for a server that runs at an
// address, and for a client that sends this header with each request.
func TestIndistinguishableAt(t *testing.T, addr string, header http.Header, secrets []Secret) {
	asker{addr, header, func() (net.Conn, error) { return net.Dial("tcp", addr) }}.indistinguishable(t, secrets)
}

// TimingSamples is how many requests of each kind are timed: as many as a test has
// time for, or with WEIR_SOAK as are wanted.
func TimingSamples() int {
	if os.Getenv("WEIR_SOAK") != "" {
		return soakSamples
	}
	return quickSamples
}

// FirstAnswersAt compares the first answers about what is here because of others
// with the first about what is nowhere: what has been answered once may be
// remembered. It fails the test if they differ in status, header or body; what the
// times mean is the caller's to say. Each path is asked for once, by GET over one
// connection, mixed; there must be as many absent as here, [TimingSamples] at
// least, and all of one length.
func FirstAnswersAt(t *testing.T, addr string, header http.Header, here, absent []string) Comparison {
	t.Helper()
	a := asker{addr, header, func() (net.Conn, error) { return net.Dial("tcp", addr) }}
	conn, err := a.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	in := bufio.NewReader(conn)
	var times [2][]float64
	var said string
	order := rand.New(rand.NewPCG(1, uint64(len(here)))).Perm(2 * len(here))
	for i, at := range order {
		kind, paths := at%2, [2]string{here[at/2], absent[at/2]}
		took, answer, err := a.question(t, http.MethodGet, paths[kind], paths[1-kind]).ask(conn, in)
		if err != nil {
			t.Fatal(err)
		}
		if said == "" {
			said = answer
		}
		if answer != said {
			t.Fatalf("two answers:\n%s\n%s", said, answer)
		}
		if i >= len(order)/20 { // the first warm up what is between
			times[kind] = append(times[kind], float64(took.Nanoseconds())/1000)
		}
	}
	return compared(times[0], times[1])
}

// An asker asks for secrets, always with one header.
type asker struct {
	host   string
	header http.Header
	dial   func() (net.Conn, error)
}

func (s *trackedServer) asker(agent string) asker {
	return asker{s.addr, http.Header{"User-Agent": {agent}}, func() (net.Conn, error) {
		conn, err := net.Dial("tcp", s.addr)
		if err == nil {
			<-s.conns
		}
		return conn, err
	}}
}

func (a asker) indistinguishable(t *testing.T, secrets []Secret) {
	for _, secret := range secrets {
		t.Run(secret.Name, func(t *testing.T) {
			if len(secret.Here) != len(secret.Absent) {
				t.Fatal("the requests differ in length")
			}
			for _, method := range []string{http.MethodGet, http.MethodHead} {
				found := compared(a.time(t, method, secret, TimingSamples()))
				if !found.Alike(leastP) {
					// What chance does once in a thousand tries it does not do twice.
					t.Logf("%s, again: %v", method, found)
					found = compared(a.time(t, method, secret, TimingSamples()))
				}
				if !found.Alike(leastP) {
					t.Errorf("%s tells them apart: %v", method, found)
				}
				t.Logf("%s: %v", method, found)
			}
		})
	}
}

// A Comparison is of how long the answers to two kinds of requests took.
type Comparison struct {
	Here, Absent float64 // medians, in microseconds
	// P is how probable so much of a difference is if there is none.
	P       float64
	Samples int // of each kind, or of that with fewer
}

func compared(here, absent []float64) Comparison {
	return Comparison{median(here), median(absent), mannWhitney(here, absent), min(len(here), len(absent))}
}

// String implements fmt.Stringer.
func (c Comparison) String() string {
	return fmt.Sprintf("medians %.1f and %.1f µs, p = %.2g, of %d samples each", c.Here, c.Absent, c.P, c.Samples)
}

// Alike reports whether nothing tells the two apart but chance, which is wrong for
// the part least of what is the same.
func (c Comparison) Alike(least float64) bool {
	limit := quickDiff
	if c.Samples >= soakSamples*9/10 {
		limit = soakDiff
	}
	return c.P >= least && math.Abs(c.Here-c.Absent) <= limit*min(c.Here, c.Absent)
}

// varies is what differs from one answer to the next, whatever is asked for.
var varies = regexp.MustCompile(`(?m)^(X-Request-Id|Date): .*$|"request":"[0-9a-f]+"` +
	`|"(?:access_)?token":"[^"]+"|"issued_at":"[^"]+"|"expires_in":[0-9]+`)

var words = regexp.MustCompile(`[A-Za-z0-9]{4,}`)

// names matches what names path in an answer, and not other; nil: nothing does.
func names(path, other string) *regexp.Regexp {
	var only []string
	others := words.FindAllString(other, -1)
	for _, w := range words.FindAllString(path, -1) {
		if !slices.Contains(others, w) {
			only = append(only, w)
		}
	}
	if only == nil {
		return nil
	}
	return regexp.MustCompile(`\b(?:` + strings.Join(only, "|") + `)\b`)
}

// A question is one of a secret's requests.
type question struct {
	request *http.Request
	text    []byte
	names   *regexp.Regexp
	times   []float64
}

func (a asker) question(t *testing.T, method, path, other string) *question {
	t.Helper()
	req, err := http.NewRequest(method, "http://"+a.host+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	var head headText
	_ = a.header.Write(&head)
	return &question{request: req, names: names(path, other),
		text: fmt.Appendf(nil, "%s %s HTTP/1.1\r\nHost: %s\r\n%s\r\n", method, path, a.host, head)}
}

// ask asks over a connection, and says how long the answer took and what it was,
// apart from what varies.
func (q *question) ask(conn net.Conn, in *bufio.Reader) (took time.Duration, answer string, err error) {
	begun := time.Now()
	if _, err := conn.Write(q.text); err != nil {
		return 0, "", err
	}
	resp, err := http.ReadResponse(in, q.request)
	if err != nil {
		return 0, "", err
	}
	body, err := io.ReadAll(resp.Body)
	took = time.Since(begun)
	var head headText
	_ = resp.Header.Write(&head)
	answer = varies.ReplaceAllString(resp.Status+"\n"+string(head)+string(body), "")
	if q.names != nil {
		answer = q.names.ReplaceAllString(answer, "…")
	}
	return took, answer, err
}

// time sends n requests of each kind over one connection, mixed, and gives how long
// each took in microseconds.
func (a asker) time(t *testing.T, method string, secret Secret, n int) (here, absent []float64) {
	t.Helper()
	conn, err := a.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	in := bufio.NewReader(conn)
	both := []*question{a.question(t, method, secret.Here, secret.Absent), a.question(t, method, secret.Absent, secret.Here)}
	var said string
	order := rand.New(rand.NewPCG(1, uint64(n)))
	for i := 0; len(both[0].times) < n || len(both[1].times) < n; i++ {
		q := both[order.IntN(2)]
		took, answer, err := q.ask(conn, in)
		if err != nil {
			t.Fatal(err)
		}
		if said == "" {
			said = answer
		}
		if answer != said {
			t.Fatalf("two answers:\n%s\n%s", said, answer)
		}
		if i >= n/10 { // the first warm up what is between
			q.times = append(q.times, float64(took.Nanoseconds())/1000)
		}
	}
	return both[0].times[:n], both[1].times[:n]
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
	here, absent := s.asker("x").time(t, http.MethodGet, Secret{Here: "/here", Absent: "/none"}, TimingSamples())
	if found := compared(here, absent); found.Alike(leastP) {
		t.Errorf("%v more are not noticed: %v", extra, found)
	} else {
		t.Logf("%v more: %v", extra, found)
	}
}
