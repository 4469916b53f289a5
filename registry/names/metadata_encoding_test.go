package names

import (
	"bytes"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"

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

// TestMetadataOfTwoTimes makes files whose parts are sound and do not belong
// together, as a disk that has lost a write leaves them.
func TestMetadataOfTwoTimes(t *testing.T) {
	ctx := t.Context()
	for what, spoil := range map[string]func(tx *bbolt.Tx) error{
		"an old record": func(tx *bbolt.Tx) error {
			return tx.Bucket([]byte(recordsBucket)).Put([]byte("k"), encodeRecord(registry.Record{Key: "k", Value: []byte("1"), Rev: 1}))
		},
		"a record is missing": func(tx *bbolt.Tx) error { return tx.Bucket([]byte(recordsBucket)).Delete([]byte("k")) },
		"a removed record": func(tx *bbolt.Tx) error {
			return tx.Bucket([]byte(recordsBucket)).Put([]byte("gone"), encodeRecord(registry.Record{Key: "gone", Value: []byte("v"), Rev: 3}))
		},
		"a record of nobody": func(tx *bbolt.Tx) error {
			return tx.Bucket([]byte(recordsBucket)).Put([]byte("x"), encodeRecord(registry.Record{Key: "x", Value: []byte("v"), Rev: 2}))
		},
		"an old head":           func(tx *bbolt.Tx) error { return putHead(tx, 3) },
		"a head of the future":  func(tx *bbolt.Tx) error { return putHead(tx, 5) },
		"a gap in the log":      func(tx *bbolt.Tx) error { return tx.Bucket([]byte(logBucket)).Delete(seqKey(2)) },
		"the log's end is gone": func(tx *bbolt.Tx) error { return tx.Bucket([]byte(logBucket)).Delete(seqKey(4)) },
		"a bucket is gone":      func(tx *bbolt.Tx) error { return tx.DeleteBucket([]byte(logBucket)) },
		"":                      func(*bbolt.Tx) error { return nil },
	} {
		path := filepath.Join(t.TempDir(), "metadata.db")
		m, err := OpenMetadata(path, MetadataOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var rev uint64
		for i, value := range [][]byte{[]byte("1"), []byte("2"), []byte("v"), nil} {
			key := []string{"k", "k", "gone", "gone"}[i]
			if i == 2 {
				rev = 0
			}
			r, err := m.Put(ctx, key, rev, value)
			if rev = r.Rev; err != nil {
				t.Fatal(err)
			}
		}
		if err := m.db.Update(spoil); err != nil {
			t.Fatal(err)
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		m, err = OpenMetadata(path, MetadataOptions{})
		if (err == nil) != (what == "") {
			t.Errorf("%q: %v", what, err)
		}
		if err == nil {
			m.Close()
		}
	}
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
