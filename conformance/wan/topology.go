package wan

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/lab"
)

// tiersLimit is how long a node that is ready may take until it listens for
// the nodes in front of it.
const tiersLimit = 3 * time.Second

// StoreDir as a [Plan]'s Store is a directory of the test.
const StoreDir = "dir"

// A Plan says which nodes there are and what lies between them. Edges ask the
// shields, or what is behind where there are none; shields ask the origin
// node; the last, and any whose way back is dead, ask the upstream.
type Plan struct {
	// Edges and Shields are how many there are; at least one edge.
	Edges, Shields int
	// Origin says whether there is an origin node behind.
	Origin bool
	// Origins is how many there are, if there are several: all others have a line
	// to each of them. They need a Metadata that they can share.
	Origins int
	// Metadata is the origin nodes' origin.metadata; "": a file of their own.
	Metadata string
	// Store is the last nodes' origin.blobs: [StoreDir], or an address such
	// as "s3://bucket?endpoint=…"; "": none.
	Store string
	// Bypass is the nodes' setting: "upstream" or "none"; "": the default.
	Bypass string
	// Peers says whether the edges share their disks.
	Peers bool

	// Clients is the line of each edge's clients; nil: they connect straight.
	Clients *Shape
	// Edge is the line from an edge to what is behind it. With one shield (or
	// none) each edge has a line of its own. Several shields have one line
	// each, which all edges share: nodes share out what there is by the
	// addresses of those behind, and so must know them by the same ones.
	Edge Shape
	// Shield is each shield's line to the origin node.
	Shield Shape
	// Upstream is each node's own line to the upstream.
	Upstream Shape

	// Fresh is for how long a tag counts without asking again; 0: an hour.
	Fresh time.Duration
	// Memory and Disk are the nodes' caches; "": 64MiB and 8GiB.
	Memory, Disk string
	// Private says that anonymous clients may pull nothing.
	Private bool
	// Access is further YAML for every node's access, its lines indented by two.
	Access string
	// More is further YAML for every node, at the top level.
	More string
}

// A Node is a weir of a [Topology].
type Node struct {
	*lab.Weir
	// Name is "edge-0", "shield-0", "origin", and so on.
	Name string
	// Door is where its clients connect, "http://…": its line from clients if
	// the plan has one.
	Door string
	// Tiers is where nodes in front connect; "": none does.
	Tiers string
	// Front is the line from its clients, nil if there is none; Behind are
	// those to the nodes behind, in the order of its configuration; Upstream
	// is the one to the upstream.
	Front    *Link
	Behind   []*Link
	Upstream *Link
	// Store is the directory of its origin.blobs, with [StoreDir].
	Store string

	t testing.TB
}

// A Topology is nodes, and lines between them.
type Topology struct {
	Edges, Shields []*Node
	// Origin is nil if the plan has none. Origins are it and the others.
	Origin  *Node
	Origins []*Node
	// Upstream is the registry behind, Authority what nodes' certificates are
	// signed by.
	Upstream  *Upstream
	Authority *Authority

	t    testing.TB
	plan Plan
	used map[string]bool // addresses on which nothing listens yet
}

// Start lays out a topology, starts its nodes, those behind first, and waits
// until each is ready and listens for those in front of it.
func Start(t testing.TB, u *Upstream, p Plan) *Topology {
	t.Helper()
	top := LayOut(t, u, p)
	for _, n := range top.Nodes() {
		n.Start()
	}
	return top
}

// LayOut starts the lines and writes the nodes' configurations, and starts no
// node.
func LayOut(t testing.TB, u *Upstream, p Plan) *Topology {
	t.Helper()
	if p.Edges < 1 {
		t.Fatal("a topology without an edge")
	}
	top := &Topology{Upstream: u, Authority: NewAuthority(t), t: t, plan: p, used: map[string]bool{}}
	if p.Origin {
		p.Origins = max(p.Origins, 1)
	}
	for i := range p.Origins {
		name := "origin"
		if i > 0 {
			name = fmt.Sprintf("origin-%d", i)
		}
		top.Origins = append(top.Origins, top.node(name, true))
		top.Origin = top.Origins[0]
	}
	for i := range p.Shields {
		top.Shields = append(top.Shields, top.node(fmt.Sprintf("shield-%d", i), true))
	}
	for i := range p.Edges {
		top.Edges = append(top.Edges, top.node(fmt.Sprintf("edge-%d", i), p.Peers))
	}
	top.join()
	for _, n := range top.Nodes() {
		top.configure(n)
	}
	return top
}

// Nodes are all nodes, those behind first.
func (top *Topology) Nodes() []*Node {
	return slices.Concat(top.Origins, top.Shields, top.Edges)
}

// Doors are where the edges' clients connect.
func (top *Topology) Doors() []string {
	var doors []string
	for _, n := range top.Edges {
		doors = append(doors, n.Door)
	}
	return doors
}

// FromUpstream is what the upstream's lines have carried, all nodes' together:
// what the upstream's side of a chain costs.
func (top *Topology) FromUpstream() Traffic {
	var links []*Link
	for _, n := range top.Nodes() {
		links = append(links, n.Upstream)
	}
	return Sum(links...)
}

// FromBehind is what the lines between these nodes and those behind them have
// carried.
func FromBehind(nodes ...*Node) Traffic {
	var links []*Link
	for _, n := range nodes {
		links = append(links, n.Behind...)
	}
	return Sum(links...)
}

func (top *Topology) node(name string, tiers bool) *Node {
	n := &Node{Name: name, t: top.t}
	// An address is free until its node starts, and so could be given twice.
	for n.Weir == nil || top.used[n.Addr] || top.used[n.Ops] || n.Addr == n.Ops {
		n.Weir = lab.NewWeir(top.t, filepath.Join(top.t.TempDir(), "data"), "")
	}
	top.used[n.Addr], top.used[n.Ops] = true, true
	n.Door = n.URL
	for tiers && (n.Tiers == "" || top.used[n.Tiers]) {
		n.Tiers = lab.FreeAddr(top.t)
	}
	top.used[n.Tiers] = true
	n.Upstream = StartLink(top.t, top.Upstream.Addr, top.plan.Upstream)
	return n
}

// join draws the lines between the nodes.
func (top *Topology) join() {
	p := top.plan
	toOrigin := lines(top.t, top.Origins, p.Shield)
	for _, s := range top.Shields {
		s.Behind = toOrigin()
	}
	toBehind := lines(top.t, top.Shields, p.Edge)
	if len(top.Shields) == 0 {
		toBehind = lines(top.t, top.Origins, p.Edge)
	}
	for _, e := range top.Edges {
		e.Behind = toBehind()
		if p.Clients != nil {
			e.Front = StartLink(top.t, e.Addr, *p.Clients)
			e.Door = "http://" + e.Front.Addr
		}
	}
}

// lines draws what leads to nodes behind, for one node after the other: to a
// single one each has a line of its own, several have one each, which all share.
func lines(t testing.TB, behind []*Node, s Shape) func() []*Link {
	draw := func() []*Link {
		var all []*Link
		for _, b := range behind {
			all = append(all, StartLink(t, b.Tiers, s))
		}
		return all
	}
	if len(behind) < 2 {
		return draw
	}
	shared := draw()
	return func() []*Link { return shared }
}

// configure writes a node's configuration.
func (top *Topology) configure(n *Node) {
	p := top.plan
	or := func(s, otherwise string) string {
		if s == "" {
			return otherwise
		}
		return s
	}
	fresh := p.Fresh
	if fresh == 0 {
		fresh = time.Hour
	}
	cert, key := top.Authority.Issue(Certificate{Name: n.Name, Hosts: top.hosts(n)})
	var b strings.Builder
	fmt.Fprintf(&b, "cache: {memory: %s, disk: %s}\n", or(p.Memory, "64MiB"), or(p.Disk, "8GiB"))
	fmt.Fprintf(&b, "tls: {cert: %q, key: %q, ca: %q}\n", cert, key, top.Authority.CA)
	if n.Tiers != "" {
		fmt.Fprintf(&b, "tiers: %q\n", n.Tiers)
	}
	if len(n.Behind) > 0 {
		var next []string
		for _, l := range n.Behind {
			next = append(next, "https://"+l.Addr)
		}
		fmt.Fprintf(&b, "next: [%s]\n", quoted(next))
		if p.Bypass != "" {
			fmt.Fprintf(&b, "bypass: %s\n", p.Bypass)
		}
	}
	if p.Peers && slices.Contains(top.Edges, n) {
		var peers []string
		for _, e := range top.Edges {
			peers = append(peers, "https://"+e.Tiers)
		}
		fmt.Fprintf(&b, "peers: {self: %q, nodes: [%s]}\n", "https://"+n.Tiers, quoted(peers))
	}
	if len(n.Behind) == 0 {
		top.origin(&b, n)
	}
	fmt.Fprintf(&b, "oci:\n  default: docker.io\n  upstreams:\n    docker.io: {url: %q, fresh: %v, stale: 720h}\n", "http://"+n.Upstream.Addr, fresh)
	// No npm registry to find: what is measured here is images.
	b.WriteString("npm: {upstreams: {none: {url: \"http://127.0.0.1:1\"}}}\n")
	anonymous := `"pull oci:docker.io/*"`
	if p.Private {
		anonymous = ""
	}
	fmt.Fprintf(&b, "access:\n  anonymous: [%s]\n%s", anonymous, p.Access)
	b.WriteString(p.More)
	n.Configure(b.String())
}

// origin writes what a node without others behind it keeps, and where.
func (top *Topology) origin(b *strings.Builder, n *Node) {
	var parts []string
	if store := top.plan.Store; store != "" {
		if store == StoreDir {
			n.Store = filepath.Join(top.t.TempDir(), "origin")
			if err := os.Mkdir(n.Store, 0o700); err != nil {
				top.t.Fatal(err)
			}
			store = "file://" + n.Store
		}
		parts = append(parts, fmt.Sprintf("blobs: %q", store))
	}
	if top.plan.Metadata != "" {
		parts = append(parts, fmt.Sprintf("metadata: %q", top.plan.Metadata))
	}
	if len(parts) > 0 {
		fmt.Fprintf(b, "origin: {%s}\n", strings.Join(parts, ", "))
	}
}

// hosts are the addresses that others know a node by.
func (top *Topology) hosts(n *Node) []string {
	hosts := []string{"127.0.0.1"}
	for _, front := range top.Nodes() {
		for _, l := range front.Behind {
			host, _, err := net.SplitHostPort(l.Addr)
			if err == nil && l.target == n.Tiers && !slices.Contains(hosts, host) {
				hosts = append(hosts, host)
			}
		}
	}
	return hosts
}

func quoted(list []string) string {
	var q []string
	for _, s := range list {
		q = append(q, fmt.Sprintf("%q", s))
	}
	return strings.Join(q, ", ")
}

// Start starts the node, which must not be running, on the data it has, and
// waits until it is ready and listens for the nodes in front of it.
func (n *Node) Start() {
	n.t.Helper()
	n.Weir.Start()
	if n.Tiers == "" {
		return
	}
	lab.Eventually(n.t, tiersLimit, n.Name+" is ready and does not listen on its tiers address "+n.Tiers+
		", so nodes in front cannot reach it", func() error {
		c, err := net.DialTimeout("tcp", n.Tiers, time.Second)
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// Restart stops the node as an operator would and starts it again on the same
// addresses and data.
func (n *Node) Restart() {
	n.t.Helper()
	n.Stop()
	n.Start()
}

// UpstreamRequests is how many answers of upstreams the node has counted.
func (n *Node) UpstreamRequests() int {
	n.t.Helper()
	return int(n.Metric("weir_upstream_requests_total"))
}

// TierHits is how many blobs the node has found in one of its tiers: "memory",
// "disk".
func (n *Node) TierHits(tier string) int {
	n.t.Helper()
	return int(n.Metric("weir_tier_hits_total", fmt.Sprintf("tier=%q", tier)))
}
