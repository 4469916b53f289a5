package outbound

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weir-registry/weir/registry"
)

// server is an upstream on a port of its own that remembers what it was asked.
type server struct {
	*httptest.Server
	mu   sync.Mutex
	seen []*http.Request
}

func serve(t *testing.T, h http.HandlerFunc) *server {
	t.Helper()
	s := &server{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.seen = append(s.seen, r.Clone(context.Background()))
		s.mu.Unlock()
		h(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *server) requests() []*http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*http.Request(nil), s.seen...)
}

func client(t *testing.T, base string, o Options) *Client {
	t.Helper()
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	o.Base = u
	if o.Name == "" {
		o.Name = "up"
	}
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func get(t *testing.T, c *Client, url string, header ...string) (*http.Response, error) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(t.Context(), req, Load{})
	if err == nil {
		t.Cleanup(func() { resp.Body.Close() })
	}
	return resp, err
}

func redirect(to *string, code int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, *to, code) }
}

func TestRedirectDropsCredentials(t *testing.T) {
	for _, code := range []int{301, 302, 303, 307, 308} {
		var elsewhere, home string
		base := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/back" {
				io.WriteString(w, "home")
				return
			}
			redirect(&elsewhere, code)(w, r)
		})
		other := serve(t, redirect(&home, code))
		elsewhere, home = other.URL+"/x", base.URL+"/back"
		c := client(t, base.URL, Options{Redirects: []string{"127.0.0.1:*"}})
		resp, err := get(t, c, base.URL+"/start", "Authorization", "Basic c2VjcmV0", "Cookie", "a=b", "Accept", "text/x")
		if err != nil || resp.StatusCode != 200 {
			t.Fatal(resp, err)
		}
		if first := base.requests()[0]; first.Header.Get("Authorization") == "" || first.Header.Get("Cookie") == "" {
			t.Error("the base did not get the credentials meant for it")
		}
		for _, r := range append(other.requests(), base.requests()[1:]...) {
			if r.Header.Get("Authorization") != "" || r.Header.Get("Cookie") != "" {
				t.Errorf("%d: %s got credentials", code, r.URL)
			}
			if r.Header.Get("Accept") != "text/x" {
				t.Errorf("%d: Accept was lost", code)
			}
		}
	}
}

func TestRedirectOnSameHostKeepsCredentials(t *testing.T) {
	base := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/a" {
			http.Redirect(w, r, "/b", http.StatusTemporaryRedirect)
		}
	})
	c := client(t, base.URL, Options{})
	if _, err := get(t, c, base.URL+"/a", "Authorization", "x"); err != nil {
		t.Fatal(err)
	}
	if r := base.requests()[1]; r.URL.Path != "/b" || r.Header.Get("Authorization") != "x" {
		t.Errorf("%v %v", r.URL, r.Header)
	}
}

func TestRedirectUserInfoIsNotSent(t *testing.T) {
	base := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/a" {
			w.Header().Set("Location", "http://mallory:pw@"+r.Host+"/b")
			w.WriteHeader(302)
		}
	})
	c := client(t, base.URL, Options{})
	if _, err := get(t, c, base.URL+"/a"); err != nil {
		t.Fatal(err)
	}
	if r := base.requests()[1]; r.Header.Get("Authorization") != "" {
		t.Errorf("sent %q", r.Header.Get("Authorization"))
	}
}

// TestRedirectInside attacks the dialer: an upstream that points weir at
// services only weir can reach, by address and by name.
func TestRedirectInside(t *testing.T) {
	inside := serve(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "metadata") })
	port := inside.URL[strings.LastIndexByte(inside.URL, ':')+1:]
	var to string
	base := serve(t, redirect(&to, 302))
	for _, host := range []string{"127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0", "127.0.0.2", "10.255.255.1", "169.254.169.254", "[::1]", "[fe80::1%25lo]"} {
		to = "http://" + host + ":" + port + "/"
		c := client(t, base.URL, Options{HeaderTimeout: 5 * time.Second})
		_, err := get(t, c, base.URL)
		if !errors.Is(err, registry.ErrUnavailable) {
			t.Errorf("%s: %v", host, err)
			continue
		}
		if p := registry.Public(err); p != "up answers with a redirect that is not followed" || strings.Contains(p, host) {
			t.Errorf("%s: public %q", host, p)
		}
	}
	if n := len(inside.requests()); n != 0 {
		t.Fatalf("%d requests came through", n)
	}
	to = inside.URL
	for _, listed := range []string{"127.0.0.1:" + port, "127.0.0.1:*"} {
		if _, err := get(t, client(t, base.URL, Options{Redirects: []string{listed}}), base.URL); err != nil {
			t.Errorf("listed as %s: %v", listed, err)
		}
	}
}

// TestRebinding: what counts is the address dialled, so a name that resolved
// to a public address a moment ago is no better than any other.
func TestRebinding(t *testing.T) {
	for address, ok := range map[string]bool{
		"8.8.8.8:443": true, "[2606:4700::1111]:443": true, "151.101.1.1:80": true,
		"127.0.0.1:80": false, "10.0.0.1:80": false, "172.16.3.4:80": false, "192.168.1.1:80": false,
		"169.254.169.254:80": false, "100.64.0.1:80": false, "0.0.0.0:80": false, "255.255.255.255:80": false,
		"224.0.0.1:80": false, "168.63.129.16:80": false, "192.0.0.192:80": false, "198.18.0.1:80": false,
		"[::1]:80": false, "[::]:80": false, "[::ffff:10.0.0.1]:80": false, "[fc00::1]:80": false, "[fe80::1%eth0]:80": false,
		"[64:ff9b::a00:1]:80": false, "[2002:7f00:1::]:80": false, "[fd00:ec2::254]:80": false, "[::127.0.0.1]:80": false,
		"[fec0::1]:80": false, "nonsense": false,
	} {
		if err := publicOnly("tcp", address, nil); (err == nil) != ok {
			t.Errorf("%s: %v", address, err)
		}
	}
	if publicOnly("unix", "8.8.8.8:80", nil) == nil {
		t.Error("unix sockets are dialled")
	}
}

func TestPatterns(t *testing.T) {
	d := func(list ...string) dialer {
		p, err := ParseHosts(list)
		if err != nil {
			t.Fatal(err)
		}
		return dialer{base: "base.test:5000", allowed: p}
	}
	for _, c := range []struct {
		list, addr string
		want       bool
	}{
		{"x.test", "base.test:5000", true}, {"x.test", "BASE.test:5000", true}, {"x.test", "base.test:5001", false},
		{"x.test", "x.test:443", true}, {"x.test", "x.test:80", true}, {"x.test", "x.test:22", false},
		{"x.test:22", "x.test:22", true}, {"x.test:22", "x.test:443", false}, {"x.test:*", "x.test:22", true},
		{"*.x.test", "a.x.test:443", true}, {"*.x.test", "a.b.X.test:443", true}, {"*.x.test", "x.test:443", false},
		{"*.x.test", "evilx.test:443", false}, {"*.x.test", ".x.test:443", false}, {"*.x.test:*", "a.x.test:1", true},
		{"::1", "[::1]:80", true}, {"[::1]", "[::1]:80", true}, {"[::1]:9", "[::1]:9", true}, {"[::1]:9", "[::1]:80", false},
		{"127.0.0.2", "127.0.0.2:443", true}, {"x.test", "nonsense", false},
	} {
		if got := d(c.list).trusts(c.addr); got != c.want {
			t.Errorf("%q trusts %q: %v", c.list, c.addr, got)
		}
	}
	for _, bad := range []string{"", "*", "*.", "a*b", "http://x.test", "x.test/", "x.test:", "x.test:a", "x.test:1*", "a b", "[::1", "u@h"} {
		if _, err := ParseHosts([]string{bad}); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// fakeNet answers by URL, where the scheme matters and a network would not do.
type fakeNet map[string]func(*http.Request) (*http.Response, error)

func (f fakeNet) RoundTrip(r *http.Request) (*http.Response, error) {
	if h, ok := f[r.URL.String()]; ok {
		return h(r)
	}
	return nil, errors.New("no such address: " + r.URL.String())
}

func answer(code int, header ...string) func(*http.Request) (*http.Response, error) {
	return func(r *http.Request) (*http.Response, error) {
		resp := &http.Response{StatusCode: code, Header: http.Header{}, Body: http.NoBody, Request: r}
		for i := 0; i < len(header); i += 2 {
			resp.Header.Set(header[i], header[i+1])
		}
		return resp, nil
	}
}

func TestHTTPSStays(t *testing.T) {
	net := fakeNet{
		"https://up.test/a":  answer(302, "Location", "http://up.test/b"),
		"http://up.test/b":   answer(200),
		"https://up.test/c":  answer(302, "Location", "//cdn.test/c"),
		"https://cdn.test/c": answer(200),
		"https://up.test/d":  answer(302, "Location", "file:///etc/passwd"),
		"https://up.test/e":  answer(302, "Location", "http://[bad"),
		"https://up.test/f":  answer(302),
		"https://up.test/g":  answer(304, "Location", "/c"),
	}
	c := client(t, "https://up.test", Options{Transport: net})
	for url, ok := range map[string]bool{
		"https://up.test/a": false, "http://up.test/b": false, "https://up.test/c": true, "https://up.test/d": false,
		"https://up.test/e": false, "https://up.test/f": true, "https://up.test/g": true,
	} {
		if _, err := get(t, c, url); (err == nil) != ok {
			t.Errorf("%s: %v", url, err)
		}
	}
}

func TestRedirectLoop(t *testing.T) {
	to := "/"
	base := serve(t, redirect(&to, 302))
	_, err := get(t, client(t, base.URL, Options{}), base.URL)
	if !errors.Is(err, registry.ErrUnavailable) {
		t.Fatal(err)
	}
	if n := len(base.requests()); n != maxRedirects+1 {
		t.Errorf("%d requests", n)
	}
}

func TestPostIsNotRedirected(t *testing.T) {
	to := "/x"
	base := serve(t, redirect(&to, 307))
	c := client(t, base.URL, Options{})
	req, _ := http.NewRequest(http.MethodPost, base.URL, strings.NewReader("body"))
	resp, err := c.Do(t.Context(), req, Load{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Check(resp, "post"); !errors.Is(err, registry.ErrUnavailable) || len(base.requests()) != 1 {
		t.Errorf("%v after %d requests", err, len(base.requests()))
	}
}

// raw accepts connections and gives them to h, numbered from 1.
func raw(t *testing.T, h func(n int, conn net.Conn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for n := 1; ; n++ {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go h(n, conn)
		}
	}()
	return "http://" + ln.Addr().String()
}

func TestHangBeforeHeader(t *testing.T) {
	stop := make(chan struct{})
	defer close(stop)
	url := raw(t, func(_ int, conn net.Conn) { <-stop; conn.Close() })
	begun := time.Now()
	_, err := get(t, client(t, url, Options{HeaderTimeout: 100 * time.Millisecond}), url)
	if !errors.Is(err, registry.ErrUnavailable) || registry.Public(err) != "up does not answer" {
		t.Errorf("%v, public %q", err, registry.Public(err))
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestRefusedConnection(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + ln.Addr().String()
	ln.Close()
	_, err = get(t, client(t, url, Options{}), url)
	if !errors.Is(err, registry.ErrUnavailable) || strings.Contains(registry.Public(err), "127.0.0.1") {
		t.Errorf("%v, public %q", err, registry.Public(err))
	}
}

func TestBrokenConnectionIsTriedOnceMore(t *testing.T) {
	var conns atomic.Int32
	url := raw(t, func(n int, conn net.Conn) {
		defer conn.Close()
		conns.Add(1)
		if _, err := http.ReadRequest(bufio.NewReader(conn)); err != nil || n == 1 {
			return
		}
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	})
	resp, err := get(t, client(t, url, Options{}), url)
	if err != nil {
		t.Fatal(err)
	}
	if data, _ := io.ReadAll(resp.Body); string(data) != "ok" || conns.Load() != 2 {
		t.Errorf("%q over %d connections", data, conns.Load())
	}
}

func TestShortBody(t *testing.T) {
	url := raw(t, func(_ int, conn net.Conn) {
		http.ReadRequest(bufio.NewReader(conn))
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
		conn.Close()
	})
	resp, err := get(t, client(t, url, Options{}), url)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(resp.Body)
	if string(data) != "half" || registry.KindOf(err) != registry.ErrUnavailable {
		t.Errorf("%q, %v", data, err)
	}
}

// TestIdleBody: silence ends a body, a slow reader does not.
func TestIdleBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pr, pw := io.Pipe()
		c := client(t, "http://up.test", Options{IdleTimeout: 10 * time.Second, Transport: fakeNet{
			"http://up.test/": func(r *http.Request) (*http.Response, error) {
				context.AfterFunc(r.Context(), func() { pw.CloseWithError(r.Context().Err()) })
				return &http.Response{StatusCode: 200, Header: http.Header{}, Body: pr, ContentLength: -1, Request: r}, nil
			},
		}})
		resp, err := get(t, c, "http://up.test/")
		if err != nil {
			t.Fatal(err)
		}
		go pw.Write([]byte("abcd"))
		buf := make([]byte, 2)
		if _, err := resp.Body.Read(buf); err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Hour) // the reader's own time, in the bubble's clock
		if _, err := resp.Body.Read(buf); err != nil {
			t.Fatalf("a slow reader was cut off: %v", err)
		}
		begun := time.Now()
		_, err = resp.Body.Read(buf)
		if registry.KindOf(err) != registry.ErrUnavailable || !errors.Is(err, errSilent) || time.Since(begun) != 10*time.Second {
			t.Errorf("after %v: %v", time.Since(begun), err)
		}
	})
}

// TestDrippingError: an error's body is not worth waiting for.
func TestDrippingError(t *testing.T) {
	stop := make(chan struct{})
	base := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(503)
		io.WriteString(w, "why")
		http.NewResponseController(w).Flush()
		<-stop
	})
	defer close(stop)
	c := client(t, base.URL, Options{})
	resp, err := get(t, c, base.URL)
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	err = c.Check(resp, "testing")
	if !errors.Is(err, registry.ErrUnavailable) || !strings.Contains(err.Error(), "why") || time.Since(begun) > 10*time.Second {
		t.Errorf("after %v: %v", time.Since(begun), err)
	}
}

func TestDiscardKeepsTheConnection(t *testing.T) {
	var mu sync.Mutex
	conns := map[string]bool{}
	base := serve(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		conns[r.RemoteAddr] = true
		mu.Unlock()
		w.WriteHeader(401)
		io.WriteString(w, strings.Repeat("no ", 5000))
	})
	c := client(t, base.URL, Options{})
	for range 3 {
		resp, err := get(t, c, base.URL)
		if err != nil {
			t.Fatal(err)
		}
		Discard(resp)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(conns) != 1 {
		t.Errorf("%d connections", len(conns))
	}
}

func TestCallerGivesUp(t *testing.T) {
	reached, stop := make(chan struct{}), make(chan struct{})
	base := serve(t, func(w http.ResponseWriter, r *http.Request) { close(reached); <-stop })
	defer close(stop)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-reached; cancel() }()
	req, _ := http.NewRequest(http.MethodGet, base.URL, nil)
	_, err := client(t, base.URL, Options{}).Do(ctx, req, Load{})
	if !errors.Is(err, registry.ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestHeaders(t *testing.T) {
	base := serve(t, func(w http.ResponseWriter, r *http.Request) {})
	c := client(t, base.URL, Options{UserAgent: "weir/1"})
	req, _ := http.NewRequest(http.MethodGet, base.URL, nil)
	resp, err := c.Do(t.Context(), req, Load{})
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	r := base.requests()[0]
	if r.Header.Get("Accept-Encoding") != "" || r.Header.Get("User-Agent") != "weir/1" {
		t.Errorf("%v", r.Header)
	}
	if req.Header.Get("User-Agent") != "" {
		t.Error("the caller's request was changed")
	}
}

func TestNewRefuses(t *testing.T) {
	for _, bad := range []string{"", "/x", "ftp://x.test", "https://", "https://u:p@x.test", "https://x.test?a", "https://x.test#a"} {
		u, _ := url.Parse(bad)
		if _, err := New(Options{Name: "up", Base: u}); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := New(Options{Name: "up"}); err == nil {
		t.Error("no base")
	}
}
