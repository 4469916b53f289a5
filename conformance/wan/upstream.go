package wan

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/weir-registry/weir/conformance/lab"
)

// A Mode is how an [Upstream] fares. The zero value is well.
type Mode struct {
	// Delay is how long each answer is held back.
	Delay time.Duration
	// Status answers with this status and, if it is above 0, Retry-After in
	// seconds; 0: what was asked for.
	Status, RetryAfter int
	// Hang never answers, not even after the mode has changed.
	Hang bool
	// Rate is how many bytes a second a connection carries; 0: no limit.
	Rate int64
	// ResetAfter resets a connection once it has carried so many bytes; 0:
	// never.
	ResetAfter int64
}

// An Upstream is an OCI registry, anonymous and without TLS, of images whose
// blobs are computed when they are asked for: one of a gigabyte costs nothing
// to keep. It runs in the test's process and counts what it is asked. Its
// methods may be called at any time.
type Upstream struct {
	// Addr is its host:port, URL that with "http://" before.
	Addr, URL string

	t testing.TB

	mu     sync.Mutex
	server *http.Server           // nil while down; guarded by mu
	mode   Mode                   // guarded by mu
	made   map[string]Blob        // by size and seed; guarded by mu
	held   map[digest.Digest]held // guarded by mu
	tags   map[string]Blob        // manifests by "repo:tag"; guarded by mu
	asked  []*Asked               // guarded by mu, and the fields of each too
}

// held is one thing that there is.
type held struct {
	content
	kind string // media type
}

// StartUpstream starts an upstream that has nothing yet.
func StartUpstream(t testing.TB) *Upstream {
	t.Helper()
	u := &Upstream{t: t, made: map[string]Blob{}, held: map[digest.Digest]held{}, tags: map[string]Blob{}, Addr: freeLoopback()}
	u.URL = "http://" + u.Addr
	u.Up()
	t.Cleanup(u.Down)
	return u
}

// Down closes the listener and resets every connection.
func (u *Upstream) Down() {
	u.mu.Lock()
	server := u.server
	u.server = nil
	u.mu.Unlock()
	if server != nil {
		server.Close()
	}
}

// Up listens again, on the same address, after [Upstream.Down].
func (u *Upstream) Up() {
	u.t.Helper()
	var l net.Listener
	lab.Eventually(u.t, 5*time.Second, "listen on "+u.Addr, func() (err error) {
		l, err = listenReno(u.Addr)
		return err
	})
	server := &http.Server{Handler: http.HandlerFunc(u.serve)}
	u.mu.Lock()
	u.server = server
	u.mu.Unlock()
	go server.Serve(moody{l, u}) // ends with Down
}

// SetMode changes how it fares; it counts for what is asked from then on, and
// Rate and ResetAfter for what connections carry from then on.
func (u *Upstream) SetMode(m Mode) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.mode = m
}

func (u *Upstream) moodNow() Mode {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.mode
}

// Blob is a blob of size bytes that do not compress, the same for the same
// seed. The first time, it is hashed, at more than a gigabyte a second.
func (u *Upstream) Blob(size int64, seed string) Blob {
	key := fmt.Sprint(size, " ", seed)
	u.mu.Lock()
	b, ok := u.made[key]
	u.mu.Unlock()
	if ok {
		return b
	}
	c := noise(size, key)
	b = c.describe()
	u.mu.Lock()
	defer u.mu.Unlock()
	u.made[key] = b
	u.held[b.Digest] = held{c, v1.MediaTypeImageLayer}
	return b
}

// Image makes repo:tag an image with these layers, whatever it was before, and
// returns its manifest. repo is without the upstream's name: "library/thing".
func (u *Upstream) Image(repo, tag string, layers ...Blob) Blob {
	u.t.Helper()
	config, err := json.Marshal(v1.Image{Platform: v1.Platform{OS: "linux", Architecture: "amd64"}, Author: repo + ":" + tag})
	if err != nil {
		u.t.Fatal(err)
	}
	of := func(b Blob, kind string) v1.Descriptor {
		return v1.Descriptor{MediaType: kind, Digest: b.Digest, Size: b.Size}
	}
	m := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest,
		Config: of(u.keep(config, v1.MediaTypeImageConfig), v1.MediaTypeImageConfig), Layers: []v1.Descriptor{}}
	for _, l := range layers {
		m.Layers = append(m.Layers, of(l, v1.MediaTypeImageLayer))
	}
	text, err := json.Marshal(m)
	if err != nil {
		u.t.Fatal(err)
	}
	b := u.keep(text, v1.MediaTypeImageManifest)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.tags[repo+":"+tag] = b
	return b
}

func (u *Upstream) keep(text []byte, kind string) Blob {
	c := literal(text)
	b := c.describe()
	u.mu.Lock()
	defer u.mu.Unlock()
	u.held[b.Digest] = held{c, kind}
	return b
}

// find is what a path below /v2/ stands for. Whether a repository has a blob
// is not looked at: that is for those in front to know.
func (u *Upstream) find(path string) (held, digest.Digest, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	repo, ref, manifest := strings.Cut(path, "/manifests/")
	if !manifest {
		_, ref, _ = strings.Cut(path, "/blobs/")
	}
	d := digest.Digest(ref)
	if b, ok := u.tags[repo+":"+ref]; ok && manifest {
		d = b.Digest
	}
	h, ok := u.held[d]
	return h, d, ok && manifest == (h.kind == v1.MediaTypeImageManifest)
}

// serve answers one request.
func (u *Upstream) serve(w http.ResponseWriter, r *http.Request) {
	a := u.note(r)
	mode := u.moodNow()
	if mode.Hang {
		<-r.Context().Done()
		return
	}
	if mode.Delay > 0 {
		timer := time.NewTimer(mode.Delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-r.Context().Done():
			return
		}
	}
	cw := &counted{ResponseWriter: w, u: u, a: a}
	path, ok := strings.CutPrefix(r.URL.Path, "/v2/")
	switch {
	case mode.Status != 0:
		if mode.RetryAfter > 0 {
			w.Header().Set("Retry-After", fmt.Sprint(mode.RetryAfter))
		}
		refuse(cw, mode.Status, "UNKNOWN")
		return
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		refuse(cw, http.StatusMethodNotAllowed, "UNSUPPORTED")
		return
	case ok && path == "":
		w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
		refuse(cw, http.StatusOK, "")
		return
	}
	h, d, ok := u.find(path)
	if !ok {
		refuse(cw, http.StatusNotFound, "NOT_FOUND")
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	if h.kind == v1.MediaTypeImageManifest {
		w.Header().Set("Content-Type", h.kind)
	}
	w.Header().Set("Docker-Content-Digest", d.String())
	w.Header().Set("Etag", `"`+d.String()+`"`)
	body := &reader{content: h.content}
	http.ServeContent(cw, r, "", time.Time{}, &noted{reader: body, u: u, a: a})
}

// refuse answers with an OCI error, or with nothing if code is "".
func refuse(w http.ResponseWriter, status int, code string) {
	text := "{}"
	if code != "" {
		text = fmt.Sprintf(`{"errors":[{"code":%q,"message":"of a scripted registry"}]}`, code)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", fmt.Sprint(len(text)))
	w.WriteHeader(status)
	fmt.Fprint(w, text)
}
