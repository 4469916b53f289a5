package reply_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"mime/multipart"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/reply"
)

const text = "0123456789abcdefghijklmnopqrstuvwxyz"

// body answers with text; unknown says that its size is learnt on opening.
func body(unknown bool) reply.Body {
	d := registry.Descriptor{Size: int64(len(text)), MediaType: "text/x"}
	b := reply.Body{Descriptor: d, ETag: `"tag"`, Ranges: true, Open: func(off, n int64) (registry.Blob, error) {
		return registry.NewBytesBlob([]byte(text), d, off, n, registry.Via{Detail: "memory"}), nil
	}}
	if unknown {
		b.Descriptor.Size = -1
	}
	return b
}

func do(t *testing.T, b reply.Body, method string, header ...string) *http.Response {
	t.Helper()
	r := httptest.NewRequest(method, "/", nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	if err := reply.Serve(w, r, b); err != nil {
		t.Fatal(err)
	}
	return w.Result()
}

func TestRanges(t *testing.T) {
	n := len(text)
	tests := []struct {
		field  string
		status int
		want   string
		cr     string
	}{
		{"bytes=0-3", 206, text[:4], fmt.Sprintf("bytes 0-3/%d", n)},
		{"bytes=10-", 206, text[10:], fmt.Sprintf("bytes 10-%d/%d", n-1, n)},
		{"bytes=-5", 206, text[n-5:], fmt.Sprintf("bytes %d-%d/%d", n-5, n-1, n)},
		{"bytes=-500", 206, text, fmt.Sprintf("bytes 0-%d/%d", n-1, n)},
		{"bytes=30-5000", 206, text[30:], fmt.Sprintf("bytes 30-%d/%d", n-1, n)},
		{"bytes=0-99999999999999999999", 206, text, fmt.Sprintf("bytes 0-%d/%d", n-1, n)},
		{"BYTES = 0-0", 206, "0", fmt.Sprintf("bytes 0-0/%d", n)},
		{"bytes=0-3,", 206, text[:4], fmt.Sprintf("bytes 0-3/%d", n)},
		{"bytes=500-0", 416, "", fmt.Sprintf("bytes */%d", n)},
		{"bytes=5-0", 416, "", fmt.Sprintf("bytes */%d", n)},
		{fmt.Sprintf("bytes=%d-", n), 416, "", fmt.Sprintf("bytes */%d", n)},
		{"bytes=99999999999999999999-", 416, "", fmt.Sprintf("bytes */%d", n)},
		{"bytes=-0", 416, "", fmt.Sprintf("bytes */%d", n)},
		{"bytes=a-b", 200, text, ""},
		{"bytes=", 200, text, ""},
		{"bytes=-", 200, text, ""},
		{"bytes=1-2-3", 200, text, ""},
		{"bytes=+1-2", 200, text, ""},
		{"lines=1-2", 200, text, ""},
		{"bytes=0-,0-,0-", 200, text, ""},
		{"bytes=0-0" + strings.Repeat(",1-1", 16), 200, text, ""},
	}
	for _, unknown := range []bool{false, true} {
		for _, tt := range tests {
			resp := do(t, body(unknown), "GET", "Range", tt.field)
			got, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != tt.status || string(got) != tt.want || resp.Header.Get("Content-Range") != tt.cr {
				t.Errorf("%q (unknown %v): %d %q %q, want %d %q %q", tt.field, unknown,
					resp.StatusCode, got, resp.Header.Get("Content-Range"), tt.status, tt.want, tt.cr)
			}
			if want := fmt.Sprint(len(tt.want)); resp.Header.Get("Content-Length") != want {
				t.Errorf("%q: Content-Length %q, want %s", tt.field, resp.Header.Get("Content-Length"), want)
			}
		}
	}
}

func TestMultipart(t *testing.T) {
	resp := do(t, body(false), "GET", "Range", "bytes=0-3, 10-12,-2")
	if resp.StatusCode != 206 {
		t.Fatal(resp.Status)
	}
	_, params, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil {
		t.Fatal(err)
	}
	mr := multipart.NewReader(resp.Body, params["boundary"])
	for i, want := range []string{text[:4], text[10:13], text[len(text)-2:]} {
		p, err := mr.NextRawPart()
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(p)
		if err != nil || string(got) != want || p.Header.Get("Content-Type") != "text/x" || p.Header.Get("Content-Range") == "" {
			t.Errorf("part %d: %q %v %v", i, got, p.Header, err)
		}
	}
	if _, err := mr.NextPart(); err != io.EOF {
		t.Errorf("after the last part: %v", err)
	}
}

func TestConditions(t *testing.T) {
	tests := []struct {
		name   string
		header []string
		status int
	}{
		{"the tag", []string{"If-None-Match", `"tag"`}, 304},
		{"weak", []string{"If-None-Match", `W/"tag"`}, 304},
		{"in a list", []string{"If-None-Match", `"a", W/"b" ,"tag"`}, 304},
		{"in two fields", []string{"If-None-Match", `"a"`, "If-None-Match", `"tag"`}, 304},
		{"any", []string{"If-None-Match", "*"}, 304},
		{"another", []string{"If-None-Match", `"tag2"`}, 200},
		{"not a tag", []string{"If-None-Match", `tag`}, 200},
		{"a tag cut off", []string{"If-None-Match", `"tag`}, 200},
		{"before a range", []string{"If-None-Match", `"tag"`, "Range", "bytes=0-1"}, 304},
		{"If-Range that holds", []string{"If-Range", `"tag"`, "Range", "bytes=0-1"}, 206},
		{"If-Range that does not", []string{"If-Range", `"old"`, "Range", "bytes=0-1"}, 200},
		{"If-Range is never weak", []string{"If-Range", `W/"tag"`, "Range", "bytes=0-1"}, 200},
		{"If-Range with a date", []string{"If-Range", "Sat, 29 Oct 1994 19:43:31 GMT", "Range", "bytes=0-1"}, 200},
	}
	for _, tt := range tests {
		for _, method := range []string{"GET", "HEAD"} {
			want := tt.status
			if method == "HEAD" && want == 206 {
				want = 200 // RFC 9110 section 14.2: Range is for GET
			}
			resp := do(t, body(false), method, tt.header...)
			if resp.StatusCode != want || resp.Header.Get("ETag") != `"tag"` {
				t.Errorf("%s %s: %d %v, want %d", method, tt.name, resp.StatusCode, resp.Header, want)
			}
			if got, _ := io.ReadAll(resp.Body); (want == 304 || method == "HEAD") && len(got) != 0 {
				t.Errorf("%s %s: a body of %d bytes", method, tt.name, len(got))
			}
		}
	}
}

func TestHeadOpensNothing(t *testing.T) {
	b := body(false)
	b.Open = func(int64, int64) (registry.Blob, error) { t.Error("opened"); return nil, errors.New("no") }
	if resp := do(t, b, "HEAD"); resp.Header.Get("Content-Length") != fmt.Sprint(len(text)) {
		t.Errorf("%v", resp.Header)
	}
	b = body(true)
	open := b.Open
	b.Open = func(off, n int64) (registry.Blob, error) {
		if n != 0 {
			t.Errorf("HEAD opened %d bytes", n)
		}
		return open(off, n)
	}
	if resp := do(t, b, "HEAD"); resp.Header.Get("Content-Length") != fmt.Sprint(len(text)) {
		t.Errorf("%v", resp.Header)
	}
}

func TestErrorBeforeAnything(t *testing.T) {
	b := body(false)
	b.Open = func(int64, int64) (registry.Blob, error) { return nil, registry.ErrLimited }
	w := httptest.NewRecorder()
	err := reply.Serve(w, httptest.NewRequest("GET", "/", nil), b)
	if !errors.Is(err, registry.ErrLimited) || w.Body.Len() != 0 || w.Flushed {
		t.Errorf("%v, %d bytes", err, w.Body.Len())
	}
}

// broken gives half its bytes and then fails.
type broken struct{ registry.Blob }

func (b broken) WriteTo(w io.Writer) (int64, error) {
	n, err := io.CopyN(w, b.Blob, 10)
	if err == nil {
		err = registry.ErrCorrupt
	}
	return n, err
}

// TestCut: a body that turns out wrong never looks whole, with a length or
// without, in HTTP/1.1 and in 1.0.
func TestCut(t *testing.T) {
	for _, unknown := range []bool{false, true} {
		var logged bytes.Buffer
		h := reply.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			d := registry.Descriptor{Size: int64(len(text))}
			blob := registry.NewBytesBlob([]byte(text), d, 0, -1, registry.Via{})
			if unknown {
				blob = lengthless{blob}
			}
			_ = reply.Serve(w, r, reply.Body{Descriptor: d, Blob: broken{blob}})
		}), reply.Options{Log: slog.New(slog.NewTextHandler(&logged, nil))})
		s := httptest.NewServer(h)
		resp, err := http.Get(s.URL)
		if err == nil {
			_, err = io.ReadAll(resp.Body)
			resp.Body.Close()
		}
		if err == nil {
			t.Errorf("unknown %v: a body cut short looked whole", unknown)
		}
		s.Close()
		if !strings.Contains(logged.String(), "failed verification") {
			t.Errorf("the log does not say why: %s", &logged)
		}
	}
}

type lengthless struct{ registry.Blob }

func (lengthless) Span() (int64, int64) { return 0, -1 }

// TestSendfile: a file goes to the socket without passing through user space,
// through the middleware and all. What passes through would be counted by the
// reads of the process.
func TestSendfile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "blob")
	const size = 32 << 20
	if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	h := reply.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f, err := os.Open(path)
		if err != nil {
			t.Error(err)
			return
		}
		d := registry.Descriptor{Size: size, MediaType: "application/octet-stream"}
		_ = reply.Serve(w, r, reply.Body{Descriptor: d, Blob: &fileBlob{f: f, d: d}})
	}), reply.Options{Log: slog.New(slog.DiscardHandler)})
	s := httptest.NewUnstartedServer(h)
	counted := &countingListener{Listener: s.Listener}
	s.Listener = counted
	s.Start()
	resp, err := http.Get(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	if err != nil || n != size {
		t.Fatalf("%d bytes, %v", n, err)
	}
	s.Close() // waits until the handler has returned
	if written, sent := counted.written.Load(), counted.sent.Load(); written > 1<<20 || sent < size-1<<20 {
		t.Errorf("%d bytes were written and %d sent by the kernel", written, sent)
	}
}

type fileBlob struct {
	f *os.File
	d registry.Descriptor
}

func (b *fileBlob) Read(p []byte) (int, error)      { return b.f.Read(p) }
func (b *fileBlob) Close() error                    { return b.f.Close() }
func (b *fileBlob) Descriptor() registry.Descriptor { return b.d }
func (b *fileBlob) Span() (int64, int64)            { return 0, b.d.Size }
func (b *fileBlob) Via() registry.Via               { return registry.Via{Detail: "disk"} }
func (b *fileBlob) WriteTo(w io.Writer) (int64, error) {
	return w.(io.ReaderFrom).ReadFrom(&io.LimitedReader{R: b.f, N: b.d.Size})
}

// countingListener tells what is written to its connections from what they are
// given files to send.
type countingListener struct {
	net.Listener
	written, sent atomic.Int64
}

func (l *countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &countingConn{c.(*net.TCPConn), l}, nil
}

type countingConn struct {
	*net.TCPConn
	l *countingListener
}

func (c *countingConn) Write(p []byte) (int, error) {
	c.l.written.Add(int64(len(p)))
	return c.TCPConn.Write(p)
}

func (c *countingConn) ReadFrom(r io.Reader) (int64, error) {
	lr, ok := r.(*io.LimitedReader)
	if !ok {
		return io.Copy(struct{ io.Writer }{c}, r)
	}
	if _, ok := lr.R.(*os.File); !ok {
		return io.Copy(struct{ io.Writer }{c}, r)
	}
	n, err := c.TCPConn.ReadFrom(r)
	c.l.sent.Add(n)
	return n, err
}

func TestHandler(t *testing.T) {
	var logged bytes.Buffer
	m := &meter{}
	h := reply.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/panic":
			panic("oops")
		case "/alice":
			reply.Identified(w, registry.Principal{Name: "alice"})
		case "/anonymous":
			reply.Identified(w, registry.Principal{})
		case "/via":
			reply.Record(w, registry.Via{Fwd: "stale", Stale: 5 * time.Second, Detail: "upstream", Warning: "it \"said\"\n no"})
		}
		fmt.Fprint(w, reply.RequestID(w))
	}), reply.Options{Space: "oci", Log: slog.New(slog.NewTextHandler(&logged, nil)), Meter: m})
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/via", nil))
	if id := w.Header().Get("X-Request-Id"); len(id) != 16 || w.Body.String() != id || !strings.Contains(logged.String(), id) {
		t.Errorf("id %q, body %q, log %s", id, w.Body, &logged)
	}
	if got := w.Header().Get("Cache-Status"); got != "weir; fwd=stale; ttl=-5; detail=upstream" {
		t.Errorf("Cache-Status %q", got)
	}
	if got := w.Header().Get("Warning"); got != `299 - "it 'said'  no"` {
		t.Errorf("Warning %q", got)
	}
	w = httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/panic", nil))
	if w.Code != 500 {
		t.Errorf("a panic answered %d", w.Code)
	}
	if fmt.Sprint(m.status) != "[200 500]" {
		t.Errorf("metered %v", m.status)
	}
	for path, want := range map[string]bool{"/alice": true, "/anonymous": false, "/via": false} {
		logged.Reset()
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", path, nil))
		if got := strings.Contains(logged.String(), " who="); got != want || want && !strings.Contains(logged.String(), " who=alice") {
			t.Errorf("%s is logged as %s", path, &logged)
		}
	}
}

type meter struct {
	registry.NoMeter
	status []int
}

func (m *meter) Request(_ string, status int, _ time.Duration, _ int64, _ registry.Via) {
	m.status = append(m.status, status)
}

// TestSlowAnswer: an answer that takes longer than the write timeout comes
// whole as long as its client takes it, and so does the next answer on the
// same connection.
func TestSlowAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := net.Pipe()
		slow := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			d := registry.Descriptor{Size: int64(len(text))}
			var b registry.Blob = registry.NewBytesBlob([]byte(text), d, 0, -1, registry.Via{})
			if r.URL.Path == "/slow" {
				b = trickle{b}
			}
			_ = reply.Serve(w, r, reply.Body{Descriptor: d, Blob: b})
		})
		l := &oneConn{c: server, done: make(chan struct{})}
		s := &http.Server{Handler: reply.Handler(slow, reply.Options{Log: slog.New(slog.DiscardHandler)}), WriteTimeout: reply.WriteTimeout}
		go s.Serve(l)
		br := bufio.NewReader(client)
		for _, path := range []string{"/slow", "/fast"} {
			fmt.Fprintf(client, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
			resp, err := http.ReadResponse(br, nil)
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			if got, err := io.ReadAll(resp.Body); err != nil || string(got) != text {
				t.Errorf("%s: %q, %v", path, got, err)
			}
			<-time.After(3 * reply.WriteTimeout) // idle for longer than a write may take
		}
		client.Close()
		s.Close()
	})
}

// trickle gives a byte every ten seconds.
type trickle struct{ registry.Blob }

func (b trickle) WriteTo(w io.Writer) (n int64, err error) {
	for range text {
		<-time.After(10 * time.Second)
		m, err := io.CopyN(w, b.Blob, 1)
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// oneConn is a listener of one connection.
type oneConn struct {
	c    net.Conn
	done chan struct{}
}

func (l *oneConn) Accept() (net.Conn, error) {
	if c := l.c; c != nil {
		l.c = nil
		return c, nil
	}
	<-l.done
	return nil, net.ErrClosed
}

func (l *oneConn) Close() error {
	close(l.done)
	return nil
}

func (l *oneConn) Addr() net.Addr { return &net.TCPAddr{} }

func TestRetryAfter(t *testing.T) {
	for _, tt := range []struct {
		err   error
		least time.Duration
		want  string
	}{
		{nil, time.Second, "1"},
		{registry.ErrLimited, 5 * time.Second, "5"},
		{&registry.Error{Kind: registry.ErrLimited, After: 90 * time.Second}, time.Second, "90"},
		{&registry.Error{Kind: registry.ErrLimited, After: 1500 * time.Millisecond}, time.Second, "2"},
	} {
		h := http.Header{}
		reply.SetRetryAfter(h, tt.err, tt.least)
		if got := h.Get("Retry-After"); got != tt.want {
			t.Errorf("%v: %q, want %q", tt.err, got, tt.want)
		}
	}
}

// FuzzRange: no Range field panics, or is answered with bytes that are not the
// ones Content-Range names.
func FuzzRange(f *testing.F) {
	for _, s := range []string{"bytes=0-1", "bytes=-1", "bytes=1-", "bytes=0-0,5-9", "bytes=5-1", "bytes=,", "bytes=99999999999999999999-1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, field string) {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header["Range"] = []string{field}
		w := httptest.NewRecorder()
		if err := reply.Serve(w, r, body(false)); err != nil {
			t.Fatal(err)
		}
		switch w.Code {
		case 200:
			if w.Body.String() != text {
				t.Error("a 200 without the whole")
			}
		case 206:
			var from, to, size int
			if n, _ := fmt.Sscanf(w.Header().Get("Content-Range"), "bytes %d-%d/%d", &from, &to, &size); n == 3 {
				if size != len(text) || w.Body.String() != text[from:to+1] {
					t.Errorf("%q: %v %q", field, w.Header(), w.Body)
				}
			}
		case 416:
		default:
			t.Errorf("%q: %d", field, w.Code)
		}
	})
}

// FuzzMatches: If-None-Match is read without a panic and never matches a tag
// that it does not hold.
func FuzzMatches(f *testing.F) {
	for _, s := range []string{`"tag"`, `W/"tag"`, `*`, `"a","tag"`, `"`, `W/`, `,,,`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, field string) {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header["If-None-Match"] = []string{field}
		if reply.Matches(r, `"tag"`) && !strings.Contains(field, `"tag"`) && !strings.Contains(field, "*") {
			t.Errorf("%q matched", field)
		}
	})
}
