package conformance_test

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/lab"
	"github.com/weir-registry/weir/conformance/wan"
)

// TestChainStrangers: a node whose certificate is no good is given nothing by
// the node behind, says why in its log and counts it. Who may do what it is not
// told either, so that it serves nobody.
func TestChainStrangers(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		name string
		cert func(t *testing.T, top *wan.Topology, edge *wan.Node) (cert, key string)
		log  string // what the edge's log says of it
		told bool   // whether the shield refuses it by a reason, or TLS does
	}{
		{"expired", func(t *testing.T, top *wan.Topology, edge *wan.Node) (string, string) {
			return top.Authority.Issue(wan.Certificate{Name: edge.Name, Hosts: []string{"127.0.0.1"}, From: now.Add(-48 * time.Hour), Until: now.Add(-time.Hour)})
		}, "expired", true},
		{"not yet valid", func(t *testing.T, top *wan.Topology, edge *wan.Node) (string, string) {
			return top.Authority.Issue(wan.Certificate{Name: edge.Name, Hosts: []string{"127.0.0.1"}, From: now.Add(time.Hour), Until: now.Add(48 * time.Hour)})
		}, "not valid before", true},
		{"of another authority", func(t *testing.T, _ *wan.Topology, edge *wan.Node) (string, string) {
			return wan.NewAuthority(t).Issue(wan.Certificate{Name: edge.Name, Hosts: []string{"127.0.0.1"}})
		}, "certificate", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			u := wan.StartUpstream(t)
			top := wan.LayOut(t, u, wan.Plan{Edges: 1, Shields: 1})
			shield, edge := top.Shields[0], top.Edges[0]
			cert, key := c.cert(t, top, edge)
			chainRecertify(t, edge, cert, key)
			shield.Start()
			edge.Launch()
			m := u.Image(chainRepo, "1", u.Blob(100_000, "for a stranger"))
			client := wan.NewClient(t, 20*time.Second)
			// It knows nothing of who may do what, and so lets nobody do anything.
			lab.Eventually(t, 10*time.Second, "the edge answers", func() error {
				if a := client.Get(t.Context(), chainTag(edge.Door, "1", m)); a.Code != http.StatusServiceUnavailable {
					return fmt.Errorf("%d, %v", a.Code, a.Err)
				}
				return nil
			})
			if resp, err := http.Get("http://" + edge.Ops + "/readyz"); err != nil || resp.StatusCode != http.StatusServiceUnavailable {
				t.Errorf("it is ready: %v, %v", resp, err)
			}
			if n := shield.UpstreamRequests(); n != 0 {
				t.Errorf("the shield asked the upstream %d times for a stranger", n)
			}
			lab.Eventually(t, 10*time.Second, "a line in the edge's log", func() error {
				for line := range strings.Lines(edge.Log()) {
					if strings.Contains(line, "cannot be reached") && strings.Contains(line, c.log) {
						return nil
					}
				}
				return fmt.Errorf("none that says %q", c.log)
			})
			if n := edge.Metric("weir_events_total", `event="node down"`); n < 1 {
				t.Error("the edge does not count that it lost its shield")
			}
			if n := shield.Metric("weir_events_total", `event="node refused"`); n < 1 {
				t.Error("the shield does not count that it refused somebody")
			}
			if c.told && !strings.Contains(shield.Log(), "node refused") {
				t.Error("the shield's log does not say that it refused somebody")
			}
		})
	}
}

// chainRecertify gives a node that does not run another certificate.
func chainRecertify(t *testing.T, n *wan.Node, cert, key string) {
	t.Helper()
	text, err := os.ReadFile(n.Config)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "tls: "); ok {
			ca := rest[strings.Index(rest, "ca: "):]
			line = fmt.Sprintf("tls: {cert: %q, key: %q, %s", cert, key, ca)
		}
		out = append(out, line)
	}
	if err := os.WriteFile(n.Config, []byte(strings.Join(out, "")), 0o600); err != nil {
		t.Fatal(err)
	}
}
