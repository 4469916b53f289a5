package spanner

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"cloud.google.com/go/spanner"
	"google.golang.org/grpc/codes"

	"github.com/weir-registry/weir/registry"
)

// trimStep is how many changes are trimmed at once at most, by the Put that makes
// one too many.
const trimStep = 1000

// errFound ends a transaction that finds that an earlier one has done it all.
var errFound = errors.New("it has been done")

// Put implements registry.Metadata.
//
// A transaction may have committed although nobody says so. The next one then
// finds its change by its writer's number, and nothing is done twice. The two
// cannot both commit: both have read the row of weir_head, and both write it.
func (m *Metadata) Put(ctx context.Context, key string, rev uint64, value []byte) (registry.Record, error) {
	if err := registry.CheckPut(key, value); err != nil {
		return registry.Record{}, err
	}
	w := &write{key: key, rev: rev, value: value, writer: rand.Text(), keep: int64(m.o.Keep)}
	err := m.retry(ctx, "put "+key, func(ctx context.Context) error {
		select {
		case m.slot <- struct{}{}:
			defer func() { <-m.slot }()
		case <-ctx.Done():
			return ctx.Err()
		}
		_, err := m.client.ReadWriteTransaction(ctx, w.run)
		if errors.Is(err, errFound) {
			return nil
		}
		return err
	})
	if err != nil {
		return registry.Record{}, registry.Wrap(registry.ErrUnavailable, err, "put "+key)
	}
	if w.seq == 0 {
		return registry.Record{Key: key}, nil // nothing was removed
	}
	m.wake()
	return registry.Record{Key: key, Value: bytes.Clone(value), Rev: uint64(w.seq)}, nil
}

// write is a Put, over all its attempts.
type write struct {
	key    string
	rev    uint64
	value  []byte
	writer string
	keep   int64

	tried bool
	from  int64 // the head when it was first tried: its change comes after it
	seq   int64 // its change's number
}

// run is the body of the transaction. The library calls it again when Spanner has
// aborted it, and Put when it is not known what has become of it.
func (w *write) run(ctx context.Context, tx *spanner.ReadWriteTransaction) error {
	w.seq = 0
	var head, trimmed, rev int64
	if err := read(ctx, tx, "weir_head", spanner.Key{0}, []string{"seq", "trimmed"}, &head, &trimmed); err != nil {
		return err
	}
	if w.tried {
		if err := w.look(ctx, tx, trimmed); err != nil {
			return err
		}
	} else {
		w.tried, w.from = true, head
	}
	if err := read(ctx, tx, "weir_records", spanner.Key{w.key}, []string{"seq"}, &rev); err != nil {
		return err
	}
	switch {
	case uint64(rev) != w.rev:
		return &registry.Error{Kind: registry.ErrConflict, Text: fmt.Sprintf("%q was changed in the meantime", w.key)}
	case rev == 0 && w.value == nil:
		return nil
	}
	w.seq = head + 1
	return tx.BufferWrite(w.mutations(trimmed))
}

// look finds what an earlier transaction of this Put has done.
func (w *write) look(ctx context.Context, tx *spanner.ReadWriteTransaction, trimmed int64) error {
	st := spanner.Statement{
		SQL:    `SELECT seq FROM weir_changes WHERE seq > @from AND writer = @writer`,
		Params: map[string]any{"from": w.from, "writer": w.writer},
	}
	err := tx.Query(ctx, st).Do(func(row *spanner.Row) error { return row.Columns(&w.seq) })
	switch {
	case err != nil:
		return err
	case w.seq != 0:
		return errFound
	case trimmed > w.from:
		return &registry.Error{Kind: registry.ErrUnavailable, Text: "it cannot be told any more whether it was done"}
	}
	return nil
}

// mutations are what a Put changes, and what is too old after it.
func (w *write) mutations(trimmed int64) []*spanner.Mutation {
	var all []*spanner.Mutation
	step := max(1, min(w.keep/4, trimStep))
	if w.seq-trimmed >= w.keep+step {
		// No more than twice the step: a smaller Keep does not make one Put pay
		// for all.
		to := min(w.seq-w.keep, trimmed+2*step)
		all = append(all, spanner.Delete("weir_changes", spanner.KeyRange{Start: spanner.Key{trimmed}, End: spanner.Key{to}, Kind: spanner.OpenClosed}))
		trimmed = to
	}
	record := spanner.Delete("weir_records", spanner.Key{w.key})
	if w.value != nil {
		record = spanner.InsertOrUpdate("weir_records", []string{"key", "value", "seq"}, []any{w.key, w.value, w.seq})
	}
	return append(all, record,
		spanner.Insert("weir_changes", []string{"seq", "key", "value", "writer"}, []any{w.seq, w.key, w.value, w.writer}),
		spanner.InsertOrUpdate("weir_head", []string{"id", "seq", "trimmed"}, []any{0, w.seq, trimmed}))
}

// read reads a row, if it is there.
func read(ctx context.Context, tx *spanner.ReadWriteTransaction, table string, key spanner.Key, columns []string, to ...any) error {
	row, err := tx.ReadRow(ctx, table, key, columns)
	if spanner.ErrCode(err) == codes.NotFound && !noDatabase(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return row.Columns(to...)
}
