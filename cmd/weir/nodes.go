package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	stdlog "log"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weir-registry/weir/cachetiers"
	"github.com/weir-registry/weir/cachetiers/peer"
	"github.com/weir-registry/weir/registry"
)

const (
	// tiersConnections bounds the connections of nodes in front.
	tiersConnections = 4096
	// tiersHeader is the longest header of a node's request, in bytes: it has a
	// name and an address in it.
	tiersHeader = 64 << 10
	// tiersIdle is how long a node's idle connection stays: longer than the
	// node in front keeps it, so that it is not closed under a request.
	tiersIdle = 15 * time.Minute
)

// meetsOthers reports whether there are other nodes.
func (c *Config) meetsOthers() bool {
	return c.Tiers != "" || len(c.Next) > 0 || len(c.Peers.Nodes) > 0
}

// newBehind is what this node asks: the nodes behind it, or the upstreams.
func (n *node) newBehind(c *Config, log *slog.Logger, direct registry.Upstream) (registry.Upstream, error) {
	if len(c.Next) == 0 {
		return direct, nil
	}
	o := peer.Options{Nodes: nodes(c.Next), Dial: n.trust.Dial, Witness: n.witness, Meter: n.metrics, Log: log}
	if c.Bypass == bypassUpstream {
		o.Beyond = direct
	}
	var err error
	if n.next, err = peer.NewGroup(o); err != nil {
		return nil, fmt.Errorf("next: %w", err)
	}
	n.watched(n.next)
	return n.next, nil
}

// watched has the metrics say which nodes of a group answer.
func (n *node) watched(g *peer.Group) {
	for i, s := range g.States() {
		if !s.Self {
			n.metrics.Node(strings.TrimPrefix(s.Address, "https://"), func() bool { return g.States()[i].Up })
		}
	}
}

// share is what this node keeps of what it and its peers share: blobs in its
// disk tier, and names from behind.
type share struct {
	registry.Store
	names registry.Upstream
}

// Resolve implements registry.Upstream.
func (s share) Resolve(ctx context.Context, q registry.Question) (registry.Binding, io.ReadCloser, error) {
	return s.names.Resolve(ctx, q)
}

// newPeers is what is behind the memory tier, and whom to ask for names: this
// node's disk tier and those behind, or whichever of its peers a blob or a name
// belongs to.
func (n *node) newPeers(c *Config, log *slog.Logger, onDisk cachetiers.Options, disk registry.Store, behind registry.Upstream) (registry.Store, registry.Upstream, error) {
	if len(c.Peers.Nodes) == 0 {
		return disk, behind, nil
	}
	self := nodes([]string{c.Peers.Self})[0]
	all := nodes(c.Peers.Nodes)
	if !slices.Contains(all, self) {
		all = append(all, self)
	}
	var err error
	n.peers, err = peer.NewGroup(peer.Options{Nodes: all, Self: self, Dial: n.trust.Dial, Beyond: share{disk, behind}, Witness: n.witness, Meter: n.metrics, Log: log})
	if err != nil {
		return nil, nil, fmt.Errorf("peers: %w", err)
	}
	n.watched(n.peers)
	// What this disk happens to have is given from it; what it has not, and a
	// peer has, is not kept here too.
	onDisk.Keep = func(registry.Want) bool { return false }
	return cachetiers.NewTier(n.disks, n.peers, onDisk), n.peers, nil
}

// asked is a protocol's space, whose names are asked of up; which repository has
// what, of those behind, for a peer may have it because of another.
func (n *node) asked(sp registry.Space, up, behind registry.Upstream) registry.Space {
	sp.Upstream, sp.Authority = up, behind
	if n.next != nil {
		// Which registry a name belongs to is decided by who asks it: the node
		// behind.
		sp.Owns = nil
	}
	return sp
}

// listenTiers opens the socket for nodes in front, if there is to be one.
func (s *server) listenTiers() (net.Listener, error) {
	if s.node.tiers == nil {
		return nil, nil
	}
	l, err := listen("tiers", s.c.Tiers, tiersConnections)
	if err != nil {
		return nil, err
	}
	return tls.NewListener(l, s.node.trust.Server()), nil
}

// tiersServer serves nodes in front. Connections that are kept warm for it and
// have not been used yet do not hold up its end.
func (s *server) tiersServer(errorLog *stdlog.Logger) *http.Server {
	var unused unusedConns
	server := &http.Server{
		Handler:           s.node.tiers,
		ReadHeaderTimeout: readHeader,
		IdleTimeout:       tiersIdle,
		MaxHeaderBytes:    tiersHeader,
		ErrorLog:          errorLog,
		ConnState:         unused.note,
	}
	server.RegisterOnShutdown(unused.close)
	server.RegisterOnShutdown(s.node.entitled.front.Close) // streams without end
	return server
}

// unusedConns are a server's connections on which nothing has been asked: the
// server would wait some seconds for a first request when it is to stop.
type unusedConns struct {
	mu    sync.Mutex
	conns map[net.Conn]bool // guarded by mu
}

// note is for http.Server.ConnState.
func (u *unusedConns) note(c net.Conn, is http.ConnState) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if is != http.StateNew {
		delete(u.conns, c)
		return
	}
	if u.conns == nil {
		u.conns = map[net.Conn]bool{}
	}
	u.conns[c] = true
}

func (u *unusedConns) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for c := range u.conns {
		c.Close()
	}
}
