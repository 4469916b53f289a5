// Package npmlab is a scripted npm registry for tests that drive real clients:
// it answers as the public registry does, and misbehaves when it is told to.
//
// A [Registry] serves packuments in both representations with ETag, 304 and
// gzip, tarballs from its own address or from a second host, signatures made
// with a real ECDSA P-256 key, attestations, advisories, search and dist-tags.
// [Registry.Fail] scripts failures, [Registry.Requests] tells what was asked.
// [TUF] stands in for the Sigstore repository that npm consults before it asks
// a registry for its keys.
package npmlab

import (
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// A Registry is a running scripted registry. All methods may be called at once
// and while it serves.
type Registry struct {
	// URL is its base, without a slash at the end.
	URL string
	// SideURL is the base of the second host, which has tarballs and nothing
	// else.
	SideURL string

	key     *ecdsa.PrivateKey
	servers []*http.Server

	mu         sync.Mutex
	packages   map[string]*pack  // by name; guarded by mu
	advisories []Advisory        // guarded by mu
	faults     []*Fault          // guarded by mu
	requests   []Request         // guarded by mu
	rev        int               // counts changes; guarded by mu
	zips       map[string][]byte // gzipped bodies by ETag; guarded by mu
}

// A Request is one request that the registry was asked.
type Request struct {
	Side    bool // it came to the second host
	Method  string
	Path    string // as it was on the wire, with its escapes and query
	Header  http.Header
	Body    []byte // of POST, as it was on the wire
	Status  int
	Started time.Time
}

// A Fault is what requests get instead of an answer.
type Fault struct {
	// Match says which requests: those whose unescaped path contains it.
	Match string
	// Status, Header and Body are the answer.
	Status int
	Header map[string]string
	Body   string
	// Times is how many requests get it; 0: all until it is healed.
	Times int
	// Cut closes the connection after half of the real answer's body.
	Cut bool
	// Garble flips one bit in the middle of the real answer's body.
	Garble bool
	// Hold, if not nil, delays the real answer until it is closed.
	Hold <-chan struct{}
}

// Start starts a registry: at a free port of 127.0.0.1, and its second host
// at a free port of 127.0.0.2. The caller closes it.
func Start() (*Registry, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	r := &Registry{key: key, packages: map[string]*pack{}, zips: map[string][]byte{}}
	if r.URL, err = r.listen("127.0.0.1:0", r.serve); err != nil {
		return nil, err
	}
	if r.SideURL, err = r.listen("127.0.0.2:0", r.serveSide); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

func (r *Registry) listen(addr string, serve func(http.ResponseWriter, *http.Request) int) (string, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return "", err
	}
	side := strings.HasPrefix(addr, "127.0.0.2")
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		r.record(w, q, side, serve)
	})}
	r.servers = append(r.servers, s)
	go s.Serve(l)
	return "http://" + l.Addr().String(), nil
}

// Close stops both servers at once, whatever they are doing.
func (r *Registry) Close() {
	for _, s := range r.servers {
		s.Close()
	}
}

// Fail scripts a fault and returns what heals it.
func (r *Registry) Fail(f Fault) (heal func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := &f
	r.faults = append(r.faults, p)
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		for i, have := range r.faults {
			if have == p {
				r.faults = append(r.faults[:i:i], r.faults[i+1:]...)
				return
			}
		}
	}
}

func (r *Registry) fault(path string) *Fault {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, f := range r.faults {
		if !strings.Contains(path, f.Match) {
			continue
		}
		if f.Times > 0 {
			if f.Times--; f.Times == 0 {
				r.faults = append(r.faults[:i:i], r.faults[i+1:]...)
			}
		}
		c := *f
		return &c
	}
	return nil
}

// Requests gives those asked so far whose unescaped path contains match.
func (r *Registry) Requests(match string) []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	var found []Request
	for _, q := range r.requests {
		if path, err := url.PathUnescape(q.Path); err == nil && strings.Contains(path, match) {
			found = append(found, q)
		}
	}
	return found
}

// Forget empties what Requests gives.
func (r *Registry) Forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = nil
}

func (r *Registry) record(w http.ResponseWriter, q *http.Request, side bool, serve func(http.ResponseWriter, *http.Request) int) {
	var body []byte
	if q.Method == http.MethodPost {
		body, _ = io.ReadAll(io.LimitReader(q.Body, 64<<20))
		q.Body = io.NopCloser(bytes.NewReader(body))
	}
	r.mu.Lock()
	i := len(r.requests)
	path := q.URL.EscapedPath()
	if q.URL.RawQuery != "" {
		path += "?" + q.URL.RawQuery
	}
	r.requests = append(r.requests, Request{Side: side, Method: q.Method, Path: path,
		Header: q.Header.Clone(), Body: body, Started: time.Now()})
	r.mu.Unlock()
	status := r.answer(w, q, serve)
	r.mu.Lock()
	if i < len(r.requests) {
		r.requests[i].Status = status
	}
	r.mu.Unlock()
}

func (r *Registry) answer(w http.ResponseWriter, q *http.Request, serve func(http.ResponseWriter, *http.Request) int) int {
	f := r.fault(q.URL.Path)
	if f == nil {
		return serve(w, q)
	}
	if f.Hold != nil {
		select {
		case <-f.Hold:
		case <-q.Context().Done():
		}
		return serve(w, q)
	}
	if f.Cut || f.Garble {
		var real recorder
		real.header = w.Header()
		status := serve(&real, q)
		w.WriteHeader(status)
		half := real.body.Len() / 2
		if f.Cut {
			w.Write(real.body.Bytes()[:half])
			panic(http.ErrAbortHandler)
		}
		if half > 0 {
			real.body.Bytes()[half] ^= 0x10
		}
		w.Write(real.body.Bytes())
		return status
	}
	for k, v := range f.Header {
		w.Header().Set(k, v)
	}
	w.WriteHeader(f.Status)
	io.WriteString(w, f.Body)
	return f.Status
}

// A recorder holds an answer back so that it can be damaged.
type recorder struct {
	header http.Header
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) Write(b []byte) (int, error) { return r.body.Write(b) }
func (r *recorder) WriteHeader(int)             {}

// send answers with a document as the public registry does: a strong ETag of
// each representation, 304, gzip where the client takes it.
func (r *Registry) send(w http.ResponseWriter, q *http.Request, mediaType string, doc []byte) int {
	h := w.Header()
	sum := sha256.Sum256(doc)
	etag := `"` + hex.EncodeToString(sum[:8]) + `"`
	h.Set("Vary", "accept-encoding, accept")
	h.Set("Cache-Control", "public, max-age=300")
	h.Set("Etag", etag)
	if strings.Contains(q.Header.Get("If-None-Match"), etag) {
		w.WriteHeader(http.StatusNotModified)
		return http.StatusNotModified
	}
	h.Set("Content-Type", mediaType)
	if strings.Contains(q.Header.Get("Accept-Encoding"), "gzip") {
		doc = r.zipped(etag, doc)
		h.Set("Content-Encoding", "gzip")
	}
	h.Set("Content-Length", fmt.Sprint(len(doc)))
	w.WriteHeader(http.StatusOK)
	if q.Method != http.MethodHead {
		w.Write(doc)
	}
	return http.StatusOK
}

func (r *Registry) zipped(etag string, doc []byte) []byte {
	r.mu.Lock()
	zip, ok := r.zips[etag]
	r.mu.Unlock()
	if ok {
		return zip
	}
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	z.Write(doc)
	z.Close()
	r.mu.Lock()
	r.zips[etag] = b.Bytes()
	r.mu.Unlock()
	return b.Bytes()
}

func (r *Registry) refuse(w http.ResponseWriter, status int, body string) int {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	io.WriteString(w, body)
	return status
}
