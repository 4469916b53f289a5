package trust

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/lab"
	"github.com/weir-registry/weir/registry"
)

func TestJoin(t *testing.T) {
	shield := listen(t, newClock(), nil)
	edge := joined(t, shield, "edge1")
	edge.wantHello(t, shield, "edge1")
	// What was joined while the node runs counts: edge was opened before.
	if l, err := shield.edit(t).List(); err != nil || len(l.Nodes) != 1 || l.Nodes[0].Name != "edge1" || l.Nodes[0].State != StateOK {
		t.Fatalf("%+v, %v", l, err)
	}
	if l, err := edge.edit(t).List(); err != nil || len(l.Joined) != 1 || l.Joined[0].Address != shield.url() || l.Joined[0].State != StateOK {
		t.Fatalf("%+v, %v", l, err)
	}
	for _, dir := range []string{shield.dir, edge.dir} {
		info, err := os.Stat(dir)
		if err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v %v", dir, info.Mode(), err)
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			info, err := e.Info()
			if err != nil || info.Mode().Perm() != 0o600 || strings.Contains(e.Name(), "new-") {
				t.Errorf("%s: %v %v", e.Name(), info.Mode(), err)
			}
		}
	}
}

func TestSecretIsKeptAsHash(t *testing.T) {
	shield := listen(t, newClock(), nil)
	text := shield.invite(t, InviteOptions{Name: "edge1"})
	code, err := ParseCode(text)
	if err != nil {
		t.Fatal(err)
	}
	secret, _ := json.Marshal(code.Secret[:])
	kept, err := os.ReadFile(filepath.Join(shield.dir, nodesFile))
	if err != nil || strings.Contains(string(kept), strings.Trim(string(secret), `"`)) || strings.Contains(string(kept), text) {
		t.Fatalf("%s %v", kept, err)
	}
}

func TestReplayedCode(t *testing.T) {
	shield := listen(t, newClock(), nil)
	code := shield.invite(t, InviteOptions{Name: "edge1"})
	newNode(t, shield.clock, nil).join(t, code)
	thief := newNode(t, shield.clock, nil)
	_, err := thief.tryJoin(code)
	if !errors.Is(err, registry.ErrDenied) || !strings.Contains(err.Error(), "was used at 2031-05-06 07:08:09 UTC") {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(thief.dir, joinedFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("something was kept: %v", err)
	}
	if n := shield.meter.count("node refused", codeUsed); n != 1 {
		t.Fatalf("counted %d times", n)
	}
}

func TestTwoRaceWithOneCode(t *testing.T) {
	shield := listen(t, newClock(), nil)
	for range 5 {
		code := shield.invite(t, InviteOptions{Name: "edge1"})
		var wg sync.WaitGroup
		errs := make([]error, 6)
		for i := range errs {
			n := newNode(t, shield.clock, nil)
			wg.Go(func() { _, errs[i] = n.tryJoin(code) })
		}
		wg.Wait()
		won := 0
		for _, err := range errs {
			if err == nil {
				won++
			} else if !strings.Contains(err.Error(), "was used at") {
				t.Error(err)
			}
		}
		if won != 1 {
			t.Fatalf("%d joined with one code", won)
		}
	}
	if s := shield.edit(t).current(); len(s.nodes.Nodes) != 5 {
		t.Fatalf("%d certificates were issued for 5 codes", len(s.nodes.Nodes))
	}
}

// The answer to a join may be lost; the same key may ask again, until the code
// expires, and nobody else.
func TestLostAnswer(t *testing.T) {
	shield := listen(t, newClock(), nil)
	code, err := ParseCode(shield.invite(t, InviteOptions{Name: "edge1"}))
	if err != nil {
		t.Fatal(err)
	}
	_, csr, err := newRequest()
	if err != nil {
		t.Fatal(err)
	}
	req := joinRequest{Version: 1, Secret: code.Secret[:], CSR: csr, Time: shield.clock.now()}
	for range 2 {
		if _, err := post(context.Background(), code, req, shield.clock.now); err != nil {
			t.Fatal(err)
		}
	}
	shield.clock.add(2 * time.Hour)
	if _, err := post(context.Background(), code, req, shield.clock.now); err == nil || !strings.Contains(err.Error(), "expired at") {
		t.Fatal(err)
	}
}

func TestCodesThatCannotBeUsed(t *testing.T) {
	shield := listen(t, newClock(), nil)
	other := listen(t, shield.clock, nil)
	fresh := func() string { return shield.invite(t, InviteOptions{Name: "edge1", Expires: time.Minute}) }
	parsed, err := ParseCode(fresh())
	if err != nil {
		t.Fatal(err)
	}
	change := func(f func(*Code)) string {
		c := parsed
		f(&c)
		return c.String()
	}
	otherCode, err := ParseCode(other.invite(t, InviteOptions{Name: "x"}))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	plainServer := &http.Server{Handler: http.NotFoundHandler()}
	go plainServer.Serve(plain)
	defer plainServer.Close()
	for what, c := range map[string]struct {
		code, want string
		kind       error
	}{
		"typo":             {fresh()[:20] + fresh()[21:], "typing error", registry.ErrInvalid},
		"other CA":         {change(func(c *Code) { c.CA = otherCode.CA }), "somebody is in between; the code was not sent", registry.ErrDenied},
		"other address":    {change(func(c *Code) { c.Address = other.url() }), "somebody is in between; the code was not sent", registry.ErrDenied},
		"guessed secret":   {change(func(c *Code) { c.Secret[3] ^= 1 }), "has not given out that join code", registry.ErrDenied},
		"longer expiry":    {change(func(c *Code) { c.Secret[0]++; c.Expires = c.Expires.Add(time.Hour) }), "has not given out", registry.ErrDenied},
		"unreachable":      {change(func(c *Code) { c.Address = "https://127.0.0.1:1" }), "cannot be reached: dial tcp 127.0.0.1:1: connect: connection refused. Does weir run there", registry.ErrUnavailable},
		"not TLS":          {change(func(c *Code) { c.Address = "https://" + plain.Addr().String() }), "does not speak TLS", registry.ErrUnavailable},
		"code of no equal": {change(func(c *Code) { c.Equal = true }), "no key of the authority", registry.ErrCorrupt},
	} {
		_, err := newNode(t, shield.clock, nil).tryJoin(c.code)
		if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", what, err)
		}
	}
	code := fresh()
	shield.clock.add(2 * time.Minute)
	if _, err := newNode(t, shield.clock, nil).tryJoin(code); !errors.Is(err, registry.ErrInvalid) || !strings.Contains(err.Error(), "the join code expired at 2031-05-06 07:09:09 UTC") {
		t.Error(err)
	}
	// A joiner whose clock is behind learns it from the other node; and the
	// node behind goes by its own clock.
	behind := newNode(t, &fakeClock{at: shield.clock.now().Add(-90 * time.Second)}, nil)
	if _, err := behind.tryJoin(code); !errors.Is(err, registry.ErrDenied) || !strings.Contains(err.Error(), "the join code expired at") {
		t.Error(err)
	}
}

func TestClockSkewAtJoin(t *testing.T) {
	shield := listen(t, newClock(), nil)
	joined(t, shield, "edge0")
	shield.clock.add(time.Hour) // its certificate is an hour old
	code := shield.invite(t, InviteOptions{Name: "edge1", Expires: 10 * time.Hour})
	at := func(d time.Duration) *testNode {
		return newNode(t, &fakeClock{at: shield.clock.now().Add(d)}, nil)
	}
	for d, want := range map[time.Duration]string{
		-30 * time.Minute:        "the clocks of the two machines differ by 30m0s",
		30 * time.Minute:         "the clocks of the two machines differ by 30m0s",
		-2 * time.Hour:           "which is 55m0s behind: set the clock of this machine", // the server's certificate had begun by then
		-maxSkew - time.Second*2: "the clocks of the two machines differ by 5m2s",
	} {
		if _, err := at(d).tryJoin(code); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v", d, err)
		}
	}
	// The code was not used up by any of these.
	slow := at(-maxSkew + time.Second)
	slow.join(t, code)
	slow.wantHello(t, shield, "edge1")
}

func TestNamesAreDecidedByTheInvitation(t *testing.T) {
	shield := listen(t, newClock(), func(o *Options) { o.Hosts = []string{"Shield.Example.Com"} })
	for _, o := range []InviteOptions{
		{Name: "shield.example.com"}, {Name: "localhost"}, {Name: shield.edit(t).current().own.record.Name},
		{Name: "e", Hosts: []string{"SHIELD.example.com"}}, {Name: "e", Hosts: []string{"127.0.0.1"}}, {Name: "e", Hosts: []string{"*.example.com"}},
		{Name: ""}, {Name: "E"}, {Name: "a b"}, {Name: "-a"}, {Name: "10.0.0.1"}, {Name: strings.Repeat("x", 64)},
	} {
		o.Address = shield.url()
		if _, err := shield.Invite(o); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("invited %+v: %v", o, err)
		}
	}
	code := shield.invite(t, InviteOptions{Name: "edge1", Hosts: []string{"edge1.example.com"}})
	n := newNode(t, shield.clock, nil)
	join := func(hosts ...string) error {
		_, err := Join(context.Background(), JoinOptions{Dir: n.dir, Code: code, Hosts: hosts, Now: shield.clock.now})
		return err
	}
	if err := join("edge1.example.com", "shield.example.com"); err == nil || !strings.Contains(err.Error(), "does not allow to serve under shield.example.com") {
		t.Fatal(err)
	}
	if err := join("edge1.EXAMPLE.com"); err != nil {
		t.Fatal(err)
	}
	leaf := n.current().joined[0].cert.Leaf
	if !slices.Equal(leaf.DNSNames, []string{"edge1", "edge1.example.com"}) || leaf.Subject.String() != "CN=edge1" || len(leaf.IPAddresses) != 0 || leaf.IsCA {
		t.Fatalf("%v %v %v", leaf.DNSNames, leaf.Subject, leaf.IPAddresses)
	}
	if life := leaf.NotAfter.Sub(leaf.NotBefore); life != nodeLife+backdate || !leaf.NotBefore.Before(shield.clock.now().Add(-backdate+time.Second)) {
		t.Fatalf("from %v to %v", leaf.NotBefore, leaf.NotAfter)
	}
}

func TestEquals(t *testing.T) {
	a := listen(t, newClock(), nil)
	edgeA := joined(t, a, "edge-a")
	b := newNode(t, a.clock, func(o *Options) { o.Listen = true })
	b.serve(t)
	if _, err := Join(context.Background(), JoinOptions{Dir: b.dir, Code: a.invite(t, InviteOptions{Name: "b", Equal: true}), Address: b.url(), Now: a.clock.now}); err != nil {
		t.Fatal(err)
	}
	edgeB := joined(t, b, "edge-b")
	// Who joined one is admitted by both, and so are they by each other.
	edgeA.wantHello(t, b, "edge-a")
	edgeB.wantHello(t, a, "edge-b")
	b.wantHello(t, a, "b")
	a.wantHello(t, b, machineName())
	if edges, err := a.List(); err != nil || len(edges.Nodes) != 2 || !edges.Nodes[0].Equal || edges.Nodes[0].Name != "b" {
		t.Fatalf("%+v %v", edges, err)
	}
	// Each hears the other's revocations, without any configuration, and keeps
	// them. edge-b had its certificate from b; a does not know the name.
	runWhile(t, a, b, edgeA)
	if _, err := a.edit(t).Revoke("edge-b", false); !errors.Is(err, registry.ErrNotFound) {
		t.Fatal(err)
	}
	if _, err := a.edit(t).Revoke("edge-b", true); err != nil {
		t.Fatal(err)
	}
	edgeB.wantRefused(t, a, revoked, "edge-b has been revoked")
	lab.Eventually(t, 10*time.Second, "the equal refuses too", func() error {
		if code, _, err := edgeB.get(t, nil, b.url()); err != nil || code != http.StatusForbidden {
			return errors.Join(err, errors.New(http.StatusText(code)))
		}
		return nil
	})
	if _, err := b.edit(t).Revoke("b", false); !errors.Is(err, registry.ErrInvalid) {
		t.Fatal(err)
	}
	out, err := b.edit(t).Revoke("edge-a", true)
	if err != nil || out.Equal {
		t.Fatal(out, err)
	}
	lab.Eventually(t, 10*time.Second, "the other refuses too", func() error {
		if code, _, err := edgeA.get(t, nil, a.url()); err != nil || code != http.StatusForbidden {
			return errors.Join(err, errors.New(http.StatusText(code)))
		}
		return nil
	})
	again := nodeIn(t, b.dir, b.clock, nil)
	if !again.current().revoked.has(again.current().own.id, edgeB.current().joined[0].cert.Leaf) {
		t.Fatal("the revocation that was heard has not been kept")
	}
	// b has issued it, and knows the serial number now whatever the clocks say.
	if !slices.ContainsFunc(again.current().nodes.Revoked, func(r revocation) bool { return r.Serial != "" && r.Name == "edge-b" }) {
		t.Fatalf("%+v", again.current().nodes.Revoked)
	}
}

// runWhile runs nodes until the test ends, quickly.
func runWhile(t *testing.T, list ...*testNode) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, n := range list {
		n.tick = 10 * time.Millisecond
		wg.Go(func() { n.Run(ctx) })
	}
	t.Cleanup(func() { cancel(); wg.Wait() })
}

func TestEqualMustNotGiveUpItsOwnGroup(t *testing.T) {
	a := listen(t, newClock(), nil)
	b := listen(t, a.clock, nil)
	joined(t, b, "edge-b")
	code := a.invite(t, InviteOptions{Name: "b", Equal: true})
	if _, err := b.tryJoin(code); !errors.Is(err, registry.ErrConflict) || !strings.Contains(err.Error(), "would have to shut them out") {
		t.Fatal(err)
	}
	if _, err := a.tryJoin(code); !errors.Is(err, registry.ErrConflict) {
		t.Fatal(err)
	}
	newNode(t, a.clock, nil).join(t, code) // it was not used up
}

func TestRenewal(t *testing.T) {
	shield := listen(t, newClock(), nil)
	edge := joined(t, shield, "edge1")
	serial := func() string { return serialText(edge.current().joined[0].cert.Leaf) }
	first := serial()
	runWhile(t, edge, shield)
	edge.wantHello(t, shield, "edge1")
	for round := range 4 { // 84 days, nearly three lives
		before := serial()
		shield.clock.add(21 * 24 * time.Hour)
		lab.Eventually(t, 10*time.Second, "a renewed certificate", func() error {
			if serial() == before {
				return errors.New("it is the same")
			}
			return nil
		})
		edge.wantHello(t, shield, "edge1")
		if round == 0 && serial() == first {
			t.Fatal("not renewed")
		}
	}
	l, err := shield.edit(t).List()
	if err != nil || len(l.Nodes) != 1 || l.Nodes[0].State != StateOK || l.Nodes[0].Serial != serial() {
		t.Fatalf("%+v %v", l, err)
	}
	if n := len(shield.current().nodes.Nodes); n > 4 {
		t.Errorf("%d certificates of one node are kept", n)
	}
}

func TestRenewalIsTriedAgain(t *testing.T) {
	shield := listen(t, newClock(), nil)
	edge := joined(t, shield, "edge1")
	c := client(edge.Transport())
	leaf := edge.current().joined[0].cert.Leaf
	record := edge.current().joined[0].record
	// Nobody there at two thirds of its life: tried after 1, 2, 4 … 60 minutes.
	record.Address = "https://127.0.0.1:1"
	if err := edge.dir_().write(joinedFile, joinedRecord{Version: 1, Joined: []memberRecord{record}}); err != nil {
		t.Fatal(err)
	}
	tries := func() int { return edge.meter.count("renewal failed", "https://127.0.0.1:1") }
	edge.clock.add(20*24*time.Hour - 30*time.Minute)
	edge.renewDue(context.Background(), c)
	if tries() != 0 {
		t.Fatal("renewed too early")
	}
	edge.clock.add(time.Hour)
	for range 24 * 60 {
		edge.renewDue(context.Background(), c)
		edge.clock.add(time.Minute)
	}
	if n := tries(); n < 24 || n > 32 {
		t.Fatalf("%d tries in a day", n)
	}
	// A clock that is set back does not stop it.
	before := tries()
	edge.clock.add(-3 * time.Hour)
	edge.renewDue(context.Background(), c)
	if tries() != before+1 {
		t.Fatal("not tried after the clock was set back")
	}
	// There again in time, it works; too late, a person has to do it.
	record.Address = shield.url()
	if err := edge.dir_().write(joinedFile, joinedRecord{Version: 1, Joined: []memberRecord{record}}); err != nil {
		t.Fatal(err)
	}
	shield.clock.add(61 * time.Minute)
	edge.renewDue(context.Background(), c)
	if edge.current().joined[0].cert.Leaf.Equal(leaf) {
		t.Fatalf("not renewed:\n%s", edge.log)
	}
	edge.clock.add(nodeLife + time.Hour)
	for range 90 {
		edge.renewDue(context.Background(), c)
		edge.clock.add(time.Minute)
	}
	if n := strings.Count(edge.log.String(), "level=ERROR msg=\"this node's certificate has expired, and the nodes behind answer it no more: make a join code"); n != 2 {
		t.Errorf("said %d times in 90 minutes:\n%s", n, edge.log)
	}
	if l, err := edge.edit(t).List(); err != nil || l.Joined[0].State != StateExpired {
		t.Errorf("%+v %v", l, err)
	}
	if l, err := shield.edit(t).List(); err != nil || l.Nodes[0].State != StateExpired {
		t.Errorf("%+v %v", l, err)
	}
	edge.wantRefused(t, shield, expired, "the node has to join again")
	edge.join(t, shield.invite(t, InviteOptions{Name: "edge1"}))
	edge.wantHello(t, shield, "edge1")
}

// dir_ is the files, under the node's own field of that name.
func (n *testNode) dir_() directory { return directory(n.dir) }

func TestLastSeen(t *testing.T) {
	shield := listen(t, newClock(), nil)
	edge := joined(t, shield, "edge1")
	shield.clock.add(time.Minute)
	edge.wantHello(t, shield, "edge1")
	shield.saveSeen()
	again := nodeIn(t, shield.dir, shield.clock, nil)
	if l, err := again.List(); err != nil || !l.Nodes[0].Seen.Equal(shield.clock.now().Truncate(time.Second)) {
		t.Fatalf("%+v %v", l, err)
	}
	if err := os.WriteFile(filepath.Join(shield.dir, seenFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := again.List(); err != nil || !l.Nodes[0].Seen.IsZero() {
		t.Fatalf("%+v %v", l, err)
	}
}

func TestNothingJoined(t *testing.T) {
	shield := listen(t, newClock(), nil)
	n := newNode(t, shield.clock, nil)
	_, _, err := n.get(t, nil, shield.url())
	if err == nil || !strings.Contains(err.Error(), "this node has not joined any other") || !errors.Is(err, registry.ErrUnavailable) {
		t.Fatal(err)
	}
	if _, err := os.Stat(n.dir); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("a directory was made: %v", err)
	}
	// An authority that it did not join is not believed.
	edge := joined(t, listen(t, shield.clock, nil), "edge1")
	if _, _, err := edge.get(t, nil, shield.url()); err == nil || !strings.Contains(err.Error(), "an authority that this node has not joined") {
		t.Fatal(err)
	}
	if _, _, err := edge.get(t, nil, "http"+strings.TrimPrefix(shield.url(), "https")); err == nil {
		t.Fatal("asked without TLS")
	}
}
