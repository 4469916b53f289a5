package wan

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	// steadyWindow is how long a piece of the timeline is over which a median
	// is taken.
	steadyWindow = 250 * time.Millisecond
	// steadyFactor is by how much slower than before is as before.
	steadyFactor = 2
	// steadyGrace is how much slower is noise, however fast it was before.
	steadyGrace = 5 * time.Millisecond
)

// An Item is something that a load asks for.
type Item struct {
	// Path is below the door: see [BlobPath].
	Path string
	Blob Blob
	// Class says what it is to be measured with: "cached", "uncached".
	Class string
}

// A LoadPlan says what a load does.
type LoadPlan struct {
	// Clients is how many there are; each makes one request after another.
	Clients int
	// Doors are the edges that each client knows: "http://…". Client i begins
	// with door i (modulo) and goes to the next when a request fails there,
	// as container engines do with mirrors. A request has failed when it has
	// failed at all doors.
	Doors []string
	// Next is what client should ask for as its nth request. It is called by
	// all clients at once; r is the client's own.
	Next func(r *rand.Rand, client, n int) Item
	// Pause is how long a client rests after each request; 0: not at all.
	Pause time.Duration
	// Limit is how long a request may take at one door; 0: 30 s.
	Limit time.Duration
}

// A Sample is one request of a load.
type Sample struct {
	Item   Item
	Client int
	// At is when it was made, Tried how many doors it took.
	At    time.Time
	Tried int
	// Answer is the last door's, its times counted from At on.
	Answer
	// Faults are those of the doors before.
	Faults []Fault
}

// A Load is clients that ask and check, until they are told to stop.
type Load struct {
	t    testing.TB
	plan LoadPlan
	c    *Client
	stop context.CancelFunc
	all  sync.WaitGroup

	mu      sync.Mutex
	samples []Sample // guarded by mu
}

// StartLoad starts a load. The end of the test stops it, if nothing did before.
func StartLoad(t testing.TB, p LoadPlan) *Load {
	t.Helper()
	if p.Limit <= 0 {
		p.Limit = 30 * time.Second
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := &Load{t: t, plan: p, stop: cancel, c: NewClient(t, p.Limit)}
	for i := range p.Clients {
		l.all.Go(func() { l.client(ctx, i) })
	}
	t.Cleanup(func() { l.Stop() })
	return l
}

// Stop lets requests that are under way end, and reports on them all.
func (l *Load) Stop() Report {
	l.stop()
	l.all.Wait()
	return l.Report()
}

// Report is on the requests that have ended so far.
func (l *Load) Report() Report {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Report{Samples: slices.Clone(l.samples)}
}

// Run goes on for d, and returns when that was over.
func (l *Load) Run(d time.Duration) time.Time {
	timer := time.NewTimer(d)
	defer timer.Stop()
	<-timer.C
	return time.Now()
}

func (l *Load) client(ctx context.Context, i int) {
	r := rand.New(rand.NewPCG(uint64(i), 1))
	for n := 0; ctx.Err() == nil; n++ {
		s := l.ask(i, l.plan.Next(r, i, n))
		l.mu.Lock()
		l.samples = append(l.samples, s)
		l.mu.Unlock()
		if l.plan.Pause > 0 {
			timer := time.NewTimer(l.plan.Pause)
			select {
			case <-timer.C:
			case <-ctx.Done():
			}
			timer.Stop()
		}
	}
}

// ask asks one door after the other.
func (l *Load) ask(client int, item Item) Sample {
	s := Sample{Item: item, Client: client, At: time.Now()}
	for i := range l.plan.Doors {
		door := l.plan.Doors[(client+i)%len(l.plan.Doors)]
		before := time.Since(s.At)
		if s.Tried > 0 {
			s.Faults = append(s.Faults, s.Fault)
		}
		s.Tried++
		s.Answer = l.c.Get(context.Background(), Want{URL: door + item.Path, Blob: item.Blob})
		s.Header, s.First, s.Total = s.Header+before, s.First+before, s.Total+before
		if s.Fault == OK || s.Fault == Wrong { // wrong bytes are not to be made up for
			break
		}
	}
	return s
}

// A Report is what a load has seen.
type Report struct {
	Samples []Sample // in the order in which they ended
}

// Failed are the requests that no door could answer.
func (r Report) Failed() []Sample { return r.with(func(s Sample) bool { return s.Fault != OK }) }

// Wrong are those that brought a whole body of wrong bytes.
func (r Report) Wrong() []Sample { return r.with(func(s Sample) bool { return s.Fault == Wrong }) }

// Moved are those that one door failed and another answered.
func (r Report) Moved() []Sample {
	return r.with(func(s Sample) bool { return s.Fault == OK && s.Tried > 1 })
}

// Between are the requests made from a time on and before another.
func (r Report) Between(from, to time.Time) Report {
	return Report{r.with(func(s Sample) bool { return !s.At.Before(from) && s.At.Before(to) })}
}

func (r Report) with(ok func(Sample) bool) []Sample {
	var out []Sample
	for _, s := range r.Samples {
		if ok(s) {
			out = append(out, s)
		}
	}
	return out
}

// Classes are the classes of the items asked for, sorted.
func (r Report) Classes() []string {
	seen := map[string]bool{}
	for _, s := range r.Samples {
		seen[s.Item.Class] = true
	}
	return slices.Sorted(maps.Keys(seen))
}

// Median is the median time to first byte of a class; 0 if there is none.
func (r Report) Median(class string) time.Duration {
	var all []time.Duration
	for _, s := range r.Samples {
		if s.Item.Class == class && s.Fault == OK {
			all = append(all, s.First)
		}
	}
	return Median(all)
}

// Slowest is the longest time to first byte of all.
func (r Report) Slowest() time.Duration {
	var most time.Duration
	for _, s := range r.Samples {
		most = max(most, s.First)
	}
	return most
}

// Faults tells how many failures of which kind there were, at any door.
func (r Report) Faults() string {
	count := map[Fault]int{}
	for _, s := range r.Samples {
		for _, f := range s.Faults {
			count[f]++
		}
		if s.Fault != OK {
			count[s.Fault]++
		}
	}
	var parts []string
	for _, f := range slices.Sorted(maps.Keys(count)) {
		parts = append(parts, fmt.Sprintf("%d %s", count[f], f))
	}
	if parts == nil {
		return "none"
	}
	return strings.Join(parts, ", ")
}

// Steady is how long after event requests were as before it again: from then
// on, in every quarter of a second until end, some were answered, none failed,
// each class's median time to first byte was within twice what it was from the
// beginning to event, plus 5 ms of noise, and none was waiting a quarter of a
// second longer than that. ok is false if that was not so before end.
func (r Report) Steady(event, end time.Time) (after time.Duration, ok bool) {
	bound := map[string]time.Duration{}
	was := Report{r.with(func(s Sample) bool { return s.answered().Before(event) })}
	for _, class := range was.Classes() {
		bound[class] = steadyFactor*was.Median(class) + steadyGrace
	}
	reached := event
	for at := event; !at.Add(steadyWindow).After(end); at = at.Add(steadyWindow) {
		if to := at.Add(steadyWindow); !r.calm(at, to, bound) {
			reached = to
		}
	}
	return reached.Sub(event), end.Sub(reached) >= steadyWindow
}

// answered is when its first byte came, or that none would come.
func (s Sample) answered() time.Time {
	if s.Fault != OK {
		return s.At.Add(s.Total)
	}
	return s.At.Add(s.First)
}

// calm reports whether between two times all was within its bound.
func (r Report) calm(at, to time.Time, bound map[string]time.Duration) bool {
	var now Report
	for _, s := range r.Samples {
		answered := s.answered()
		if answered.Before(at) || !s.At.Before(to) {
			continue
		}
		limit, known := bound[s.Item.Class]
		waited := answered
		if answered.Before(to) {
			now.Samples = append(now.Samples, s)
		} else {
			waited = to
		}
		if known && waited.Sub(s.At) > limit+steadyWindow {
			return false
		}
	}
	if len(now.Samples) == 0 || len(now.Failed()) > 0 {
		return false
	}
	for _, class := range now.Classes() {
		if limit, known := bound[class]; known && now.Median(class) > limit {
			return false
		}
	}
	return true
}

// Median is the middle one of some durations, the mean of the two middle ones
// if they are even in number; 0 of none.
func Median(all []time.Duration) time.Duration {
	if len(all) == 0 {
		return 0
	}
	all = slices.Sorted(slices.Values(all))
	n := len(all)
	return (all[(n-1)/2] + all[n/2]) / 2
}
