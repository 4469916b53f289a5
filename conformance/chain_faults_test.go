package conformance_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/wan"
)

// A chainFault is something that happens to a chain under load, and how it is
// mended.
type chainFault struct {
	name       string
	plan       wan.Plan
	streams    bool // whether clients also pull blobs that take a while
	slow       bool // whether it takes seconds to be noticed
	hurt, mend func(t *testing.T, top *wan.Topology)
}

// chainFaults are what must cost speed, and no answer. Round trips are such
// that the way around is not the longer one: what is measured is how long it
// takes to be found.
func chainFaults() []chainFault {
	const ms = time.Millisecond
	chain := wan.Plan{Edges: 2, Shields: 1, Bypass: "upstream",
		Edge: wan.Shape{RTT: 20 * ms}, Shield: wan.Shape{RTT: 20 * ms}, Upstream: wan.Shape{RTT: 30 * ms}}
	three, origin, streams := chain, chain, chain
	three.Shields = 3
	origin.Origin, origin.Store = true, wan.StoreDir
	// So slow that a stream is longer under way than the kernel's buffers are
	// deep: an edge that dies has not sent all of it.
	streams.Clients = &wan.Shape{RTT: 2 * ms, ConnDown: 8e6}
	killShield := func(_ *testing.T, top *wan.Topology) { top.Shields[0].Kill9() }
	startShield := func(_ *testing.T, top *wan.Topology) { top.Shields[0].Start() }
	lines := func(top *wan.Topology, do func(*wan.Link)) {
		for _, e := range top.Edges {
			do(e.Behind[0])
		}
	}
	return []chainFault{
		{name: "the shield dies", plan: chain, hurt: killShield, mend: startShield},
		{name: "one of three shields dies", plan: three, hurt: killShield, mend: startShield},
		{name: "the origin node dies", plan: origin,
			hurt: func(_ *testing.T, top *wan.Topology) { top.Origin.Kill9() }, mend: func(_ *testing.T, top *wan.Topology) { top.Origin.Start() }},
		{name: "the origin's store is lost", plan: origin,
			hurt: func(t *testing.T, top *wan.Topology) { chainMove(t, top.Origin.Store, top.Origin.Store+".away", true) },
			mend: func(t *testing.T, top *wan.Topology) { chainMove(t, top.Origin.Store+".away", top.Origin.Store, false) }},
		{name: "an edge dies in mid-stream", plan: streams, streams: true,
			hurt: func(_ *testing.T, top *wan.Topology) { top.Edges[0].Kill9() }, mend: func(_ *testing.T, top *wan.Topology) { top.Edges[0].Start() }},
		{name: "edges and shield are cut off", plan: chain, slow: true,
			hurt: func(_ *testing.T, top *wan.Topology) { lines(top, func(l *wan.Link) { l.Block(wan.Hang) }) },
			mend: func(_ *testing.T, top *wan.Topology) { lines(top, (*wan.Link).Heal) }},
	}
}

// chainMove moves the origin's store. While it is away a plain file is where it
// was: a mount that is gone is not an empty directory either.
func chainMove(t *testing.T, from, to string, away bool) {
	t.Helper()
	if !away {
		if err := os.RemoveAll(to); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Rename(from, to); err != nil {
		t.Fatalf("the origin node keeps nothing in its store: %v", err)
	}
	if away {
		if err := os.WriteFile(from, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestChainFaults has clients ask for what is cached and what is not, while
// something dies and comes back: no request fails, no byte is wrong, and all
// is as before soon after.
func TestChainFaults(t *testing.T) {
	for _, f := range chainFaults() {
		t.Run(f.name, func(t *testing.T) { f.run(t) })
	}
}

func (f chainFault) run(t *testing.T) {
	calm, hurt, mended := either(time.Second, 5*time.Second), either(2*time.Second, 10*time.Second), either(1500*time.Millisecond, 10*time.Second)
	if f.slow {
		hurt += 4 * time.Second
	}
	u := wan.StartUpstream(t)
	top := wan.Start(t, u, f.plan)
	next := chainItems(t, u, top, f.streams)
	l := wan.StartLoad(t, wan.LoadPlan{Clients: either(8, 24), Doors: top.Doors(), Next: next, Pause: 15 * time.Millisecond})
	l.Run(calm / 2) // connections come about, and nothing is measured
	begin := time.Now()
	event := l.Run(calm)
	f.hurt(t, top)
	l.Run(hurt)
	f.mend(t, top)
	healed := time.Now()
	end := l.Run(mended)
	for end.Sub(healed) < chainSettle && !chainSettled(l.Report().Between(begin, end), event, healed, end) {
		end = l.Run(mended / 4) // this machine may be busy with other things
	}
	all := l.Stop()
	r := wan.Report{Samples: all.Between(begin, end).Samples}

	found, around := r.Between(begin, healed).Steady(event, healed)
	again, back := chainCalm(r, event, healed).Steady(healed, end)
	before := r.Between(begin, event)
	rows := [][]string{
		{"requests", fmt.Sprint(len(r.Samples)), ""},
		{"failed", fmt.Sprint(len(all.Failed())), fmt.Sprintf("<= %d", chainFailures)},
		{"wrong bytes", fmt.Sprint(len(all.Wrong())), "0"},
		{"failed at one edge, answered by another", fmt.Sprint(len(all.Moved())), ""},
		{"failures seen", all.Faults(), ""},
		{"slowest first byte, s", fmt.Sprintf("%.2f", all.Slowest().Seconds()), fmt.Sprintf("<= %v", chainHeaders.Seconds())},
		{"steady after it happened, s", chainSteady(found, around), ""},
		{"steady after it was mended, s", chainSteady(again, back), "reached"},
	}
	for _, class := range r.Classes() {
		if before.Median(class) == 0 {
			t.Errorf("nothing %s was asked for before it happened", class)
		}
		rows = append(rows, []string{"median first byte, " + class + ", ms: before, meanwhile, after", fmt.Sprintf("%s, %s, %s",
			wan.Milliseconds(before.Median(class)), wan.Milliseconds(r.Between(event, healed).Median(class)),
			wan.Milliseconds(r.Between(healed, end).Median(class))), ""})
	}
	t.Logf("\n%s", wan.Table([]string{f.name, "measured", "must"}, rows...))
	f.judge(t, all, back)
}

// chainSettle is how long a chain may take to be as before, once what was broken
// has been mended.
const chainSettle = 15 * time.Second

// chainCalm is a report without what came between the event and its mending,
// so that before the mending is before the event.
func chainCalm(r wan.Report, event, healed time.Time) wan.Report {
	return wan.Report{Samples: slices.DeleteFunc(slices.Clone(r.Samples), func(s wan.Sample) bool {
		return !s.At.Before(event) && s.At.Before(healed)
	})}
}

func chainSettled(r wan.Report, event, healed, end time.Time) bool {
	_, back := chainCalm(r, event, healed).Steady(healed, end)
	return back
}

// judge compares what was seen with what must be.
func (f chainFault) judge(t *testing.T, all wan.Report, back bool) {
	t.Helper()
	if len(all.Samples) < 100 {
		t.Errorf("only %d requests: no load", len(all.Samples))
	}
	for i, s := range all.Failed() {
		if i == 5 {
			break
		}
		t.Logf("client %d, %s, %s: %s after %d doors and %v: %v", s.Client, s.Item.Class, s.Item.Path, s.Fault, s.Tried, s.Total, s.Err)
	}
	if n := len(all.Failed()); n > chainFailures {
		t.Errorf("%d requests failed", n)
	}
	if n := len(all.Wrong()); n > 0 {
		t.Errorf("%d answers were whole and wrong", n)
	}
	if s := all.Slowest(); s > chainHeaders {
		t.Errorf("a client waited %v for its first byte", s)
	}
	if !back {
		t.Error("not steady again before the end")
	}
	cut := slices.ContainsFunc(all.Moved(), func(s wan.Sample) bool { return slices.Contains(s.Faults, wan.Cut) })
	if f.streams && !cut {
		t.Error("no stream was cut off in the middle")
	}
}

func chainSteady(after time.Duration, ok bool) string {
	if !ok {
		return "never"
	}
	return fmt.Sprintf("%.2f", after.Seconds())
}

// chainItems makes what a load asks for: half of it is in every edge; the
// other half is nowhere but at the upstream, and asked for once only. With
// streams every eighth request is for a blob that takes a while.
func chainItems(t *testing.T, u *wan.Upstream, top *wan.Topology, streams bool) func(*rand.Rand, int, int) wan.Item {
	t.Helper()
	c := wan.NewClient(t, 30*time.Second)
	const perImage = 500
	images := either(3, 60)
	var cached, cold []wan.Blob
	for i := range 20 {
		cached = append(cached, u.Blob(20_000, fmt.Sprint("cached ", i)))
	}
	long := u.Blob(6_000_000, "stream")
	var learn, pull []wan.Want
	m := u.Image(chainRepo, "cached", append(cached, long)...)
	tags := map[string]wan.Blob{"cached": m}
	for i := range images {
		var layers []wan.Blob
		for j := range perImage {
			layers = append(layers, u.Blob(4000, fmt.Sprint("cold ", i, " ", j)))
		}
		cold = append(cold, layers...)
		tag := fmt.Sprint("cold", i)
		tags[tag] = u.Image(chainRepo, tag, layers...)
	}
	for _, door := range top.Doors() {
		for tag, m := range tags {
			learn = append(learn, chainTag(door, tag, m))
		}
		for _, b := range append(cached, long) {
			pull = append(pull, chainBlob(door, b))
		}
	}
	chainPull(t, c, learn...)
	chainPull(t, c, pull...)
	var asked atomic.Int64
	item := func(b wan.Blob, class string) wan.Item {
		return wan.Item{Path: wan.BlobPath(chainRepo, b), Blob: b, Class: class}
	}
	return func(r *rand.Rand, client, n int) wan.Item {
		switch {
		case streams && (n+client)%8 == 7:
			return item(long, "stream")
		case n%2 == 0:
			return item(cached[r.IntN(len(cached))], "cached")
		}
		i := asked.Add(1)
		if int(i) == len(cold) {
			t.Errorf("all %d cold blobs have been asked for", i)
		}
		return item(cold[int(i)%len(cold)], "uncached")
	}
}
