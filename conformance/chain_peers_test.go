package conformance_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/lab"
	"github.com/weir-registry/weir/conformance/wan"
)

// TestChainPeers: three edges in one place share their disks. What all of them
// are asked for is read upstream once and kept once; with one of them dead its
// share can still be had; and when it is back it has what it had.
func TestChainPeers(t *testing.T) {
	u := wan.StartUpstream(t)
	top := wan.Start(t, u, wan.Plan{Edges: 3, Peers: true})
	chainUp(t, top.Edges, 2)
	client := wan.NewClient(t, 20*time.Second)
	const count, size = 12, 3_000_000
	var layers []wan.Blob
	for i := range count {
		layers = append(layers, u.Blob(size, fmt.Sprint("shared ", i)))
	}
	m := u.Image(chainRepo, "1", layers...)
	all := func(nodes ...*wan.Node) {
		t.Helper()
		for _, e := range nodes {
			client.Must(t, chainTag(e.Door, "1", m))
			for _, l := range layers {
				client.Must(t, chainBlob(e.Door, l))
			}
		}
	}
	all(top.Edges...)
	for _, l := range append(layers, m) {
		if r := u.Read(l.Digest); l.Digest != m.Digest && (r.Requests != 1 || r.Bytes != size) {
			t.Errorf("a blob was read upstream %d times, %d bytes", r.Requests, r.Bytes)
		}
	}
	kept := 0.0
	for _, e := range top.Edges {
		held := e.Metric("weir_tier_bytes", `tier="disk"`)
		if held < size || held > count*size*3/4 {
			t.Errorf("%s keeps %v of %d bytes", e.Name, held, count*size)
		}
		kept += held
	}
	if kept < count*size || kept > count*size*1.05 {
		t.Errorf("%v bytes are kept of %d", kept, count*size)
	}
	reads := func() (n int) {
		for _, l := range layers {
			n += u.Read(l.Digest).Requests
		}
		return n
	}
	before := reads()
	top.Edges[2].Kill9()
	all(top.Edges[:2]...)
	if again := reads() - before; again == 0 || again >= count {
		t.Errorf("with one of three dead, %d of %d blobs were read upstream again", again, count)
	}
	before = reads()
	top.Edges[2].Start()
	chainUp(t, top.Edges, 2)
	all(top.Edges[2])
	if again := reads() - before; again != 0 {
		t.Errorf("a node that was away for a moment cost %d reads", again)
	}
}

// chainUp waits until each node knows that so many others answer.
func chainUp(t *testing.T, nodes []*wan.Node, others int) {
	t.Helper()
	lab.Eventually(t, 10*time.Second, "the nodes know of each other", func() error {
		for _, n := range nodes {
			if up := n.Metric("weir_node_up"); int(up) != others {
				return fmt.Errorf("%s knows of %v", n.Name, up)
			}
		}
		return nil
	})
}
