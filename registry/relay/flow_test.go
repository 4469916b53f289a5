package relay_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/relay"
)

// TestThreeLevels: what changes at the top is at the bottom, as changes and not
// as snapshots, and the top hears who has it.
func TestThreeLevels(t *testing.T) {
	t.Parallel()
	origin, shield, edge, _ := chain(t)
	conformance.Eventually(t, "both are known", func() bool { return len(origin.board.List()) == 2 })
	for i := range 100 {
		origin.rep.put(record(fmt.Sprint("e/grant/", i%30), fmt.Sprint(i)), registry.Record{Key: fmt.Sprint("e/grant/", (i+7)%30)})
	}
	last := origin.rep.put(record("e/token/x", "y"))
	var reached []string
	without, err := origin.board.Wait(t.Context(), last, func(s registry.NodeStanding) { reached = append(reached, fmt.Sprint(s.Via, s.Node)) })
	slices.Sort(reached)
	if err != nil || len(without) != 0 || !slices.Equal(reached, []string{"[]shield", "[shield]edge"}) {
		t.Fatalf("reached %v, not %v; %v", reached, without, err)
	}
	if !edge.same(origin) || !shield.same(origin) {
		t.Errorf("acknowledged, and not the same: %+v %+v", origin.rep.State(), edge.rep.State())
	}
	for _, n := range []*node{shield, edge} {
		if snapshots, _ := n.rep.counts(); snapshots != 1 {
			t.Errorf("%s took %d snapshots", n.name, snapshots)
		}
		conformance.Eventually(t, "confirmed", func() bool { return time.Since(n.rep.State().Confirmed) < 500*time.Millisecond })
	}
	for _, s := range origin.board.List() {
		if s.Hash != origin.rep.State().Hash || s.Database != "db" || s.Records != origin.rep.State().Records || time.Since(s.Heard) > 5*time.Second {
			t.Errorf("%+v", s)
		}
	}
}

// TestUses: when tokens were used is heard at the top, whatever is under way.
func TestUses(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	used := make(chan map[string]time.Time, 100)
	origin := start(t, p, "origin", setup{database: "db", config: func(c *relay.Config) { c.Used = func(m map[string]time.Time) { used <- m } }})
	shield := start(t, p, "shield", setup{next: []string{origin.url()}})
	edge := start(t, p, "edge", setup{next: []string{shield.url()}})
	edge.has(origin)
	at := time.Now().Add(-time.Minute)
	for n, id := range map[*node]string{edge: "t-edge", shield: "t-shield"} {
		n.rep.mu.Lock()
		n.rep.uses = map[string]time.Time{id: at, "": at, "\x1b[2J": at}
		n.rep.mu.Unlock()
	}
	got := map[string]time.Time{}
	for len(got) < 2 {
		select {
		case m := <-used:
			for id, when := range m {
				if off := when.Sub(at); off > 3*time.Second || off < -5*time.Second {
					t.Errorf("%q was used at %v, not %v", id, when, at)
				}
				got[id] = when
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("heard of %v", got)
		}
	}
	if got["t-edge"].IsZero() || got["t-shield"].IsZero() {
		t.Errorf("heard of %v", got)
	}
}

// TestManyChanges: 10,000 changes a second get through two levels as they come.
func TestManyChanges(t *testing.T) {
	origin, shield, edge, _ := chain(t)
	for _, n := range []*node{origin, shield, edge} {
		n.rep.mu.Lock()
		n.rep.ring = 1 << 20 // however busy the machine is, nobody falls behind too far
		n.rep.mu.Unlock()
	}
	const changes = 20_000
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	begun := time.Now()
	var last uint64
	for made := 0; made < changes; {
		<-tick.C
		for due := min(int(time.Since(begun)/(100*time.Microsecond)), changes); made < due; made++ {
			last = origin.rep.put(record(fmt.Sprint("e/token/", made%5000), fmt.Sprintf(`{"id":"%d","owner":"somebody","uid":"0123456789abcdef","hash":"0123456789abcdef0123456789abcdef0123456789abcdef"}`, made)))
		}
	}
	made := time.Since(begun)
	if err := edge.rep.Wait(t.Context(), last); err != nil {
		t.Fatal(err)
	}
	behind := time.Since(begun) - made
	snapshots, applied := edge.rep.counts()
	t.Logf("%d changes in %v; the edge had the last %v after it was made", changes, made, behind)
	if behind > 5*time.Second || snapshots != 1 || applied != changes || !edge.same(origin) {
		t.Errorf("the edge was %v behind, took %d snapshots and %d of %d changes", behind, snapshots, applied, changes)
	}
}

// TestLargeChange: a change that is larger than a frame may be travels all the
// same, and one that just is not travels as a change.
func TestLargeChange(t *testing.T) {
	origin, _, edge, _ := chain(t)
	large := func(n int) (records []registry.Record) {
		for i := range n {
			records = append(records, registry.Record{Key: fmt.Sprint("e/large/", i), Value: make([]byte, registry.MaxValue)})
		}
		return records
	}
	_, before := edge.rep.counts()
	origin.rep.put(large(11)...)
	edge.has(origin)
	if snapshots, applied := edge.rep.counts(); snapshots != 1 || applied != before+1 {
		t.Errorf("%d snapshots, %d changes", snapshots, applied-before)
	}
	origin.rep.put(large(13)...)
	edge.has(origin)
	if snapshots, _ := edge.rep.counts(); snapshots != 2 {
		t.Errorf("%d snapshots", snapshots)
	}
}

// TestGap: a copy that is not what it should be is replaced by a whole one.
func TestGap(t *testing.T) {
	t.Parallel()
	origin, shield, edge, _ := chain(t)
	lost := edge.meter.count("entitlements lost") // the shield may have had nothing at first
	edge.rep.damage()
	edge.has(origin)
	if edge.meter.count("entitlements gap") != 1 || edge.meter.count("entitlements lost") != lost {
		t.Errorf("%v", edge.meter.events)
	}
	// In the middle: the edge has had the wrong one, and gets the right one.
	shield.rep.damage()
	origin.rep.put(record("e/a", "b"))
	shield.has(origin)
	edge.has(origin)
}

// TestOtherHash: who comes with a copy that is wrong is sent a snapshot without
// having to ask.
func TestOtherHash(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	origin := start(t, p, "origin", setup{database: "db"})
	wrong := origin.copied()
	wrong.damage()
	edge := start(t, p, "edge", setup{next: []string{origin.url()}, rep: wrong})
	edge.has(origin)
	if snapshots, _ := edge.rep.counts(); snapshots != 1 || edge.meter.count("entitlements gap") != 0 {
		t.Errorf("%d snapshots; %v", snapshots, edge.meter.events)
	}
}

// TestOutrun: who was away for more changes than are kept takes a snapshot, and
// who was away for less does not.
func TestOutrun(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	origin := start(t, p, "origin", setup{database: "db"})
	origin.rep.ring = 40
	edge := start(t, p, "edge", setup{next: []string{origin.url()}})
	edge.has(origin)
	for _, test := range []struct{ changes, snapshots int }{{20, 1}, {200, 2}} {
		origin.down()
		conformance.Eventually(t, "not followed", func() bool { return edge.client.Following() == "" })
		for i := range test.changes {
			origin.rep.put(record("e/a", fmt.Sprint(i)))
		}
		origin.listen(origin.addr)
		edge.has(origin)
		if snapshots, _ := edge.rep.counts(); snapshots != test.snapshots {
			t.Errorf("after %d changes: %d snapshots, want %d", test.changes, snapshots, test.snapshots)
		}
	}
}

// TestAges: what the authority confirmed is as old at the bottom as it is, with
// clocks that differ by hours, however many nodes it has passed.
func TestAges(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	skewed := func(by time.Duration) func() time.Time { return func() time.Time { return time.Now().Add(by) } }
	origin := start(t, p, "origin", setup{database: "db"})
	origin.rep.authority = false // it says what it is told to
	origin.rep.confirmed = time.Now().Add(-time.Hour)
	shield := start(t, p, "shield", setup{next: []string{origin.url()}, now: skewed(5 * time.Hour)})
	middle := start(t, p, "middle", setup{next: []string{shield.url()}, now: skewed(-3 * time.Hour)})
	edge := start(t, p, "edge", setup{next: []string{middle.url()}, now: skewed(40 * time.Minute)})
	edge.has(origin)
	age := func(n *node) time.Duration { return n.rep.now().Sub(n.rep.State().Confirmed) }
	conformance.Eventually(t, "the edge is confirmed", func() bool { return !edge.rep.State().Confirmed.IsZero() })
	for _, n := range []*node{shield, middle, edge} {
		if a := age(n); a < time.Hour-2*time.Second || a > time.Hour+5*time.Second {
			t.Errorf("at the %s the confirmation is %v old", n.name, a)
		}
	}
	origin.rep.mu.Lock()
	origin.rep.confirmed = time.Now()
	origin.rep.mu.Unlock()
	conformance.Eventually(t, "a confirmation gets down", func() bool { return age(edge) < 30*time.Minute })
	// Each beat is confirmed anew, and says the same: it grows older.
	a := age(edge)
	conformance.Eventually(t, "it grows older", func() bool { return age(edge) > a+300*time.Millisecond })
	if off := age(edge) - time.Since(origin.rep.State().Confirmed); off < -200*time.Millisecond || off > 200*time.Millisecond {
		t.Errorf("the edge is off by %v", off)
	}
	// Upwards too.
	conformance.Eventually(t, "the origin hears of the edge", func() bool {
		return slices.ContainsFunc(origin.board.List(), func(s registry.NodeStanding) bool { return s.Node == "edge" && s.Whole() })
	})
	for _, s := range origin.board.List() {
		if d := time.Since(s.Heard); d < -time.Second || d > 10*time.Second {
			t.Errorf("%s was heard of %v ago", s.Node, d)
		}
	}
}

// BenchmarkTwoHops is from a change at the top to the same change at the bottom.
func BenchmarkTwoHops(b *testing.B) {
	origin, _, edge, _ := chain(b)
	var took []time.Duration
	tick := time.NewTicker(3 * time.Millisecond) // so that it does not wait for others to travel with
	defer tick.Stop()
	for i := 0; b.Loop(); i++ {
		<-tick.C
		begun := time.Now()
		v := origin.rep.put(record(fmt.Sprint("e/grant/", i%1000), "x"))
		if err := edge.rep.Wait(b.Context(), v); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(begun))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs/median")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "µs/p99")
}
