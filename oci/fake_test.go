package oci

import (
	"context"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/weir-registry/weir/cachetiers"
	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/names"
	"github.com/weir-registry/weir/registry/reply"
)

// network is every host there is in a test: a round tripper that calls
// handlers, so that it works under synctest's clock.
type network map[string]http.Handler

// RoundTrip implements http.RoundTripper.
func (n network) RoundTrip(r *http.Request) (*http.Response, error) {
	h := n[r.URL.Host]
	if h == nil {
		return nil, fmt.Errorf("no host %s", r.URL.Host)
	}
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	rec := httptest.NewRecorder()
	in := r.Clone(r.Context())
	in.Host, in.RequestURI, in.RemoteAddr = r.URL.Host, r.URL.RequestURI(), "192.0.2.1:1"
	h.ServeHTTP(rec, in)
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	resp := rec.Result()
	resp.Request = r
	if resp.ContentLength < 0 && rec.Header().Get("Content-Length") == "" && r.Method != http.MethodHead {
		resp.ContentLength = int64(rec.Body.Len())
	}
	if r.Method == http.MethodHead {
		resp.Body = http.NoBody
	}
	return resp, nil
}

// upstream is a registry that counts what it is asked.
type upstream struct {
	mu    sync.Mutex
	asked []string // "GET /v2/…", in order
	auths []string // the Authorization of each
	seen  []http.Header

	docs  map[string]doc    // "repo/manifests/ref"
	blobs map[string]string // "repo/blobs/digest"
	tags  map[string][]string
	// wrap may answer instead.
	wrap func(w http.ResponseWriter, r *http.Request) bool
	// noDigest leaves out Docker-Content-Digest.
	noDigest bool
	prefix   string // of the path, before /v2/
}

type doc struct {
	mediaType, body string
	digest          digest.Digest
}

func newUpstream() *upstream {
	return &upstream{docs: map[string]doc{}, blobs: map[string]string{}, tags: map[string][]string{}}
}

func (u *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	u.mu.Lock()
	u.asked = append(u.asked, r.Method+" "+r.URL.RequestURI())
	u.auths = append(u.auths, r.Header.Get("Authorization"))
	u.seen = append(u.seen, r.Header.Clone())
	wrap := u.wrap
	u.mu.Unlock()
	if wrap != nil && wrap(w, r) {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	rest := strings.TrimPrefix(r.URL.Path, u.prefix+"/v2/")
	if d, ok := u.docs[rest]; ok {
		w.Header().Set("Content-Type", d.mediaType)
		if !u.noDigest {
			w.Header().Set("Docker-Content-Digest", string(d.digest))
		}
		send(w, r, d.body)
		return
	}
	if b, ok := u.blobs[rest]; ok {
		http.ServeContent(w, r, "", zeroTime, strings.NewReader(b))
		return
	}
	if repo, ok := strings.CutSuffix(rest, "/tags/list"); ok && u.tags[repo] != nil {
		w.Header().Set("Content-Type", "application/json")
		data, _ := json.Marshal(tagList{Name: repo, Tags: u.tags[repo]})
		send(w, r, string(data))
		return
	}
	w.WriteHeader(http.StatusNotFound)
}

func send(w http.ResponseWriter, r *http.Request, body string) {
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	if r.Method != http.MethodHead {
		io.WriteString(w, body)
	}
}

// took gives what was asked since the last time, and forgets it.
func (u *upstream) took() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	out := u.asked
	u.asked, u.auths, u.seen = nil, nil, nil
	return out
}

func (u *upstream) set(wrap func(w http.ResponseWriter, r *http.Request) bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.wrap = wrap
}

func answers(code int, header ...string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
		return true
	}
}

// put adds a manifest under its digest, its SHA-512, and the refs.
func (u *upstream) put(repo, mediaType, body string, refs ...string) digest.Digest {
	d := digest.FromString(body)
	sum := sha512.Sum512([]byte(body))
	d512 := digest.Digest("sha512:" + hex.EncodeToString(sum[:]))
	u.docs[repo+"/manifests/"+string(d)] = doc{mediaType, body, d}
	u.docs[repo+"/manifests/"+string(d512)] = doc{mediaType, body, d512}
	for _, ref := range refs {
		u.docs[repo+"/manifests/"+ref] = doc{mediaType, body, d}
	}
	return d
}

func (u *upstream) blob(repo, body string) v1.Descriptor {
	d := digest.FromString(body)
	u.blobs[repo+"/blobs/"+string(d)] = body
	return v1.Descriptor{MediaType: v1.MediaTypeImageLayerGzip, Digest: d, Size: int64(len(body))}
}

// image adds an image of a config and two layers, and gives its manifest.
func (u *upstream) image(t *testing.T, repo, seed string, refs ...string) (v1.Manifest, digest.Digest) {
	t.Helper()
	m := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest,
		Config: u.blob(repo, "config "+seed), Layers: []v1.Descriptor{u.blob(repo, "layer one "+seed), u.blob(repo, strings.Repeat("layer two "+seed, 1000))}}
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return m, u.put(repo, v1.MediaTypeImageManifest, string(data), refs...)
}

func dig(s string) digest.Digest { return digest.Digest(s) }

// allow admits everything.
type allow struct{}

func (allow) Admit(context.Context, *registry.Call) error { return nil }

// weir is a handler with all behind it.
type weir struct {
	http.Handler
	t    *testing.T
	ups  *Upstreams
	svc  *registry.Service
	near *cachetiers.Memory
}

func newWeir(t *testing.T, net network, o Options, regs ...Registry) *weir {
	t.Helper()
	o.Transport = net
	quiet := slog.New(slog.DiscardHandler)
	ups, err := NewUpstreams(regs, o)
	if err != nil {
		t.Fatal(err)
	}
	near := cachetiers.NewMemory(64 << 20)
	svc := &registry.Service{Names: &names.Memory{}, Blobs: cachetiers.NewTier(near, ups, cachetiers.Options{}),
		Guard: allow{}, Log: quiet, Spaces: map[string]registry.Space{Space: ups.Space()}}
	h := reply.Handler(New(Config{Service: svc, Upstreams: ups}), reply.Options{Space: Space, Log: quiet})
	return &weir{Handler: h, t: t, ups: ups, svc: svc, near: near}
}

// one is a weir in front of one upstream, Docker Hub by name.
func one(t *testing.T) (*weir, *upstream) {
	up := newUpstream()
	return newWeir(t, network{"hub.test": up}, Options{Default: hub}, Registry{Name: hub, URL: "http://hub.test"}), up
}

func (w *weir) do(method, target string, header ...string) *httptest.ResponseRecorder {
	w.t.Helper()
	r := httptest.NewRequest(method, "http://weir.test/", nil)
	u, err := url.ParseRequestURI(target)
	if err != nil {
		w.t.Fatal(err)
	}
	r.URL = u
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	rec := httptest.NewRecorder()
	func() {
		defer func() {
			if p := recover(); p != nil && p != http.ErrAbortHandler {
				panic(p)
			} else if p != nil {
				rec.Header().Set("X-Cut-Off", "yes")
			}
		}()
		w.ServeHTTP(rec, r)
	}()
	return rec
}

// get wants a status, and of an error the code.
func (w *weir) get(target string, code int, id string) *httptest.ResponseRecorder {
	w.t.Helper()
	rec := w.do("GET", target)
	w.check(rec, "GET "+target, code, id)
	return rec
}

func (w *weir) check(rec *httptest.ResponseRecorder, what string, code int, id string) {
	w.t.Helper()
	if rec.Code != code {
		w.t.Errorf("%s: %d %s, want %d", what, rec.Code, rec.Body, code)
		return
	}
	if rec.Header().Get("Docker-Distribution-Api-Version") != "registry/2.0" {
		w.t.Errorf("%s: no Docker-Distribution-Api-Version", what)
	}
	if id == "" {
		return
	}
	var e struct {
		Errors []struct{ Code, Message string }
	}
	if err := json.Unmarshal(rec.Body.Bytes(), &e); err != nil || len(e.Errors) != 1 || e.Errors[0].Code != id || e.Errors[0].Message == "" {
		w.t.Errorf("%s: %s, want %s", what, rec.Body, id)
	}
	if ct := rec.Header().Get("Content-Type"); ct != "application/json" {
		w.t.Errorf("%s: an error of type %q", what, ct)
	}
}

func wantAsked(t *testing.T, u *upstream, what string, want ...string) {
	t.Helper()
	got := u.took()
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s: the upstream was asked\n  %s\nwant\n  %s", what, strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}
