package conformance_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/wan"
)

// TestChainSpike has 25 clients at each of 8 edges ask at once for one blob that
// no node has. It is read once at the upstream and once by each edge, and the
// last client has it hardly later than one who asks alone.
//
// In full size every line carries 5 MB/s: what 200 clients then get and check,
// a gigabyte a second, costs less than half of two processors, and so it is the
// lines that are measured. The small one is to be quick: 8 MB/s, two thirds.
func TestChainSpike(t *testing.T) {
	const edges, clients = 8, 25
	rate := either[int64](8e6, 5e6)
	size := either[int64](32<<20, 256<<20)
	u := wan.StartUpstream(t)
	alone := u.Blob(size, "alone")
	layers := []wan.Blob{alone}
	for i := range chainSeries() {
		layers = append(layers, u.Blob(size, fmt.Sprint("spike ", i)))
	}
	m := u.Image(chainRepo, "spike", layers...)
	top := wan.Start(t, u, wan.Plan{Edges: edges, Shields: 1,
		Edge:     wan.Shape{RTT: 20 * time.Millisecond, Down: rate},
		Upstream: wan.Shape{RTT: 40 * time.Millisecond, Down: rate}})
	c := wan.NewClient(t, 10*time.Duration(size/rate)*time.Second)
	var learn []wan.Want
	for _, door := range top.Doors() {
		learn = append(learn, chainTag(door, "spike", m))
	}
	chainPull(t, c, learn...)
	one := c.Must(t, chainBlob(top.Doors()[0], alone))

	for _, spike := range layers[1:] {
		up, behind := top.FromUpstream(), wan.FromBehind(top.Edges...)
		last := chainSpike(t, c, top, clients, spike)
		read := u.Read(spike.Digest)
		fromUpstream := float64(top.FromUpstream().Down-up.Down) / float64(size)
		fromShield := float64(wan.FromBehind(top.Edges...).Down-behind.Down) / float64(edges*size)
		slower := last.Seconds() / one.Total.Seconds()
		t.Logf("\n%s", wan.Table([]string{fmt.Sprintf("a cold blob of %d MiB, %d edges with %d clients each", size>>20, edges, clients), "measured", "must"},
			[]string{"one client alone, s", fmt.Sprintf("%.2f", one.Total.Seconds()), ""},
			[]string{"last of all, s", fmt.Sprintf("%.2f", last.Seconds()), ""},
			[]string{"ratio", chainRatio(slower), fmt.Sprintf("<= %v", chainLast)},
			[]string{"bytes from upstream, x", chainRatio(fromUpstream), fmt.Sprintf("<= %v", chainBytes)},
			[]string{"bytes from the shield for each edge, x", chainRatio(fromShield), fmt.Sprintf("<= %v", chainBytes)},
			[]string{"requests at the upstream", fmt.Sprint(read.Requests), ""},
			[]string{"bytes read twice", fmt.Sprint(read.Twice), "0"}))
		if fromUpstream > chainBytes || fromUpstream < 1 || read.Twice > 0 {
			t.Errorf("the upstream was read %.3f times, %d bytes of it twice:\n%s", fromUpstream, read.Twice, u.Story())
		}
		if fromShield > chainBytes || fromShield < 1 {
			t.Errorf("the edges read the shield %.3f times each", fromShield)
		}
		if slower <= chainLast {
			break
		}
		if spike == layers[len(layers)-1] {
			t.Errorf("the last client had to wait %.2f times as long as one alone", slower)
		}
	}
	for _, e := range top.Edges {
		if tr := e.Upstream.Traffic(); tr.Down > 0 {
			t.Errorf("%s asked the upstream itself: %+v", e.Name, tr)
		}
	}
}

// chainSpike has all clients ask at once and returns when the last was done.
func chainSpike(t *testing.T, c *wan.Client, top *wan.Topology, clients int, b wan.Blob) time.Duration {
	t.Helper()
	var all sync.WaitGroup
	begin := make(chan struct{})
	for _, door := range top.Doors() {
		for i := range clients {
			all.Go(func() {
				w := chainBlob(door, b)
				w.Quick = i > 0 // one at each edge checks the digest, the others a CRC
				<-begin
				if a := c.Get(t.Context(), w); a.Fault != wan.OK {
					t.Errorf("client %d of %s: %s after %d bytes: %v", i, door, a.Fault, a.Bytes, a.Err)
				}
			})
		}
	}
	start := time.Now()
	close(begin)
	all.Wait()
	return time.Since(start)
}
