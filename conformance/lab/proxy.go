package lab

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// A Proxy stands between weir and what is behind it: it counts what weir asks
// and what that costs, and it breaks answers on demand.
type Proxy struct {
	// Addr is its host:port, URL that with "http://" before.
	Addr, URL string

	t        testing.TB
	upstream *url.URL
	client   *http.Transport

	mu     sync.Mutex
	server *http.Server // nil while down; guarded by mu
	faults []Fault      // guarded by mu
	seen   []*Seen      // guarded by mu, and the fields of each too
}

// A Seen is one request that weir made, and what it was answered.
type Seen struct {
	Method string
	// Path is the URL's, undecoded.
	Path, Query string
	Header      http.Header
	// Status is 0 until the answer's header is out.
	Status int
	// Bytes is how much of the body weir has been sent.
	Bytes int64
	// First is when the first byte of the body was sent; zero: none was.
	First time.Time
}

// A Fault says what becomes of the answers to some requests. Its zero value
// matches every request and passes the answer on unchanged.
type Fault struct {
	// Method and Path say which requests: the method, "" any; a part of the
	// path, "" any.
	Method, Path string
	// Times is how many requests are affected before the fault is over; 0: all.
	Times int

	// Delay is how long the answer's header is held back.
	Delay time.Duration
	// Status answers at once with this status, Header, and an error body,
	// without asking upstream; 0 asks.
	Status int
	Header http.Header
	// Body is that error body; "": one as registries write it, in JSON.
	Body string
	// Lost asks upstream and cuts the connection instead of answering: it
	// happened, and whoever asked is not told.
	Lost bool
	// Hang never answers, not even a header.
	Hang bool

	// After is how many bytes of the body are passed on before what follows.
	After int64
	// Corrupt flips a bit of the byte at After.
	Corrupt bool
	// Truncate cuts the connection at After, short of the promised length.
	Truncate bool
	// Short ends the body properly at After, promising no length.
	Short bool
	// Stall sends nothing after After and keeps the connection.
	Stall bool
	// Rate is how many bytes a second one answer's body is sent at; 0: no limit.
	Rate int64
}

// StartProxy starts a proxy in front of upstream ("http://host:port").
func StartProxy(t testing.TB, upstream string) *Proxy {
	t.Helper()
	u, err := url.Parse(upstream)
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{t: t, Addr: FreeAddr(t), upstream: u,
		client: &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64}}
	p.URL = "http://" + p.Addr
	p.Up()
	t.Cleanup(func() {
		p.Down()
		p.client.CloseIdleConnections()
	})
	return p
}

// Down closes the listener and every connection: from now on connections are
// refused.
func (p *Proxy) Down() {
	p.mu.Lock()
	server := p.server
	p.server = nil
	p.mu.Unlock()
	if server != nil {
		server.Close()
	}
}

// Up listens again, on the same address.
func (p *Proxy) Up() {
	p.t.Helper()
	var l net.Listener
	// A child that is being started may hold the old listener until it has
	// executed its program.
	Eventually(p.t, 5*time.Second, "listen again", func() (err error) {
		l, err = net.Listen("tcp", p.Addr)
		return err
	})
	server := &http.Server{Handler: p}
	p.mu.Lock()
	p.server = server
	p.mu.Unlock()
	go server.Serve(l) // ends with Down
}

// Inject replaces the faults; the first that matches a request counts. Without
// any, answers are passed on unchanged.
func (p *Proxy) Inject(faults ...Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults = faults
}

// InjectAt replaces the faults of one path and leaves those of others: for
// tests that share a proxy.
func (p *Proxy) InjectAt(path string, faults ...Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	kept := slices.DeleteFunc(slices.Clone(p.faults), func(f Fault) bool { return f.Path == path })
	for _, f := range faults {
		f.Path = path
		kept = append(kept, f)
	}
	p.faults = kept
}

// Reset forgets the requests seen so far.
func (p *Proxy) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen = nil
}

// Seen is what has been asked since the start, or since Reset, of one method
// ("" all) and with a path that contains part.
func (p *Proxy) Seen(method, part string) []Seen {
	p.mu.Lock()
	defer p.mu.Unlock()
	var found []Seen
	for _, s := range p.seen {
		if (method == "" || s.Method == method) && strings.Contains(s.Path, part) {
			found = append(found, *s)
		}
	}
	return found
}

// Count is how many requests [Proxy.Seen] gives.
func (p *Proxy) Count(method, part string) int { return len(p.Seen(method, part)) }

// Bytes is how many bytes of bodies the answers to them had.
func (p *Proxy) Bytes(method, part string) int64 {
	var n int64
	for _, s := range p.Seen(method, part) {
		n += s.Bytes
	}
	return n
}

// Story is one line for each request seen, for a failed test to tell.
func (p *Proxy) Story() string {
	var b strings.Builder
	for _, s := range p.Seen("", "") {
		fmt.Fprintf(&b, "  %s %s", s.Method, s.Path)
		if s.Query != "" {
			fmt.Fprintf(&b, "?%s", s.Query)
		}
		if r := s.Header.Get("Range"); r != "" {
			fmt.Fprintf(&b, " [%s]", r)
		}
		fmt.Fprintf(&b, " -> %d, %d bytes\n", s.Status, s.Bytes)
	}
	return b.String()
}

// ServeHTTP implements http.Handler.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	seen := &Seen{Method: r.Method, Path: r.URL.EscapedPath(), Query: r.URL.RawQuery, Header: r.Header.Clone()}
	fault := p.admit(r, seen)
	ctx := r.Context()
	if fault.Hang {
		<-ctx.Done()
		return
	}
	if !pause(ctx, fault.Delay) {
		return
	}
	if fault.Status != 0 {
		p.refuse(w, fault, seen)
		return
	}
	resp, err := p.forward(r)
	if err != nil {
		p.note(func() { seen.Status = http.StatusBadGateway })
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer resp.Body.Close()
	if fault.Lost {
		io.Copy(io.Discard, resp.Body)
		panic(http.ErrAbortHandler)
	}
	for k, v := range resp.Header {
		w.Header()[k] = v
	}
	if fault.Short {
		w.Header().Del("Content-Length")
	} else if resp.ContentLength >= 0 {
		w.Header().Set("Content-Length", fmt.Sprint(resp.ContentLength))
	}
	p.note(func() { seen.Status = resp.StatusCode })
	w.WriteHeader(resp.StatusCode)
	p.body(ctx, w, resp.Body, fault, seen)
}

// admit notes the request and finds the fault that it meets.
func (p *Proxy) admit(r *http.Request, seen *Seen) Fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen = append(p.seen, seen)
	for i, f := range p.faults {
		if f.Method != "" && f.Method != r.Method || !strings.Contains(seen.Path, f.Path) {
			continue
		}
		switch f.Times {
		case 0:
		case 1:
			p.faults = slices.Delete(slices.Clone(p.faults), i, i+1)
		default:
			p.faults = slices.Clone(p.faults)
			p.faults[i].Times--
		}
		return f
	}
	return Fault{}
}

func (p *Proxy) note(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
}

func (p *Proxy) refuse(w http.ResponseWriter, f Fault, seen *Seen) {
	kind, body := "application/json", `{"errors":[{"code":"UNKNOWN","message":"injected"}]}`
	if f.Body != "" {
		kind, body = http.DetectContentType([]byte(f.Body)), f.Body
	}
	w.Header().Set("Content-Type", kind)
	for k, v := range f.Header {
		w.Header()[k] = v
	}
	p.note(func() { seen.Status = f.Status })
	w.WriteHeader(f.Status)
	n, _ := io.WriteString(w, body)
	p.note(func() { seen.Bytes = int64(n) })
}

func (p *Proxy) forward(r *http.Request) (*http.Response, error) {
	out := r.Clone(r.Context())
	out.URL.Scheme, out.URL.Host = p.upstream.Scheme, p.upstream.Host
	out.RequestURI = ""
	for _, hop := range []string{"Connection", "Keep-Alive", "Te", "Upgrade"} {
		out.Header.Del(hop)
	}
	return p.client.RoundTrip(out)
}

// body passes the body on, as the fault has it.
func (p *Proxy) body(ctx context.Context, w http.ResponseWriter, body io.Reader, f Fault, seen *Seen) {
	breaks := f.Corrupt || f.Truncate || f.Short || f.Stall
	buf := make([]byte, 64<<10)
	start, sent := time.Now(), int64(0)
	for {
		max := int64(len(buf))
		if rest := f.After - sent; breaks && rest > 0 {
			max = min(max, rest)
		}
		n, err := body.Read(buf[:max])
		if breaks && sent == f.After && n > 0 {
			switch {
			case f.Corrupt:
				buf[0] ^= 1
			case f.Truncate:
				http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			case f.Short:
				return
			case f.Stall:
				http.NewResponseController(w).Flush()
				<-ctx.Done()
				return
			}
		}
		if n > 0 {
			if f.Rate > 0 && !pause(ctx, time.Duration(sent*int64(time.Second)/f.Rate)-time.Since(start)) {
				return
			}
			p.note(func() {
				if seen.First.IsZero() {
					seen.First = time.Now()
				}
				// Counted before it is sent: what weir has must not be more
				// than what the test can see.
				seen.Bytes += int64(n)
			})
			if _, werr := w.Write(buf[:n]); werr != nil {
				return
			}
			sent += int64(n)
		}
		if err == io.EOF {
			return
		}
		if err != nil {
			panic(http.ErrAbortHandler)
		}
	}
}

// pause waits for d and reports whether ctx lasted that long.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
