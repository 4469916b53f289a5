package relay_test

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/entitle"
	"github.com/weir-registry/weir/registry/relay"
)

// table is a database in memory.
type table struct {
	mu    sync.Mutex
	log   []registry.Record // every change; its Rev is its place, from 1
	woken chan struct{}
}

func (d *table) write(key string, what any) uint64 {
	value, err := json.Marshal(what)
	if err != nil {
		panic(err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if what == nil {
		value = nil
	}
	d.log = append(d.log, registry.Record{Key: key, Value: value, Rev: uint64(len(d.log)) + 1})
	close(d.woken)
	d.woken = make(chan struct{})
	return uint64(len(d.log))
}

func (d *table) Get(context.Context, string) (registry.Record, error) {
	return registry.Record{}, registry.Errorf(registry.ErrNotFound, "not asked for here")
}

func (d *table) Put(context.Context, string, uint64, []byte) (registry.Record, error) {
	return registry.Record{}, registry.Errorf(registry.ErrConflict, "not asked for here")
}

func (d *table) Head(context.Context) (uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return uint64(len(d.log)), nil
}

func (d *table) List(context.Context, string, string) iter.Seq2[registry.Record, error] {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := map[string]registry.Record{}
	for _, r := range d.log {
		if now[r.Key] = r; r.Value == nil {
			delete(now, r.Key)
		}
	}
	var list []registry.Record
	for _, r := range now {
		list = append(list, r)
	}
	slices.SortFunc(list, func(a, b registry.Record) int { return cmp.Compare(a.Key, b.Key) })
	return each(list)
}

func (d *table) Changes(_ context.Context, after uint64) iter.Seq2[registry.Record, error] {
	d.mu.Lock()
	defer d.mu.Unlock()
	return each(slices.Clone(d.log[min(after, uint64(len(d.log))):]))
}

func (d *table) Woken() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.woken
}

func each(list []registry.Record) iter.Seq2[registry.Record, error] {
	return func(yield func(registry.Record, error) bool) {
		for _, r := range list {
			if !yield(r, nil) {
				return
			}
		}
	}
}

// real is a node with the replica that nodes have.
type real struct {
	rep    *entitle.Replica
	board  *relay.Board
	client *relay.Client
	url    string
}

func startReal(t testing.TB, p *pki, name, file string, db *table, next ...string) *real {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	rep, err := entitle.Open(entitle.Options{File: file, Authority: db != nil, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	n := &real{rep: rep, board: relay.NewBoard(nil)}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	if db != nil {
		wg.Go(func() { _ = rep.Follow(ctx, db) })
	}
	conf := p.config(name)
	if len(next) > 0 {
		n.client, err = relay.NewClient(relay.Options{Nodes: next, Dial: (&tls.Dialer{Config: conf}).DialContext, Copy: rep, Board: n.board, Log: quiet})
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() { n.client.Run(ctx) })
	}
	h := relay.New(relay.Config{Source: rep, Board: n.board, Log: quiet, Node: func(r *http.Request) string { return r.TLS.PeerCertificates[0].Subject.CommonName }})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n.url = "https://" + l.Addr().String()
	server := &http.Server{Handler: h, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	go server.Serve(tls.NewListener(l, conf))
	t.Cleanup(func() {
		cancel()
		server.Close()
		wg.Wait()
		if err := rep.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// realChain is a database and three levels of nodes with real replicas.
func realChain(t testing.TB) (db *table, origin, shield, edge *real) {
	p := newPKI(t)
	db = &table{woken: make(chan struct{})}
	db.write("e/database", "db-1")
	db.write("e/account/alice", registry.Account{Name: "alice", UID: "u1", Kind: registry.User})
	origin = startReal(t, p, "origin", "", db)
	shield = startReal(t, p, "shield", filepath.Join(t.TempDir(), "entitlements"), nil, origin.url)
	edge = startReal(t, p, "edge", filepath.Join(t.TempDir(), "entitlements"), nil, shield.url)
	conformance.Eventually(t, "all are known", func() bool { return edge.rep.State().Whole() && len(origin.board.List()) == 2 })
	return db, origin, shield, edge
}

// TestReplicas: with the replicas that nodes have, a token that is made at the
// top is good at the bottom, and is not once it has been revoked; and what the
// nodes have is the same.
func TestReplicas(t *testing.T) {
	t.Parallel()
	db, origin, shield, edge := realChain(t)
	secret := registry.NewTokenText()
	hash := registry.HashToken(secret)
	made := db.write("e/token/t1", registry.Token{ID: "t1", Hash: hash[:], Owner: "alice", UID: "u1", Kind: "token"})
	if without, err := origin.board.Wait(t.Context(), made, func(registry.NodeStanding) {}); err != nil || len(without) > 0 {
		t.Fatalf("without it: %v; %v", without, err)
	}
	who, err := edge.rep.Token(secret, from)
	if err != nil || who.Name != "alice" {
		t.Fatalf("%+v, %v", who, err)
	}
	revoked := db.write("e/token/t1", nil)
	reached := 0
	if without, err := origin.board.Wait(t.Context(), revoked, func(registry.NodeStanding) { reached++ }); err != nil || len(without) > 0 || reached != 2 {
		t.Fatalf("reached %d, not %v; %v", reached, without, err)
	}
	if _, err := edge.rep.Token(secret, from); registry.KindOf(err) != registry.ErrUnauthenticated {
		t.Errorf("a revoked token: %v", err)
	}
	for i := range 3000 {
		db.write(fmt.Sprint("e/grant/", i%700), registry.Grant{ID: fmt.Sprint(i % 700), To: "user:alice", UID: "u1", Right: "pull oci:docker.io/*"})
	}
	conformance.Eventually(t, "all have the same", func() bool {
		a, b, c := origin.rep.State(), shield.rep.State(), edge.rep.State()
		return a.Version >= revoked+3000 && a.Version == b.Version && b.Version == c.Version && a.Hash == b.Hash && b.Hash == c.Hash
	})
	// And the lease goes on.
	conformance.Eventually(t, "the edge is confirmed", func() bool { return time.Since(edge.rep.State().Confirmed) < 600*time.Millisecond })
}

// BenchmarkReplicas is from a write to the database to the same version at the
// bottom, with real replicas.
func BenchmarkReplicas(b *testing.B) {
	db, _, _, edge := realChain(b)
	var took []time.Duration
	tick := time.NewTicker(3 * time.Millisecond)
	defer tick.Stop()
	for i := 0; b.Loop(); i++ {
		<-tick.C
		begun := time.Now()
		v := db.write(fmt.Sprint("e/grant/", i%1000), registry.Grant{ID: fmt.Sprint(i % 1000), To: "user:alice", UID: "u1", Right: "pull oci:*"})
		if err := edge.rep.Wait(b.Context(), v); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(begun))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs/median")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "µs/p99")
}
