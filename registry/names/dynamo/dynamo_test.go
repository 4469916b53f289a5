package dynamo_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/conformance/lab"
	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/names/dynamo"
)

// A server is a real server with as many tables as the test wants.
type server struct {
	addr   string
	tables *atomic.Int64
}

func start(t testing.TB) server {
	t.Helper()
	t.Setenv("AWS_ACCESS_KEY_ID", "test")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "test")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	_, addr := lab.StartDynalite(t)
	return server{addr, new(atomic.Int64)}
}

// fresh is the options of a table that is not there yet.
func (s server) fresh() dynamo.Options {
	return dynamo.Options{Table: fmt.Sprintf("weir-%d", s.tables.Add(1)), Region: "eu-west-1", Endpoint: "http://" + s.addr}
}

func open(t testing.TB, o dynamo.Options) *dynamo.DB {
	t.Helper()
	m, err := dynamo.Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// A node is one that can be opened once more.
type node struct {
	registry.Metadata
	o dynamo.Options
}

func (n node) Reopen(t *testing.T) registry.Metadata { return open(t, n.o) }

// TestMetadata has three nodes pass for one. Requests and answers of two of them
// get lost, and requests come twice: what is tried again must not show. With
// WEIR_SOAK it also has one sound node, which then makes larger batches.
func TestMetadata(t *testing.T) {
	s := start(t)
	t.Run("three", func(t *testing.T) {
		conformance.TestMetadata(t, func(t *testing.T) registry.Metadata {
			o := s.fresh()
			n := &network{lose: 3, deaf: 7, again: 10}
			t.Cleanup(n.work.Wait)
			nodes := []registry.Metadata{open(t, o), open(t, through(o, n)), open(t, through(o, n))}
			return node{conformance.Alternating(nodes...), o}
		})
	})
	if soak() == 0 {
		return
	}
	t.Run("one", func(t *testing.T) {
		conformance.TestMetadata(t, func(t *testing.T) registry.Metadata {
			o := s.fresh()
			return node{open(t, o), o}
		})
	})
}

// TestBatches has one node asked for more at once than fits into a batch, by
// number, by bytes, and for one key again and again.
func TestBatches(t *testing.T) {
	m := open(t, start(t).fresh())
	ctx := context.Background()
	var group sync.WaitGroup
	var mu sync.Mutex
	kept := map[string]registry.Record{}
	put := func(key string, size int) {
		group.Go(func() {
			r, err := m.Put(ctx, key, 0, bytes.Repeat([]byte{'v'}, size))
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil && kept[key].Rev == 0:
				kept[key] = r
			case err == nil || !errors.Is(err, registry.ErrConflict):
				t.Errorf("%s: %+v, %v", key, r.Rev, err)
			}
		})
	}
	for i := range 40 {
		put(fmt.Sprintf("small%02d", i), 1)
		put("same", 2)
		if i < 5 {
			put(fmt.Sprintf("large%d", i), registry.MaxValue)
		}
	}
	group.Wait()
	var feed []registry.Record
	batches, most := map[uint64]int{}, 0
	for r, err := range m.Changes(ctx, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if k := kept[r.Key]; k.Rev != r.Rev || !bytes.Equal(k.Value, r.Value) {
			t.Errorf("%s was acknowledged at %d and is at %d", r.Key, k.Rev, r.Rev)
		}
		batches[r.Rev>>10]++
		most = max(most, batches[r.Rev>>10])
		feed = append(feed, r)
	}
	if len(feed) != 46 || most < 2 || most > 16 {
		t.Fatalf("%d changes in %d batches of at most %d", len(feed), len(batches), most)
	}
	for i, r := range feed[1:] { // wherever in a batch one begins, the rest of it follows
		for next, err := range m.Changes(ctx, feed[i].Rev) {
			if err != nil || next.Rev != r.Rev {
				t.Errorf("after %d comes %d, %v; want %d", feed[i].Rev, next.Rev, err, r.Rev)
			}
			break
		}
	}
}

// BenchmarkPut puts from several goroutines of one node, or of several nodes.
func BenchmarkPut(b *testing.B) {
	s := start(b)
	for _, c := range []struct{ nodes, writers int }{{1, 1}, {1, 16}, {4, 4}} {
		b.Run(fmt.Sprintf("nodes=%d,writers=%d", c.nodes, c.writers), func(b *testing.B) {
			o := s.fresh()
			nodes := make([]*dynamo.DB, c.nodes)
			for i := range nodes {
				nodes[i] = open(b, o)
			}
			var group sync.WaitGroup
			b.ResetTimer()
			for w := range c.nodes * c.writers {
				group.Go(func() {
					var rev uint64
					for range b.N / (c.nodes * c.writers) {
						r, err := nodes[w%c.nodes].Put(context.Background(), fmt.Sprint(w), rev, []byte("value"))
						if err != nil {
							b.Error(err)
							return
						}
						rev = r.Rev
					}
				})
			}
			group.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "puts/s")
		})
	}
}
