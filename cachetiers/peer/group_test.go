package peer_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weir-registry/weir/cachetiers"
	"github.com/weir-registry/weir/cachetiers/peer"
	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/registry"
)

// three is three shields before one authority, and a group of them.
func three(t *testing.T, beyond registry.Upstream) (*conformance.Upstream, []*shield, *peer.Group) {
	server, client := pki(t)
	up := new(conformance.Upstream)
	var shields []*shield
	o := peer.Options{Dial: client, Beyond: beyond}
	for range 3 {
		s := startShield(t, server, up)
		shields = append(shields, s)
		o.Nodes = append(o.Nodes, s.url())
	}
	return up, shields, group(t, o)
}

func asked(shields []*shield) (n int64, by []int64) {
	for _, s := range shields {
		n += s.asked.Load()
		by = append(by, s.asked.Load())
	}
	return n, by
}

// TestOwners: each blob is asked of one node, always the same, and the load is
// shared.
func TestOwners(t *testing.T) {
	up, shields, g := three(t, nil)
	for i := range 60 {
		data := fmt.Appendf(nil, "blob %d", i)
		d := up.PutBlob(data)
		for range 2 {
			same(t, "a blob", readAll(t, g, whole(d)), data)
		}
		if up.Opened(d.Digest) != 1 {
			t.Fatalf("the authority was asked %d times for one blob", up.Opened(d.Digest))
		}
	}
	if n, by := asked(shields); n != 120 || min(by[0], by[1], by[2]) < 20 {
		t.Errorf("%d requests, by node %v", n, by)
	}
}

// TestDeadIsPassedOver: with one of three nodes gone every blob can be had, and
// when it is back, without a restart, it is asked again.
func TestDeadIsPassedOver(t *testing.T) {
	up, shields, g := three(t, nil)
	var blobs []registry.Descriptor
	for i := range 30 {
		blobs = append(blobs, up.PutBlob(fmt.Appendf(nil, "blob %d", i)))
		readAll(t, g, whole(blobs[i]))
	}
	_, before := asked(shields)
	shields[0].down()
	for _, d := range blobs {
		readAll(t, g, whole(d))
	}
	if g.States()[0].Up || g.States()[0].Error == "" {
		t.Errorf("not noticed: %+v", g.States()[0])
	}
	begun := time.Now()
	shields[0].again()
	conformance.Eventually(t, "the node is up again", func() bool { return g.States()[0].Up })
	if took := time.Since(begun); took > 3*time.Second {
		t.Errorf("noticed after %v", took)
	}
	opens := up.Opens()
	for _, d := range blobs {
		readAll(t, g, whole(d))
	}
	_, after := asked(shields)
	if after[0] < 2*before[0] {
		t.Errorf("its own blobs are not asked of it again: %v, then %v", before, after)
	}
	if up.Opens() != opens {
		t.Error("a node that was away for a moment has lost what it held")
	}
}

// TestSilentIsPassedOver: a node that takes requests and says nothing costs a
// second, once.
func TestSilentIsPassedOver(t *testing.T) {
	server, client := pki(t)
	up := new(conformance.Upstream)
	live := startShield(t, server, up)
	hole, err := net.Listen("tcp", "127.0.0.1:0") // takes connections, and nothing else
	if err != nil {
		t.Fatal(err)
	}
	defer hole.Close()
	g := group(t, peer.Options{Dial: client, Nodes: []string{live.url(), "https://" + hole.Addr().String()}})
	begun := time.Now()
	for i := range 20 {
		d := up.PutBlob(fmt.Appendf(nil, "blob %d", i))
		readAll(t, g, whole(d))
	}
	if took := time.Since(begun); took > 3*time.Second {
		t.Errorf("took %v", took)
	}
}

// TestBeyond: without any node the authority itself is asked, if it may be, and
// else the failure is one that says when to come again.
func TestBeyond(t *testing.T) {
	beyond := new(conformance.Upstream)
	up, shields, g := three(t, beyond)
	d := up.PutBlob([]byte("x"))
	beyond.PutBlob([]byte("x"))
	beyond.Put(tag, "application/json", []byte("{}"))
	for _, s := range shields {
		s.down()
	}
	same(t, "beyond", readAll(t, g, whole(d)), []byte("x"))
	if b, doc, err := g.Resolve(t.Context(), registry.Question{Name: tag}); err != nil || doc == nil {
		t.Errorf("%+v, %v", b, err)
	} else {
		doc.Close()
	}
	_, client := pki(t)
	alone := group(t, peer.Options{Dial: client, Nodes: []string{shields[0].url(), shields[1].url()}})
	_, err := alone.Open(t.Context(), whole(d))
	if registry.KindOf(err) != registry.ErrUnavailable || registry.RetryAfter(err) == 0 {
		t.Errorf("%v, after %v", err, registry.RetryAfter(err))
	}
}

// TestTruthIsNotAskedAround: what the authority said counts, whoever passes it
// on; what a node could not find out another may.
func TestTruthIsNotAskedAround(t *testing.T) {
	beyond := new(conformance.Upstream)
	_, shields, g := three(t, beyond)
	if _, err := g.Open(t.Context(), whole(conformance.Describe("", []byte("nobody has it")))); registry.KindOf(err) != registry.ErrNotFound {
		t.Error(err)
	}
	if n, _ := asked(shields); n != 1 || beyond.Opens() != 0 {
		t.Errorf("%d nodes and beyond %d times were asked after one said that it does not exist", n, beyond.Opens())
	}
}

func TestAnotherWay(t *testing.T) {
	server, client := pki(t)
	broken, well := new(conformance.Upstream), new(conformance.Upstream)
	broken.SetScript(func(conformance.Op) conformance.Fault {
		return conformance.Fault{Err: registry.Errorf(registry.ErrUnavailable, "its way is cut")}
	})
	a, b := startShield(t, server, broken), startShield(t, server, well)
	g := group(t, peer.Options{Dial: client, Nodes: []string{a.url(), b.url()}})
	for i := range 10 {
		d := well.PutBlob(fmt.Appendf(nil, "blob %d", i))
		readAll(t, g, whole(d))
	}
	if a.asked.Load() == 0 {
		t.Error("the broken one was never asked: this shows nothing")
	}
}

// TestHedge: a node that is stuck with one small question is not waited for
// when another has the answer; one that is at work is.
func TestHedge(t *testing.T) {
	up, shields, g := three(t, nil)
	stuck := make(chan struct{})
	t.Cleanup(func() { close(stuck) })
	for _, s := range shields {
		s.policy.Negative = 0
	}
	conformance.Eventually(t, "all are up and their round trips known", func() bool {
		for _, s := range g.States() {
			if s.RTT == 0 {
				return false
			}
		}
		return true
	})
	// Earn something to hedge with.
	for i := range 45 {
		readAll(t, g, whole(up.PutBlob(fmt.Appendf(nil, "earn %d", i))))
	}
	shields[0].intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/weir/v1/ping" {
			return false
		}
		<-stuck // no sign of life either
		return true
	})
	_, before := asked(shields)
	for i := 0; ; i++ {
		d := up.PutBlob(fmt.Appendf(nil, "hedged %d", i))
		begun := time.Now()
		readAll(t, g, whole(d))
		_, by := asked(shields)
		if by[0] > before[0] {
			if took := time.Since(begun); took > 700*time.Millisecond {
				t.Errorf("hedged after %v", took)
			}
			break
		}
	}
}

// liar gives wrong bytes of the right length.
func liar(w http.ResponseWriter, r *http.Request, size int) bool {
	if r.URL.Path == "/weir/v1/ping" {
		return false
	}
	w.Header().Set("Weir-Run", fmt.Sprintf("%d 0 %d", size, size))
	w.WriteHeader(200)
	w.Write(make([]byte, size))
	return true
}

// TestLiar: wrong bytes from a node are not kept, not given, and the next best
// source is asked.
func TestLiar(t *testing.T) {
	up, shields, g := three(t, nil)
	const size = 40_000
	var lies atomic.Int64
	for _, s := range shields[:2] {
		s.intercept(func(w http.ResponseWriter, r *http.Request) bool {
			lied := liar(w, r, size)
			if lied {
				lies.Add(1)
			}
			return lied
		})
	}
	disk, err := cachetiers.OpenDisk(t.TempDir(), cachetiers.DiskOptions{Limit: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	edge := cachetiers.NewTier(disk, g, cachetiers.Options{Name: "disk"})
	const blobs = 20 // two in three of them belong to a liar
	for i := range blobs {
		data := conformance.Bytes(uint64(i), size)
		d := up.PutBlob(data)
		for try := 0; ; try++ {
			got, err := readSome(edge, whole(d))
			if err == nil {
				same(t, "after lies", got, data)
				break
			}
			if registry.KindOf(err) != registry.ErrCorrupt || try == 3 {
				t.Fatalf("try %d: %v", try, err)
			}
		}
	}
	if n := lies.Load(); n == 0 || n > 2*blobs {
		t.Errorf("%d lies for %d blobs: each liar is asked for each once at most", n, blobs)
	}
}

func readSome(src registry.Source, w registry.Want) ([]byte, error) {
	b, err := src.Open(context.Background(), w)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	return io.ReadAll(b)
}

// TestSelf: among peers a node asks the owner, answers what is its own from
// behind, and stands in for those that are dead.
func TestSelf(t *testing.T) {
	server, client := pki(t)
	remote, behind := new(conformance.Upstream), new(conformance.Upstream)
	other := startShield(t, server, remote)
	const self = "https://127.0.0.1:1"
	g := group(t, peer.Options{Dial: client, Self: self, Nodes: []string{other.url(), self}, Beyond: behind})
	var theirs []registry.Descriptor
	for i := range 40 {
		data := fmt.Appendf(nil, "blob %d", i)
		d := remote.PutBlob(data)
		behind.PutBlob(data)
		readAll(t, g, whole(d))
		if behind.Opened(d.Digest) == 0 {
			theirs = append(theirs, d)
		}
	}
	if len(theirs) < 8 || len(theirs) > 32 || int(other.asked.Load()) != len(theirs) {
		t.Errorf("%d of 40 are another's, %d were asked of it", len(theirs), other.asked.Load())
	}
	other.down()
	for _, d := range theirs {
		readAll(t, g, whole(d))
		if behind.Opened(d.Digest) != 1 {
			t.Error("this node did not stand in")
		}
	}
}

// TestGivenUp: a caller that leaves is no sign that the node is dead.
func TestGivenUp(t *testing.T) {
	s, g := pair(t)
	may := make(chan struct{})
	defer close(may)
	s.service.Blobs = slowOpen{s.service.Blobs, may}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := g.Open(ctx, whole(s.up.PutBlob([]byte("x")))); registry.KindOf(err) != registry.ErrUnavailable {
		t.Error(err)
	}
	if !g.States()[0].Up {
		t.Error("a node is taken for dead because a caller left")
	}
}

// TestAnotherConfiguration: that a node behind has no upstream for a name does
// not mean that there is no such thing.
func TestAnotherConfiguration(t *testing.T) {
	s, g := pair(t)
	sp := s.service.Spaces["oci"]
	sp.Serves = func(n registry.Name) bool { return n.Repo != tag.Repo }
	s.service.Spaces["oci"] = sp
	s.up.Put(tag, "application/json", []byte("{}"))
	if _, _, err := g.Resolve(t.Context(), registry.Question{Name: tag}); registry.KindOf(err) != registry.ErrUnavailable {
		t.Errorf("resolve: %v", err)
	}
	if _, err := g.Open(t.Context(), whole(s.up.PutBlob([]byte("x")))); registry.KindOf(err) != registry.ErrUnavailable {
		t.Errorf("open: %v", err)
	}
	other := registry.Name{Space: "pypi", Repo: "x"}
	if _, _, err := g.Resolve(t.Context(), registry.Question{Name: other}); registry.KindOf(err) != registry.ErrUnavailable {
		t.Errorf("a space that the node does not have: %v", err)
	}
}
