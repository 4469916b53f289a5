package conformance_test

import (
	"bytes"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/lab"
	"github.com/weir-registry/weir/conformance/npmlab"
)

// upstreamFaults are the ways in which a registry fails to answer, and what
// weir may then say when it has nothing itself.
var upstreamFaults = []struct {
	name   string
	fault  npmlab.Fault
	cold   []int
	tarred bool // it is a fault of a tarball's answer too
}{
	{"500", npmlab.Fault{Status: 500, Body: `{"error":"Internal"}`}, []int{502, 503, 504}, true},
	{"503", npmlab.Fault{Status: 503, Header: map[string]string{"Retry-After": "3"}}, []int{503}, true},
	{"429", npmlab.Fault{Status: 429, Header: map[string]string{"Retry-After": "2"}, Body: "slow down"}, []int{429, 503}, true},
	{"401", npmlab.Fault{Status: 401, Header: map[string]string{"Www-Authenticate": "Basic"}}, []int{401, 403, 502, 503}, true},
	{"403", npmlab.Fault{Status: 403}, []int{403, 502, 503}, true},
	{"portal", npmlab.Fault{Status: 200, Header: map[string]string{"Content-Type": "text/html; charset=utf-8"},
		Body: "<html><body>Please accept the terms of this hotel</body></html>"}, []int{502, 503}, true},
	{"empty", npmlab.Fault{Status: 200, Header: map[string]string{"Content-Type": "application/json"}}, []int{502, 503}, true},
	{"half", npmlab.Fault{Cut: true}, []int{502, 503, 504}, false},
}

// TestNpmUpstreamFails: what is not here is refused truthfully while the
// upstream fails, never as something that does not exist; and it is there as
// soon as the upstream is.
func TestNpmUpstreamFails(t *testing.T) {
	for _, f := range upstreamFaults {
		t.Run(f.name, func(t *testing.T) {
			w, up := startNpm(t, "fresh: 1h")
			tarball := publishLeft(up)
			f.fault.Match = "left"
			heal := up.Fail(f.fault)
			start := time.Now()
			for _, path := range []string{"/npm/left", "/npm/left/1.1.0", "/npm/left/-/left-1.1.0.tgz", "/npm/-/package/left/dist-tags"} {
				checkRefusal(t, path, ask(t, "GET", w.URL, path), f.cold)
			}
			if took := time.Since(start); took > 30*time.Second {
				t.Errorf("four refusals took %v", took)
			}
			heal()
			lab.Eventually(t, 30*time.Second, "the package", func() error {
				a := ask(t, "GET", w.URL, "/npm/left/-/left-1.1.0.tgz")
				if a.StatusCode != http.StatusOK || !bytes.Equal(a.raw, tarball) {
					return fmt.Errorf("%s: %s", a.Status, a.body)
				}
				return nil
			})
		})
	}
}

// TestNpmTarballFails: the same for a tarball whose packument is known.
func TestNpmTarballFails(t *testing.T) {
	w, up := startNpm(t, "fresh: 1h")
	tarball := publishLeft(up)
	ask(t, "GET", w.URL, "/npm/left")
	for _, f := range upstreamFaults {
		if !f.tarred {
			continue
		}
		f.fault.Match = ".tgz"
		heal := up.Fail(f.fault)
		a, err := tryAsk("GET", w.URL, "/npm/left/-/left-1.1.0.tgz", nil)
		switch {
		case err != nil || a.err != nil: // cut off: nobody takes it for whole
		case a.StatusCode == http.StatusOK || a.StatusCode == http.StatusNotFound:
			t.Errorf("%s: %s, %d bytes", f.name, a.Status, len(a.raw))
		default:
			npmError(t, a)
		}
		heal()
	}
	lab.Eventually(t, 30*time.Second, "the tarball", func() error {
		a := ask(t, "GET", w.URL, "/npm/left/-/left-1.1.0.tgz")
		if a.StatusCode != http.StatusOK || !bytes.Equal(a.raw, tarball) {
			return fmt.Errorf("%s: %s", a.Status, a.body)
		}
		return nil
	})
}

func checkRefusal(t *testing.T, path string, a answer, want []int) {
	t.Helper()
	ok := false
	for _, status := range want {
		ok = ok || a.StatusCode == status
	}
	if !ok {
		t.Errorf("%s: %s, not one of %v: %s", path, a.Status, want, clipped(string(a.body)))
	}
	message := npmError(t, a)
	if strings.Contains(message, "127.0.0.1") {
		t.Errorf("%s: the client is told of addresses behind weir: %q", path, message)
	}
	if a.StatusCode == http.StatusTooManyRequests || a.StatusCode == http.StatusServiceUnavailable {
		if n, err := strconv.Atoi(a.Header.Get("Retry-After")); err != nil || n < 1 || n > 120 {
			t.Errorf("%s: %s with Retry-After %q", path, a.Status, a.Header.Get("Retry-After"))
		}
	}
	if cc := a.Header.Get("Cache-Control"); strings.Contains(cc, "max-age") && !strings.Contains(cc, "max-age=0") {
		t.Errorf("%s: %s with Cache-Control %q", path, a.Status, cc)
	}
}

// TestNpmStale: what is here is given while the upstream fails, and says so,
// also after weir has been started anew.
func TestNpmStale(t *testing.T) {
	for _, f := range upstreamFaults {
		t.Run(f.name, func(t *testing.T) {
			w, up := startNpm(t)
			tarball := publishLeft(up)
			before := decode[packument](t, ask(t, "GET", w.URL, "/npm/left"))
			ask(t, "GET", w.URL, "/npm/left/-/left-1.1.0.tgz")
			f.fault.Match = "left"
			up.Fail(f.fault)
			checkStale(t, w, before, tarball)
			if f.name == "500" {
				w.Restart()
				checkStale(t, w, before, tarball)
			}
		})
	}
}

func checkStale(t *testing.T, w *lab.Weir, before packument, tarball []byte) {
	t.Helper()
	lab.Eventually(t, 20*time.Second, "an answer that says it is stale", func() error {
		a := ask(t, "GET", w.URL, "/npm/left", "Accept", corgiAccept)
		if a.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s", a.Status, clipped(string(a.body)))
		}
		if got := decode[packument](t, a); len(got.Versions) != len(before.Versions) || got.Tags["latest"] != before.Tags["latest"] {
			t.Fatalf("another packument: %+v", got)
		}
		if status := a.Header.Get("Cache-Status"); !strings.Contains(status, "fwd=stale") || !strings.HasPrefix(a.Header.Get("Warning"), "299 ") {
			return fmt.Errorf("Cache-Status %q, Warning %q", status, a.Header.Get("Warning"))
		}
		return nil
	})
	a := ask(t, "GET", w.URL, "/npm/left/-/left-1.1.0.tgz")
	if a.StatusCode != http.StatusOK || !bytes.Equal(a.raw, tarball) {
		t.Errorf("the tarball: %s, %d bytes of %d", a.Status, len(a.raw), len(tarball))
	}
	h := newNpmHome(t, w.URL+"/npm/")
	h.run("npm", "install", "left@1.1.0", "--no-audit")
}

// TestNpmRealClientRetries: npm gets through an upstream that fails for a
// moment, because weir tells it to come back instead of telling it 404.
func TestNpmRealClientRetries(t *testing.T) {
	w, up := startNpm(t, "fresh: 1h")
	publishLeft(up)
	up.Fail(npmlab.Fault{Match: "left", Status: 503, Header: map[string]string{"Retry-After": "1"}, Times: 2})
	h := newNpmHome(t, w.URL+"/npm/")
	h.run("npm", "install", "@acme/right", "--no-audit", "--fetch-retry-mintimeout=200", "--fetch-retry-maxtimeout=3000", "--fetch-retries=8")
}

// TestNpmTarballHosts: a tarball on another host is fetched if the
// configuration allows that host, and never with the registry's credentials.
func TestNpmTarballHosts(t *testing.T) {
	up := newNpmLab(t)
	up.Publish(npmlab.Version{Name: "near", Version: "1.0.0"})
	far := up.Publish(npmlab.Version{Name: "far", Version: "1.0.0", Side: true})
	for name, allowed := range map[string]bool{"allowed": true, "denied": false} {
		t.Run(name, func(t *testing.T) {
			lines := []string{"fresh: 1h", `token: "one-token-of-weirs"`}
			if allowed {
				lines = append(lines, `tarballs: ["127.0.0.2:*"]`)
			}
			w := lab.StartWeir(t, npmConfig(up.URL, lines...))
			up.Forget()
			if doc := decode[packument](t, ask(t, "GET", w.URL, "/npm/far")); !strings.HasPrefix(doc.Versions["1.0.0"].Dist.Tarball, w.URL+"/npm/far/-/") {
				t.Errorf("tarball %q", doc.Versions["1.0.0"].Dist.Tarball)
			}
			token := clientToken(t, w)
			a := ask(t, "GET", w.URL, "/npm/far/-/far-1.0.0.tgz", "Authorization", "Bearer "+token)
			h := newNpmHome(t, w.URL+"/npm/")
			r := h.try("npm", "install", "far", "near", "--no-audit", "--fetch-retries=0")
			if allowed {
				if a.StatusCode != http.StatusOK || !bytes.Equal(a.raw, far) || r.Code != 0 {
					t.Errorf("%s, %d bytes; npm: status %d, %s", a.Status, len(a.raw), r.Code, r.Stderr)
				}
			} else {
				checkRefusal(t, "the tarball", a, []int{403, 502, 503})
				if message := npmError(t, a); !strings.Contains(message, "host") && !strings.Contains(message, "tarballs") {
					t.Errorf("the error does not say why: %q", message)
				}
				if r.Code == 0 {
					t.Error("npm installed it")
				}
			}
			side, ours := 0, 0
			for _, q := range up.Requests("") {
				auth := q.Header.Get("Authorization")
				if strings.Contains(auth, "clients") {
					t.Errorf("%s was sent a client's credentials", q.Path)
				}
				if q.Side {
					if side++; auth != "" {
						t.Errorf("%s on another host was sent %q", q.Path, auth)
					}
				} else if auth == "Bearer one-token-of-weirs" {
					ours++
				}
			}
			if ours == 0 {
				t.Error("the registry itself was not sent its token")
			}
			if allowed != (side > 0) {
				t.Errorf("the other host was asked %d times", side)
			}
		})
	}
}

// TestNpmRedirectedTarball: a redirect to a host that is not allowed and not
// public is not followed: an upstream cannot make weir ask its neighbours.
func TestNpmRedirectedTarball(t *testing.T) {
	w, up := startNpm(t, "fresh: 1h")
	publishLeft(up)
	up.Fail(npmlab.Fault{Match: "left-1.1.0.tgz", Status: 302, Header: map[string]string{"Location": up.SideURL + "/files/left/left-1.1.0.tgz"}})
	checkRefusal(t, "the tarball", ask(t, "GET", w.URL, "/npm/left/-/left-1.1.0.tgz"), []int{403, 502, 503})
	for _, q := range up.Requests("") {
		if q.Side {
			t.Errorf("%s was asked of the other host", q.Path)
		}
	}
}

// TestNpmNotEntitled: who may not have a package learns nothing of it, and
// cannot make weir ask for it.
func TestNpmNotEntitled(t *testing.T) {
	up := newNpmLab(t)
	publishLeft(up)
	config := strings.Replace(npmConfig(up.URL, "fresh: 1h"), `"pull npm:*"`, `"pull npm:@acme/*"`, 1)
	w := lab.StartWeir(t, config)
	if a := ask(t, "GET", w.URL, "/npm/@acme%2fright"); a.StatusCode != http.StatusOK {
		t.Errorf("entitled: %s", a.Status)
	}
	up.Forget()
	seen := map[int]bool{}
	for _, path := range []string{"/npm/left", "/npm/left/1.0.0", "/npm/left/-/left-1.0.0.tgz", "/npm/-/package/left/dist-tags", "/npm/nothing-of-that-name"} {
		a := ask(t, "GET", w.URL, path)
		checkRefusal(t, path, a, []int{401, 403, 404})
		seen[a.StatusCode] = true
	}
	if len(seen) != 1 {
		t.Errorf("the statuses %v tell what exists", seen)
	}
	if asked := up.Requests(""); len(asked) != 0 {
		t.Errorf("the upstream was asked %s", asked[0].Path)
	}
}
