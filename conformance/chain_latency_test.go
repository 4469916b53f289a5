package conformance_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/wan"
)

// chainAway is how far away something is, in the nodes to pass.
var chainAway = []string{"L1 hit", "L2 hit", "origin fetch"}

// TestChainLatency measures the time to first byte of what is in the edge, in
// the shield behind it and in the origin node behind that, of tags that the
// edge has not been asked for and of blobs that it knows from a manifest. Each
// round trip on the way is paid once, and nothing else.
func TestChainLatency(t *testing.T) {
	const ms = time.Millisecond
	for _, rtt := range either([][3]time.Duration{{10 * ms, 60 * ms, 160 * ms}},
		[][3]time.Duration{{10 * ms, 60 * ms, 160 * ms}, {5 * ms, 50 * ms, 150 * ms}}) {
		t.Run(fmt.Sprintf("%d-%d-%d", rtt[0]/ms, rtt[1]/ms, rtt[2]/ms), func(t *testing.T) { chainLatency(t, rtt) })
	}
}

func chainLatency(t *testing.T, rtt [3]time.Duration) {
	rounds := either(7, 31)
	u := wan.StartUpstream(t)
	top := wan.Start(t, u, wan.Plan{Edges: 1, Shields: 1, Origin: true, Store: wan.StoreDir,
		Clients: &wan.Shape{RTT: rtt[0]}, Edge: wan.Shape{RTT: rtt[1]}, Shield: wan.Shape{RTT: rtt[2]}})
	c := wan.NewClient(t, 30*time.Second)
	edge := top.Edges[0]
	nodes := []string{edge.URL, top.Shields[0].URL, top.Origin.URL} // asked straight, to put things there
	ask := chainThings(t, c, u, edge.URL, nodes, chainSeries()*(rounds+1))
	var rows [][]string
	var bars []wan.Bar
	slack := either(chainBusy, chainSlack)
	for _, kind := range []string{"tag", "blob"} {
		sum, first := time.Duration(0), 0
		for away := range nodes {
			sum += rtt[away]
			var times []time.Duration
			for n := range chainSeries() {
				times = nil
				first = n * (rounds + 1)
				// The first request of a series makes sure that connections are warm.
				for i := range rounds + 1 {
					if a := c.Must(t, ask(kind, away, first+i, edge.Door)); i > 0 {
						times = append(times, a.First)
					}
				}
				if wan.Median(times) <= sum+slack {
					break
				}
			}
			got, name := wan.Median(times), chainAway[away]+", "+kind
			rows = append(rows, []string{name, wan.Milliseconds(sum), wan.Milliseconds(got), wan.Milliseconds(got - sum), "<= " + wan.Milliseconds(slack)})
			bars = append(bars, wan.Bar{Name: name, Value: wan.MS(got), Mark: wan.MS(sum + slack)})
			if got > sum+slack {
				t.Errorf("%s: %v to the first byte, and %v are on the way: %v", name, got, sum, times)
			}
			if got < sum {
				t.Errorf("%s: %v to the first byte is less than the way of %v: not what was to be measured", name, got, sum)
			}
		}
	}
	all := rtt[0] + rtt[1] + rtt[2]
	bare := chainBare(t, c, u, rtt, rounds)
	rows = append(rows, []string{"the three lines without nodes", wan.Milliseconds(all), wan.Milliseconds(bare), wan.Milliseconds(bare - all), ""})
	t.Logf("\n%s\n%s", wan.Table([]string{"median time to first byte, ms", "round trips", "measured", "more", "must"}, rows...), wan.Bars("ms", bars...))
}

// chainBare is what the lines cost by themselves, one behind the other: what
// they are late by is not the nodes' fault.
func chainBare(t *testing.T, c *wan.Client, u *wan.Upstream, rtt [3]time.Duration, rounds int) time.Duration {
	t.Helper()
	addr := u.Addr
	for _, d := range rtt {
		addr = wan.StartLink(t, addr, wan.Shape{RTT: d}).Addr
	}
	b := u.Blob(1000, "bare")
	var times []time.Duration
	for i := range rounds + 1 {
		if a := c.Must(t, chainBlob("http://"+addr, b)); i > 0 {
			times = append(times, a.First)
		}
	}
	return wan.Median(times)
}

// chainThings puts what is to be measured where it is to be found, and returns
// what to ask for: the ith thing of a kind at a distance.
func chainThings(t *testing.T, c *wan.Client, u *wan.Upstream, edge string, nodes []string, count int) func(kind string, away, i int, door string) wan.Want {
	t.Helper()
	type thing struct{ tag, blob wan.Blob }
	things := map[string]thing{}
	name := func(away, i int) string { return fmt.Sprintf("away-%d-%d", away, i) }
	var layers []wan.Blob
	for away := range nodes {
		for i := range count {
			b := u.Blob(100_000, name(away, i))
			layers = append(layers, b)
			things[name(away, i)] = thing{u.Image(chainRepo, name(away, i), u.Blob(1000, "small")), b}
		}
	}
	// The edge knows of all blobs, and has none.
	m := u.Image(chainRepo, "all", layers...)
	chainPull(t, c, chainTag(edge, "all", m))
	var wants []wan.Want
	for away, node := range nodes {
		for i := range count {
			th := things[name(away, i)]
			wants = append(wants, chainTag(node, name(away, i), th.tag), chainBlob(node, th.blob))
		}
	}
	chainPull(t, c, wants...)
	return func(kind string, away, i int, door string) wan.Want {
		th := things[name(away, i)]
		if kind == "tag" {
			return chainTag(door, name(away, i), th.tag)
		}
		return chainBlob(door, th.blob)
	}
}
