package wan_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/lab"
	"github.com/weir-registry/weir/conformance/wan"
)

// TestClientTellsFaults asks for what fails in each way.
func TestClientTellsFaults(t *testing.T) {
	u := wan.StartUpstream(t)
	c := wan.NewClient(t, 300*time.Millisecond)
	b := u.Blob(3_000_000, "faults")
	other := u.Blob(3_000_000, "other")
	path := wan.BlobPath("library/thing", b)
	l := wan.StartLink(t, u.Addr, wan.Shape{RTT: 20 * time.Millisecond})
	get := func(what string, want wan.Want, fault wan.Fault) wan.Answer {
		t.Helper()
		a := c.Get(t.Context(), want)
		if a.Fault != fault || (a.Err == nil) != (fault == wan.OK) {
			t.Errorf("%s: %q, %v; want %q", what, a.Fault, a.Err, fault)
		}
		return a
	}
	url := "http://" + l.Addr + path
	cold := get("all well", wan.Want{URL: url, Blob: b}, wan.OK)
	if cold.Header < 40*time.Millisecond || cold.First < cold.Header || cold.Total < cold.First || cold.Bytes != b.Size || cold.Code != 200 || cold.Reused {
		t.Errorf("a new connection: %+v", cold)
	}
	warm := get("all well", wan.Want{URL: url, Blob: b, Quick: true}, wan.OK)
	if warm.Header < 20*time.Millisecond || warm.Header >= cold.Header || !warm.Reused {
		t.Errorf("a warm connection: %+v", warm)
	}
	get("another blob", wan.Want{URL: url, Blob: other}, wan.Wrong)
	get("another blob, quickly", wan.Want{URL: url, Blob: other, Quick: true}, wan.Wrong)
	get("a length alone", wan.Want{URL: url, Blob: wan.Blob{Digest: b.Digest, Sum: b.Sum, Size: b.Size + 1}}, wan.Wrong)
	get("nothing there", wan.Want{URL: url + "0"}, wan.Status)
	get("nobody there", wan.Want{URL: "http://" + lab.FreeAddr(t) + path}, wan.Refused)
	u.SetMode(wan.Mode{Hang: true})
	get("hang", wan.Want{URL: url}, wan.Timeout)
	u.SetMode(wan.Mode{Rate: 5_000_000})
	get("slow", wan.Want{URL: url}, wan.Timeout)
	u.SetMode(wan.Mode{})
	l.SetShape(wan.Shape{ResetAfter: 1_000_000})
	get("reset", wan.Want{URL: url}, wan.Cut)
	gone := wan.StartLink(t, lab.FreeAddr(t), wan.Shape{RTT: 20 * time.Millisecond})
	get("no answer", wan.Want{URL: "http://" + gone.Addr + path}, wan.Reset)
}

// TestLoadCounts has a load of two doors, of which one dies for a while, one
// lies once, and both are dead in the end.
func TestLoadCounts(t *testing.T) {
	u := wan.StartUpstream(t)
	one, two := wan.StartLink(t, u.Addr, wan.Shape{}), wan.StartLink(t, u.Addr, wan.Shape{RTT: 10 * time.Millisecond})
	var blobs []wan.Blob
	for i := range 20 {
		blobs = append(blobs, u.Blob(20_000, fmt.Sprint("load", i)))
	}
	l := wan.StartLoad(t, wan.LoadPlan{Clients: 4, Doors: []string{"http://" + one.Addr, "http://" + two.Addr}, Pause: 2 * time.Millisecond,
		Next: func(r *rand.Rand, _, _ int) wan.Item {
			b := blobs[r.IntN(len(blobs))]
			return wan.Item{Path: wan.BlobPath("library/thing", b), Blob: b, Class: "only"}
		}})
	enough := func(n int, what func(wan.Report) []wan.Sample) {
		t.Helper()
		lab.Eventually(t, 5*time.Second, "requests", func() error {
			if got := len(what(l.Report())); got < n {
				return fmt.Errorf("%d", got)
			}
			return nil
		})
	}
	enough(50, func(r wan.Report) []wan.Sample { return r.Samples })
	one.Block(wan.Refuse)
	one.Cut()
	enough(20, wan.Report.Moved)
	one.Heal()
	if r := l.Report(); len(r.Failed()) != 0 || len(r.Wrong()) != 0 || r.Faults() == "none" {
		t.Errorf("%d failed, %d wrong, %s", len(r.Failed()), len(r.Wrong()), r.Faults())
	}
	two.Block(wan.Refuse)
	two.Cut()
	one.Block(wan.Refuse)
	one.Cut()
	enough(5, wan.Report.Failed)
	r := l.Stop()
	if n := len(l.Report().Samples); n != len(r.Samples) {
		t.Errorf("%d samples after Stop, then %d", len(r.Samples), n)
	}
	for _, s := range r.Failed() {
		if s.Tried != 2 || len(s.Faults) != 1 {
			t.Errorf("failed after %d doors, %v: %v", s.Tried, s.Faults, s.Err)
		}
	}
}

func TestLoadFindsWrongBytes(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, strings.Repeat("x", 100))
	}))
	defer s.Close()
	l := wan.StartLoad(t, wan.LoadPlan{Clients: 1, Doors: []string{s.URL, s.URL}, Next: func(*rand.Rand, int, int) wan.Item {
		return wan.Item{Path: "/", Blob: wan.Blob{Digest: "sha256:0", Size: 100}}
	}})
	lab.Eventually(t, 5*time.Second, "an answer", func() error {
		if len(l.Report().Samples) == 0 {
			return fmt.Errorf("none")
		}
		return nil
	})
	r := l.Stop()
	if len(r.Wrong()) != len(r.Samples) || len(r.Failed()) != len(r.Samples) || r.Samples[0].Tried != 1 {
		t.Errorf("%d wrong of %d, at door %d", len(r.Wrong()), len(r.Samples), r.Samples[0].Tried)
	}
}

// TestSteady tells from made-up samples when all was well again.
func TestSteady(t *testing.T) {
	start := time.Now()
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	// Every 10 ms a request of 10 ms; how tells what became of some.
	make := func(how func(ms int, s *wan.Sample)) wan.Report {
		var r wan.Report
		for ms := 0; ms < 4000; ms += 10 {
			s := wan.Sample{Item: wan.Item{Class: "c"}, At: at(ms), Tried: 1,
				Answer: wan.Answer{First: 10 * time.Millisecond, Total: 10 * time.Millisecond}}
			how(ms, &s)
			if s.Tried > 0 {
				r.Samples = append(r.Samples, s)
			}
		}
		return r
	}
	during := func(from, to int, change func(s *wan.Sample)) func(int, *wan.Sample) {
		return func(ms int, s *wan.Sample) {
			if ms >= from && ms < to {
				change(s)
			}
		}
	}
	slow := func(s *wan.Sample) { s.First, s.Total = 40*time.Millisecond, 40*time.Millisecond }
	for name, c := range map[string]struct {
		r    wan.Report
		want time.Duration
		ok   bool
	}{
		"undisturbed":  {make(func(int, *wan.Sample) {}), 0, true},
		"slower a bit": {make(during(1000, 4000, func(s *wan.Sample) { s.First = 24 * time.Millisecond })), 0, true},
		"slow for 1 s": {make(during(1000, 2000, slow)), time.Second, true},
		"fails once":   {make(during(1500, 1510, func(s *wan.Sample) { s.Fault = wan.Status })), 750 * time.Millisecond, true},
		"silent":       {make(during(1240, 1500, func(s *wan.Sample) { s.Tried = 0 })), 500 * time.Millisecond, true},
		"one waits": {make(func(ms int, s *wan.Sample) {
			if ms == 1100 {
				s.First, s.Total = time.Second, time.Second
			}
		}), 1250 * time.Millisecond, true},
		"slow for good": {make(during(2000, 4000, slow)), 3 * time.Second, false},
	} {
		got, ok := c.r.Steady(at(1000), at(4000))
		// What is slow is answered later: one window more.
		if ok != c.ok || got < c.want || got > c.want+250*time.Millisecond {
			t.Errorf("%s: %v, %v; want %v, %v", name, got, ok, c.want, c.ok)
		}
	}
}

func TestReport(t *testing.T) {
	got := wan.Table([]string{"what", "ms"}, []string{"a", "1.0"}, []string{"longer", "100.0"})
	if want := "what       ms\na         1.0\nlonger  100.0\n"; got != want {
		t.Errorf("got\n%s", got)
	}
	got = wan.Bars("ms", wan.Bar{Name: "a", Value: 50, Mark: 100}, wan.Bar{Name: "bb", Value: 100})
	if want := "a   " + strings.Repeat("#", 25) + strings.Repeat(" ", 25) + "| 50.0 ms\nbb  " + strings.Repeat("#", 50) + " 100.0 ms\n"; got != want {
		t.Errorf("got\n%s", got)
	}
	if got := wan.Bars("x", wan.Bar{Name: "none"}); got != "none   0.0 x\n" {
		t.Errorf("got %q", got)
	}
}
