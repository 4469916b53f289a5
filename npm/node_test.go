package npm_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weir-registry/weir/cachetiers"
	"github.com/weir-registry/weir/conformance/npmlab"
	"github.com/weir-registry/weir/npm"
	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/names"
	"github.com/weir-registry/weir/registry/reply"
)

const corgiAccept = "application/vnd.npm.install-v1+json; q=1.0, application/json; q=0.8, */*"

// everyone admits every call, but for packages it is told to deny.
type everyone struct{ deny string }

func (e everyone) Admit(_ context.Context, c *registry.Call) error {
	if e.deny != "" && c.Name.Repo == e.deny {
		return registry.Errorf(registry.ErrDenied, "%s is not for you", c.Name.Repo)
	}
	return nil
}

// A node is the npm side of a whole weir in memory.
type node struct {
	t     testing.TB
	url   string
	names *names.Memory
	near  *forgetful
	npm   http.Handler // what is behind url, for clients that are no sockets
}

// forgetful is a Store that can lose a blob, as one that is full does.
type forgetful struct {
	registry.Store
	lost sync.Map // of digest.Digest, until it is committed again

	stages atomic.Int64         // begun and not closed
	gate   atomic.Pointer[gate] // if set: each stage waits there before it begins
}

// A gate tells who has arrived, and lets everybody through once open is closed.
type gate struct{ arrived, open chan struct{} }

func (f *forgetful) Open(ctx context.Context, w registry.Want) (registry.Blob, error) {
	if _, ok := f.lost.Load(w.Digest); ok {
		return nil, registry.Errorf(registry.ErrNotFound, "evicted")
	}
	return f.Store.Open(ctx, w)
}

func (f *forgetful) Stage(ctx context.Context, expect registry.Descriptor) (registry.Stage, error) {
	if g := f.gate.Load(); g != nil {
		g.arrived <- struct{}{}
		<-g.open
	}
	s, err := f.Store.Stage(ctx, expect)
	f.stages.Add(1)
	return &remembering{Stage: s, f: f}, err
}

type remembering struct {
	registry.Stage
	f    *forgetful
	once sync.Once
}

func (r *remembering) Close() error {
	r.once.Do(func() { r.f.stages.Add(-1) })
	return r.Stage.Close()
}

func (r *remembering) Commit(ctx context.Context) (registry.Descriptor, error) {
	d, err := r.Stage.Commit(ctx)
	r.f.lost.Delete(d.Digest)
	return d, err
}

// evict loses the bytes that a name is bound to.
func (n *node) evict(name registry.Name) {
	n.t.Helper()
	b, err := n.names.Lookup(context.Background(), name)
	if err != nil {
		n.t.Fatal(err)
	}
	n.near.lost.Store(b.Digest, true)
}

// newNode starts a node; change, if not nil, may change its configuration.
func newNode(t testing.TB, upstream string, change func(*npm.Registry, *npm.Config)) *node {
	t.Helper()
	r := npm.Registry{Name: "public", URL: upstream, Packages: []string{"*"}, Fresh: time.Hour,
		Patience: 500 * time.Millisecond, Wait: time.Second}
	c := npm.Config{Prefix: "/npm", Log: slog.New(slog.DiscardHandler), Open: func() bool { return true }}
	if change != nil {
		change(&r, &c)
	}
	return startNode(t, c, r)
}

func startNode(t testing.TB, c npm.Config, registries ...npm.Registry) *node {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	up, err := npm.NewUpstreams(registries, npm.Options{Log: log, HeaderTimeout: 3 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, names: &names.Memory{}, near: &forgetful{Store: cachetiers.NewMemory(512 << 20)}}
	if c.Service == nil {
		c.Service = &registry.Service{Guard: everyone{}}
	}
	c.Service.Names, c.Service.Log = n.names, log
	c.Service.Blobs = cachetiers.NewTier(n.near, up, cachetiers.Options{Name: "memory", Log: log})
	c.Service.Spaces = map[string]registry.Space{"npm": up.Space()}
	c.Upstreams = up
	n.npm = reply.Handler(npm.New(c), reply.Options{Space: "npm", Log: log})
	s := httptest.NewServer(n.npm)
	t.Cleanup(func() {
		s.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := c.Service.Drain(ctx); err != nil {
			t.Error(err)
		}
	})
	n.url = s.URL
	return n
}

// An answer is a response with its body, as it came and decoded.
type answer struct {
	*http.Response
	raw, body []byte
}

func (n *node) get(path string, header ...string) answer {
	n.t.Helper()
	return n.do("GET", path, nil, header...)
}

func (n *node) do(method, path string, body []byte, header ...string) answer {
	n.t.Helper()
	a, err := n.try(method, path, body, header...)
	if err != nil {
		n.t.Fatal(err)
	}
	return a
}

// try is do for what may fail.
func (n *node) try(method, path string, body []byte, header ...string) (answer, error) {
	a, err := n.tryRaw(method, path, body, header...)
	if err != nil || a.Header.Get("Content-Encoding") != "gzip" || len(a.raw) == 0 {
		return a, err
	}
	z, err := gzip.NewReader(bytes.NewReader(a.raw))
	if err != nil {
		return a, err
	}
	a.body, err = io.ReadAll(z)
	return a, err
}

// tryRaw is try that leaves the body as it came.
func (n *node) tryRaw(method, path string, body []byte, header ...string) (answer, error) {
	req, err := http.NewRequest(method, n.url+path, bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
			continue
		}
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := (&http.Transport{DisableCompression: true, DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	a := answer{Response: resp}
	if a.raw, err = io.ReadAll(resp.Body); err != nil {
		return a, err
	}
	a.body = a.raw
	return a, nil
}

// is checks a status, and that an error is in npm's form.
func (a answer) is(t testing.TB, status int) answer {
	t.Helper()
	if a.StatusCode != status {
		t.Fatalf("%s %s: %s, want %d: %.300s", a.Request.Method, a.Request.URL.Path, a.Status, status, a.body)
	}
	if !strings.HasPrefix(a.Header.Get("Cache-Status"), "weir; ") {
		t.Errorf("%s: Cache-Status %q", a.Request.URL.Path, a.Header.Get("Cache-Status"))
	}
	if status >= 400 && status != 416 && a.Request.Method != "HEAD" {
		var e struct{ Error string }
		var s string
		if json.Unmarshal(a.body, &e) != nil || e.Error == "" {
			if json.Unmarshal(a.body, &s) != nil || s == "" {
				t.Errorf("%s: not an error in npm's form: %.300s", a.Request.URL.Path, a.body)
			}
		}
	}
	if (status == 429 || status == 503) && a.Header.Get("Retry-After") == "" {
		t.Errorf("%s: %d without Retry-After", a.Request.URL.Path, status)
	}
	return a
}

func (a answer) json(t testing.TB) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(a.body, &m); err != nil {
		t.Fatalf("%s: %v: %.300s", a.Request.URL.Path, err, a.body)
	}
	return m
}

// at is the value below m at a path of names.
func at(m any, path ...string) any {
	for _, p := range path {
		o, _ := m.(map[string]any)
		m = o[p]
	}
	return m
}

// lab starts a scripted registry with some packages.
func lab(t testing.TB) *npmlab.Registry {
	t.Helper()
	r, err := npmlab.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	r.Publish(npmlab.Version{Name: "left", Version: "1.0.0"})
	r.Publish(npmlab.Version{Name: "left", Version: "1.1.0"})
	r.Publish(npmlab.Version{Name: "left", Version: "2.0.0-rc.1", Tag: "next"})
	r.Publish(npmlab.Version{Name: "@acme/right", Version: "1.0.0", Attested: true})
	return r
}

// eventually waits for what happens on its own: a freshness running out.
func eventually(t testing.TB, what string, try func() error) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("%s: %v", what, err)
		case <-tick.C:
		}
	}
}

var errNotYet = errors.New("not yet")

// script is an upstream of one handler.
func script(t testing.TB, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

// bound is how many names are bound.
func (n *node) bound() (count int) {
	for _, err := range n.names.List(context.Background(), "npm", "", "") {
		if err != nil {
			n.t.Fatal(err)
		}
		count++
	}
	return count
}
