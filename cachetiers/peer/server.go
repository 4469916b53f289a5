package peer

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/outbound"
)

const (
	// copyBytes is how much is read and written at once: one write of TLS
	// records that follow one another.
	copyBytes = 128 << 10
	// writeTimeout is how long an asker may take for copyBytes, and for an
	// answer to begin.
	writeTimeout = time.Minute
)

// Config is what a Handler answers from. All but Log must be set.
type Config struct {
	Service *registry.Service
	// Node is the name of the node that makes a request.
	Node func(*http.Request) string
	Log  *slog.Logger // nil: slog.Default()
}

// New is the Handler for nodes in front. Whoever mounts it has made sure that
// the request comes from one; it is admitted as that node.
func New(c Config) http.Handler {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return &handler{c: c}
}

type handler struct {
	c       Config
	buffers sync.Pool // of *[]byte, copyBytes long
}

// ServeHTTP implements http.Handler.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		refuse(w, registry.Errorf(registry.ErrInvalid, "%.20q is not a method here", r.Method))
		return
	}
	extend(http.NewResponseController(w)) // what the last request left may be over
	switch path := r.URL.Path; {
	case path == pingPath:
		w.WriteHeader(http.StatusNoContent)
	case strings.HasPrefix(path, blobPath):
		h.blob(w, r)
	case path == namePath:
		h.name(w, r)
	default:
		refuse(w, registry.Errorf(registry.ErrInvalid, "nodes are not asked this here; is this one of another version?"))
	}
}

// extend gives the asker time; a test's recorder has no deadlines.
func extend(rc *http.ResponseController) { _ = rc.SetWriteDeadline(time.Now().Add(writeTimeout)) }

// refuse answers with a failure.
func refuse(w http.ResponseWriter, err error) {
	word, status := outbound.WordOf(registry.KindOf(err))
	head := w.Header()
	head.Set(kindHeader, word)
	if after := registry.RetryAfter(err); after > 0 {
		head.Set("Retry-After", strconv.FormatInt(int64((after+time.Second-1)/time.Second), 10))
	}
	text := registry.Public(err)
	head.Set("Content-Type", "text/plain; charset=utf-8")
	head.Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(status)
	io.WriteString(w, text)
}

// working runs work and says meanwhile that it runs. It is the timer's goroutine
// that says it, and only if need be, so that a quick answer changes no goroutine:
// on a node that was idle each change wakes a thread.
func working(w http.ResponseWriter, work func()) {
	var mu sync.Mutex // held by whoever uses w
	done := false
	var tick *time.Timer
	mu.Lock()
	tick = time.AfterFunc(workFirst, func() {
		mu.Lock()
		defer mu.Unlock()
		if !done {
			w.WriteHeader(http.StatusProcessing)
			tick.Reset(workEvery)
		}
	})
	mu.Unlock()
	// Whatever happens to work: a timer that fires on an answer that is over
	// would end the process.
	defer func() {
		mu.Lock()
		defer mu.Unlock()
		done = true
		tick.Stop()
	}()
	work()
}

// serves refuses names that this node has no upstream for. Whether there is such
// a thing it does not know.
func (h *handler) serves(n registry.Name) error {
	sp, ok := h.c.Service.Spaces[n.Space]
	if ok && (sp.Serves == nil || sp.Serves(n)) {
		return nil
	}
	return &registry.Error{Kind: registry.ErrUnavailable, Text: "a node asked for " + n.String() + ", for which this one has no upstream",
		Public: "the node behind has no upstream for " + n.Repo + "; its configuration and this node's do not match"}
}

// call is what the guard is asked.
func (h *handler) call(r *http.Request, n registry.Name, b registry.Binding) registry.Call {
	return registry.Call{Who: registry.Principal{Name: h.c.Node(r), Node: true}, Action: registry.Pull, Name: n, Binding: b, Agent: "weir"}
}

// blob answers with a run of a blob.
func (h *handler) blob(w http.ResponseWriter, r *http.Request) {
	want, err := parseWant(r)
	if err != nil {
		refuse(w, err)
		return
	}
	if err := h.serves(want.From); err != nil {
		refuse(w, err)
		return
	}
	c := h.call(r, want.From, registry.Binding{Descriptor: want.Descriptor, Location: want.Location})
	var b registry.Blob
	working(w, func() { b, err = h.c.Service.Supply(r.Context(), &c, want) })
	if err != nil {
		refuse(w, err)
		return
	}
	defer b.Close()
	offset, length := b.Span()
	d, head := b.Descriptor(), w.Header()
	if d.Size < 0 {
		length = -1 // where the run really ends is not known either
	}
	head.Set(viaHeader, viaText(b.Via()))
	head.Set("Content-Type", "application/octet-stream")
	head.Set(runHeader, runText(d.Size, offset, length))
	if r.Method == http.MethodHead {
		w.WriteHeader(http.StatusOK)
		return
	}
	if length >= 0 {
		head.Set("Content-Length", strconv.FormatInt(length, 10))
	}
	status := http.StatusOK
	if r.Header.Get("Range") != "" && d.Size >= 0 && length > 0 {
		status = http.StatusPartialContent
		head.Set("Content-Range", "bytes "+strconv.FormatInt(offset, 10)+"-"+strconv.FormatInt(offset+length-1, 10)+"/"+strconv.FormatInt(d.Size, 10))
	}
	w.WriteHeader(status)
	h.copy(w, b, length, want.From)
}

// copy sends b, as it comes, or cuts the connection.
func (h *handler) copy(w http.ResponseWriter, b io.Reader, length int64, of registry.Name) {
	buf, _ := h.buffers.Get().(*[]byte)
	if buf == nil {
		fresh := make([]byte, copyBytes)
		buf = &fresh
	}
	defer h.buffers.Put(buf)
	rc := http.NewResponseController(w)
	sent := int64(0)
	for {
		n, err := b.Read(*buf)
		if n > 0 {
			extend(rc)
			if _, werr := w.Write((*buf)[:n]); werr != nil {
				panic(http.ErrAbortHandler)
			}
			sent += int64(n)
			if n < len(*buf) {
				_ = rc.Flush() // what comes next may take a while
			}
		}
		if err == io.EOF && (length < 0 || sent == length) {
			return
		}
		if err != nil {
			h.c.Log.Warn("an answer to a node broke off", "name", of.String(), "sent", sent, "of", length, "err", err)
			panic(http.ErrAbortHandler)
		}
	}
}

// named is the answer to a question.
type named struct {
	b    registry.Binding
	same bool
	doc  registry.Blob // nil: it has none, or the asker has it
	via  registry.Via
}

// name answers what a name stands for.
func (h *handler) name(w http.ResponseWriter, r *http.Request) {
	q, err := parseQuestion(r.URL.RawQuery, time.Now())
	if err != nil {
		refuse(w, err)
		return
	}
	if err := h.serves(q.Name); err != nil {
		refuse(w, err)
		return
	}
	c := h.call(r, q.Name, q.Have)
	c.Since, c.Firm = q.Since, true
	var a named
	working(w, func() { a, err = h.resolve(r.Context(), &c, q.Have) })
	if err != nil {
		refuse(w, err)
		return
	}
	head := w.Header()
	head.Set(bindingHeader, bindingText(a.b, a.same, time.Now()))
	head.Set(viaHeader, viaText(a.via))
	if a.doc == nil {
		head.Set("Content-Length", "0")
		w.WriteHeader(http.StatusOK)
		return
	}
	defer a.doc.Close()
	_, length := a.doc.Span()
	head.Set("Content-Type", "application/octet-stream")
	if length >= 0 {
		head.Set("Content-Length", strconv.FormatInt(length, 10))
	}
	w.WriteHeader(http.StatusOK)
	h.copy(w, a.doc, length, q.Name)
}

// resolve asks the service, and opens the document if the asker needs it.
func (h *handler) resolve(ctx context.Context, c *registry.Call, have registry.Binding) (a named, err error) {
	s := h.c.Service
	if a.b, a.via, err = s.Resolve(ctx, c); err != nil {
		return a, err
	}
	if a.same = have.Digest != "" && have.Digest == a.b.Digest; a.same {
		return a, nil
	}
	sp, ok := s.Spaces[c.Name.Space]
	if !ok || sp.Documents != nil && !sp.Documents(c.Name) {
		return a, nil
	}
	a.doc, a.via, err = s.Document(ctx, c)
	a.b = c.Binding
	return a, err
}
