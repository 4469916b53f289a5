package conformance_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/weir-registry/weir/conformance/lab"
	"github.com/weir-registry/weir/conformance/wan"
	"github.com/weir-registry/weir/registry"
)

// sharedPoll is how late an origin node may hear of what another one has written
// into their database, beyond the way to it.
const sharedPoll = 250 * time.Millisecond

// A sharedDatabase is one that several origin nodes have.
type sharedDatabase struct {
	address string // for origin.metadata
	kill    func() // so that nobody answers, as kill -9 does
	start   func() // again, with all it had
}

// dynaliteDatabase is a table that a killed server leaves on the disk.
func dynaliteDatabase(t *testing.T) sharedDatabase {
	for k, v := range map[string]string{"AWS_ACCESS_KEY_ID": "weir", "AWS_SECRET_ACCESS_KEY": "not-secret", "AWS_CONFIG_FILE": "/dev/null",
		"AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_EC2_METADATA_DISABLED": "true"} {
		t.Setenv(k, v)
	}
	addr, dir := lab.FreeAddr(t), t.TempDir()
	p := lab.StartDynaliteOn(t, addr, dir)
	return sharedDatabase{
		address: "dynamodb://weir?region=eu-west-1&endpoint=http://" + addr,
		kill:    func() { p.Kill9() },
		start:   func() { p = lab.StartDynaliteOn(t, addr, dir) },
	}
}

// spannerDatabase is one at Google's emulator, which forgets all when it ends: so
// what dies is the line to it, and silently.
func spannerDatabase(t *testing.T) sharedDatabase {
	server, err := exec.LookPath("emulator_main")
	if err != nil {
		server = "/usr/lib/google-cloud-sdk/bin/cloud_spanner_emulator/emulator_main"
	}
	if _, err := os.Stat(server); err != nil {
		t.Skipf("NOT TESTED: this machine has no Spanner emulator (emulator_main, of Google's SDK): %v", err)
	}
	const parent = "projects/weir/instances/chain"
	addr := lab.FreeAddr(t)
	lab.Start(t, lab.Command{Path: server, Args: []string{"--host_port", addr}})
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// Two requests are not worth Google's library here.
	ask := func(method string, fields ...any) error {
		in, out := &emptypb.Empty{}, &emptypb.Empty{}
		in.ProtoReflect().SetUnknown(protobuf(fields...))
		return conn.Invoke(t.Context(), method, in, out, grpc.WaitForReady(true))
	}
	err = ask("/google.spanner.admin.instance.v1.InstanceAdmin/CreateInstance", 1, "projects/weir", 2, "chain",
		3, string(protobuf(2, "projects/weir/instanceConfigs/emulator-config", 3, "chain", 5, 1)))
	if err == nil {
		err = ask("/google.spanner.admin.database.v1.DatabaseAdmin/CreateDatabase", 1, parent, 2, "CREATE DATABASE weir")
	}
	if err != nil {
		t.Fatal(err)
	}
	line := wan.StartLink(t, addr, wan.Shape{})
	return sharedDatabase{
		address: "spanner://" + parent + "/databases/weir?endpoint=" + line.Addr,
		kill:    func() { line.Block(wan.Hang) },
		start:   line.Heal,
	}
}

// protobuf is a message of fields, a number and a text or an int each.
func protobuf(fields ...any) (b []byte) {
	for i := 0; i < len(fields); i += 2 {
		switch v := fields[i+1].(type) {
		case string:
			b = protowire.AppendString(protowire.AppendTag(b, protowire.Number(fields[i].(int)), protowire.BytesType), v)
		case int:
			b = protowire.AppendVarint(protowire.AppendTag(b, protowire.Number(fields[i].(int)), protowire.VarintType), uint64(v))
		}
	}
	return b
}

// A sharedChain is two origin nodes with one database, and edges in front of both.
type sharedChain struct {
	*privateChain
	db    sharedDatabase
	acked []string // robots that were acknowledged
}

func startShared(t *testing.T, db sharedDatabase) *sharedChain {
	p := wan.Plan{Origins: 2, Metadata: db.address, Edges: 2}
	return &sharedChain{db: db, privateChain: startPrivate(t, p, func(u *wan.Upstream) []wan.Blob { return []wan.Blob{u.Blob(1<<10, "small")} })}
}

// robot makes one at an origin node, and notes it if that is acknowledged.
func (c *sharedChain) robot(at *wan.Node, name string) error {
	err := at.Admin(c.admin, "POST", "/admin/v1/robots", map[string]string{"name": name}, nil)
	if err == nil {
		c.acked = append(c.acked, name)
	}
	return err
}

// tokenAt makes a token of alice's at an origin node.
func (c *sharedChain) tokenAt(at *wan.Node) registry.NewToken {
	c.t.Helper()
	var made registry.NewToken
	if err := at.Admin(c.admin, "POST", "/admin/v1/tokens", map[string]string{"owner": "alice"}, &made); err != nil {
		c.t.Fatal(err)
	}
	return made
}

// until waits until every node answers a token with a code, and returns for each
// how long that took.
func (c *sharedChain) until(code int, token string, nodes []*wan.Node) []time.Duration {
	begun := time.Now()
	took := make([]time.Duration, len(nodes))
	var all sync.WaitGroup
	for i, n := range nodes {
		all.Go(func() {
			for {
				a := c.client.Get(c.t.Context(), c.want(n, token))
				if took[i] = time.Since(begun); a.Code == code {
					return
				}
				if took[i] > 10*revokeWorst {
					c.t.Errorf("%s answers %d and not %d after %v: %v", n.Name, a.Code, code, took[i], a.Err)
					return
				}
				<-time.After(2 * time.Millisecond)
			}
		})
	}
	all.Wait()
	return took
}

// same waits until the copies of nodes are those of the origin node.
func (c *privateChain) same(limit time.Duration, nodes []*wan.Node) standing {
	c.t.Helper()
	var want standing
	lab.Eventually(c.t, limit, "copies differ", func() error {
		want = standingOf(c.t, nodes[0])
		for _, n := range nodes[1:] {
			if s := standingOf(c.t, n); s.Version != want.Version || s.Hash != want.Hash || s.Database != want.Database || s.Hash == "" {
				return fmt.Errorf("%s has %+v, %s %+v", n.Name, s, nodes[0].Name, want)
			}
		}
		return nil
	})
	return want
}

// TestChainSharedDynamo and TestChainSharedSpanner have two origin nodes on one
// database: what one is told counts everywhere, and whichever of the three dies
// costs nothing but changes.
func TestChainSharedDynamo(t *testing.T) {
	c := startShared(t, dynaliteDatabase(t))
	c.spread("DynamoDB")
	c.originDies()
	c.databaseDies()
}

func TestChainSharedSpanner(t *testing.T) {
	c := startShared(t, spannerDatabase(t))
	c.spread("Spanner")
	c.originDies()
	if chainLong() {
		c.databaseDies()
	}
}

// spread makes tokens at one origin node and revokes them at the other.
func (c *sharedChain) spread(of string) {
	t := c.t
	if a, b := c.Origins[0].AdminToken(), c.Origins[1].AdminToken(); a == b {
		t.Error("two origin nodes have one token")
	} else {
		for _, token := range []string{a, b} {
			for _, n := range c.Origins {
				if err := n.Admin(token, "GET", "/admin/v1/whoami", nil, nil); err != nil {
					t.Errorf("a token that one origin node made does not do at %s: %v", n.Name, err)
				}
			}
		}
	}
	nodes := slices.Concat(c.Origins, c.Edges)
	var made, ended []time.Duration
	rounds := either(12, 300)
	for i := range rounds {
		at, other := c.Origins[i%2], c.Origins[1-i%2]
		token := c.tokenAt(at)
		made = append(made, slices.Max(c.until(http.StatusOK, token.Secret, nodes)))
		if err := other.Admin(c.admin, "DELETE", "/admin/v1/tokens/"+token.ID, nil, nil); err != nil {
			t.Fatal(err)
		}
		ended = append(ended, slices.Max(c.until(http.StatusUnauthorized, token.Secret, nodes)))
	}
	slices.Sort(made)
	slices.Sort(ended)
	t.Logf("\n%s", wan.Table([]string{fmt.Sprintf("%d tokens, 2 origins on %s, 2 edges, ms", rounds, of), "p50", "p99", "most"},
		[]string{"until a token counts everywhere", wan.Milliseconds(quantile(made, 0.5)), wan.Milliseconds(quantile(made, 0.99)), wan.Milliseconds(made[len(made)-1])},
		[]string{"until its end does", wan.Milliseconds(quantile(ended, 0.5)), wan.Milliseconds(quantile(ended, 0.99)), wan.Milliseconds(ended[len(ended)-1])},
		[]string{"must", wan.Milliseconds(sharedPoll + revokeMedian), wan.Milliseconds(revokeWorst), ""}))
	if quantile(ended, 0.99) > revokeWorst || quantile(made, 0.99) > revokeWorst {
		t.Error("it takes too long")
	}
}

// originDies has edges go on with the other origin node.
func (c *sharedChain) originDies() {
	t := c.t
	before := c.same(5*time.Second, c.Nodes())
	c.Origins[0].Kill9()
	token := c.tokenAt(c.Origins[1])
	took := c.until(http.StatusOK, token.Secret, c.Edges)
	t.Logf("an origin node is killed: edges have what the other is told after %v", slices.Max(took).Round(time.Millisecond))
	after := c.same(5*time.Second, slices.Concat(c.Origins[1:], c.Edges))
	if after.Database != before.Database || after.Version <= before.Version {
		t.Errorf("after %+v came %+v", before, after)
	}
	for _, e := range c.Edges {
		if strings.Contains(e.Log(), "another database") {
			t.Errorf("%s takes the origin nodes' databases for two", e.Name)
		}
	}
	was := c.Origins[0].AdminToken()
	c.Origins[0].Start()
	if is := c.Origins[0].AdminToken(); is != was {
		t.Error("a restart made another administrator's token")
	}
	c.same(5*time.Second, c.Nodes())
}

// databaseDies has pulls go on, and tells who wants a change that there is none.
func (c *sharedChain) databaseDies() {
	t := c.t
	token := c.tokenAt(c.Origins[0]).Secret
	nodes := c.Nodes()
	c.until(http.StatusOK, token, nodes)
	stopped := make(chan struct{})
	var work sync.WaitGroup
	work.Go(func() { // changes while it dies
		for i := 0; ; i++ {
			select {
			case <-stopped:
				return
			default:
			}
			if c.robot(c.Origins[i%2], fmt.Sprintf("robot-%d", i)) != nil {
				return
			}
		}
	})
	<-time.After(300 * time.Millisecond)
	c.db.kill()
	begun := time.Now()
	out, err := c.Origins[1].Command("", "user", "add", "late", "--generate")
	if exit := new(exec.ExitError); err == nil || !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("weir user add without a database: %q, %v", out, err)
	} else {
		t.Logf("weir user add without a database, after %v: %v", time.Since(begun).Round(100*time.Millisecond), err)
	}
	close(stopped)
	work.Wait()
	for _, n := range nodes {
		if a := c.client.Get(t.Context(), c.want(n, token)); a.Fault != wan.OK {
			t.Errorf("%s, without a database: %s, %v", n.Name, a.Fault, a.Err)
		}
	}
	lab.Eventually(t, 10*time.Second, "the status does not say that the database is gone", func() error {
		if s := c.Origins[0].MustCommand("", "status"); !strings.Contains(s, "the database does not answer") {
			return fmt.Errorf("%s", s)
		}
		return nil
	})
	c.restartWithout(token)
	c.db.start()
	began := time.Now()
	lab.Eventually(t, 15*time.Second, "accounts cannot be changed after the database came back", func() error {
		return c.robot(c.Origins[0], fmt.Sprintf("after-%d", time.Now().UnixNano()))
	})
	lab.Eventually(t, 15*time.Second, "accounts cannot be changed at the node that started without", func() error {
		return c.robot(c.Origins[1], fmt.Sprintf("after-%d", time.Now().UnixNano()))
	})
	c.same(10*time.Second, nodes)
	t.Logf("all is well %v after the database came back", time.Since(began).Round(100*time.Millisecond))
	c.nothingLost()
}

// restartWithout starts an origin node whose database is dead: it goes by its copy.
func (c *sharedChain) restartWithout(token string) {
	t, n := c.t, c.Origins[1]
	n.Kill9()
	begun := time.Now()
	n.Start() // waits for /readyz
	took := time.Since(begun)
	t.Logf("an origin node without a database was ready after %v", took.Round(100*time.Millisecond))
	if took > 3*time.Second {
		t.Error("it did not go by its copy before")
	}
	if log := n.Log(); !strings.Contains(log, "the metadata database has not answered yet") && !strings.Contains(log, "the metadata database cannot be asked") {
		t.Errorf("it does not say that its database is gone:\n%s", log)
	}
	if a := c.client.Get(t.Context(), c.want(n, token)); a.Fault != wan.OK {
		t.Errorf("%s, started without a database: %s, %v", n.Name, a.Fault, a.Err)
	}
	if a := c.client.Get(t.Context(), c.want(n, "")); a.Code != http.StatusUnauthorized {
		t.Errorf("%s, started without a database, answers %d to who says nothing of who it is", n.Name, a.Code)
	}
	if s := n.MustCommand("", "status"); !strings.Contains(s, "the metadata database has not been reached since this node was started: ") {
		t.Errorf("the status does not say so:\n%s", s)
	}
	if err := n.Admin(c.admin, "POST", "/admin/v1/robots", map[string]string{"name": "never"}, nil); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("a change without a database: %v", err)
	} else {
		t.Logf("a change without a database: %v", err)
	}
}

// nothingLost looks for every robot that was acknowledged.
func (c *sharedChain) nothingLost() {
	c.t.Helper()
	if len(c.acked) < 3 {
		c.t.Errorf("only %v were made", c.acked)
	}
	for _, n := range c.Origins {
		lost := missingRobots(c.t, n, c.acked)
		if len(lost) > 0 {
			c.t.Errorf("%s has lost %v, which were acknowledged", n.Name, lost)
		}
	}
}

// missingRobots are those of some robots that a node does not know.
func missingRobots(t *testing.T, n *wan.Node, want []string) []string {
	t.Helper()
	var list []registry.Account
	if err := json.Unmarshal([]byte(n.MustCommand("", "robot", "list", "-o", "json")), &list); err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for _, a := range list {
		there[a.Name] = true
	}
	return slices.DeleteFunc(slices.Clone(want), func(name string) bool { return there[name] })
}

// TestChainFirstStart starts a node whose database is dead and which never had a
// copy: people are told, and when the database comes it is well.
func TestChainFirstStart(t *testing.T) {
	db := dynaliteDatabase(t)
	db.kill()
	w := lab.NewWeir(t, filepath.Join(t.TempDir(), "data"),
		fmt.Sprintf("origin: {metadata: %q}\nnpm: {upstreams: {none: {url: \"http://127.0.0.1:1\"}}}\n", db.address))
	p := lab.Start(t, lab.Command{Path: lab.Binary(t), Args: []string{"serve", "-c", w.Config}})
	w.Process = p
	readyz := func() (int, string) {
		r, err := http.Get("http://" + w.Ops + "/readyz")
		if err != nil {
			return 0, err.Error()
		}
		defer r.Body.Close()
		b := make([]byte, 4096)
		n, _ := r.Body.Read(b)
		return r.StatusCode, string(b[:n])
	}
	lab.Eventually(t, 15*time.Second, "it answers", func() error {
		if code, text := readyz(); code != http.StatusServiceUnavailable || !strings.Contains(text, "origin.metadata: table weir:") {
			return fmt.Errorf("%d: %s", code, text)
		}
		return nil
	})
	for _, args := range [][]string{{"user", "add", "bob", "--generate"}, {"user", "list", "--token", "weir_x"}} {
		_, err := w.Command("", args...)
		if exit := new(exec.ExitError); !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(err.Error(), "has not been reached since this node was started: origin.metadata: table weir:") {
			t.Errorf("%v: %v", args, err)
		}
	}
	if s, err := w.Command("", "status"); err != nil || !strings.Contains(s, "nobody is admitted") || !strings.Contains(s, "has not been reached") {
		t.Errorf("status: %v\n%s", err, s)
	}
	if n := strings.Count(p.Log(), "the metadata database cannot be asked"); n != 1 {
		t.Errorf("it is said %d times that the database cannot be asked:\n%s", n, p.Log())
	}
	db.start()
	lab.Eventually(t, 15*time.Second, "it is ready once the database is there", func() error {
		if code, text := readyz(); code != http.StatusOK {
			return fmt.Errorf("%d: %s", code, text)
		}
		_, err := w.Command("", "robot", "list")
		return err
	})
}
