package reply

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/weir-registry/weir/registry"
)

// Options says whose requests a Handler sees.
type Options struct {
	Space string // the protocol, for metrics and the log
	Log   *slog.Logger
	Meter registry.Meter
}

// firstByte is how long any request may take until its answer begins, whatever
// chain of questions it needs: clients give up after some 30 s.
const firstByte = 22 * time.Second

// tokens finds opaque tokens in an address, where a client may put one by
// mistake; the log does not tell them.
var tokens = regexp.MustCompile(`(?i)(?:weir|%77eir)(?:_|%5f)[0-9A-Za-z%]+`)

// bodyTime is how long a client may take to send a request's body.
const bodyTime = 30 * time.Second

// tooSlow is why a request is given up.
func tooSlow() error {
	return &registry.Error{Kind: registry.ErrUnavailable, Text: "no answer to begin with in time",
		Public: "what is behind did not answer in time", After: 5 * time.Second}
}

// Handler gives every request an id (X-Request-Id), a log line and a place in
// the metrics, and turns a panic into a 500. It keeps next's way to sendfile.
func Handler(next http.Handler, o Options) http.Handler {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Meter == nil {
		o.Meter = registry.NoMeter{}
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancelCause(r.Context())
		defer cancel(nil)
		r = r.WithContext(ctx)
		rec := &recorder{ResponseWriter: w, id: newID(), slow: time.AfterFunc(firstByte, func() { cancel(tooSlow()) })}
		defer rec.slow.Stop()
		if r.ContentLength != 0 {
			// A body that never comes must not hold the connection.
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTime))
		}
		w.Header().Set("X-Request-Id", rec.id)
		start := time.Now()
		defer func() {
			p := recover()
			if p != nil && p != http.ErrAbortHandler { //nolint:errorlint // the very value, as net/http compares it
				o.Log.Error("panic", "id", rec.id, "panic", p, "stack", string(debug.Stack()))
				if rec.status == 0 {
					rec.WriteHeader(http.StatusInternalServerError)
					p = nil
				} else {
					p = http.ErrAbortHandler
				}
			}
			took := time.Since(start)
			o.Meter.Request(o.Space, rec.status, took, rec.bytes, rec.via)
			rec.log(o, r, took)
			if p != nil {
				panic(p)
			}
		}()
		next.ServeHTTP(rec, r)
		if rec.status == 0 {
			rec.status = http.StatusOK
		}
	})
}

// recorder remembers what was answered.
type recorder struct {
	http.ResponseWriter
	id     string
	slow   *time.Timer // gives the request up unless an answer begins
	status int
	bytes  int64
	via    registry.Via
	err    error  // why the answer failed or was cut off
	who    string // the account that asked; "": nobody in particular
	uri    string // what the log says in place of the request's; "": that
}

// WriteHeader implements http.ResponseWriter.
func (rec *recorder) WriteHeader(status int) {
	if rec.status == 0 && status >= 200 {
		rec.begun()
		rec.status = status
	}
	rec.ResponseWriter.WriteHeader(status)
}

// begun is called when the answer begins: from then on it may take its time.
func (rec *recorder) begun() {
	if rec.slow != nil {
		rec.slow.Stop()
	}
}

// Write implements http.ResponseWriter.
func (rec *recorder) Write(b []byte) (int, error) {
	if rec.status == 0 {
		rec.begun()
		rec.status = http.StatusOK
	}
	n, err := rec.ResponseWriter.Write(b)
	rec.bytes += int64(n)
	return n, err
}

// ReadFrom keeps net/http's sendfile reachable.
func (rec *recorder) ReadFrom(src io.Reader) (int64, error) {
	if rec.status == 0 {
		rec.begun()
		rec.status = http.StatusOK
	}
	rf, ok := rec.ResponseWriter.(io.ReaderFrom)
	if !ok {
		return io.Copy(writerOnly{rec}, src)
	}
	n, err := rf.ReadFrom(src)
	rec.bytes += n
	return n, err
}

// Unwrap is for http.ResponseController.
func (rec *recorder) Unwrap() http.ResponseWriter { return rec.ResponseWriter }

// Flush implements http.Flusher.
func (rec *recorder) Flush() { _ = http.NewResponseController(rec.ResponseWriter).Flush() }

// Hijack implements http.Hijacker.
func (rec *recorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return http.NewResponseController(rec.ResponseWriter).Hijack()
}

func (rec *recorder) log(o Options, r *http.Request, took time.Duration) {
	level := slog.LevelInfo
	if rec.status >= 500 || rec.err != nil && !errors.Is(rec.err, errGone) {
		level = slog.LevelWarn
	}
	if !o.Log.Enabled(r.Context(), level) {
		return
	}
	uri := rec.uri
	if uri == "" {
		uri = tokens.ReplaceAllString(r.RequestURI, "weir_…")
	}
	attrs := []slog.Attr{
		slog.String("id", rec.id), slog.String("space", o.Space),
		slog.String("method", r.Method), slog.String("uri", clip(uri, 512)),
		slog.Int("status", rec.status), slog.Int64("bytes", rec.bytes),
		slog.Float64("ms", float64(took.Microseconds())/1000), slog.String("cache", rec.via.String()),
		slog.String("from", r.RemoteAddr), slog.String("agent", clip(r.UserAgent(), 128)),
	}
	if rec.who != "" {
		attrs = append(attrs, slog.String("who", rec.who))
	}
	if rec.err != nil {
		attrs = append(attrs, slog.String("err", rec.err.Error()))
	}
	o.Log.LogAttrs(r.Context(), level, "request", attrs...)
}

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}

func newID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // crypto/rand.Read never fails
	return hex.EncodeToString(b[:])
}

// find is the middleware's recorder behind w, or nil.
func find(w http.ResponseWriter) *recorder {
	for {
		if rec, ok := w.(*recorder); ok {
			return rec
		}
		u, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return nil
		}
		w = u.Unwrap()
	}
}

// RequestID is the id the middleware gave w's request, "" without it.
func RequestID(w http.ResponseWriter) string { return w.Header().Get("X-Request-Id") }

// Record says how the answer came about: Cache-Status, Warning, and to the
// middleware for its log line and metrics. Call it before the status line.
func Record(w http.ResponseWriter, v registry.Via) {
	SetVia(w.Header(), v)
	if rec := find(w); rec != nil {
		rec.via = v
	}
}

// LogAs tells the middleware what to log as the request's URI, in place of one
// that has a secret in it.
func LogAs(w http.ResponseWriter, uri string) {
	if rec := find(w); rec != nil {
		rec.uri = uri
	}
}

// Identified tells the middleware who makes the request, for its log line. Only
// who has been identified belongs there: what a client claims to be called may
// be a password that was typed in the wrong place.
func Identified(w http.ResponseWriter, who registry.Principal) {
	if rec := find(w); rec != nil {
		rec.who = who.Name
	}
}

// Failed tells the middleware why the answer is an error, for its log line:
// what the log says of it and what the client reads are two things.
func Failed(w http.ResponseWriter, err error) { failed(w, err) }

func failed(w http.ResponseWriter, err error) {
	if rec := find(w); rec != nil {
		rec.err = err
	}
}

// SetVia sets Cache-Status (RFC 9211) and, where something went wrong behind a
// stale answer, Warning 299, which container clients show their users
// (distribution-spec, "Warnings").
func SetVia(h http.Header, v registry.Via) {
	h.Set("Cache-Status", v.String())
	if v.Warning != "" {
		h.Set("Warning", `299 - "`+warnText(v.Warning)+`"`)
	}
}

// warnText makes a text safe inside a quoted-string of at most 256 bytes.
func warnText(s string) string {
	s = strings.Map(func(c rune) rune {
		switch {
		case c == '"' || c == '\\':
			return '\''
		case c < ' ' || c > '~':
			return ' '
		}
		return c
	}, s)
	if len(s) > 256 {
		s = s[:256]
	}
	return s
}

// SetRetryAfter sets Retry-After in whole seconds: what err knows, but not less
// than least.
func SetRetryAfter(h http.Header, err error, least time.Duration) {
	after := max(registry.RetryAfter(err), least)
	h.Set("Retry-After", strconv.Itoa(int((after+time.Second-1)/time.Second)))
}
