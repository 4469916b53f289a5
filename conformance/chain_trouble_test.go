package conformance_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/lab"
	"github.com/weir-registry/weir/conformance/wan"
	"github.com/weir-registry/weir/registry"
)

// entitlementFile is where a node keeps its copy for the next start.
const entitlementFile = "entitlements"

func small(u *wan.Upstream) []wan.Blob { return []wan.Blob{u.Blob(1<<10, "small")} }

// chainRounds is how often something is done: few, or as often as WEIR_SOAK says.
func chainRounds(few int) int {
	if n, err := strconv.Atoi(os.Getenv("WEIR_SOAK")); err == nil && n > 1 {
		return n
	}
	return few
}

// answers waits until a node answers a token with a code.
func (c *privateChain) answers(limit time.Duration, n *wan.Node, token string, code int) {
	c.t.Helper()
	lab.Eventually(c.t, limit, fmt.Sprintf("%s answers %d", n.Name, code), func() error {
		if a := c.client.Get(c.t.Context(), c.want(n, token)); a.Code != code {
			return fmt.Errorf("it answers %d, %v", a.Code, a.Err)
		}
		return nil
	})
}

// TestChainSilence has the line to an edge bring nothing for longer than
// max_staleness: what access.past denies is denied there and nowhere else, the
// status says so, and all is well once the line is.
func TestChainSilence(t *testing.T) {
	t.Parallel()                      // it waits, most of the time
	const staleness = 5 * time.Second // less is not taken
	c := startPrivate(t, wan.Plan{Edges: 2, Access: fmt.Sprintf("  max_staleness: %v\n  past: {pull: deny}\n", staleness)}, small)
	e, other, token := c.Edges[0], c.Edges[1], c.token()
	c.answers(5*time.Second, e, token.Secret, http.StatusOK)
	e.Behind[0].Block(wan.Hang)
	begun := time.Now()
	c.revoke(c.token().ID) // what it does not hear
	c.answers(2*staleness, e, token.Secret, http.StatusServiceUnavailable)
	if took := time.Since(begun); took < staleness-time.Second {
		t.Errorf("it was denied after %v", took)
	}
	if s := e.MustCommand("", "status"); !strings.Contains(s, "no node behind can be followed") || !strings.Contains(s, "longer ago than access.max_staleness") {
		t.Errorf("the status does not say so:\n%s", s)
	}
	if a := c.client.Get(t.Context(), c.want(other, token.Secret)); a.Fault != wan.OK {
		t.Errorf("an edge whose line is whole: %s, %v", a.Fault, a.Err)
	}
	c.revoke(token.ID)
	e.Behind[0].Heal()
	begun = time.Now()
	c.answers(5*time.Second, e, token.Secret, http.StatusUnauthorized)
	t.Logf("an edge knows a revocation %v after its line is whole again", time.Since(begun).Round(time.Millisecond))
	c.answers(5*time.Second, e, c.token().Secret, http.StatusOK)
	c.same(5*time.Second, c.Nodes())
}

// A changer makes robots at the origin node, fifty a second, and keeps the names
// of those that were acknowledged.
type changer struct {
	c     *privateChain
	stop  chan struct{}
	work  sync.WaitGroup
	made  atomic.Int64
	acked []string // by the one goroutine, until it has ended; made is how many
	tried int
}

func (c *privateChain) changes(prefix string) *changer {
	w := &changer{c: c, stop: make(chan struct{})}
	w.work.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-w.stop:
				return
			}
			w.tried++
			name := fmt.Sprintf("%s-%d", prefix, w.tried)
			if c.Origin.Admin(c.admin, "POST", "/admin/v1/robots", map[string]string{"name": name}, nil) == nil {
				w.acked = append(w.acked, name)
				w.made.Add(1)
			}
		}
	})
	return w
}

// more waits until so many more changes have been acknowledged.
func (w *changer) more(n int64) {
	w.c.t.Helper()
	from := w.made.Load()
	lab.Eventually(w.c.t, 20*time.Second, "changes go on", func() error {
		if made := w.made.Load(); made < from+n {
			return fmt.Errorf("%d of %d have been made", made-from, n)
		}
		return nil
	})
}

// end stops it and looks whether anything is lost, and whether all copies are one.
func (w *changer) end(what string) {
	w.c.t.Helper()
	close(w.stop)
	w.work.Wait()
	is := w.c.same(15*time.Second, w.c.Nodes())
	lost := missingRobots(w.c.t, w.c.Origin, w.acked)
	w.c.t.Logf("%s: %d of %d changes acknowledged, %d lost; all copies are at version %d with hash %.12s", what, len(w.acked), w.tried, len(lost), is.Version, is.Hash)
	if len(lost) > 0 {
		w.c.t.Errorf("%s: lost are %v", what, lost)
	}
}

// TestChainRestarts restarts shields, and kills an edge and the origin node, again
// and again while there are fifty changes a second.
func TestChainRestarts(t *testing.T) {
	c := startPrivate(t, wan.Plan{Edges: 2, Shields: 2}, small)
	a := c.token()
	w := c.changes("shield")
	for i := range chainRounds(6) {
		w.more(15)
		c.Shields[i%2].Restart()
		c.answers(10*time.Second, c.Edges[i%2], a.Secret, http.StatusOK)
	}
	w.end("shields restarted")
	w = c.changes("killed")
	for i := range chainRounds(5) {
		w.more(10)
		c.Edges[i%2].Kill9()
		w.more(5)
		c.Origin.Kill9()
		c.Origin.Start()
		c.Edges[i%2].Start()
		c.answers(10*time.Second, c.Edges[i%2], a.Secret, http.StatusOK)
	}
	w.end("an edge and the origin killed")
}

// TestChainOtherDatabase replaces the origin node's data: nodes keep to what they
// know, tell what to do about it, and that works.
func TestChainOtherDatabase(t *testing.T) {
	t.Parallel() // it waits, most of the time
	c := startPrivate(t, wan.Plan{Edges: 1, Shields: 1}, small)
	e, s, old := c.Edges[0], c.Shields[0], c.token()
	c.answers(5*time.Second, e, old.Secret, http.StatusOK)
	c.Origin.Stop()
	for _, file := range []string{"metadata.db", entitlementFile, "admin-token"} {
		if err := os.Remove(filepath.Join(c.Origin.Data, file)); err != nil {
			t.Fatal(err)
		}
	}
	c.Origin.Start()
	c.admin = c.Origin.AdminToken()
	if err := c.Origin.Admin(c.admin, "POST", "/admin/v1/robots", map[string]string{"name": "alice"}, nil); err != nil {
		t.Fatal(err)
	}
	if err := c.Origin.Admin(c.admin, "POST", "/admin/v1/grants", map[string]string{"to": "robot:alice", "right": "pull oci:docker.io/" + chainRepo}, nil); err != nil {
		t.Fatal(err)
	}
	fresh := c.token()
	// Those behind first.
	for _, n := range []*wan.Node{s, e} {
		lab.Eventually(t, 10*time.Second, n.Name+" does not say what to do", func() error {
			if n.Metric("weir_events_total", `event="entitlements of another database"`) == 0 || !strings.Contains(n.Log(), "remove the file `entitlements` in its data directory") {
				return fmt.Errorf("there is no event, or nothing in the log")
			}
			if text := n.MustCommand("", "status"); !strings.Contains(text, "of another database than this copy, and not followed: "+n.Behind[0].Addr) {
				return fmt.Errorf("its status is\n%s", text)
			}
			return nil
		})
		if a := c.client.Get(t.Context(), c.want(e, old.Secret)); a.Fault != wan.OK {
			t.Errorf("the edge does not go by what it knows: %s, %v", a.Fault, a.Err)
		}
		n.Stop()
		if err := os.Remove(filepath.Join(n.Data, entitlementFile)); err != nil {
			t.Fatal(err)
		}
		n.Start()
	}
	c.answers(5*time.Second, e, fresh.Secret, http.StatusOK)
	c.answers(5*time.Second, e, old.Secret, http.StatusUnauthorized)
	c.same(5*time.Second, c.Nodes())
}

// TestChainRestored puts an earlier state of the origin node's database back: an
// edge that knows of a revocation since keeps to it until somebody decides.
func TestChainRestored(t *testing.T) {
	t.Parallel() // it waits, most of the time
	c := startPrivate(t, wan.Plan{Edges: 1}, small)
	e, gone := c.Edges[0], c.token()
	c.answers(5*time.Second, e, gone.Secret, http.StatusOK)
	file := filepath.Join(c.Origin.Data, "metadata.db")
	c.Origin.Stop()
	backup, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	c.Origin.Start()
	c.revoke(gone.ID)
	c.revoke(c.token().ID) // so that it takes changes until the numbers are equal
	c.answers(5*time.Second, e, gone.Secret, http.StatusUnauthorized)
	c.Origin.Stop()
	if err := os.WriteFile(file, backup, 0o600); err != nil {
		t.Fatal(err)
	}
	c.Origin.Start()
	c.answers(5*time.Second, c.Origin, gone.Secret, http.StatusOK) // as in the backup
	lab.Eventually(t, 30*time.Second, "the edge does not say that the database has gone back", func() error {
		if a := c.client.Get(t.Context(), c.want(e, gone.Secret)); a.Code != http.StatusUnauthorized {
			t.Fatalf("the edge answers %d for a token whose end it has heard of", a.Code)
		}
		if text := e.MustCommand("", "status"); !strings.Contains(text, "and not followed: "+e.Behind[0].Addr) || !strings.Contains(e.Log(), "the database has gone back") {
			return fmt.Errorf("its status is\n%s", text)
		}
		return nil
	})
	e.Stop()
	if err := os.Remove(filepath.Join(e.Data, entitlementFile)); err != nil {
		t.Fatal(err)
	}
	e.Start()
	c.answers(5*time.Second, e, gone.Secret, http.StatusOK)
	c.same(5*time.Second, c.Nodes())
}

// damages are what may be found in place of a node's copy.
func damages(good []byte) map[string][]byte {
	flip := func(at int) []byte {
		b := slices.Clone(good)
		b[at] ^= 0x10
		return b
	}
	return map[string][]byte{
		"a bit of its middle":   flip(len(good) / 2),
		"a bit of its head":     flip(5),
		"cut in the middle":     good[:len(good)/2],
		"cut at its end":        good[:len(good)-3],
		"empty":                 {},
		"of another version":    slices.Concat([]byte("weir entitlements 9\n"), good[min(20, len(good)):]),
		"not at all a copy":     []byte(strings.Repeat("nothing ", 200)),
		"with zeros at its end": append(slices.Clone(good), make([]byte, 4096)...),
	}
}

// TestChainDamagedCopy starts an edge on a damaged file, with everything behind it
// dead, when it admits nobody or goes by a copy that is whole, and alive.
func TestChainDamagedCopy(t *testing.T) {
	c := startPrivate(t, wan.Plan{Edges: 1}, small)
	e, token, gone := c.Edges[0], c.token(), c.token()
	c.answers(5*time.Second, e, token.Secret, http.StatusOK)
	c.revoke(gone.ID)
	c.same(5*time.Second, c.Nodes())
	e.Stop()
	file := filepath.Join(e.Data, entitlementFile)
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	c.Origin.Kill9()
	for what, damaged := range damages(good) {
		if err := os.WriteFile(file, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		c.alone(what, token, gone)
	}
	c.Origin.Start()
	for what, damaged := range damages(good) {
		if err := os.WriteFile(file, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		e.Start()
		c.answers(5*time.Second, e, token.Secret, http.StatusOK)
		if a := c.client.Get(t.Context(), c.want(e, gone.Secret)); a.Code != http.StatusUnauthorized {
			t.Errorf("%s: a revoked token is answered with %d", what, a.Code)
		}
		c.same(5*time.Second, c.Nodes())
		e.Stop()
	}
}

// alone starts the edge on a damaged copy, with nobody behind it, and stops it.
func (c *privateChain) alone(what string, token, gone registry.NewToken) {
	t, e := c.t, c.Edges[0]
	p := lab.Start(t, lab.Command{Path: lab.Binary(t), Args: []string{"serve", "-c", e.Config}})
	defer p.Stop()
	var ready int
	lab.Eventually(t, 20*time.Second, what+": the edge does not answer", func() error {
		r, err := http.Get("http://" + e.Ops + "/readyz")
		if err != nil {
			return err
		}
		ready = r.StatusCode
		return r.Body.Close()
	})
	is := c.client.Get(t.Context(), c.want(e, token.Secret)).Code
	was := c.client.Get(t.Context(), c.want(e, gone.Secret)).Code
	nobody := c.client.Get(t.Context(), c.want(e, "")).Code
	aside, _ := filepath.Glob(filepath.Join(e.Data, entitlementFile+".damaged-*"))
	for _, file := range aside {
		os.Remove(file)
	}
	t.Logf("%-22s ready %d, entitled %d, revoked %d, nobody %d, set aside %d", what+":", ready, is, was, nobody, len(aside))
	switch {
	case ready == http.StatusServiceUnavailable:
		if is != http.StatusServiceUnavailable || was != is || nobody != is || len(aside) != 1 || !strings.Contains(p.Log(), "are damaged") {
			t.Errorf("%s: it has no copy, and answers %d, %d, %d; set aside are %v", what, is, was, nobody, aside)
		}
	case what == "cut in the middle": // an older version, which is whole
		if nobody != http.StatusUnauthorized {
			t.Errorf("%s: who says nothing of who it is gets %d", what, nobody)
		}
	case ready != http.StatusOK, is != http.StatusOK, was != http.StatusUnauthorized, nobody != http.StatusUnauthorized:
		t.Errorf("%s: it has a copy, and answers %d, %d, %d", what, is, was, nobody)
	}
}
