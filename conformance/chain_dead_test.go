package conformance_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/lab"
	"github.com/weir-registry/weir/conformance/wan"
	"github.com/weir-registry/weir/registry"
)

// standing is what a node says of its copy of the entitlements.
type standing struct {
	registry.Standing
	Past bool `json:"past"`
}

func standingOf(t *testing.T, n *wan.Node) standing {
	t.Helper()
	var s struct {
		Entitlements standing `json:"entitlements"`
	}
	out := n.MustCommand("", "status", "-o", "json")
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		t.Fatalf("%s: %v: %s", n.Name, err, out)
	}
	return s.Entitlements
}

// TestChainAllDead has an edge with everything behind it dead: entitled pulls of
// what it has go on, also after a restart, until nothing has been heard for
// max_staleness; what is told to be denied then is. When all is back so is the
// edge, and its copy is the origin's.
func TestChainAllDead(t *testing.T) {
	const staleness = 6 * time.Second
	c := startPrivate(t, wan.Plan{Edges: 2, Shields: 2,
		Access: fmt.Sprintf("  max_staleness: %v\n  past: {pull: deny}\n", staleness)},
		func(u *wan.Upstream) []wan.Blob { return []wan.Blob{u.Blob(1<<10, "small")} })
	e, token := c.Edges[0], c.token()
	if err := c.accepted(e, token.Secret); err != nil {
		t.Fatal(err)
	}
	dead := time.Now()
	c.Upstream.Down()
	c.Origin.Kill9()
	for _, s := range c.Shields {
		s.Kill9()
	}
	pulls := func(when string) {
		t.Helper()
		if a := c.client.Get(t.Context(), c.want(e, token.Secret)); a.Fault != wan.OK && time.Since(dead) < staleness-time.Second {
			t.Errorf("%s: %s, %v", when, a.Fault, a.Err)
		}
		if a := c.client.Get(t.Context(), c.want(e, "")); a.Code != http.StatusUnauthorized {
			t.Errorf("%s: who says nothing of who it is gets %d", when, a.Code)
		}
	}
	pulls("with everything behind dead")
	e.Restart()
	pulls("after a restart with everything behind dead")
	lab.Eventually(t, 3*staleness, "the edge goes by what it knew, long after it should not", func() error {
		if a := c.client.Get(t.Context(), c.want(e, token.Secret)); a.Code != http.StatusServiceUnavailable {
			return fmt.Errorf("answered %d, %v", a.Code, a.Fault)
		}
		return nil
	})
	// It counts from the last confirmation, which was a moment before.
	if since := time.Since(dead); since < staleness-time.Second {
		t.Errorf("it was denied after %v; max_staleness is %v", since, staleness)
	}
	if s := standingOf(t, e); !s.Past || e.Metric("weir_entitlement_lag_seconds") < staleness.Seconds() {
		t.Errorf("neither status nor metrics say so: %+v, lag %v", s, e.Metric("weir_entitlement_lag_seconds"))
	}
	c.Origin.Start()
	made := c.token() // while nobody listens
	for _, s := range c.Shields {
		s.Start()
	}
	lab.Eventually(t, 10*time.Second, "an edge does not know a new token after everything behind came back", func() error {
		for _, e := range c.Edges {
			if a := c.client.Get(t.Context(), c.want(e, made.Secret)); a.Fault != wan.OK {
				return fmt.Errorf("%s: %s, %v", e.Name, a.Fault, a.Err)
			}
		}
		return nil
	})
	lab.Eventually(t, 5*time.Second, "copies differ", func() error {
		want := standingOf(t, c.Origin)
		for _, n := range c.Nodes() {
			if s := standingOf(t, n); s.Version != want.Version || s.Hash != want.Hash || s.Database != want.Database || s.Hash == "" {
				return fmt.Errorf("%s has %+v, the origin %+v", n.Name, s, want)
			}
		}
		return nil
	})
}
