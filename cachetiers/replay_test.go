package cachetiers

import (
	"container/list"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
)

// A replayed cache reports whether it had a blob; if not it takes it in.
type replayed interface {
	ask(w *workload, id int32) bool
}

// lru is the reference.
type lru struct {
	limit, used int64
	order       list.List // of int32, newest first
	at          map[int32]*list.Element
}

func newLRU(limit int64) replayed { return &lru{limit: limit, at: map[int32]*list.Element{}} }

func (c *lru) ask(w *workload, id int32) bool {
	if e := c.at[id]; e != nil {
		c.order.MoveToFront(e)
		return true
	}
	if w.sizes[id] > c.limit {
		return false
	}
	for c.used += w.sizes[id]; c.used > c.limit; {
		last := c.order.Remove(c.order.Back()).(int32)
		c.used -= w.sizes[last]
		delete(c.at, last)
	}
	c.at[id] = c.order.PushFront(id)
	return false
}

// oneSieve is what the disk had before: SIEVE for everything.
type oneSieve struct {
	limit int64
	order sieve[entry, *entry]
	at    map[digest.Digest]*entry
}

func newOneSieve(limit int64) replayed {
	return &oneSieve{limit: limit, at: map[digest.Digest]*entry{}}
}

func (c *oneSieve) ask(w *workload, id int32) bool {
	if e := c.at[w.digests[id]]; e != nil {
		e.uses = 1
		return true
	}
	if w.sizes[id] > c.limit {
		return false
	}
	for c.order.bytes+w.sizes[id] > c.limit {
		steps := len(c.at)
		e := c.order.candidate(0, &steps)
		c.order.remove(e)
		delete(c.at, e.digest())
	}
	raw, _ := rawOf(w.digests[id])
	e := newEntry(&raw, w.sizes[id])
	c.at[w.digests[id]] = e
	c.order.push(e)
	return false
}

// diskReplay is the disk's index and policy, driven as Disk does.
type diskReplay struct {
	*shelf
	used int64
}

func newDiskReplay(limit int64) replayed { return &diskReplay{shelf: newShelf(limit)} }

func (c *diskReplay) ask(w *workload, id int32) bool {
	if e := c.get(w.digests[id]); e != nil {
		c.touch(e)
		return true
	}
	if w.sizes[id] > c.limit {
		return false
	}
	for c.used += w.sizes[id]; c.used > c.limit; {
		e := c.victim()
		c.remove(e)
		c.used -= e.size
	}
	raw, _ := rawOf(w.digests[id])
	c.push(newEntry(&raw, w.sizes[id]))
	return false
}

// memoryReplay is the memory tier; the bytes of all blobs are the same ones.
type memoryReplay struct {
	*Memory
	bytes []byte
}

func newMemoryReplay(limit int64) replayed {
	return &memoryReplay{NewMemory(limit), make([]byte, 1<<20)}
}

func (c *memoryReplay) ask(w *workload, id int32) bool {
	if _, ok := c.get(w.digests[id]); ok {
		return true
	}
	if w.sizes[id] > int64(len(c.bytes)) {
		return false // goes past it
	}
	c.put(w.digests[id], c.bytes[:w.sizes[id]])
	return false
}

// hits are ratios, by objects and by bytes.
type hits struct{ objects, bytes float64 }

func (h hits) String() string { return fmt.Sprintf("%.3f/%.3f", h.objects, h.bytes) }

// replay asks for what w refers to and counts the last two thirds.
func replay(w *workload, c replayed) (h hits) {
	warm, total := len(w.refs)/3, 0.0
	for i, id := range w.refs {
		hit, size := c.ask(w, id), float64(w.sizes[id])
		if i < warm {
			continue
		}
		total += size
		if hit {
			h.objects++
			h.bytes += size
		}
	}
	return hits{h.objects / float64(len(w.refs)-warm), h.bytes / total}
}

// margin is what a policy must be ahead of LRU by.
type margin struct {
	percent float64
	hits
}

func testReplay(t *testing.T, name string, w *workload, policy func(int64) replayed, margins []margin) {
	t.Run(name, func(t *testing.T) {
		t.Parallel()
		for _, m := range margins {
			limit := int64(float64(w.footprint) * m.percent / 100)
			base, got := replay(w, newLRU(limit)), replay(w, policy(limit))
			was := hits{}
			if os.Getenv("WEIR_SOAK") != "" {
				was = replay(w, newOneSieve(limit))
			}
			ahead := hits{got.objects - base.objects, got.bytes - base.bytes}
			t.Logf("%4.1f %% of %6.1f GB: LRU %v, SIEVE %v, this %v, ahead of LRU by %+.3f/%+.3f", m.percent, float64(w.footprint)/1e9, base, was, got, ahead.objects, ahead.bytes)
			if ahead.objects < m.objects || ahead.bytes < m.bytes {
				t.Errorf("at %v %% the margin over LRU is to be %v", m.percent, m.hits)
			}
		}
	})
}

// TestReplay replays a package workload and pulls of images on the policies of
// the disk and of the memory tier, by themselves and both at once. Hits are by
// objects and by bytes; which ghosts meet depends on the hash's seed, and with it
// the third digit. With WEIR_SOAK it says too what the disk had before.
func TestReplay(t *testing.T) {
	npm, oci := npmWorkload(500_000, false), ociWorkload(12_000)
	both := mixed(npmWorkload(300_000, true), oci)
	checkWorkloads(t, npm, oci)
	testReplay(t, "disk, npm", npm, newDiskReplay, []margin{{1, hits{.15, .12}}, {3, hits{.11, .10}}, {5, hits{.06, .05}}, {10, hits{.02, .015}}})
	testReplay(t, "disk, oci", oci, newDiskReplay, []margin{{1, hits{.15, .012}}, {5, hits{.06, .02}}, {10, hits{.04, .015}}})
	testReplay(t, "disk, both", both, newDiskReplay, []margin{{1, hits{.40, .015}}, {5, hits{.18, .02}}, {10, hits{.09, .015}}})
	testReplay(t, "memory, npm", npm, newMemoryReplay, []margin{{1, hits{.34, -1}}, {3, hits{.21, -1}}, {5, hits{.13, -1}}, {10, hits{.055, -1}}})
	testReplay(t, "memory, both", both.under(1<<20), newMemoryReplay, []margin{{1, hits{.28, -1}}, {5, hits{.20, -1}}, {10, hits{.11, -1}}})
}

// TestScan: blobs that are read once, three times what a cache holds, do not
// flush what it is asked for all the time.
func TestScan(t *testing.T) {
	w := npmWorkload(600_000, false)
	limit := int64(float64(w.footprint) * .05)
	r := rand.New(rand.NewPCG(7, 8))
	var scan []int32
	for total := int64(0); total < 3*limit; {
		id := w.blob(min(logNormal(r, 9.12, 1.47), 1<<20))
		scan, total = append(scan, id), total+w.sizes[id]
	}
	measure := func(c replayed, refs []int32) float64 {
		n := 0
		for _, id := range refs {
			if c.ask(w, id) {
				n++
			}
		}
		return float64(n) / float64(len(refs))
	}
	for name, policy := range map[string]func(int64) replayed{"LRU": newLRU, "disk": newDiskReplay, "memory": newMemoryReplay} {
		c := policy(limit)
		replay(w, c)
		before := measure(c, w.refs[:2000])
		measure(c, scan)
		after := measure(c, w.refs[2000:4000])
		t.Logf("%-6s %.3f before the scan, %.3f after it", name, before, after)
		if flushed := after < before-.05; flushed != (name == "LRU") {
			t.Errorf("%s: a scan took hits from %.3f to %.3f", name, before, after)
		}
	}
}

// checkWorkloads holds the workloads against what is known of real ones.
func checkWorkloads(t *testing.T, npm, oci *workload) {
	t.Helper()
	within := func(what string, got, low, high float64) {
		t.Helper()
		if got < low || got > high {
			t.Errorf("%s is %.4g, not from %.4g to %.4g", what, got, low, high)
		}
	}
	p := newPopularity(npmPackages, 1000, 2.34)
	within("npm: downloads of the first 1,000", p.under(1000), .55, .65)
	within("npm: downloads of the first 10,000", p.under(10_000), .95, .975)
	within("npm: footprint in GB", float64(npm.footprint)/1e9, 1.55, 1.85)
	var under1, under10 float64
	var large []int64
	seen := map[int32]bool{}
	for _, id := range oci.refs {
		if oci.sizes[id] < 1e6 {
			under1++
		}
		if oci.sizes[id] < 10e6 {
			under10++
		}
		seen[id] = true
	}
	for id := range seen {
		large = append(large, oci.sizes[id])
	}
	slices.Sort(large)
	within("oci: requests under 1 MB", under1/float64(len(oci.refs)), .60, .72)
	within("oci: requests under 10 MB", under10/float64(len(oci.refs)), .78, .88)
	within("oci: p90 of all blobs in MB", float64(large[len(large)*9/10])/1e6, 30, 70)
}
