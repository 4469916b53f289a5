package names

import (
	"bytes"
	"testing"

	"github.com/weir-registry/weir/registry"
)

// FuzzDecodeEntry gives decodeEntry what a damaged page could hold. It must not
// panic, and what it takes must be what appendEntry makes of it.
func FuzzDecodeEntry(f *testing.F) {
	for _, r := range []registry.Record{
		{Key: "e/account/anna", Value: []byte("{}"), Rev: 1}, {Key: "k", Rev: 1 << 63}, {Key: headKey, Rev: 0}} {
		f.Add([]byte(r.Key), appendEntry([]byte(r.Key), r)[5:])
		f.Add(seqKey(r.Rev), encodeChange(r)[5:])
	}
	f.Add([]byte{}, []byte{1, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, k, fields []byte) {
		entry := append([]byte{version, 0, 0, 0, 0}, fields...)
		sum := entrySum(k, entry)
		entry[1], entry[2], entry[3], entry[4] = byte(sum>>24), byte(sum>>16), byte(sum>>8), byte(sum)
		r, err := decodeEntry(k, entry)
		if err != nil {
			return
		}
		again, err := decodeEntry(k, appendEntry(k, r))
		if err != nil || again.Key != r.Key || again.Rev != r.Rev || !bytes.Equal(again.Value, r.Value) {
			t.Errorf("%x: %+v came back as %+v, %v", fields, r, again, err)
		}
	})
}

// TestEveryBitOfAnEntryCounts flips each bit of an entry and of its key.
func TestEveryBitOfAnEntryCounts(t *testing.T) {
	r := registry.Record{Key: "e/a", Value: []byte("value"), Rev: 300}
	key, entry := []byte(r.Key), encodeRecord(r)
	both := append(bytes.Clone(key), entry...)
	for bit := range 8 * len(both) {
		flipped := bytes.Clone(both)
		flipped[bit/8] ^= 1 << (bit % 8)
		if r, err := decodeEntry(flipped[:len(key)], flipped[len(key):]); err == nil {
			t.Errorf("with bit %d flipped it decodes to %+v", bit, r)
		}
	}
	for n := range entry {
		if _, err := decodeEntry(key, entry[:n]); err == nil {
			t.Errorf("its first %d bytes decode", n)
		}
	}
}
