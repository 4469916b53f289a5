package registry

import (
	"context"
	"iter"
	"strings"
	"unicode/utf8"
)

// Metadata is the database of what people decide and upstreams do not: who
// there is, who may do what, and what hosted names stand for. It keeps small
// values by key, and knows nothing of what they mean.
//
// Every change has a sequence number, and the order of these numbers is the
// order in which the changes happened, for everyone. They grow, and need not
// be contiguous. The feed of changes is kept with the data, so it is the same
// whichever database it is and whichever node asks.
//
// Keys are 1 to MaxKey bytes of valid UTF-8 without a zero byte, values 1 to
// MaxValue bytes; else ErrInvalid. Nothing is kept of what is given, and what
// is returned is the caller's. A database that cannot be
// asked, or did not say whether it has done something, is ErrUnavailable; after
// that a change may have been made or not, and who needs to know looks. The
// implementation does its own retries within ctx. All may be called at once.
type Metadata interface {
	// Get gives what was last written under a key: every Put that has returned
	// before is seen, whichever node made it. ErrNotFound if there is nothing.
	Get(ctx context.Context, key string) (Record, error)
	// Put is compare-and-swap: it succeeds only while the key's Rev is rev (0:
	// while there is nothing under it), else ErrConflict. A nil value removes
	// what is there; where nothing is, that is no change and Rev is 0. It returns the record as kept; the Rev of a removal too is
	// the sequence number of the change. What it acknowledges is durable.
	Put(ctx context.Context, key string, rev uint64, value []byte) (Record, error)
	// List gives the records whose keys begin with prefix and come after the
	// given key, in the order of their keys. It is no snapshot: a change made
	// meanwhile may be in it or not. Who wants a snapshot takes Head, then lists,
	// and then applies the changes since that head to what is older than they.
	List(ctx context.Context, prefix, after string) iter.Seq2[Record, error]
	// Head is the sequence number of the newest change, 0 if there was none.
	Head(ctx context.Context) (uint64, error)
	// Changes gives the changes after a sequence number, oldest first, and ends
	// when there are no more for now. A removal has a nil Value. Changes are
	// given once each, in order and without a gap; one that another node is
	// just making is given only when all before it can be. ErrGone if those
	// right after the given number are no longer kept.
	Changes(ctx context.Context, after uint64) iter.Seq2[Record, error]
	// Woken is closed when there may be new changes. It is a hint: it may come
	// for nothing, and for what another node has written it may not come at all.
	Woken() <-chan struct{}
}

// Limits of Metadata, in bytes.
const (
	MaxKey   = 1 << 10
	MaxValue = 256 << 10
)

// CheckKey is ErrInvalid for what cannot be a key of Metadata.
func CheckKey(key string) error {
	switch {
	case key == "" || len(key) > MaxKey:
		return Errorf(ErrInvalid, "a key of %d bytes; 1 to %d may be", len(key), MaxKey)
	case strings.IndexByte(key, 0) >= 0 || !utf8.ValidString(key):
		return Errorf(ErrInvalid, "the key %.100q has a zero byte in it or is no UTF-8", key)
	}
	return nil
}

// CheckPut is ErrInvalid for what cannot be put into Metadata; a nil value can.
func CheckPut(key string, value []byte) error {
	if err := CheckKey(key); err != nil {
		return err
	}
	if value != nil && len(value) == 0 || len(value) > MaxValue {
		return Errorf(ErrInvalid, "a value of %d bytes for %.100q; 1 to %d may be", len(value), key, MaxValue)
	}
	return nil
}

// A Record is what Metadata has under a key.
type Record struct {
	Key   string
	Value []byte
	// Rev is the sequence number of the change that wrote it.
	Rev uint64
}
