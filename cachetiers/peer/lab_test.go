package peer_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weir-registry/weir/cachetiers"
	"github.com/weir-registry/weir/cachetiers/peer"
	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/names"
)

// pki is one certificate that is its own authority, for all nodes of a test.
func pki(t *testing.T) (server *tls.Config, client peer.Dial) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "edge-1"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(root)
	cert := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	server = &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}}
	dialer := &tls.Dialer{Config: &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool, MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}}}
	return server, dialer.DialContext
}

// everyone admits everyone, and counts nodes.
type everyone struct{ nodes atomic.Int64 }

func (e *everyone) Admit(_ context.Context, c *registry.Call) error {
	if c.Who.Node && c.Who.Name == "edge-1" {
		e.nodes.Add(1)
	}
	return nil
}

// shield is a node behind, in this process.
type shield struct {
	t       *testing.T
	up      *conformance.Upstream
	guard   everyone
	service *registry.Service
	policy  registry.Policy
	addr    string
	conf    *tls.Config
	asked   atomic.Int64 // requests, pings apart
	handler http.Handler

	mu     sync.Mutex
	server *httptest.Server // guarded by mu; nil: down
	front  func(w http.ResponseWriter, r *http.Request) bool
}

func startShield(t *testing.T, conf *tls.Config, up *conformance.Upstream) *shield {
	t.Helper()
	s := &shield{t: t, up: up, conf: conf, policy: registry.Policy{Fresh: time.Hour, Negative: time.Millisecond}}
	s.service = &registry.Service{Names: new(names.Memory), Guard: &s.guard,
		Blobs: cachetiers.NewTier(cachetiers.NewMemory(64<<20), up, cachetiers.Options{Name: "memory"}),
		Spaces: map[string]registry.Space{"oci": {Upstream: up, Policy: func(registry.Name) registry.Policy { return s.policy },
			Documents: func(n registry.Name) bool { return n.Ref != "blob" }}}}
	s.handler = peer.New(peer.Config{Service: s.service, Node: func(r *http.Request) string { return r.TLS.PeerCertificates[0].Subject.CommonName }})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	s.serve(l)
	t.Cleanup(s.down)
	return s
}

func (s *shield) serve(l net.Listener) {
	server := &httptest.Server{Listener: l, TLS: s.conf.Clone(), Config: &http.Server{Handler: s, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}}
	server.StartTLS()
	s.mu.Lock()
	s.server = server
	s.mu.Unlock()
}

// up listens again on the address that it had.
func (s *shield) again() {
	s.t.Helper()
	l, err := net.Listen("tcp", s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	s.serve(l)
}

func (s *shield) down() {
	s.mu.Lock()
	server := s.server
	s.server = nil
	s.mu.Unlock()
	if server != nil {
		server.CloseClientConnections()
		server.Close()
	}
}

// intercept has f see each request first; f reports whether it has answered.
func (s *shield) intercept(f func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.front = f
}

func (s *shield) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	front := s.front
	s.mu.Unlock()
	if r.URL.Path != "/weir/v1/ping" {
		s.asked.Add(1)
	}
	if front == nil || !front(w, r) {
		s.handler.ServeHTTP(w, r)
	}
}

func (s *shield) url() string { return "https://" + s.addr }

func group(t *testing.T, o peer.Options) *peer.Group {
	t.Helper()
	g, err := peer.NewGroup(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

// pair is a shield and a group of it alone.
func pair(t *testing.T) (*shield, *peer.Group) {
	server, client := pki(t)
	s := startShield(t, server, new(conformance.Upstream))
	return s, group(t, peer.Options{Nodes: []string{s.url()}, Dial: client})
}

var tag = registry.Name{Space: "oci", Repo: "docker.io/library/alpine", Ref: "3"}

func whole(d registry.Descriptor) registry.Want {
	return registry.Want{Descriptor: d, From: tag, Length: -1}
}

func readAll(t *testing.T, src registry.Source, w registry.Want) []byte {
	t.Helper()
	b, err := src.Open(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	data, err := io.ReadAll(b)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func same(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("%s: %d bytes that are not the %d expected", what, len(got), len(want))
	}
}
