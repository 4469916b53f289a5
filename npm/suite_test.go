package npm_test

import (
	"bytes"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/npm"
	"github.com/weir-registry/weir/registry"
)

// An authority is a registry of one package that can be made to misbehave.
type authority struct {
	mu    sync.Mutex
	doc   []byte        // guarded by mu
	data  []byte        // of its tarball
	fail  int           // guarded by mu; a status
	hang  bool          // guarded by mu; nothing is answered
	cut   int           // guarded by mu; negative: not
	bytes int64         // guarded by mu
	done  chan struct{} // the test's end
}

func (a *authority) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.hang {
		a.mu.Unlock()
		select {
		case <-a.done:
		case <-r.Context().Done():
		}
		a.mu.Lock()
		return
	}
	if a.fail != 0 {
		w.Header().Set("Retry-After", "7")
		w.WriteHeader(a.fail)
		return
	}
	var body []byte
	switch r.URL.Path {
	case "/left":
		body = a.doc
		w.Header().Set("ETag", fmt.Sprintf(`"%x"`, sha512.Sum512(body)))
	case "/left/-/left-1.0.0.tgz":
		body = a.data
	default:
		http.NotFound(w, r)
		return
	}
	if a.cut >= 0 {
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		w.Write(body[:min(a.cut, len(body))])
		panic(http.ErrAbortHandler)
	}
	c := &counted{ResponseWriter: w}
	http.ServeContent(c, r, "", time.Time{}, bytes.NewReader(body))
	a.bytes += c.n
}

type counted struct {
	http.ResponseWriter
	n int64
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.n += int64(n)
	return n, err
}

func TestUpstreamContract(t *testing.T) {
	conformance.TestUpstream(t, func(t *testing.T) conformance.UpstreamFixture {
		data := bytes.Repeat([]byte("tarball "), 1000)
		a := &authority{data: data, cut: -1, done: make(chan struct{})}
		s := httptest.NewServer(a)
		t.Cleanup(func() { close(a.done); s.Close() })
		a.doc = []byte(one("left", s.URL+"/left/-/left-1.0.0.tgz", data))
		up, err := npm.NewUpstreams([]npm.Registry{{Name: "public", URL: s.URL, Packages: []string{"*"}}}, npm.Options{})
		if err != nil {
			t.Fatal(err)
		}
		sum := sha512.Sum512(data)
		blob := registry.Want{Descriptor: registry.Descriptor{Digest: digest.Digest("sha512:" + hex.EncodeToString(sum[:])), Size: -1, MediaType: "application/octet-stream"},
			From: registry.Name{Space: "npm", Repo: "left", Ref: "left-1.0.0.tgz"}, Location: s.URL + "/left/-/left-1.0.0.tgz", Length: -1}
		lost := blob
		lost.From.Ref, lost.Location = "left-2.0.0.tgz", s.URL+"/left/-/left-2.0.0.tgz"
		locked := func(do func()) { a.mu.Lock(); defer a.mu.Unlock(); do() }
		return conformance.UpstreamFixture{
			Upstream: up, Name: registry.Name{Space: "npm", Repo: "left"}, Doc: a.doc, MediaType: "application/json",
			Change: func() (doc []byte) {
				locked(func() { a.doc = bytes.Replace(a.doc, []byte(`"1.0.0"`), []byte(`"1.0.1"`), -1); doc = a.doc })
				return doc
			},
			Missing: registry.Name{Space: "npm", Repo: "none"}, Blob: blob, Data: data, Lost: lost,
			Fail: func(kind error) {
				locked(func() {
					a.fail = map[error]int{registry.ErrUnauthenticated: 401, registry.ErrDenied: 403, registry.ErrLimited: 429, registry.ErrUnavailable: 500}[kind]
				})
			},
			Hang:  func() { locked(func() { a.hang = true }) },
			Cut:   func(n int) { locked(func() { a.cut = n }) },
			Bytes: func() (n int64) { locked(func() { n = a.bytes }); return n },
		}
	})
}
