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
	ask := chainThings(t, c, u, edge.URL, nodes, rounds)
	sums := []time.Duration{rtt[0], rtt[0] + rtt[1], rtt[0] + rtt[1] + rtt[2]}
	var rows [][]string
	var bars []wan.Bar
	for _, kind := range []string{"tag", "blob"} {
		// Connections are warm: the first of each series is not measured.
		times := make([][]time.Duration, len(nodes))
		for i := range rounds + 1 {
			for away := range nodes {
				a := c.Must(t, ask(kind, away, i, edge.Door))
				if i > 0 {
					times[away] = append(times[away], a.First)
				}
			}
		}
		for away, sum := range sums {
			got := wan.Median(times[away])
			name := chainAway[away] + ", " + kind
			rows = append(rows, []string{name, wan.Milliseconds(sum), wan.Milliseconds(got), wan.Milliseconds(got - sum), "<= " + wan.Milliseconds(chainSlack)})
			bars = append(bars, wan.Bar{Name: name, Value: wan.MS(got), Mark: wan.MS(sum + chainSlack)})
			if got > sum+chainSlack {
				t.Errorf("%s: %v to the first byte, and %v are on the way: %v", name, got, sum, times[away])
			}
			if got < sum {
				t.Errorf("%s: %v to the first byte is less than the way of %v: not what was to be measured", name, got, sum)
			}
		}
	}
	t.Logf("\n%s\n%s", wan.Table([]string{"median time to first byte, ms", "round trips", "measured", "more", "must"}, rows...), wan.Bars("ms", bars...))
}

// chainThings puts what is to be measured where it is to be found, and returns
// what to ask for: round i of something at a distance.
func chainThings(t *testing.T, c *wan.Client, u *wan.Upstream, edge string, nodes []string, rounds int) func(kind string, away, i int, door string) wan.Want {
	t.Helper()
	type thing struct{ tag, blob wan.Blob }
	things := map[string]thing{}
	name := func(away, i int) string { return fmt.Sprintf("away-%d-%d", away, i) }
	var layers []wan.Blob
	for away := range nodes {
		for i := range rounds + 1 {
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
		for i := range rounds + 1 {
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
