package conformance_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/lab"
)

// TestChainClients is several nodes as an operator makes them, by invitation,
// and real clients at two edges: what one edge has fetched costs the registries
// nothing when the other wants it, and with the shield and the registries dead
// both edges go on, also after a restart.
func TestChainClients(t *testing.T) {
	images, packages := lab.StartRegistry(t), newNpmLab(t)
	publishLeft(packages)
	files := lab.MakeBlobs(t, lab.Noise("layer", 3*mib))
	lab.Push(t, images.Addr, "library/thing:1", files)
	proxy := lab.StartProxy(t, images.URL)
	upstreams := fmt.Sprintf("oci:\n  default: docker.io\n  upstreams: {docker.io: {url: %q, fresh: 1h}}\n", proxy.URL) +
		fmt.Sprintf("npm:\n  upstreams: {public: {url: %q, fresh: 1h}}\n", packages.URL) + "access: {anonymous: [\"pull oci:*\", \"pull npm:*\"]}\n"

	tiers := lab.FreeAddr(t)
	shield := lab.StartWeir(t, upstreams+"tiers: "+tiers+"\n")
	var edges []*lab.Weir
	for i := range 2 {
		edge := lab.NewWeir(t, t.TempDir(), upstreams+"next: https://"+tiers+"\nbypass: none\n")
		chainJoin(t, shield, edge, fmt.Sprintf("edge-%d", i))
		edge.Start()
		edges = append(edges, edge)
	}

	chainUse(t, edges[0])
	cold := proxy.Count("", "") + len(packages.Requests(""))
	if cold == 0 {
		t.Fatal("the registries were not asked at all")
	}
	chainUse(t, edges[1])
	if n := proxy.Count("", "") + len(packages.Requests("")); n != cold {
		t.Errorf("the second edge cost the registries %d more requests", n-cold)
	}
	for _, e := range edges {
		if n := e.Metric("weir_upstream_requests_total", `upstream="docker.io"`) + e.Metric("weir_upstream_requests_total", `upstream="public"`); n != 0 {
			t.Errorf("an edge asked a registry itself, %v times", n)
		}
	}
	shield.Kill9()
	proxy.Down()
	packages.Close()
	for _, e := range edges {
		chainUse(t, e)
		e.Restart()
		chainUse(t, e)
	}
}

// chainJoin has edge, which does not run, join the shield, which does.
func chainJoin(t *testing.T, shield, edge *lab.Weir, name string) {
	t.Helper()
	out := lab.Run(t, 20*time.Second, lab.Command{Path: lab.Binary(t), Args: []string{"tiers", "invite", name, "-c", shield.Config}})
	code := regexp.MustCompile(`weir1_\S+`).FindString(out.Stdout)
	if code == "" {
		t.Fatalf("no code in %q", out.Stdout)
	}
	lab.Run(t, 20*time.Second, lab.Command{Path: lab.Binary(t), Args: []string{"tiers", "join", code, "-c", edge.Config}})
	if out = lab.Run(t, 20*time.Second, lab.Command{Path: lab.Binary(t), Args: []string{"tiers", "ls", "-c", shield.Config}}); !strings.Contains(out.Stdout, name) {
		t.Errorf("who has joined is not listed: %s", out.Stdout)
	}
}

// chainUse pulls an image and installs a package through a node, each with a
// client that has nothing yet.
func chainUse(t *testing.T, w *lab.Weir) {
	t.Helper()
	lab.Run(t, time.Minute, lab.Command{Path: lab.Tool(t, "crane"), Args: []string{"pull", "--insecure", w.Addr + "/docker.io/library/thing:1", t.TempDir() + "/thing.tar"}})
	h := newNpmHome(t, w.URL+"/npm/")
	h.run("npm", "install", "@acme/right", "--no-audit")
}
