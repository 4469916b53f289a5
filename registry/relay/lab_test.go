package relay_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/big"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/relay"
)

// replica is a copy of entitlements as the contract has it, in memory.
type replica struct {
	now  func() time.Time
	ring int // how many deltas it keeps

	mu        sync.Mutex
	database  string
	version   uint64
	records   map[string]registry.Record
	sum       [sha256.Size]byte // of all records, each added by xor
	confirmed time.Time
	deltas    []registry.Delta
	changed   chan struct{}
	uses      map[string]time.Time
	snapshots int // taken
	applied   int // deltas
	authority bool
}

func newReplica(database string) *replica {
	r := &replica{now: time.Now, ring: 4096, database: database, records: map[string]registry.Record{}, changed: make(chan struct{}), authority: database != ""}
	if r.authority {
		r.version = 1
	}
	return r
}

func sumOf(r registry.Record) [sha256.Size]byte {
	return sha256.Sum256(append(fmt.Appendf(nil, "%d %q ", r.Rev, r.Key), r.Value...))
}

func (r *replica) xorLocked(rec registry.Record) {
	for i, b := range sumOf(rec) {
		r.sum[i] ^= b
	}
}

func (r *replica) setLocked(rec registry.Record) {
	if old, ok := r.records[rec.Key]; ok {
		r.xorLocked(old)
		delete(r.records, rec.Key)
	}
	if rec.Value != nil {
		r.records[rec.Key] = rec
		r.xorLocked(rec)
	}
}

func (r *replica) turnLocked() {
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *replica) State() registry.Standing {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.authority {
		r.confirmed = r.now()
	}
	return registry.Standing{Database: r.database, Version: r.version, Hash: hex.EncodeToString(r.sum[:]), Records: len(r.records), Confirmed: r.confirmed}
}

func (r *replica) Changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

func (r *replica) Deltas(after uint64) ([]registry.Delta, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if after == r.version {
		return nil, true
	}
	for i, d := range r.deltas {
		if d.Prev == after {
			return slices.Clone(r.deltas[i:]), true
		}
	}
	return nil, false
}

// snapshot is what the replica writes.
type snapshot struct {
	Database string
	Version  uint64
	Records  []registry.Record
	Sum      []byte
}

func (r *replica) WriteSnapshot(w io.Writer) error {
	r.mu.Lock()
	s := snapshot{Database: r.database, Version: r.version, Records: slices.Collect(maps.Values(r.records)), Sum: slices.Clone(r.sum[:])}
	r.mu.Unlock()
	return json.NewEncoder(w).Encode(s)
}

func (r *replica) ReadSnapshot(from io.Reader) error {
	var s snapshot
	if err := json.NewDecoder(from).Decode(&s); err != nil {
		return registry.Wrap(registry.ErrCorrupt, err, "read a snapshot")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.database != "" && (r.database != s.Database || r.version > s.Version) {
		return registry.Errorf(registry.ErrConflict, "another database, or older")
	}
	fresh := newReplica("")
	for _, rec := range s.Records {
		fresh.setLocked(rec)
	}
	if string(fresh.sum[:]) != string(s.Sum) {
		return registry.Errorf(registry.ErrCorrupt, "a wrong snapshot")
	}
	r.database, r.version, r.records, r.sum, r.deltas = s.Database, s.Version, fresh.records, fresh.sum, nil
	r.snapshots++
	r.turnLocked()
	return nil
}

func (r *replica) Apply(ds []registry.Delta) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := r.version
	for _, d := range ds {
		if d.Prev != at || r.database == "" {
			return registry.Errorf(registry.ErrGone, "a gap after %d", at)
		}
		at = d.Version
	}
	for _, d := range ds {
		r.deltaLocked(d)
	}
	r.turnLocked()
	return nil
}

func (r *replica) deltaLocked(d registry.Delta) {
	for _, rec := range d.Records {
		r.setLocked(rec)
	}
	r.version = d.Version
	r.applied++
	if r.deltas = append(r.deltas, d); len(r.deltas) > r.ring {
		r.deltas = slices.Clone(r.deltas[len(r.deltas)-r.ring*3/4:])
	}
}

func (r *replica) Confirm(s registry.Standing) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.Database != r.database || s.Version != r.version || s.Hash != hex.EncodeToString(r.sum[:]) {
		return registry.Errorf(registry.ErrGone, "not what it should be")
	}
	if s.Confirmed.After(r.confirmed) {
		r.confirmed = s.Confirmed
	}
	return nil
}

func (r *replica) Wait(ctx context.Context, version uint64) error {
	for {
		changed := r.Changed()
		if r.State().Version >= version {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return registry.Wrap(registry.ErrUnavailable, ctx.Err(), "wait for a version")
		}
	}
}

func (r *replica) Uses() map[string]time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	uses := r.uses
	r.uses = nil
	return uses
}

// put makes one change of some records, as the authority does.
func (r *replica) put(records ...registry.Record) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := registry.Delta{Prev: r.version, Version: r.version + 1 + uint64(len(records))}
	for _, rec := range records {
		rec.Rev = d.Version
		d.Records = append(d.Records, rec)
	}
	r.deltaLocked(d)
	r.turnLocked()
	return d.Version
}

func (r *replica) counts() (snapshots, applied int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.snapshots, r.applied
}

func (r *replica) damage() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.setLocked(registry.Record{Key: "e/damaged", Value: []byte("x")})
}

func record(key, value string) registry.Record {
	return registry.Record{Key: key, Value: []byte(value)}
}

// pki is an authority that gives each node a certificate of its name.
type pki struct {
	t    testing.TB
	key  *ecdsa.PrivateKey
	root *x509.Certificate
	pool *x509.CertPool
}

func newPKI(t testing.TB) *pki {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p := &pki{t: t, key: key, pool: x509.NewCertPool()}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if p.root, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	p.pool.AddCert(p.root)
	return p
}

func (p *pki) config(name string) *tls.Config {
	p.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		p.t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, p.root, key.Public(), p.key)
	if err != nil {
		p.t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, RootCAs: p.pool, ClientCAs: p.pool,
		ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}}
}

// meter counts events.
type meter struct {
	registry.NoMeter
	mu     sync.Mutex
	events map[string]int
}

func (m *meter) Event(what, _ string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.events == nil {
		m.events = map[string]int{}
	}
	m.events[what]++
}

func (m *meter) count(what string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.events[what]
}

// logs keeps what is logged.
type logs struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// node is a node of a test: what it has, what it serves, whom it follows.
type node struct {
	t       testing.TB
	name    string
	tls     *tls.Config
	rep     *replica
	board   *relay.Board
	handler *relay.Handler
	client  *relay.Client
	meter   *meter
	log     *logs
	addr    string
	stop    context.CancelFunc // of the client
	over    chan struct{}      // closed when Run has returned

	mu     sync.Mutex
	server *http.Server
	front  func(w http.ResponseWriter, r *http.Request) bool
}

// setup is how a node is.
type setup struct {
	database string // it is the authority
	next     []string
	prefer   time.Duration
	now      func() time.Time
	config   func(*relay.Config)
	stopped  bool     // the client is not run
	rep      *replica // what it has; nil: nothing yet
}

func start(t testing.TB, p *pki, name string, s setup) *node {
	t.Helper()
	if s.now == nil {
		s.now = time.Now
	}
	n := &node{t: t, name: name, tls: p.config(name), rep: newReplica(s.database), board: relay.NewBoard(s.now), meter: &meter{}, log: &logs{}, over: make(chan struct{})}
	if s.rep != nil {
		n.rep = s.rep
	}
	n.rep.now = s.now
	log := slog.New(slog.NewTextHandler(n.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	c := relay.Config{Source: n.rep, Node: func(r *http.Request) string { return r.TLS.PeerCertificates[0].Subject.CommonName }, Board: n.board, Meter: n.meter, Log: log, Now: s.now}
	if len(s.next) > 0 {
		var err error
		n.client, err = relay.NewClient(relay.Options{Nodes: s.next, Dial: n.dial, Copy: n.rep, Board: n.board, Prefer: s.prefer, Meter: n.meter, Log: log, Now: s.now})
		if err != nil {
			t.Fatal(err)
		}
		c.Logins, c.Tokens, c.Used = n.client, n.client, n.client.Used
	}
	if s.config != nil {
		s.config(&c)
	}
	n.handler = relay.New(c)
	n.listen("127.0.0.1:0")
	t.Cleanup(n.down)
	if n.client != nil && !s.stopped {
		ctx, cancel := context.WithCancel(context.Background())
		n.stop = cancel
		go func() { defer close(n.over); n.client.Run(ctx) }()
		t.Cleanup(func() { cancel(); <-n.over })
	}
	return n
}

func (n *node) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return (&tls.Dialer{Config: n.tls}).DialContext(ctx, network, addr)
}

func (n *node) listen(addr string) {
	n.t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		n.t.Fatal(err)
	}
	n.addr = l.Addr().String()
	server := &http.Server{Handler: n, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	server.RegisterOnShutdown(n.handler.Close)
	n.mu.Lock()
	n.server = server
	n.mu.Unlock()
	go server.Serve(tls.NewListener(l, n.tls))
}

// down closes everything of the server at once.
func (n *node) down() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.server.Close()
}

// copied is a copy that has been kept over a restart.
func (n *node) copied() *replica {
	n.t.Helper()
	var text bytes.Buffer
	if err := n.rep.WriteSnapshot(&text); err != nil {
		n.t.Fatal(err)
	}
	r := newReplica("")
	if err := r.ReadSnapshot(&text); err != nil {
		n.t.Fatal(err)
	}
	r.snapshots = 0
	return r
}

// client is for requests of a node that has no Client.
func (p *pki) client(name string) *http.Client {
	tr := &http.Transport{TLSClientConfig: p.config(name), DisableCompression: true}
	p.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func (n *node) url() string { return "https://" + n.addr }

// intercept has f see each request first; f reports whether it has answered.
func (n *node) intercept(f func(w http.ResponseWriter, r *http.Request) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.front = f
}

func (n *node) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n.mu.Lock()
	front := n.front
	n.mu.Unlock()
	if front == nil || !front(w, r) {
		n.handler.ServeHTTP(w, r)
	}
}

// has waits until the node has exactly what another has.
func (n *node) has(as *node) {
	n.t.Helper()
	conformance.Eventually(n.t, n.name+" is like "+as.name, func() bool { return n.same(as) })
}

func (n *node) same(as *node) bool {
	a, b := n.rep.State(), as.rep.State()
	return a.Database == b.Database && a.Version == b.Version && a.Hash == b.Hash
}
