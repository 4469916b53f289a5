package conformance_test

import (
	"fmt"
	"math"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/wan"
	"github.com/weir-registry/weir/registry"
)

const (
	// revokeDelay is what a message takes from one node to the next.
	revokeDelay = 100 * time.Millisecond
	// revokeMedian and revokeWorst are how long after a revocation it may count
	// at the last edge, for half of them and for 99 of 100, beyond the way there.
	revokeMedian = 150 * time.Millisecond
	revokeWorst  = time.Second
	// revokeHops is how many lines there are from the node that decides to an edge.
	revokeHops = 2
)

// privateChain is an origin, shields and edges where only those with a grant may
// pull, and what they may pull, which every edge has.
type privateChain struct {
	*wan.Topology
	t      *testing.T
	admin  string
	client *wan.Client
	tag    wan.Blob
}

// startPrivate starts the nodes, an account "alice" and its grant.
func startPrivate(t *testing.T, p wan.Plan, layers func(*wan.Upstream) []wan.Blob) *privateChain {
	t.Helper()
	u := wan.StartUpstream(t)
	p.Private, p.Origin = true, true
	m := u.Image(chainRepo, "private", layers(u)...)
	top := wan.Start(t, u, p)
	c := &privateChain{Topology: top, t: t, admin: top.Origin.AdminToken(), client: wan.NewClient(t, time.Minute), tag: m}
	for _, make := range []struct {
		what string
		body map[string]string
	}{
		{"robots", map[string]string{"name": "alice"}},
		{"grants", map[string]string{"to": "robot:alice", "right": "pull oci:docker.io/" + chainRepo}},
	} {
		if err := top.Origin.Admin(c.admin, "POST", "/admin/v1/"+make.what, make.body, nil); err != nil {
			t.Fatal(err)
		}
	}
	token := c.token().Secret
	for _, e := range top.Edges {
		if err := c.accepted(e, token); err != nil {
			t.Fatalf("%s refuses who is entitled: %v", e.Name, err)
		}
		if a := c.client.Get(t.Context(), c.want(e, "")); a.Code != http.StatusUnauthorized {
			t.Fatalf("%s answers %d to who says nothing of who it is", e.Name, a.Code)
		}
	}
	return c
}

// token makes a token of alice's.
func (c *privateChain) token() registry.NewToken {
	c.t.Helper()
	var made registry.NewToken
	if err := c.Origin.Admin(c.admin, "POST", "/admin/v1/tokens", map[string]string{"owner": "alice"}, &made); err != nil {
		c.t.Fatal(err)
	}
	return made
}

func (c *privateChain) revoke(id string) {
	if err := c.Origin.Admin(c.admin, "DELETE", "/admin/v1/tokens/"+id, nil, nil); err != nil {
		c.t.Errorf("revoke %s: %v", id, err)
	}
}

// want is the manifest, at an edge.
func (c *privateChain) want(e *wan.Node, token string) wan.Want {
	w := chainTag(e.Door, "private", c.tag)
	w.Token = token
	return w
}

// TestChainRevoke revokes tokens at the origin while clients use them at every
// edge, and looks when each edge refuses them.
func TestChainRevoke(t *testing.T) {
	edges, tokens, together := either(4, 8), either(20, 1000), either(2, 4)
	c := startPrivate(t, wan.Plan{Edges: edges, Shields: 2,
		Edge: wan.Shape{RTT: 2 * revokeDelay}, Shield: wan.Shape{RTT: 2 * revokeDelay}},
		func(u *wan.Upstream) []wan.Blob { return []wan.Blob{u.Blob(1<<10, "small")} })
	var mu sync.Mutex
	var last, each []time.Duration
	var work sync.WaitGroup
	next := make(chan registry.NewToken)
	for range together {
		work.Go(func() {
			for token := range next {
				took := c.revokedEverywhere(token)
				mu.Lock()
				each = append(each, took...)
				last = append(last, slices.Max(took))
				mu.Unlock()
			}
		})
	}
	for range tokens {
		next <- c.token()
	}
	close(next)
	work.Wait()
	slices.Sort(last)
	slices.Sort(each)
	way := revokeHops * revokeDelay
	median, worst := quantile(last, 0.5), quantile(last, 0.99)
	t.Logf("\n%s", wan.Table([]string{fmt.Sprintf("%d revocations, 2 shields, %d edges, ms", tokens, edges), "p50", "p99", "most"},
		[]string{"until one edge refuses", wan.Milliseconds(quantile(each, 0.5)), wan.Milliseconds(quantile(each, 0.99)), wan.Milliseconds(each[len(each)-1])},
		[]string{"until every edge refuses", wan.Milliseconds(median), wan.Milliseconds(worst), wan.Milliseconds(last[len(last)-1])},
		[]string{"must", wan.Milliseconds(way + revokeMedian), wan.Milliseconds(revokeWorst), ""}))
	if worst > revokeWorst || median > either(revokeWorst, way+revokeMedian) {
		t.Error("revocations take too long")
	}
	if each[0] < way {
		t.Errorf("an edge knew %v after, and the way there takes %v: the lines do not delay", each[0], way)
	}
}

// revokedEverywhere revokes a token that every edge accepts, and returns for
// each how long it went on doing so.
func (c *privateChain) revokedEverywhere(token registry.NewToken) []time.Duration {
	took := make([]time.Duration, len(c.Edges))
	var ready, done sync.WaitGroup
	var revoked time.Time // written before begun is closed
	begun := make(chan struct{})
	for i, e := range c.Edges {
		ready.Add(1)
		done.Go(func() {
			if err := c.accepted(e, token.Secret); err != nil {
				c.t.Errorf("%s: %v", e.Name, err)
			}
			ready.Done()
			<-begun
			for {
				a := c.client.Get(c.t.Context(), c.want(e, token.Secret))
				if took[i] = time.Since(revoked); a.Code == http.StatusUnauthorized {
					return
				}
				if a.Fault != wan.OK || took[i] > 10*revokeWorst {
					c.t.Errorf("%s, %v after the revocation: %s, %v", e.Name, took[i], a.Fault, a.Err)
					return
				}
				<-time.After(2 * time.Millisecond)
			}
		})
	}
	ready.Wait()
	revoked = time.Now()
	close(begun)
	c.revoke(token.ID)
	done.Wait()
	return took
}

// accepted waits until an edge accepts a token that has just been made.
func (c *privateChain) accepted(e *wan.Node, token string) (err error) {
	for until := time.Now().Add(5 * time.Second); time.Now().Before(until); <-time.After(10 * time.Millisecond) {
		a := c.client.Get(c.t.Context(), c.want(e, token))
		if a.Fault == wan.OK {
			return nil
		}
		err = fmt.Errorf("a new token is not accepted: %s, %v", a.Fault, a.Err)
	}
	return err
}

// TestChainCut revokes a token in mid download, at an edge and with every byte
// in its cache.
func TestChainCut(t *testing.T) {
	size := either[int64](64<<20, 1<<30)
	rate := size / 16
	var blob wan.Blob
	c := startPrivate(t, wan.Plan{Edges: 2, Shields: 2, Clients: &wan.Shape{Down: 8 * rate}, Memory: "16MiB",
		Edge: wan.Shape{RTT: 2 * revokeDelay}, Shield: wan.Shape{RTT: 2 * revokeDelay}},
		func(u *wan.Upstream) []wan.Blob { blob = u.Blob(size, "large"); return []wan.Blob{blob} })
	e, stays, goes := c.Edges[0], c.token(), c.token()
	for _, token := range []registry.NewToken{stays, goes} {
		if err := c.accepted(e, token.Secret); err != nil {
			t.Fatal(err)
		}
	}
	want := func(token string) wan.Want {
		w := chainBlob(e.Door, blob)
		w.Token, w.Quick = token, true
		return w
	}
	c.client.Must(t, want(stays.Secret)) // now it is on the edge's disk
	e.Front.SetShape(wan.Shape{Down: 2 * rate})
	type ended struct {
		wan.Answer
		at time.Time
	}
	get := func(token string) <-chan ended {
		out := make(chan ended, 1)
		go func() {
			a := c.client.Get(t.Context(), want(token))
			out <- ended{a, time.Now()}
		}()
		return out
	}
	before := e.Front.Traffic().Down
	one, other := get(goes.Secret), get(stays.Secret)
	for e.Front.Traffic().Down < before+rate {
		<-time.After(10 * time.Millisecond)
	}
	revoked := time.Now()
	c.revoke(goes.ID)
	cut := <-one
	took := cut.at.Sub(revoked)
	t.Logf("a download of %d MiB was cut %v after its revocation, with %.0f %% of it sent", size>>20, took.Round(time.Millisecond), 100*float64(cut.Bytes)/float64(size))
	if cut.Fault != wan.Cut && cut.Fault != wan.Reset {
		t.Errorf("the download of the revoked token ended with %q after %d bytes: %v", cut.Fault, cut.Bytes, cut.Err)
	}
	if took > revokeWorst {
		t.Errorf("it went on for %v after the revocation", took)
	}
	if a := <-other; a.Fault != wan.OK {
		t.Errorf("the download of another token of the same account: %s after %d bytes: %v", a.Fault, a.Bytes, a.Err)
	}
}

// quantile is of sorted values.
func quantile(sorted []time.Duration, q float64) time.Duration {
	return sorted[min(len(sorted)-1, int(math.Ceil(q*float64(len(sorted))))-1)]
}
