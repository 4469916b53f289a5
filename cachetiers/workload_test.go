package cachetiers

import (
	"crypto/sha256"
	"encoding/binary"
	"math"
	"math/rand/v2"

	"github.com/opencontainers/go-digest"
)

// A workload is a sequence of references to blobs.
type workload struct {
	digests   []digest.Digest
	sizes     []int64
	refs      []int32 // indexes of the above
	footprint int64   // bytes; what a cache's size is a part of
}

// blob adds one and gives its index.
func (w *workload) blob(size int64) int32 {
	id := int32(len(w.sizes))
	var b [8]byte
	binary.LittleEndian.PutUint32(b[:], uint32(id))
	w.digests = append(w.digests, digest.NewDigestFromBytes(digest.SHA256, func() []byte { s := sha256.Sum256(b[:]); return s[:] }()))
	w.sizes = append(w.sizes, size)
	return id
}

// popularity draws ranks whose weight is 1/(rank+offset)^exponent.
type popularity struct{ last, offset, exponent float64 }

func newPopularity(n int, offset, exponent float64) popularity {
	return popularity{math.Pow((float64(n)+offset)/offset, 1-exponent), offset, exponent}
}

// under is the chance of a rank under r.
func (p popularity) under(r float64) float64 {
	return (1 - math.Pow((r+p.offset)/p.offset, 1-p.exponent)) / (1 - p.last)
}

func (p popularity) draw(r *rand.Rand) int {
	return int(p.offset * (math.Pow(1-r.Float64()*(1-p.last), 1/(1-p.exponent)) - 1))
}

func logNormal(r *rand.Rand, mu, sigma float64) int64 {
	return max(int64(math.Exp(mu+sigma*r.NormFloat64())), 1)
}

// npmPackages is how many packages anyone downloads, and npmTouching after how
// many references 62 thousand tarballs, 1.7 GB, have been asked for.
const (
	npmPackages = 227_000
	npmTouching = 4_300_000
)

// npmWorkload refers to tarballs and, if it is told so, as often to packuments.
// Its footprint is that of npmTouching references.
func npmWorkload(refs int, packuments bool) *workload {
	r := rand.New(rand.NewPCG(1, 2))
	p := newPopularity(npmPackages, 1000, 2.34)
	w := &workload{}
	kinds := []func() int64{func() int64 { return logNormal(r, 9.12, 1.47) }}
	if packuments {
		kinds = append(kinds, func() int64 { return logNormal(r, 8.74, 1.22) })
	}
	for rank := range npmPackages {
		seen := 1 - math.Exp(-npmTouching*(p.under(float64(rank+1))-p.under(float64(rank))))
		for _, size := range kinds {
			id := w.blob(size())
			w.footprint += int64(seen * float64(w.sizes[id]))
		}
	}
	for range refs {
		w.refs = append(w.refs, int32(len(kinds)*p.draw(r)+r.IntN(len(kinds))))
	}
	return w
}

// ociWorkload refers to the manifest, the configuration and the layers of
// images, as pulls do: a few images are pulled often, one pull in ten is of an
// image that nobody pulls again, one in twenty is a rollout to 20 nodes, and
// every fiftieth finds half of its image rebuilt.
func ociWorkload(pulls int) *workload {
	r := rand.New(rand.NewPCG(3, 4))
	w := &workload{}
	shared := make([]int32, 800) // of all images: base layers, and those that hold next to nothing
	for i := range shared {
		shared[i] = w.blob(min(logNormal(r, math.Log(60e3), 1.6), 900<<10))
	}
	ofShared := newPopularity(len(shared), 20, 1.6)
	image := func() []int32 {
		layers := []int32{w.blob(logNormal(r, math.Log(2000), .5)), w.blob(logNormal(r, math.Log(6000), .6))}
		for range max(logNormal(r, math.Log(8), .633), 1) {
			if r.Float64() < .42 {
				layers = append(layers, shared[ofShared.draw(r)])
			} else {
				layers = append(layers, w.blob(min(logNormal(r, math.Log(2.5e6), 2.52), 2<<30)))
			}
		}
		return layers
	}
	images := make([][]int32, 3000)
	for i := range images {
		images[i] = image()
	}
	ofImages := newPopularity(len(images), 15, 1.5)
	for pull := range pulls {
		k := ofImages.draw(r)
		pulled := images[k]
		switch {
		case r.Float64() < .1:
			pulled = image()
		case pull%50 == 0:
			next := image()
			pulled = append(next[:min(len(next), 2+len(pulled)/2)], pulled[min(len(pulled), 2+len(pulled)/2):]...)
			images[k] = pulled
		}
		nodes := 1
		if r.Float64() < .05 {
			nodes = 20
		}
		for range nodes {
			w.refs = append(w.refs, pulled...)
		}
	}
	w.footprint = w.touched()
	return w
}

// touched is how many bytes the blobs have that are referred to.
func (w *workload) touched() (bytes int64) {
	seen := make([]bool, len(w.sizes))
	for _, id := range w.refs {
		if !seen[id] {
			seen[id] = true
			bytes += w.sizes[id]
		}
	}
	return bytes
}

// mixed is two workloads at once, each in its own order.
func mixed(a, b *workload) *workload {
	r := rand.New(rand.NewPCG(5, 6))
	w := &workload{footprint: a.footprint + b.footprint}
	base := int32(len(a.sizes))
	for _, size := range append(append([]int64{}, a.sizes...), b.sizes...) {
		w.blob(size)
	}
	x, y := a.refs, b.refs
	for len(x)+len(y) > 0 {
		if r.IntN(len(x)+len(y)) < len(x) {
			w.refs, x = append(w.refs, x[0]), x[1:]
		} else {
			w.refs, y = append(w.refs, base+y[0]), y[1:]
		}
	}
	return w
}

// under is what of w a store is asked for that keeps nothing larger than most,
// with a footprint of its own.
func (w *workload) under(most int64) *workload {
	small := &workload{digests: w.digests, sizes: w.sizes}
	for _, id := range w.refs {
		if w.sizes[id] <= most {
			small.refs = append(small.refs, id)
		}
	}
	small.footprint = small.touched()
	return small
}
