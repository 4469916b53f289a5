package names

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"go.etcd.io/bbolt"

	"github.com/weir-registry/weir/registry"
)

// The file of a metadata database has three buckets:
//
//	metadata/records  key of the record -> entry
//	metadata/log      sequence number, 8 bytes, big-endian -> entry
//	metadata/head     "head" -> entry of that key, without a value
//
// and an entry, version 1, is
//
//	byte     version
//	4 bytes  CRC-32C of the entry's key in its bucket and of all that follows, big-endian
//	uvarint  sequence number of the change
//	byte     flags: 1 there is a value (else it was removed)
//	uvarint  length of the record's key, and the key
//	the value
//
// The checksum covers the key too, so that an entry that has come to stand in
// another's place is noticed. The log has no gaps, and ends at the head.
const (
	recordsBucket = "metadata/records"
	logBucket     = "metadata/log"
	headBucket    = "metadata/head"
	headKey       = "head"

	flagValue = 1
)

// appendEntry is the entry of r in a bucket's key k.
func appendEntry(k []byte, r registry.Record) []byte {
	buf := make([]byte, 5, 5+2*binary.MaxVarintLen64+1+len(r.Key)+len(r.Value))
	buf[0] = version
	buf = binary.AppendUvarint(buf, r.Rev)
	var flags byte
	if r.Value != nil {
		flags = flagValue
	}
	buf = append(buf, flags)
	buf = binary.AppendUvarint(buf, uint64(len(r.Key)))
	buf = append(buf, r.Key...)
	buf = append(buf, r.Value...)
	binary.BigEndian.PutUint32(buf[1:], entrySum(k, buf))
	return buf
}

func entrySum(k, entry []byte) uint32 {
	return crc32.Update(crc32.Checksum(k, castagnoli), castagnoli, entry[5:])
}

// decodeEntry reads what appendEntry wrote under k; anything else is errDamaged.
// It keeps nothing of v.
func decodeEntry(k, v []byte) (registry.Record, error) {
	if len(v) < 5 || v[0] != version || binary.BigEndian.Uint32(v[1:]) != entrySum(k, v) {
		return registry.Record{}, fmt.Errorf("%.100q: %w", k, errDamaged)
	}
	d := decoder{rest: v[5:]}
	r := registry.Record{Rev: d.uvarint()}
	flags := d.byte()
	size := d.uvarint()
	if d.bad || r.Rev == 0 && string(k) != headKey || flags > flagValue || size > uint64(len(d.rest)) {
		return registry.Record{}, fmt.Errorf("%.100q: %w", k, errDamaged)
	}
	r.Key = string(d.rest[:size])
	value := d.rest[size:]
	if (flags == flagValue) != (len(value) > 0) {
		return registry.Record{}, fmt.Errorf("%.100q: %w", k, errDamaged)
	}
	if len(value) > 0 {
		r.Value = bytes.Clone(value)
	}
	return r, nil
}

func encodeRecord(r registry.Record) []byte { return appendEntry([]byte(r.Key), r) }

// decodeRecord reads an entry of the bucket of records.
func decodeRecord(k, v []byte) (registry.Record, error) {
	r, err := decodeEntry(k, v)
	if err == nil && (r.Key != string(k) || r.Value == nil) {
		err = fmt.Errorf("%.100q: %w", k, errDamaged)
	}
	return r, err
}

func encodeChange(r registry.Record) []byte { return appendEntry(seqKey(r.Rev), r) }

// decodeChange reads an entry of the log.
func decodeChange(k, v []byte) (registry.Record, error) {
	r, err := decodeEntry(k, v)
	if seq, ok := keySeq(k); err == nil && (!ok || seq != r.Rev || r.Key == "") {
		err = fmt.Errorf("%.100q: %w", k, errDamaged)
	}
	return r, err
}

func seqKey(seq uint64) []byte { return binary.BigEndian.AppendUint64(nil, seq) }

func keySeq(k []byte) (seq uint64, ok bool) {
	if len(k) != 8 {
		return 0, false
	}
	return binary.BigEndian.Uint64(k), true
}

// getRecord is the record under a key, the zero one if there is none.
func getRecord(tx *bbolt.Tx, key string) (registry.Record, error) {
	v := tx.Bucket([]byte(recordsBucket)).Get([]byte(key))
	if v == nil {
		return registry.Record{}, nil
	}
	return decodeRecord([]byte(key), v)
}

func getHead(tx *bbolt.Tx) (uint64, error) {
	r, err := decodeEntry([]byte(headKey), tx.Bucket([]byte(headBucket)).Get([]byte(headKey)))
	return r.Rev, err
}

func putHead(tx *bbolt.Tx, seq uint64) error {
	r := registry.Record{Key: headKey, Rev: seq}
	return tx.Bucket([]byte(headBucket)).Put([]byte(headKey), appendEntry([]byte(headKey), r))
}

// readMetadata makes an empty file a metadata database, and finds what is
// wrong with one that is not empty, in which it changes nothing.
func readMetadata(db *bbolt.DB) error {
	empty := false
	err := db.View(func(tx *bbolt.Tx) error {
		k, _ := tx.Cursor().First()
		empty = k == nil
		return nil
	})
	if err != nil {
		return err
	}
	if empty {
		return db.Update(makeMetadata)
	}
	return db.View(func(tx *bbolt.Tx) error {
		for _, name := range []string{recordsBucket, logBucket, headBucket} {
			if tx.Bucket([]byte(name)) == nil {
				return fmt.Errorf("there is no %q in it", name)
			}
		}
		head, err := getHead(tx)
		if err != nil {
			return err
		}
		first, newest, err := checkLog(tx, head)
		if err != nil {
			return err
		}
		return checkRecords(tx, first, newest)
	})
}

// makeMetadata makes the three buckets.
func makeMetadata(tx *bbolt.Tx) error {
	for _, name := range []string{recordsBucket, logBucket, headBucket} {
		if _, err := tx.CreateBucket([]byte(name)); err != nil {
			return err
		}
	}
	return putHead(tx, 0)
}

// checkLog finds gaps, and an end that is not the head. It returns the first
// change that is kept, and the newest of each key; 0 if that removed it.
func checkLog(tx *bbolt.Tx, head uint64) (first uint64, newest map[string]uint64, err error) {
	var last uint64
	newest = map[string]uint64{}
	err = tx.Bucket([]byte(logBucket)).ForEach(func(k, v []byte) error {
		r, err := decodeChange(k, v)
		if err != nil {
			return err
		}
		if first == 0 {
			first = r.Rev
		} else if r.Rev != last+1 {
			return fmt.Errorf("change %d comes after %d", r.Rev, last)
		}
		last, newest[r.Key] = r.Rev, r.Rev
		if r.Value == nil {
			newest[r.Key] = 0
		}
		return nil
	})
	if err == nil && last != head {
		err = fmt.Errorf("the newest change is %d, and should be %d", last, head)
	}
	return first, newest, err
}

// checkRecords finds records that are out of place, or are not what the log
// says, as after a write that the disk has lost.
func checkRecords(tx *bbolt.Tx, first uint64, newest map[string]uint64) error {
	bucket := tx.Bucket([]byte(recordsBucket))
	find := bucket.Cursor()
	err := bucket.ForEach(func(k, v []byte) error {
		r, err := decodeRecord(k, v)
		if err != nil {
			return err
		}
		if found, _ := find.Seek(k); !bytes.Equal(found, k) {
			return fmt.Errorf("%.100q is out of its place", k)
		}
		if rev, changed := newest[r.Key]; changed && rev != r.Rev || !changed && r.Rev >= first {
			return fmt.Errorf("%.100q is of change %d, and the log has %d", k, r.Rev, rev)
		}
		newest[r.Key] = 0 // seen
		return nil
	})
	for key, rev := range newest {
		if err == nil && rev != 0 {
			err = fmt.Errorf("%.100q is missing, and the log has %d", key, rev)
		}
	}
	return err
}
