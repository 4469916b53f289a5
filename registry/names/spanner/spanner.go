// Package spanner is a metadata database in Google Cloud Spanner, or in its
// emulator.
//
// It has three tables, which Open makes if they are missing (in a database of the
// GoogleSQL dialect): weir_head, whose one row has the number of the newest
// change; weir_records, by key; and weir_changes, the outbox, by number. A Put is
// one read-write transaction over all three, so that the order in which Spanner
// commits is the order of the numbers, and the feed has no gaps.
//
// That order is also the price. All writers meet at the one row of weir_head, and
// the end of weir_changes is always in one split: both are hot spots by design,
// and Puts come one after the other, some tens to hundreds a second, depending on
// where the replicas are. That is enough for accounts, grants and the names of
// what is pushed. Reads do not meet there: Get and List are strong reads without
// locks, and keys are spread as their users spread them.
//
// Which transaction has committed is not always said. Each Put has a random number
// of its own, which it leaves in weir_changes, so that it can be found there.
package spanner

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"cloud.google.com/go/spanner"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/weir-registry/weir/registry"
)

const (
	// Scheme is what addresses of such databases begin with, before "://".
	Scheme = "spanner"
	// limit is for one Put, Get or Head and one page of a list, with all their
	// retries.
	limit = 5 * time.Second
	// prepareLimit is for making the tables, which takes Spanner a while.
	prepareLimit = 2 * time.Minute
	// pause is what lies between two attempts at first; it doubles up to ten
	// times that.
	pause = 50 * time.Millisecond
	// page is how many rows are asked for at once. They may have 16 MiB.
	page = 64

	defaultKeep = 100_000
)

// Options say which database. They can be written as an address, see [Parse].
type Options struct {
	// Database is "projects/P/instances/I/databases/D". It must exist.
	Database string
	// Endpoint is the address of an emulator ("127.0.0.1:9010"), which is spoken
	// to in plain text and without credentials. "": Spanner itself, with the
	// machine's credentials (Application Default Credentials).
	Endpoint string
	// Keep is how many changes are kept at least; 0: 100,000.
	Keep int

	extra []option.ClientOption // in tests
}

// Parse reads "spanner://projects/P/instances/I/databases/D?endpoint=HOST:PORT",
// in which the endpoint may be left out. Its errors are for who wrote the
// configuration.
func Parse(address string) (Options, error) {
	const form = Scheme + "://projects/P/instances/I/databases/D"
	u, err := url.Parse(address)
	if err != nil || u.Scheme != Scheme || u.User != nil || u.Fragment != "" || u.Opaque != "" {
		return Options{}, fmt.Errorf("%q is not an address like %s", address, form)
	}
	o := Options{Database: u.Host + u.Path}
	if err := o.check(); err != nil {
		return Options{}, err
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return Options{}, fmt.Errorf("%q: what comes behind the question mark cannot be read: %w", address, err)
	}
	for key, values := range query {
		if key != "endpoint" || len(values) != 1 {
			return Options{}, fmt.Errorf("%q: unknown setting %q; there is endpoint, once", address, key)
		}
		o.Endpoint = strings.TrimPrefix(values[0], "http://")
		if _, err := url.Parse("http://" + o.Endpoint); err != nil || o.Endpoint == "" || strings.ContainsAny(o.Endpoint, "/@ ") {
			return Options{}, fmt.Errorf("%q: the endpoint is not HOST:PORT", address)
		}
	}
	return o, nil
}

func (o Options) check() error {
	const id = `[a-z][a-z0-9_.:-]{0,62}`
	whole := regexp.MustCompile(`^projects/` + id + `/instances/` + id + `/databases/` + id + `$`)
	if !whole.MatchString(o.Database) {
		return registry.Errorf(registry.ErrInvalid, "%q is not a database like projects/P/instances/I/databases/D", o.Database)
	}
	if o.Keep < 0 {
		return registry.Errorf(registry.ErrInvalid, "%d changes cannot be kept", o.Keep)
	}
	return nil
}

// clientOptions are for all clients of the library.
func (o Options) clientOptions() []option.ClientOption {
	var all []option.ClientOption
	if o.Endpoint != "" {
		all = append(all, option.WithEndpoint(o.Endpoint), option.WithoutAuthentication(),
			option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())))
	}
	return append(all, o.extra...)
}

// Metadata is a registry.Metadata in Spanner. Each call takes five seconds at most
// with its retries, or as long as its context.
type Metadata struct {
	o      Options
	client *spanner.Client
	// slot is held by the one Put that is under way: they would abort each other.
	slot chan struct{}

	preparing chan struct{} // held by who makes the tables
	prepared  atomic.Bool   // the tables are there

	mu    sync.Mutex
	woken chan struct{} // guarded by mu
}

var _ registry.Metadata = (*Metadata)(nil)

// Open connects to a database, and makes its tables if they are missing, for
// which it must be allowed to change the schema. If the database does not answer
// that is no error: the first call after it has come up does what is left. Errors:
// ErrInvalid, or ErrUnavailable if it answers that it will not have us. The caller
// closes it.
func Open(ctx context.Context, o Options) (*Metadata, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if o.Keep == 0 {
		o.Keep = defaultKeep
	}
	client, err := spanner.NewClientWithConfig(ctx, o.Database, spanner.ClientConfig{
		// weir has its own metrics, and dials nobody else.
		DisableNativeMetrics: true,
		UserAgent:            "weir",
	}, o.clientOptions()...)
	if err != nil {
		return nil, registry.Wrap(registry.ErrUnavailable, err, "connect to "+o.Database)
	}
	m := &Metadata{o: o, client: client, slot: make(chan struct{}, 1), preparing: make(chan struct{}, 1)}
	if err := m.prepare(ctx, limit); err != nil && !transient(err) {
		client.Close()
		return nil, err
	}
	return m, nil
}

// Close ends the connections. Calls that are under way fail.
func (m *Metadata) Close() error {
	m.client.Close()
	return nil
}

// Get implements registry.Metadata.
func (m *Metadata) Get(ctx context.Context, key string) (registry.Record, error) {
	if err := registry.CheckKey(key); err != nil {
		return registry.Record{}, err
	}
	r := registry.Record{Key: key}
	var seq int64
	err := m.retry(ctx, "get "+key, func(ctx context.Context) error {
		row, err := m.client.Single().ReadRow(ctx, "weir_records", spanner.Key{key}, []string{"value", "seq"})
		if err != nil {
			return err
		}
		return row.Columns(&r.Value, &seq)
	})
	if spanner.ErrCode(err) == codes.NotFound {
		return registry.Record{}, &registry.Error{Kind: registry.ErrNotFound, Text: fmt.Sprintf("there is nothing under %q", key)}
	}
	if err != nil {
		return registry.Record{}, err
	}
	r.Rev = uint64(seq)
	return r, nil
}

// Head implements registry.Metadata.
func (m *Metadata) Head(ctx context.Context) (uint64, error) {
	var seq int64
	err := m.retry(ctx, "read the head", func(ctx context.Context) error {
		row, err := m.client.Single().ReadRow(ctx, "weir_head", spanner.Key{0}, []string{"seq"})
		if spanner.ErrCode(err) == codes.NotFound {
			return nil // there was no change
		}
		if err != nil {
			return err
		}
		return row.Columns(&seq)
	})
	return uint64(seq), err
}

// List implements registry.Metadata. It holds nothing between its steps.
func (m *Metadata) List(ctx context.Context, prefix, after string) iter.Seq2[registry.Record, error] {
	return func(yield func(registry.Record, error) bool) {
		for after := after; ; {
			rows, more, err := m.listPage(ctx, prefix, after)
			if err != nil {
				yield(registry.Record{}, err)
				return
			}
			for _, r := range rows {
				if r.Key > after && strings.HasPrefix(r.Key, prefix) && !yield(r, nil) {
					return
				}
			}
			if !more {
				return
			}
			after = rows[len(rows)-1].Key
		}
	}
}

// listPage gives the next records, and perhaps some before if prefix or after is
// not UTF-8, which Spanner would not take.
func (m *Metadata) listPage(ctx context.Context, prefix, after string) (rows []registry.Record, more bool, err error) {
	st := spanner.Statement{
		SQL:    `SELECT key, value, seq FROM weir_records WHERE key > @after AND STARTS_WITH(key, @prefix) ORDER BY key LIMIT @page`,
		Params: map[string]any{"after": valid(after), "prefix": valid(prefix), "page": int64(page)},
	}
	rows, err = m.query(ctx, "list "+prefix, st, nil)
	return rows, len(rows) == page, err
}

// valid is the longest beginning of s that is UTF-8.
func valid(s string) string {
	for i, r := range s {
		if r == '\ufffd' && !strings.HasPrefix(s[i:], "\ufffd") {
			return s[:i]
		}
	}
	return s
}

// Changes implements registry.Metadata. It holds nothing between its steps.
func (m *Metadata) Changes(ctx context.Context, after uint64) iter.Seq2[registry.Record, error] {
	return func(yield func(registry.Record, error) bool) {
		for after := after; ; {
			rows, err := m.changesPage(ctx, after)
			if err != nil {
				yield(registry.Record{}, err)
				return
			}
			for _, r := range rows {
				if !yield(r, nil) {
					return
				}
			}
			if len(rows) < page {
				return
			}
			after = rows[len(rows)-1].Rev
		}
	}
}

// changesPage gives the next changes. That some before them have been trimmed is
// read at the same time as they are, and with them: the newest change is always
// kept, so where nothing follows nothing is missing.
func (m *Metadata) changesPage(ctx context.Context, after uint64) ([]registry.Record, error) {
	from := int64(min(after, 1<<63-1))
	st := spanner.Statement{
		SQL: `SELECT key, value, seq, (SELECT trimmed FROM weir_head WHERE id = 0) FROM weir_changes
			WHERE seq > @after ORDER BY seq LIMIT @page`,
		Params: map[string]any{"after": from, "page": int64(page)},
	}
	var trimmed int64
	rows, err := m.query(ctx, "read the changes", st, &trimmed)
	if err == nil && len(rows) > 0 && trimmed > from {
		return nil, &registry.Error{Kind: registry.ErrGone,
			Text: fmt.Sprintf("the changes after %d are asked for, and those up to %d are no longer kept", after, trimmed)}
	}
	return rows, err
}

// query gives a page of records, and from a fourth column a number if that is not
// nil.
func (m *Metadata) query(ctx context.Context, doing string, st spanner.Statement, number *int64) ([]registry.Record, error) {
	var rows []registry.Record
	err := m.retry(ctx, doing, func(ctx context.Context) error {
		rows = nil
		return m.client.Single().Query(ctx, st).Do(func(row *spanner.Row) error {
			var r registry.Record
			var seq int64
			to := []any{&r.Key, &r.Value, &seq}
			if number != nil {
				to = append(to, number)
			}
			if err := row.Columns(to...); err != nil {
				return err
			}
			r.Rev = uint64(seq)
			rows = append(rows, r)
			return nil
		})
	})
	return rows, err
}

// Woken implements registry.Metadata. It tells of this process's Puts alone.
func (m *Metadata) Woken() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.woken == nil {
		m.woken = make(chan struct{})
	}
	return m.woken
}

func (m *Metadata) wake() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.woken != nil {
		close(m.woken)
		m.woken = nil
	}
}

// retry does something until it succeeds, fails for good or the time is over.
// NotFound is left as it is, all else is ErrUnavailable.
func (m *Metadata) retry(ctx context.Context, doing string, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if !m.prepared.Load() {
		if err := m.prepare(ctx, prepareLimit); err != nil {
			return err
		}
	}
	return retried(ctx, doing, do)
}

func retried(ctx context.Context, doing string, do func(context.Context) error) error {
	var last error
	for wait := pause; ; wait = min(2*wait, 10*pause) {
		if err := ctx.Err(); err != nil {
			return registry.Wrap(registry.ErrUnavailable, errors.Join(err, last), doing)
		}
		err := do(ctx)
		var ours *registry.Error
		switch {
		case err == nil || errors.As(err, &ours) || spanner.ErrCode(err) == codes.NotFound && !noDatabase(err):
			return err
		case !transient(err):
			return registry.Wrap(registry.ErrUnavailable, err, doing)
		}
		last = err
		again := time.NewTimer(wait)
		select {
		case <-again.C:
		case <-ctx.Done():
		}
		again.Stop()
	}
}

// noDatabase tells that there is no such database, or no such table, from that
// there is no such row.
func noDatabase(err error) bool {
	return !errors.Is(err, spanner.ErrRowNotFound)
}

// transient reports whether an error may pass.
func transient(err error) bool {
	switch spanner.ErrCode(err) {
	case codes.Unavailable, codes.Aborted, codes.DeadlineExceeded, codes.Canceled, codes.Internal, codes.Unknown, codes.ResourceExhausted:
		return true
	}
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}
