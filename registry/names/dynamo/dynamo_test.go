package dynamo_test

import (
	"context"
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

func TestMetadata(t *testing.T) {
	s := start(t)
	conformance.TestMetadata(t, func(t *testing.T) registry.Metadata {
		o := s.fresh()
		return node{open(t, o), o}
	})
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
