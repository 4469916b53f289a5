package npm_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/npmlab"
	"github.com/weir-registry/weir/npm"
	"github.com/weir-registry/weir/registry"
)

// one is the packument of a package of one version whose tarball is at where.
func one(pkg, where string, tarball []byte) string {
	sum := sha1.Sum(tarball)
	return fmt.Sprintf(`{"name":%q,"dist-tags":{"latest":"1.0.0"},"versions":{"1.0.0":{"name":%q,"version":"1.0.0","dist":{"shasum":%q,"tarball":%q}}}}`,
		pkg, pkg, hex.EncodeToString(sum[:]), where)
}

func TestPatternsChooseTheUpstream(t *testing.T) {
	public, scoped, single := lab(t), lab(t), lab(t)
	for _, up := range []*npmlab.Registry{public, scoped, single} {
		for _, pkg := range []string{"@acme/a", "@acme/b", "@acme-x/a", "plain"} {
			up.Publish(npmlab.Version{Name: pkg, Version: "1.0.0"})
		}
	}
	n := startNode(t, npm.Config{Prefix: "/npm", Log: slog.New(slog.DiscardHandler)},
		npm.Registry{Name: "public", URL: public.URL, Packages: []string{"*"}},
		npm.Registry{Name: "acme", URL: scoped.URL, Packages: []string{"@acme/*"}},
		npm.Registry{Name: "single", URL: single.URL, Packages: []string{"@acme/b"}})
	for pkg, owner := range map[string]*npmlab.Registry{"@acme/a": scoped, "@acme/b": single, "@acme-x/a": public, "plain": public} {
		n.get("/npm/"+pkg).is(t, 200)
		for _, up := range []*npmlab.Registry{public, scoped, single} {
			if got := len(up.Requests("/" + pkg)); (got == 1) != (up == owner) || got > 1 {
				t.Errorf("%s: %d questions, its own upstream: %v", pkg, got, up == owner)
			}
		}
	}
	// What its own upstream has not is nowhere.
	public.Publish(npmlab.Version{Name: "@acme/only-public", Version: "1.0.0"})
	n.get("/npm/@acme%2fonly-public").is(t, 404)

	alone := startNode(t, npm.Config{Prefix: "/npm", Log: slog.New(slog.DiscardHandler)},
		npm.Registry{Name: "acme", URL: scoped.URL, Packages: []string{"@acme/*"}})
	scoped.Forget()
	alone.get("/npm/plain").is(t, 404)
	alone.get("/npm/plain/-/plain-1.0.0.tgz").is(t, 404)
	if q := scoped.Requests("/"); len(q) != 0 {
		t.Errorf("asked %v", q)
	}
}

func TestPackageMovesToAnotherUpstream(t *testing.T) {
	a, b := lab(t), lab(t)
	b.Publish(npmlab.Version{Name: "left", Version: "3.0.0"})
	up := func(url string) *npm.Upstreams {
		u, err := npm.NewUpstreams([]npm.Registry{{Name: "x", URL: url, Packages: []string{"*"}}}, npm.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	n := registry.Name{Space: "npm", Repo: "left"}
	kept, doc, err := up(a.URL).Resolve(context.Background(), registry.Question{Name: n})
	if err != nil {
		t.Fatal(err)
	}
	doc.Close()
	kept.Digest = "sha256:" + "00"
	if !up(a.URL).Owns(n, kept) || up(b.URL).Owns(n, kept) {
		t.Error("the binding is not known for its upstream's")
	}
	if _, doc, err := up(b.URL).Resolve(context.Background(), registry.Question{Name: n, Have: kept}); err != nil || doc == nil {
		t.Errorf("another upstream's validator counts: %v", err)
	} else {
		doc.Close()
	}
	if q := b.Requests("/left"); q[0].Header.Get("If-None-Match") != "" {
		t.Error("another upstream's validator was sent")
	}
}

func TestCredentialsStayAtHome(t *testing.T) {
	tarball := func(pkg string) []byte { return []byte("the tarball of " + pkg) }
	type saw struct{ host, auth string }
	var mu sync.Mutex
	var seen []saw
	note := func(r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, saw{r.Host, r.Header.Get("Authorization")})
	}
	side := script(t, func(w http.ResponseWriter, r *http.Request) {
		note(r)
		w.Write(tarball(map[string]string{"/x.tgz": "sent", "/odd/place": "side"}[r.URL.Path]))
	})
	var home string
	home = script(t, func(w http.ResponseWriter, r *http.Request) {
		note(r)
		switch r.URL.Path {
		case "/reg/own":
			io.WriteString(w, one("own", home+"/reg/own/-/own-1.0.0.tgz", tarball("own")))
		case "/reg/sent":
			io.WriteString(w, one("sent", home+"/reg/sent/-/sent-1.0.0.tgz", tarball("sent")))
		case "/reg/sent/-/sent-1.0.0.tgz":
			http.Redirect(w, r, side+"/x.tgz", http.StatusFound)
		case "/reg/side":
			io.WriteString(w, one("side", side+"/odd/place", tarball("side")))
		default:
			w.Write(tarball("own"))
		}
	})
	n := newNode(t, home+"/reg/", func(r *npm.Registry, _ *npm.Config) {
		r.Token = "the-upstream's"
		r.Tarballs = []string{strings.TrimPrefix(side, "http://")}
	})
	for _, pkg := range []string{"own", "sent", "side"} {
		if a := n.get("/npm/"+pkg+"/-/"+pkg+"-1.0.0.tgz", "Authorization", "Bearer the-client's").is(t, 200); !bytes.Equal(a.raw, tarball(pkg)) {
			t.Errorf("%s: %q", pkg, a.raw)
		}
	}
	for _, s := range seen {
		want := ""
		if "http://"+s.host == home {
			want = "Bearer the-upstream's"
		}
		if s.auth != want {
			t.Errorf("%s got %q", s.host, s.auth)
		}
	}
	if len(seen) != 7 {
		t.Errorf("%d requests: %v", len(seen), seen)
	}
}

// TestTarballElsewhere: a host that is not listed is never dialled; a path of
// the usual shape is asked of the upstream itself.
func TestTarballElsewhere(t *testing.T) {
	var dialled atomic.Int64
	elsewhere := script(t, func(w http.ResponseWriter, _ *http.Request) { dialled.Add(1); w.Write([]byte("x")) })
	tarball := func(pkg string) []byte { return []byte("the tarball of " + pkg) }
	home := script(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/usual":
			io.WriteString(w, one("usual", elsewhere+"/prefix/usual/-/usual-1.0.0.tgz", tarball("usual")))
		case "/@s/usual":
			io.WriteString(w, one("@s/usual", elsewhere+"/@s/usual/-/usual-1.0.0.tgz", tarball("@s/usual")))
		case "/odd":
			io.WriteString(w, one("odd", elsewhere+"/download/17", tarball("odd")))
		case "/file":
			io.WriteString(w, one("file", "file:///etc/passwd", tarball("file")))
		case "/nothing":
			io.WriteString(w, strings.Replace(one("nothing", "", tarball("nothing")), "shasum", "sum", 1))
		case "/usual/-/usual-1.0.0.tgz":
			w.Write(tarball("usual"))
		case "/@s/usual/-/usual-1.0.0.tgz":
			w.Write(tarball("@s/usual"))
		default:
			t.Errorf("asked for %s", r.URL)
		}
	})
	n := newNode(t, home, nil)
	for pkg, want := range map[string]int{"usual": 200, "@s/usual": 200, "odd": 403, "file": 503, "nothing": 502} {
		a := n.get("/npm/"+pkg+"/-/"+pkg[strings.LastIndexByte(pkg, '/')+1:]+"-1.0.0.tgz").is(t, want)
		if want == 200 && !bytes.Equal(a.raw, tarball(pkg)) {
			t.Errorf("%s: %q", pkg, a.raw)
		}
	}
	if dialled.Load() != 0 {
		t.Errorf("the other host was dialled")
	}
}

func TestGzippedUpstream(t *testing.T) {
	doc := one("left", "http://r.example/left/-/left-1.0.0.tgz", nil)
	body := zipped(doc)
	cut := map[string][]byte{"/left": body, "/short": body[:len(body)-9], "/nogzip": []byte("plain"), "/empty": nil}
	n := newNode(t, script(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Accept-Encoding") != "gzip" {
			t.Errorf("Accept-Encoding %q", r.Header.Get("Accept-Encoding"))
		}
		w.Header().Set("Content-Encoding", "gzip")
		w.Write(cut[r.URL.Path])
	}), nil)
	if a := n.get("/npm/left").is(t, 200); a.json(t)["name"] != "left" {
		t.Errorf("%s", a.body)
	}
	for _, path := range []string{"/npm/short", "/npm/nogzip", "/npm/empty"} {
		n.get(path).is(t, 503)
	}
}

// TestDamagedTarball: other bytes than the packument says are never whole.
func TestDamagedTarball(t *testing.T) {
	up := lab(t)
	n := newNode(t, up.URL, nil)
	good := up.Publish(npmlab.Version{Name: "big", Version: "1.0.0", Files: map[string]string{"x": strings.Repeat("0123456789", 50000)}})
	heal := up.Fail(npmlab.Fault{Match: ".tgz", Garble: true})
	if a, err := n.try("GET", "/npm/big/-/big-1.0.0.tgz", nil); err == nil && a.StatusCode == 200 {
		t.Errorf("%d bytes of %d served as whole", len(a.raw), len(good))
	}
	heal()
	if a := n.get("/npm/big/-/big-1.0.0.tgz").is(t, 200); !bytes.Equal(a.raw, good) {
		t.Errorf("%d bytes of %d", len(a.raw), len(good))
	}
}

// TestBigDocument sends 64 MB through the whole node, to many at once.
func TestBigDocument(t *testing.T) {
	var doc bytes.Buffer
	pad := strings.Repeat("lorem ipsum ", 530)
	doc.WriteString(`{"name":"big","dist-tags":{"latest":"1.0.9999"},"versions":{`)
	for i := range 10000 {
		if i > 0 {
			doc.WriteByte(',')
		}
		fmt.Fprintf(&doc, `"1.0.%d":{"name":"big","version":"1.0.%d","description":"%s","dist":{"shasum":"%040x","tarball":"http://r.example/big/-/big-1.0.%d.tgz"}}`, i, i, pad, i, i)
	}
	doc.WriteString(`},"time":{"1.0.9999":"2020-01-01T00:00:00.000Z"}}`)
	if doc.Len() < 64_000_000 {
		t.Fatalf("only %d bytes", doc.Len())
	}
	packed := zipped(doc.String())
	var asked atomic.Int64
	n := newNode(t, script(t, func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.Header().Set("Content-Encoding", "gzip")
		w.Write(packed)
	}), func(r *npm.Registry, _ *npm.Config) { r.Wait = 2 * time.Minute })
	var wg sync.WaitGroup
	var same [2]sync.Map
	for i := range 16 {
		wg.Go(func() {
			accept := []string{"application/json", corgiAccept}[i%2]
			a, err := n.tryRaw("GET", "/npm/big", nil, "Accept", accept, "Accept-Encoding", "gzip")
			if err != nil || a.StatusCode != 200 || a.Header.Get("Content-Encoding") != "gzip" {
				t.Errorf("%v %.200s %v", a.Response, a.raw, err)
			}
			same[i%2].Store(sha1.Sum(a.raw), a.raw)
		})
	}
	wg.Wait()
	for i := range same {
		bodies := 0
		same[i].Range(func(_, raw any) bool {
			bodies++
			z, err := gzip.NewReader(bytes.NewReader(raw.([]byte)))
			if err == nil {
				var size int64
				size, err = io.Copy(io.Discard, z)
				if size < 1_000_000 {
					t.Errorf("%d bytes", size)
				}
			}
			if err != nil {
				t.Error(err)
			}
			return true
		})
		if bodies != 1 {
			t.Errorf("%d different bodies", bodies)
		}
	}
	if asked.Load() != 1 {
		t.Errorf("the upstream was asked %d times", asked.Load())
	}
	begin := time.Now()
	for i := range 50 {
		n.get(fmt.Sprintf("/npm/big/1.0.%d", i*199)).is(t, 200)
	}
	// Each is a look-up in the index and one span of the document; scanning
	// the document would take half a second each time.
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("50 versions took %v", took)
	}
}

// TestAnotherPackagesDocument: an upstream, or what is in front of it, that
// mixes answers up does not make one package into another.
func TestAnotherPackagesDocument(t *testing.T) {
	var mixed atomic.Bool
	n := newNode(t, script(t, func(w http.ResponseWriter, r *http.Request) {
		pkg := strings.TrimPrefix(r.URL.Path, "/")
		if mixed.Load() {
			pkg = "evil"
		}
		io.WriteString(w, one(pkg, "http://r.example/x/-/x-1.0.0.tgz", nil))
	}), func(r *npm.Registry, _ *npm.Config) { r.Fresh = time.Millisecond })
	for _, path := range []string{"/npm/left", "/npm/@acme%2fright"} {
		n.get(path).is(t, 200)
	}
	mixed.Store(true)
	for _, path := range []string{"/npm/other", "/npm/other/1.0.0", "/npm/other/-/other-1.0.0.tgz", "/npm/@acme%2fother"} {
		if a := n.get(path).is(t, 503); !strings.Contains(string(a.body), "another package's document") {
			t.Errorf("%s: %s", path, a.body)
		}
	}
	n.get("/npm/evil").is(t, 200)
	if a := n.get("/npm/left").is(t, 200); a.json(t)["name"] != "left" {
		t.Errorf("%s", a.body)
	}
}

func TestConfigurationErrors(t *testing.T) {
	for want, list := range map[string][]npm.Registry{
		"packages":  {{Name: "a", URL: "http://r.example"}},
		"star":      {{Name: "a", URL: "http://r.example", Packages: []string{"@*/x"}}},
		"http":      {{Name: "a", URL: "r.example", Packages: []string{"*"}}},
		"both have": {{Name: "a", URL: "http://r.example", Packages: []string{"*"}}, {Name: "b", URL: "http://s.example", Packages: []string{"*"}}},
		"username":  {{Name: "a", URL: "http://r.example", Packages: []string{"*"}, Token: "t", Username: "u"}},
		"a b":       {{Name: "a", URL: "http://r.example", Packages: []string{"*"}, Tarballs: []string{"a b"}}},
	} {
		if _, err := npm.NewUpstreams(list, npm.Options{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}
