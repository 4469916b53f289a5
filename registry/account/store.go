package account

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"math/big"
	mathrand "math/rand/v2"
	"slices"
	"time"

	"github.com/weir-registry/weir/registry"
)

const (
	// tries is how often a change is begun again, after it has lost to another
	// or the database did not say what became of it.
	tries = 10
	// firstPause is how long it waits then, at first; it doubles each time.
	firstPause = 5 * time.Millisecond
	longPause  = 500 * time.Millisecond
)

// A store reads and changes what is in the database.
type store struct{ registry.Metadata }

// change has edit say what shall be under a key, given what is (nil: nothing),
// and writes it: nil removes, what is there already is not written again. It
// begins anew when another change came first, and so edit may be called several
// times. An error of edit ends it.
//
// A write whose answer is lost may have happened, may happen later, or never.
// So what was tried is looked for: if it is there it is ours, because every
// value that is made has something random or the time in it, or else says just
// what is wanted. One that arrives late is stopped by compare-and-swap or is
// found by the next look.
//
// The record returned is what is there in the end; of a removal it has the key
// and the revision, which is 0 if there was nothing to remove.
func (s store) change(ctx context.Context, key string, edit func(old []byte) ([]byte, error)) (registry.Record, error) {
	var tried [][]byte
	var removing uint64 // the revision that a removal was tried on; 0: none was
	var last error
	for n := range tries {
		if n > 0 {
			if err := pause(ctx, n); err != nil {
				return registry.Record{}, registry.Wrap(registry.ErrUnavailable, errors.Join(err, last), "change "+key)
			}
		}
		have, err := s.get(ctx, key)
		if err != nil {
			last = err
			continue
		}
		if have.Rev == 0 && removing != 0 {
			rev, err := s.removal(ctx, key, removing)
			return registry.Record{Key: key, Rev: rev}, err
		}
		if have.Rev != 0 && slices.ContainsFunc(tried, func(v []byte) bool { return bytes.Equal(v, have.Value) }) {
			return have, nil
		}
		next, err := edit(have.Value)
		if err != nil {
			return registry.Record{}, err
		}
		if bytes.Equal(next, have.Value) {
			return have, nil
		}
		rec, err := s.Put(ctx, key, have.Rev, next)
		switch {
		case err == nil:
			return rec, nil
		case !errors.Is(err, registry.ErrConflict) && !errors.Is(err, registry.ErrUnavailable):
			return registry.Record{}, registry.Wrap(registry.ErrUnavailable, err, "change "+key)
		}
		// A conflict may be with ourselves: the database tried again by itself.
		if last = err; next == nil {
			removing = have.Rev
		} else {
			tried = append(tried, next)
		}
	}
	if errors.Is(last, registry.ErrConflict) {
		return registry.Record{}, &registry.Error{Kind: registry.ErrUnavailable, After: time.Second,
			Text: "change " + key + ": others changed it each time", Public: "others are changing the same thing; try again"}
	}
	return registry.Record{}, registry.Wrap(registry.ErrUnavailable, last, "change "+key)
}

// get is Get, with a zero Record for what is not there.
func (s store) get(ctx context.Context, key string) (registry.Record, error) {
	rec, err := s.Get(ctx, key)
	if errors.Is(err, registry.ErrNotFound) {
		return registry.Record{}, nil
	}
	return rec, registry.Wrap(registry.ErrUnavailable, err, "read "+key)
}

// removal finds the change that removed a key, whose answer was lost, among
// those after a revision. If they are no longer kept the newest of all has to
// do, which is later.
func (s store) removal(ctx context.Context, key string, after uint64) (uint64, error) {
	for rec, err := range s.Changes(ctx, after) {
		if err != nil {
			if !errors.Is(err, registry.ErrGone) {
				return 0, registry.Wrap(registry.ErrUnavailable, err, "find the removal of "+key)
			}
			break
		}
		if rec.Key == key && rec.Value == nil {
			return rec.Rev, nil
		}
	}
	head, err := s.Head(ctx)
	return head, registry.Wrap(registry.ErrUnavailable, err, "find the removal of "+key)
}

// remove removes what is under a key; that there is nothing is no error.
func (s store) remove(ctx context.Context, key string) (uint64, error) {
	rec, err := s.change(ctx, key, func([]byte) ([]byte, error) { return nil, nil })
	return rec.Rev, err
}

// pause waits before the nth try, for a random time so that those who lost to
// each other do not meet again.
func pause(ctx context.Context, n int) error {
	limit := min(firstPause<<n, longPause)
	t := time.NewTimer(limit/2 + mathrand.N(limit/2))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// read decodes what is under a key. ok is false if there is nothing.
func read[T any](ctx context.Context, s store, key string) (v T, rev uint64, ok bool, err error) {
	rec, err := s.get(ctx, key)
	if err != nil || rec.Rev == 0 {
		return v, 0, false, err
	}
	v, err = decode[T](rec)
	return v, rec.Rev, err == nil, err
}

// decode reads a record. One that cannot be read is a damaged database.
func decode[T any](rec registry.Record) (v T, err error) {
	if err := json.Unmarshal(rec.Value, &v); err != nil {
		return v, registry.Wrap(registry.ErrUnavailable, err, "the metadata database has nonsense under "+rec.Key)
	}
	return v, nil
}

// list decodes all that is under a prefix.
func list[T any](ctx context.Context, s store, prefix string) ([]T, error) {
	all := []T{}
	for rec, err := range s.List(ctx, prefix, "") {
		if err != nil {
			return nil, registry.Wrap(registry.ErrUnavailable, err, "list "+prefix)
		}
		v, err := decode[T](rec)
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, nil
}

// errExists is edit's, for what must not be there yet.
var errExists = errors.New("it exists already")

// create writes what must not be there yet: else errExists.
func create[T any](ctx context.Context, s store, key string, v T) (uint64, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return 0, err
	}
	rec, err := s.change(ctx, key, func(old []byte) ([]byte, error) {
		if old != nil && !bytes.Equal(old, text) {
			return nil, errExists
		}
		return text, nil
	})
	return rec.Rev, err
}

// errAbsent is update's, for what is not there.
var errAbsent = errors.New("there is no such thing")

// update changes what is there: else errAbsent.
func update[T any](ctx context.Context, s store, key string, edit func(v *T) error) (v T, rev uint64, err error) {
	rec, err := s.change(ctx, key, func(old []byte) ([]byte, error) {
		if old == nil {
			return nil, errAbsent
		}
		v, err := decode[T](registry.Record{Key: key, Value: old})
		if err != nil {
			return nil, err
		}
		if err := edit(&v); err != nil {
			return nil, err
		}
		return json.Marshal(v)
	})
	if err != nil {
		return v, 0, err
	}
	v, err = decode[T](rec)
	return v, rec.Rev, err
}

// letters are what random IDs are made of: 32, none of which is taken for
// another.
const letters = "0123456789abcdefghjkmnpqrstvwxyz"

// randomID is n letters of 5 random bits each.
func randomID(n int) string {
	id := make([]byte, n)
	_, _ = rand.Read(id) // crypto/rand.Read never fails
	for i := range id {
		id[i] = letters[id[i]%32]
	}
	return string(id)
}

// randomNumber is a positive number of 52 bits, which every JSON parser can
// read.
func randomNumber() int64 {
	n, err := rand.Int(rand.Reader, big.NewInt(1<<52))
	if err != nil {
		panic(err) // crypto/rand never fails
	}
	return n.Int64() + 1
}

// encode is the text of a record.
func encode(v any) ([]byte, error) { return json.Marshal(v) }
