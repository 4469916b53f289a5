package conformance_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/wan"
	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/names"
)

// grantsEach is how many grants an account has where there are many.
const grantsEach = 200

// fill puts grants, and the accounts that they are to, into a database that no
// node has open.
func fill(t *testing.T, file string, grants int) {
	t.Helper()
	db, err := names.OpenMetadata(file, names.MetadataOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	now := time.Now().UTC().Truncate(time.Second)
	put := func(key string, v any) {
		text, err := json.Marshal(v)
		if err == nil {
			_, err = db.Put(context.Background(), key, 0, text)
		}
		if err != nil {
			t.Error(err)
		}
	}
	// Accounts before what is theirs.
	for _, account := range []bool{true, false} {
		var work sync.WaitGroup
		next := make(chan int, 1024)
		for range 256 { // Puts at once share a sync
			work.Go(func() {
				for i := range next {
					owner := fmt.Sprintf("team-%d-robot", i/grantsEach)
					if account {
						put("e/account/"+owner, registry.Account{Name: owner, UID: "uid-" + owner, Kind: registry.Robot, Created: now})
						continue
					}
					id := fmt.Sprintf("made%010d", i)
					put("e/grant/"+id, registry.Grant{ID: id, To: "robot:" + owner, UID: "uid-" + owner, Right: fmt.Sprintf("pull oci:docker.io/company-%d/service-%d/*", i/grantsEach, i), Created: now, By: "robot:admin"})
				}
			})
		}
		for i := 0; i < grants; i++ {
			if next <- i; account {
				i += grantsEach - 1
			}
		}
		close(next)
		work.Wait()
	}
	if t.Failed() {
		t.FailNow()
	}
}

// inSeconds is for tables.
func inSeconds(d time.Duration) string { return fmt.Sprintf("%.2f", d.Seconds()) }

// mostMemory is the most memory that a node has had since its start, for tables.
func mostMemory(t *testing.T, n *wan.Node) string {
	return fmt.Sprint(peakMemory(t, n.Pid()) >> 20)
}

// TestChainSnapshot has an edge join where there are 200,000 grants, and
// revocations made while another one is sent its snapshot.
func TestChainSnapshot(t *testing.T) {
	grants := either(10_000, 200_000)
	rate := either[int64](4<<20, 20<<20)
	u := wan.StartUpstream(t)
	m := u.Image(chainRepo, "private", u.Blob(1<<10, "small"))
	top := wan.LayOut(t, u, wan.Plan{Edges: 2, Origin: true, Private: true, Edge: wan.Shape{RTT: 40 * time.Millisecond, Down: rate}})
	if err := os.MkdirAll(top.Origin.Data, 0o700); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	fill(t, filepath.Join(top.Origin.Data, "metadata.db"), grants)
	filled := time.Since(begun)
	begun = time.Now()
	top.Origin.Start()
	started := time.Since(begun)
	c := &privateChain{Topology: top, t: t, admin: top.Origin.AdminToken(), client: wan.NewClient(t, time.Minute), tag: m}
	if err := top.Origin.Admin(c.admin, "POST", "/admin/v1/robots", map[string]string{"name": "alice"}, nil); err != nil {
		t.Fatal(err)
	}
	if err := top.Origin.Admin(c.admin, "POST", "/admin/v1/grants", map[string]string{"to": "robot:alice", "right": "pull oci:docker.io/" + chainRepo}, nil); err != nil {
		t.Fatal(err)
	}
	begun = time.Now()
	top.Edges[0].Start()
	joined := time.Since(begun)
	bytes := wan.FromBehind(top.Edges[0]).Down
	c.answers(5*time.Second, top.Edges[0], c.token().Secret, http.StatusOK)
	idle := mostMemory(t, top.Origin)
	ended, during := c.whileJoining(top.Edges[1], top.Edges[0])
	again := time.Now()
	top.Edges[0].Restart()
	restarted := time.Since(again)
	highest := mostMemory(t, top.Origin)
	again = time.Now()
	top.Origin.Restart()
	originAgain := time.Since(again)
	t.Logf("\n%s", wan.Table([]string{fmt.Sprintf("%d grants, line of %d MB/s, 40 ms", grants, rate>>20), "measured", "must"},
		[]string{"origin node: first start, s", inSeconds(started), ""},
		[]string{"origin node: stop and start again, s", inSeconds(originAgain), ""},
		[]string{"edge joins: ready after, s", inSeconds(joined), ""},
		[]string{"edge: stop and start again, s", inSeconds(restarted), ""},
		[]string{"bytes over its line, MiB", fmt.Sprintf("%.1f", float64(bytes)/(1<<20)), ""},
		[]string{"revocation while another joins, ms: p50", wan.Milliseconds(quantile(ended, 0.5)), ""},
		[]string{fmt.Sprintf("the slowest of %d", len(ended)), wan.Milliseconds(ended[len(ended)-1]), "<= " + wan.Milliseconds(revokeWorst)},
		[]string{"origin node, most memory with one edge, MiB", idle, ""},
		[]string{"and after the second, MiB", highest, ""},
		[]string{"edge, most memory when joining, MiB", mostMemory(t, top.Edges[1]), ""}))
	t.Logf("the database was filled in %v; %d revocations were made while the snapshot was under way", filled.Round(time.Millisecond), during)
	if ended[len(ended)-1] > revokeWorst {
		t.Error("a revocation takes too long")
	}
	if during < 3 {
		t.Errorf("only %d revocations were made while the snapshot was under way", during)
	}
	c.same(5*time.Second, top.Nodes())
}

// whileJoining starts a node and revokes tokens, which another refuses from then
// on, until the first is ready. during is how many were revoked until then.
func (c *privateChain) whileJoining(joins, has *wan.Node) (took []time.Duration, during int) {
	ready := make(chan struct{})
	var work sync.WaitGroup
	work.Go(func() {
		for {
			one, err := c.revokedAt(has)
			if err != nil {
				c.t.Error(err)
				return
			}
			took = append(took, one)
			select {
			case <-ready:
				return
			default:
				during++
			}
		}
	})
	joins.Start()
	close(ready)
	work.Wait()
	slices.Sort(took)
	return took, during
}

// revokedAt makes and revokes a token, and returns how long a node went on to
// accept it.
func (c *privateChain) revokedAt(n *wan.Node) (time.Duration, error) {
	var made registry.NewToken
	if err := c.Origin.Admin(c.admin, "POST", "/admin/v1/tokens", map[string]string{"owner": "alice"}, &made); err != nil {
		return 0, err
	}
	if err := c.accepted(n, made.Secret); err != nil {
		return 0, err
	}
	revoked := time.Now()
	if err := c.Origin.Admin(c.admin, "DELETE", "/admin/v1/tokens/"+made.ID, nil, nil); err != nil {
		return 0, err
	}
	for {
		a := c.client.Get(c.t.Context(), c.want(n, made.Secret))
		took := time.Since(revoked)
		if a.Code == http.StatusUnauthorized {
			return took, nil
		}
		if took > 10*revokeWorst {
			return 0, fmt.Errorf("%s answers %d %v after a revocation: %v", n.Name, a.Code, took, a.Err)
		}
		<-time.After(2 * time.Millisecond)
	}
}
