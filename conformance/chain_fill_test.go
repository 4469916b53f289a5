package conformance_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/wan"
)

// chainLine is an edge whose line to the upstream limits each connection.
type chainLine struct {
	top   *wan.Topology
	c     *wan.Client
	size  int64
	shape wan.Shape
}

// startChainLine starts it, with an image of one blob for each seed that the
// edge knows and does not have. In full size a connection carries 50 MB/s; in
// the small one a quarter of that, which a machine that also runs other tests
// can carry eight times.
func startChainLine(t *testing.T, u *wan.Upstream, seeds ...string) (*chainLine, []wan.Blob) {
	t.Helper()
	l := &chainLine{size: either[int64](128<<20, 1<<30), c: wan.NewClient(t, 0),
		shape: wan.Shape{RTT: 20 * time.Millisecond, ConnDown: either[int64](12e6, 50e6)}}
	var blobs []wan.Blob
	for _, s := range seeds {
		blobs = append(blobs, u.Blob(l.size, s))
	}
	m := u.Image(chainRepo, "fill", blobs...)
	l.top = wan.Start(t, u, wan.Plan{Edges: 1, Upstream: l.shape})
	chainPull(t, l.c, chainTag(l.top.Doors()[0], "fill", m))
	return l, blobs
}

// pull pulls a cold blob and returns how long that took, and how many times
// its size has come from the upstream.
func (l *chainLine) pull(t *testing.T, b wan.Blob) (took time.Duration, cost float64) {
	t.Helper()
	before := l.top.FromUpstream().Down
	a := l.c.Must(t, chainBlob(l.top.Doors()[0], b))
	return a.Total, float64(l.top.FromUpstream().Down-before) / float64(b.Size)
}

// TestChainWideFill pulls a large blob over a line that limits each stream: it
// comes at the speed of many, and once.
func TestChainWideFill(t *testing.T) {
	u := wan.StartUpstream(t)
	var seeds []string
	for i := range chainSeries() {
		seeds = append(seeds, fmt.Sprint("wide ", i))
	}
	l, blobs := startChainLine(t, u, seeds...)
	// The single stream's speed is even: a part of the size shows it.
	part := u.Blob(l.size/8, "single")
	single := wan.StartLink(t, u.Addr, l.shape)
	a := l.c.Must(t, chainBlob("http://"+single.Addr, part))
	one := float64(part.Size) / a.Total.Seconds()
	for _, b := range blobs {
		took, cost := l.pull(t, b)
		many := float64(l.size) / took.Seconds()
		read := u.Read(b.Digest)
		t.Logf("\n%s\n%s", wan.Table([]string{fmt.Sprintf("a cold blob of %d MiB, %d MB/s a connection", l.size>>20, l.shape.ConnDown/1e6), "measured", "must"},
			[]string{"single stream, MB/s", fmt.Sprintf("%.1f", one/1e6), ""},
			[]string{"through the edge, MB/s", fmt.Sprintf("%.1f", many/1e6), ""},
			[]string{"ratio", chainRatio(many / one), fmt.Sprintf(">= %v", chainSpeedup)},
			[]string{"connections at once", fmt.Sprint(l.top.FromUpstream().Peak), ""},
			[]string{"bytes from upstream, x", chainRatio(cost), fmt.Sprintf("<= %v", chainBytes)}),
			wan.Bars("MB/s", wan.Bar{Name: "single stream", Value: one / 1e6}, wan.Bar{Name: "through the edge", Value: many / 1e6, Mark: chainSpeedup * one / 1e6}))
		if cost > chainBytes || cost < 1 || read.Twice > 0 {
			t.Errorf("the upstream was read %.3f times, %d bytes of it twice:\n%s", cost, read.Twice, u.Story())
		}
		if many >= chainSpeedup*one {
			break
		}
		if b == blobs[len(blobs)-1] {
			t.Errorf("%.1f times a single stream", many/one)
		}
	}
}

// TestChainFillOverResets pulls a large blob from an upstream that resets each
// connection after some of it: it comes whole, and hardly a byte comes twice.
func TestChainFillOverResets(t *testing.T) {
	u := wan.StartUpstream(t)
	l, blobs := startChainLine(t, u, "resets")
	shape := l.shape
	shape.ResetAfter = either[int64](10e6, 100e6)
	line := l.top.Edges[0].Upstream
	line.SetShape(shape)
	opened := line.Traffic().Opened
	took, cost := l.pull(t, blobs[0])
	conns := line.Traffic().Opened - opened
	t.Logf("\n%s", wan.Table([]string{fmt.Sprintf("a cold blob of %d MiB, each connection reset after %d MB", l.size>>20, shape.ResetAfter/1e6), "measured", "must"},
		[]string{"time, s", fmt.Sprintf("%.2f", took.Seconds()), ""},
		[]string{"connections", fmt.Sprint(conns), ""},
		[]string{"bytes from upstream, x", chainRatio(cost), fmt.Sprintf("<= %v", chainBytes)}))
	if cost > chainBytes || cost < 1 {
		t.Errorf("the upstream's line carried %.3f times the blob:\n%s", cost, u.Story())
	}
	if least := l.size/shape.ResetAfter - 1; conns < least {
		t.Errorf("%d connections: fewer than the %d that resets make", conns, least)
	}
}
