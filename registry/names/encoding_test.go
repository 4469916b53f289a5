package names

import (
	"bytes"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/registry"
)

// FuzzDecode gives decode what a damaged page could hold. It must not panic,
// and what it takes must be what encode makes of it.
func FuzzDecode(f *testing.F) {
	b := registry.Binding{
		Descriptor: registry.Descriptor{Digest: digest.FromString("a"), Size: -1, MediaType: "text/plain"},
		Checked:    time.Unix(1, 2), Fresh: time.Unix(-3, 4), Validator: "v", Location: "l", Listed: true, Shown: true,
	}
	f.Add(encode(nil, b, 7)[5:])
	f.Add(encode(nil, registry.Binding{Descriptor: b.Descriptor}, 1<<63)[5:])
	f.Add([]byte{})
	f.Add([]byte{0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, fields []byte) {
		b, rev, err := decodeFields(fields)
		if err != nil {
			return
		}
		again, rev2, err := decode(encode(nil, b, rev))
		if err != nil || again != b || rev2 != rev {
			t.Errorf("%x: %+v at %d came back as %+v at %d, %v", fields, b, rev, again, rev2, err)
		}
	})
}

// TestEveryBitCounts flips each bit of a value; none may go unnoticed.
func TestEveryBitCounts(t *testing.T) {
	v := encode(nil, registry.Binding{Descriptor: registry.Descriptor{Digest: digest.FromString("a"), Size: 1}, Validator: "v"}, 7)
	if _, _, err := decode(v); err != nil {
		t.Fatal(err)
	}
	for bit := range 8 * len(v) {
		flipped := bytes.Clone(v)
		flipped[bit/8] ^= 1 << (bit % 8)
		if b, _, err := decode(flipped); err == nil {
			t.Errorf("with bit %d flipped it decodes to %+v", bit, b)
		}
	}
	for n := range v {
		if _, _, err := decode(v[:n]); err == nil {
			t.Errorf("its first %d bytes decode", n)
		}
	}
}

// TestShownIsNew: what was written before there was such a thing is read, and has
// not been shown; and the other way round, all else is as it was.
func TestShownIsNew(t *testing.T) {
	b := registry.Binding{Descriptor: registry.Descriptor{Digest: digest.FromString("a"), Size: 1}, Fresh: time.Unix(3, 4).UTC(), Listed: true}
	before := encode(nil, b, 7)
	if got, _, err := decode(before); err != nil || got.Shown {
		t.Errorf("%+v, %v", got, err)
	}
	b.Shown = true
	now := encode(nil, b, 7)
	if got, _, err := decode(now); err != nil || !got.Shown || got.Fresh != b.Fresh || !got.Listed {
		t.Errorf("%+v, %v", got, err)
	}
	if len(now) != len(before) || !bytes.Equal(now[7:], before[7:]) || now[6]^before[6] != flagShown {
		t.Errorf("%x\n%x", before, now)
	}
}
