package wan_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/lab"
	"github.com/weir-registry/weir/conformance/wan"
)

// TestLayOut has weir check the configurations of every kind of topology.
func TestLayOut(t *testing.T) {
	u := wan.StartUpstream(t)
	for name, p := range map[string]wan.Plan{
		"one node":     {Edges: 1},
		"with a store": {Edges: 1, Store: wan.StoreDir},
		"chain":        {Edges: 2, Shields: 1, Origin: true, Store: wan.StoreDir, Bypass: "none", Clients: &wan.Shape{RTT: time.Millisecond}},
		"three":        {Edges: 2, Shields: 3, Origin: true, Store: "s3://bucket/prefix?region=r&endpoint=http://127.0.0.1:1", Bypass: "upstream"},
		"no shield":    {Edges: 1, Origin: true, Peers: true},
		"peers":        {Edges: 3, Shields: 1, Peers: true, More: "log: {level: debug}\n"},
	} {
		top := wan.LayOut(t, u, p)
		for _, n := range top.Nodes() {
			r := lab.Try(t, 20*time.Second, lab.Command{Path: lab.Binary(t), Args: []string{"config", "check", "-c", n.Config}})
			if r.Code != 0 {
				text, _ := os.ReadFile(n.Config)
				t.Errorf("%s, %s: %s%s\n%s", name, n.Name, r.Stdout, r.Stderr, text)
			}
		}
	}
}

// TestLines has each hop of a chain have the lines that it should.
func TestLines(t *testing.T) {
	u := wan.StartUpstream(t)
	three := wan.LayOut(t, u, wan.Plan{Edges: 2, Shields: 3, Origin: true})
	if a, b := three.Edges[0], three.Edges[1]; len(a.Behind) != 3 || a.Behind[0] != b.Behind[0] || a.Behind[0] == a.Behind[1] {
		t.Error("edges do not know three shields by the same addresses")
	}
	one := wan.LayOut(t, u, wan.Plan{Edges: 2, Shields: 1, Origin: true})
	if a, b := one.Edges[0], one.Edges[1]; len(a.Behind) != 1 || a.Behind[0] == b.Behind[0] || len(one.Shields[0].Behind) != 1 || len(one.Origin.Behind) != 0 {
		t.Error("edges share the line to the one shield")
	}
	if a := one.Edges[0]; a.Front != nil || a.Door != a.URL || a.Tiers != "" || one.Shields[0].Tiers == "" {
		t.Errorf("an edge: %+v", a)
	}
	text, err := os.ReadFile(one.Edges[1].Config)
	if err != nil || !strings.Contains(string(text), `next: ["https://`+one.Edges[1].Behind[0].Addr+`"]`) {
		t.Errorf("an edge's configuration: %v\n%s", err, text)
	}
}

// TestSingleNode pulls through one edge over lines, with a kill in between.
func TestSingleNode(t *testing.T) {
	u := wan.StartUpstream(t)
	b := u.Blob(300_000, "single")
	m := u.Image("library/single", "1", b)
	top := wan.Start(t, u, wan.Plan{Edges: 1, Clients: &wan.Shape{RTT: 10 * time.Millisecond}, Upstream: wan.Shape{RTT: 40 * time.Millisecond}})
	n, c := top.Edges[0], wan.NewClient(t, 0)
	cold := c.Must(t, wan.Want{URL: n.Door + wan.ManifestPath("library/single", "1"), Blob: m})
	if cold.Header < 90*time.Millisecond { // two new connections, one of them slow
		t.Errorf("a cold manifest after %v", cold.Header)
	}
	c.Must(t, wan.Want{URL: n.Door + wan.BlobPath("library/single", b), Blob: b})
	if got := top.FromUpstream(); got.Down < b.Size || got.Down > b.Size+4096 || n.UpstreamRequests() < 2 {
		t.Errorf("from upstream came %+v in %d answers", got, n.UpstreamRequests())
	}
	n.Kill9()
	if a := c.Get(t.Context(), wan.Want{URL: n.Door + "/v2/"}); a.Fault != wan.Reset {
		t.Errorf("a node that was killed: %+v", a)
	}
	n.Start()
	u.Reset()
	warm := c.Must(t, wan.Want{URL: n.Door + wan.BlobPath("library/single", b), Blob: b})
	if !strings.HasPrefix(warm.Cache, "weir; hit") || u.Read(b.Digest).Requests != 0 || n.TierHits("disk") != 1 {
		t.Errorf("after the kill: %q, %d disk hits\n%s", warm.Cache, n.TierHits("disk"), u.Story())
	}
}

// TestAuthority has two nodes' certificates meet over a link, a stranger's be
// refused, and one that has expired.
func TestAuthority(t *testing.T) {
	ours, theirs := wan.NewAuthority(t), wan.NewAuthority(t)
	pair := func(a *wan.Authority, c wan.Certificate) tls.Certificate {
		t.Helper()
		cert, key := a.Issue(c)
		p, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	pem, err := os.ReadFile(ours.CA)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.TLS.PeerCertificates[0].Subject.CommonName)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	link := wan.StartLink(t, s.Listener.Addr().String(), wan.Shape{})
	host, _, _ := net.SplitHostPort(link.Addr)
	s.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots,
		Certificates: []tls.Certificate{pair(ours, wan.Certificate{Name: "shield", Hosts: []string{host}})}}
	s.StartTLS()
	defer s.Close()
	get := func(cert tls.Certificate) (string, error) {
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{cert}}}
		defer tr.CloseIdleConnections()
		resp, err := (&http.Client{Transport: tr}).Get("https://" + link.Addr)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return string(b), err
	}
	if got, err := get(pair(ours, wan.Certificate{Name: "edge"})); got != "edge" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := get(pair(theirs, wan.Certificate{Name: "edge"})); err == nil {
		t.Error("a stranger was let in")
	}
	old := wan.Certificate{Name: "edge", From: time.Now().Add(-2 * time.Hour), Until: time.Now().Add(-time.Hour)}
	if _, err := get(pair(ours, old)); err == nil {
		t.Error("one that has expired was let in")
	}
}
