package relay_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/relay"
)

// post sends a body as a node, and returns the status and the kind of failure.
func post(t *testing.T, c *http.Client, url, body string) (int, string) {
	t.Helper()
	resp, err := c.Post(url, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, resp.Header.Get("Weir-Error")
}

// TestBodies: reports and questions may be just as long as they may.
func TestBodies(t *testing.T) {
	p := newPKI(t)
	var who accounts
	origin := start(t, p, "origin", setup{database: "db", config: who.configure})
	c := p.client("edge")
	pad := func(text string, n int) string { return text + strings.Repeat(" ", n-len(text)) }
	for _, test := range []struct {
		path, body string
		status     int
		kind       string
	}{
		{streamPath + "/seen", pad(`{"self":{"database":"db","version":1}}`, relay.MaxReport), 204, ""},
		{streamPath + "/seen", pad(`{"self":{"database":"db","version":1}}`, relay.MaxReport+1), 400, "invalid"},
		{streamPath + "/seen", `{"self":{"database":"other","version":1}}`, 409, "conflict"},
		{streamPath + "/seen", `{"self":{"database":"","version":0}}`, 204, ""},
		{streamPath + "/seen", `{"self":{"database":"db","version":-1}}`, 400, "invalid"},
		{streamPath + "/seen", `{}{}`, 400, "invalid"},
		{streamPath + "/seen", ``, 400, "invalid"},
		{streamPath + "/seen", `{"used":{"t":-1}}`, 400, "invalid"},
		{streamPath + "/seen", `{"used":{"\u001b":1}}`, 400, "invalid"},
		{streamPath + "/seen", `{"front":[{"node":"","heard":1}]}`, 400, "invalid"},
		{streamPath + "/seen", `{"front":[{"node":"a","heard":-1}]}`, 400, "invalid"},
		{streamPath + "/seen", `{"front":[{"node":"a","heard":1,"via":["1","2","3","4","5","6","7","8","9"]}]}`, 400, "invalid"},
		{streamPath + "/seen", `{"front":[{"node":"` + strings.Repeat("a", 257) + `","heard":1}]}`, 400, "invalid"},
		{"/weir/v1/account/password", pad(`{"name":"a","password":"b"}`, relay.MaxQuestion), 200, ""},
		{"/weir/v1/account/password", pad(`{"name":"a","password":"b"}`, relay.MaxQuestion+1), 400, "invalid"},
		{"/weir/v1/account/password", `{"name":5}`, 400, "invalid"},
		{"/weir/v1/account/list-tokens", `{"by":{"Name":"edge","Node":true}}`, 400, "invalid"},
		{"/weir/v1/account/everything", `{}`, 400, "invalid"},
		{"/weir/v1/account/", `{}`, 400, "invalid"},
		{"/weir/v1/entitlements/else", `{}`, 400, "invalid"},
		{streamPath, `{}`, 400, "invalid"},
	} {
		if status, kind := post(t, c, origin.url()+test.path, test.body); status != test.status || kind != test.kind {
			t.Errorf("%s %.80s: %d %q, want %d %q", test.path, test.body, status, kind, test.status, test.kind)
		}
	}
	if who.count("password") != 1 || who.count("list") != 0 {
		t.Errorf("%v", who.did)
	}
	// A question that is longer than that is not sent.
	edge := start(t, p, "edge", setup{next: []string{origin.url()}, stopped: true})
	if _, err := edge.client.Exchange(t.Context(), strings.Repeat("x", relay.MaxQuestion), from); registry.KindOf(err) != registry.ErrTooLarge || who.count("exchange") != 0 {
		t.Errorf("%v", err)
	}
	resp, err := c.Get(origin.url() + streamPath + "/seen")
	if err != nil {
		t.Fatal(err)
	}
	if resp.Body.Close(); resp.StatusCode != 400 || resp.Header.Get("Allow") != "POST" {
		t.Errorf("%d %v", resp.StatusCode, resp.Header)
	}
}

// open opens a stream as a node.
func open(t *testing.T, c *http.Client, n *node, query string) (*http.Response, error) {
	t.Helper()
	resp, err := c.Get(n.url() + streamPath + query)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { resp.Body.Close() })
	if word := resp.Header.Get("Weir-Error"); word != "" {
		return nil, fmt.Errorf("%d %s", resp.StatusCode, word)
	}
	return resp, nil
}

// ends waits until a stream ends, and says how.
func ends(t *testing.T, resp *http.Response) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { _, err := io.Copy(io.Discard, resp.Body); done <- err }()
	select {
	case err := <-done:
		return err
	case <-time.After(10 * time.Second):
		t.Fatal("the stream goes on")
		return nil
	}
}

// TestFollowers: there are as many streams as there may be, of one node only a
// few, of which the newest count; and room again when one ends.
func TestFollowers(t *testing.T) {
	p := newPKI(t)
	origin := start(t, p, "origin", setup{database: "db", config: func(c *relay.Config) { c.Followers = relay.StreamsPerNode + 2 }})
	c := p.client("edge-1")
	var streams []*http.Response
	for i := range relay.StreamsPerNode + 1 {
		resp, err := open(t, c, origin, "")
		if err != nil {
			t.Fatal(i, err)
		}
		streams = append(streams, resp)
	}
	if err := ends(t, streams[0]); err != nil {
		t.Errorf("the oldest: %v", err)
	}
	conformance.Eventually(t, "it is gone", func() bool { return origin.handler.Followers() == relay.StreamsPerNode })
	for i := range 2 {
		if _, err := open(t, p.client(fmt.Sprint("edge-", 2+i)), origin, ""); err != nil {
			t.Fatal(err)
		}
	}
	full := p.client("edge-9")
	if _, err := open(t, full, origin, ""); err == nil || err.Error() != "503 unavailable" {
		t.Errorf("one too many: %v", err)
	}
	// To look how it is it takes none of them.
	if resp, err := open(t, full, origin, "?probe=1"); err != nil || ends(t, resp) != nil {
		t.Errorf("a probe: %v", err)
	}
	streams[2].Body.Close()
	conformance.Eventually(t, "there is room", func() bool { return origin.handler.Followers() == relay.StreamsPerNode+1 })
	if _, err := open(t, full, origin, ""); err != nil {
		t.Error(err)
	}
}

// TestNotYet: a node that has nothing itself says so, and is followed as soon as
// it has.
func TestNotYet(t *testing.T) {
	p := newPKI(t)
	origin := start(t, p, "origin", setup{database: "db"})
	shield := start(t, p, "shield", setup{next: []string{origin.url()}, stopped: true})
	if _, err := open(t, p.client("edge"), shield, ""); err == nil || err.Error() != "503 unavailable" {
		t.Errorf("%v", err)
	}
	if _, err := open(t, p.client("edge"), origin, "?database=other&version=1"); err == nil || err.Error() != "409 conflict" {
		t.Errorf("%v", err)
	}
	if _, err := open(t, p.client("edge"), origin, "?database=db&version=x"); err == nil || err.Error() != "400 invalid" {
		t.Errorf("%v", err)
	}
	edge := start(t, p, "edge", setup{next: []string{shield.url()}})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); shield.client.Run(ctx) }()
	defer func() { cancel(); <-done }()
	shield.has(origin)
	begun := time.Now()
	edge.has(origin)
	if took := time.Since(begun); took > 1200*time.Millisecond {
		t.Errorf("the edge had it %v later", took)
	}
}

// TestRevokedNode: a node that may no longer be connected loses its stream, not
// only its next request.
func TestRevokedNode(t *testing.T) {
	p := newPKI(t)
	var revoked atomic.Bool
	origin := start(t, p, "origin", setup{database: "db", config: func(c *relay.Config) {
		c.Still = func(r *http.Request) bool { return !revoked.Load() || c.Node(r) != "edge-1" }
	}})
	out, err := open(t, p.client("edge-1"), origin, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err = open(t, p.client("edge-2"), origin, ""); err != nil {
		t.Fatal(err)
	}
	revoked.Store(true)
	begun := time.Now()
	if err := ends(t, out); err != nil || time.Since(begun) > time.Second {
		t.Errorf("after %v: %v", time.Since(begun), err)
	}
	if n := origin.handler.Followers(); n != 1 {
		t.Errorf("%d followers are left", n)
	}
}

// TestStop: a server with followers stops within a second, also if one of them
// does not read.
func TestStop(t *testing.T) {
	p := newPKI(t)
	origin := start(t, p, "origin", setup{database: "db"})
	// These have everything: one that is sent a snapshot would be cut off in it.
	own := origin.rep.State()
	have := "?" + url.Values{"database": {own.Database}, "version": {fmt.Sprint(own.Version)}, "hash": {own.Hash}}.Encode()
	var streams []*http.Response
	for i := range 10 {
		resp, err := open(t, p.client(fmt.Sprint("edge-", i)), origin, have)
		if err != nil {
			t.Fatal(err)
		}
		streams = append(streams, resp)
	}
	stuck := &stuckSource{Source: origin.rep, writing: make(chan struct{})}
	h := relay.New(relay.Config{Source: stuck, Node: func(*http.Request) string { return "stuck" }, Board: relay.NewBoard(nil)})
	origin.server.RegisterOnShutdown(h.Close)
	origin.intercept(func(w http.ResponseWriter, r *http.Request) bool { h.ServeHTTP(w, r); return true })
	slow, err := open(t, p.client("edge-slow"), origin, "")
	if err != nil {
		t.Fatal(err)
	}
	<-stuck.writing
	begun := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := origin.server.Shutdown(ctx); err != nil || time.Since(begun) > 1100*time.Millisecond {
		t.Errorf("stopped after %v: %v", time.Since(begun), err)
	}
	for _, s := range streams {
		if err := ends(t, s); err != nil {
			t.Errorf("a stream ended by %v", err)
		}
	}
	if err := ends(t, slow); err == nil {
		t.Error("half a snapshot ended as if it were whole")
	}
	// None begins any more.
	w := &recorder{header: http.Header{}}
	r, _ := http.NewRequest(http.MethodGet, streamPath, nil)
	if h.ServeHTTP(w, r); w.status != http.StatusServiceUnavailable {
		t.Errorf("a stream began: %d %s", w.status, w.Bytes())
	}
}

// stuckSource is a copy whose snapshot is more than any buffer takes.
type stuckSource struct {
	relay.Source
	writing chan struct{}
}

func (s *stuckSource) WriteSnapshot(w io.Writer) error {
	block := make([]byte, 1<<20)
	for i := 0; ; i++ {
		if _, err := w.Write(block); err != nil {
			return err
		}
		if i == 0 {
			close(s.writing)
		}
	}
}

// recorder is a ResponseWriter without a connection.
type recorder struct {
	bytes.Buffer
	header http.Header
	status int
}

func (r *recorder) Header() http.Header    { return r.header }
func (r *recorder) WriteHeader(status int) { r.status = status }
