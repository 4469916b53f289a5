package conformance_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/lab"
	"github.com/weir-registry/weir/conformance/npmlab"
)

// TestNpmAudit: what clients post to learn of advisories reaches the upstream
// as they posted it, zipped or not, and they report what it answers.
func TestNpmAudit(t *testing.T) {
	w, up := startNpm(t, "fresh: 1h")
	publishLeft(up)
	up.Advise(npmlab.Advisory{ID: 1042, Name: "left", Title: "It leans to one side", Severity: "high",
		Affected: []string{"1.0.0", "1.1.0"}, Range: "<2.0.0"})
	const manifest = `{"name":"project","version":"1.0.0","private":true,"license":"MIT","dependencies":{"@acme/right":"1.0.0"}}`
	for _, c := range []struct {
		name, tool     string
		install, audit []string
		prepare        func(*npmHome)
		endpoint       string
		zipped         bool
	}{
		{"npm", "npm", []string{"install", "--no-audit"}, []string{"audit"}, nil, "advisories/bulk", true},
		{"pnpm", "pnpm", []string{"install"}, []string{"audit"}, nil, "security/a", false},
		// Yarn 1 is not here: it asks an address that is built into it.
		{"yarn4", "yarn-berry", []string{"install"}, []string{"npm", "audit", "--all", "--recursive"}, npmClients[3].prepare, "advisories/bulk", false},
		{"bun", "bun", []string{"install"}, []string{"audit"}, npmClients[4].prepare, "advisories/bulk", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newNpmHome(t, w.URL+"/npm/")
			h.write("package.json", manifest)
			if c.prepare != nil {
				c.prepare(h)
			}
			h.run(c.tool, c.install...)
			up.Forget()
			r := h.try(c.tool, c.audit...)
			if out := r.Stdout + r.Stderr; r.Code == 0 || !strings.Contains(out, "It leans to one side") {
				t.Errorf("audit: status %d\n%s", r.Code, clipped(out))
			}
			asked := up.Requests(c.endpoint)
			if len(asked) == 0 {
				t.Fatalf("the upstream was asked for %v", up.Requests(""))
			}
			if got := asked[0].Header.Get("Content-Encoding") == "gzip"; got != c.zipped {
				t.Errorf("the upstream was posted Content-Encoding %q", asked[0].Header.Get("Content-Encoding"))
			}
		})
	}
	checkOldAudit(t, w, up)
}

// checkOldAudit asks as npm 6 and yarn 1 do: they post their whole tree.
func checkOldAudit(t *testing.T, w *lab.Weir, up *npmlab.Registry) {
	t.Helper()
	tree := []byte(`{"name":"project","version":"1.0.0","requires":{"left":"*"},"dependencies":{"left":{"version":"1.1.0"}}}`)
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	z.Write(tree)
	z.Close()
	for _, path := range []string{"/npm/-/npm/v1/security/audits", "/npm/-/npm/v1/security/audits/quick"} {
		up.Forget()
		plain := askBody(t, "POST", w.URL, path, tree, "Content-Type", "application/json")
		packed := askBody(t, "POST", w.URL, path, zipped.Bytes(), "Content-Type", "application/json", "Content-Encoding", "gzip")
		for _, a := range []answer{plain, packed} {
			report := decode[struct {
				Advisories map[string]struct{ Title string }
			}](t, a)
			if a.StatusCode != http.StatusOK || report.Advisories["1042"].Title != "It leans to one side" {
				t.Errorf("%s: %s: %s", path, a.Status, clipped(string(a.body)))
			}
		}
		asked := up.Requests("/security/audits")
		if len(asked) != 2 || !bytes.Equal(asked[0].Body, tree) || !bytes.Equal(asked[1].Body, zipped.Bytes()) {
			t.Errorf("%s: the upstream was not posted the same bytes, twice: %v", path, asked)
		}
	}
}

// TestNpmUnsupported: what the upstream does not have is 404, with which
// clients go on, and not a failure.
func TestNpmUnsupported(t *testing.T) {
	w, up := startNpm(t, "fresh: 1h")
	publishLeft(up)
	up.Fail(npmlab.Fault{Match: "/-/npm/v1/", Status: http.StatusNotFound})
	up.Fail(npmlab.Fault{Match: "/-/v1/search", Status: http.StatusMethodNotAllowed})
	for _, c := range [][2]string{{"POST", "/npm/-/npm/v1/security/advisories/bulk"}, {"POST", "/npm/-/npm/v1/security/audits/quick"},
		{"GET", "/npm/-/npm/v1/keys"}, {"GET", "/npm/-/npm/v1/attestations/left@1.0.0"}, {"GET", "/npm/-/v1/search?text=left"}} {
		a := askBody(t, c[0], w.URL, c[1], []byte("{}"))
		if npmError(t, a); a.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %s", c[1], a.Status)
		}
	}
}

// TestNpmAuditSignatures: npm verifies what weir serves against the keys that
// it passes on, and notices a signature that is wrong.
func TestNpmAuditSignatures(t *testing.T) {
	w, up := startNpm(t, "fresh: 1h")
	publishLeft(up)
	up.Publish(npmlab.Version{Name: "forged", Version: "1.0.0", Forged: true})
	up.Publish(npmlab.Version{Name: "attested", Version: "1.0.0", Attested: true})
	tuf, err := npmlab.StartTUF()
	if err != nil {
		t.Fatal(err)
	}
	defer tuf.Close()
	h := newNpmHome(t, w.URL+"/npm/")
	ca := filepath.Join(h.root, "ca.pem")
	if err := tuf.Seed(filepath.Join(h.root, ".npm"), ca); err != nil {
		t.Fatal(err)
	}
	h.env = append(h.env, "HTTPS_PROXY="+tuf.Proxy, "https_proxy="+tuf.Proxy, "NODE_EXTRA_CA_CERTS="+ca)
	h.run("npm", "install", "@acme/right", "--no-audit")
	if r := h.run("npm", "audit", "signatures"); !strings.Contains(r.Stdout, "2 packages have verified registry signatures") {
		t.Errorf("audit signatures: %s\n%s", r.Stdout, r.Stderr)
	}
	if len(up.Requests("/-/npm/v1/keys")) == 0 {
		t.Error("the upstream was not asked for its keys")
	}
	h.run("npm", "install", "forged", "--no-audit")
	if r := h.try("npm", "audit", "signatures"); r.Code == 0 || !strings.Contains(r.Stdout, "1 package has an invalid registry signature") {
		t.Errorf("audit signatures of a forged one: status %d\n%s\n%s", r.Code, r.Stdout, r.Stderr)
	}
	checkAttestation(t, w, up)
}

// checkAttestation: npm takes the path of the address in dist and asks the
// registry it uses for it, so the address must be below weir's.
func checkAttestation(t *testing.T, w *lab.Weir, up *npmlab.Registry) {
	t.Helper()
	doc := decode[struct {
		Versions map[string]struct {
			Dist struct{ Attestations struct{ URL string } }
		}
	}](t, ask(t, "GET", w.URL, "/npm/attested"))
	want := w.URL + "/npm/-/npm/v1/attestations/attested@1.0.0"
	if got := doc.Versions["1.0.0"].Dist.Attestations.URL; got != want {
		t.Fatalf("attestations at %q, not %q", got, want)
	}
	direct := ask(t, "GET", up.URL, "/-/npm/v1/attestations/attested@1.0.0")
	for _, path := range []string{"/npm/-/npm/v1/attestations/attested@1.0.0", "/npm/-/npm/v1/attestations/attested%401.0.0"} {
		through := ask(t, "GET", w.URL, path)
		if through.StatusCode != 200 || !bytes.Equal(through.body, direct.body) {
			t.Errorf("%s: %s: %q, not %q", path, through.Status, clipped(string(through.body)), direct.body)
		}
	}
	if a := ask(t, "GET", w.URL, "/npm/-/npm/v1/attestations/left@1.0.0"); a.StatusCode != http.StatusNotFound {
		t.Errorf("attestations of what has none: %s", a.Status)
	}
}

// TestNpmSearch: search is the upstream's.
func TestNpmSearch(t *testing.T) {
	w, up := startNpm(t, "fresh: 1h")
	publishLeft(up)
	h := newNpmHome(t, w.URL+"/npm/")
	if r := h.run("npm", "search", "right", "--json"); !strings.Contains(r.Stdout, `"@acme/right"`) || !strings.Contains(r.Stdout, "The right one.") {
		t.Errorf("npm search: %s", r.Stdout)
	}
	asked := up.Requests("/-/v1/search")
	if len(asked) == 0 || !strings.Contains(asked[0].Path, "text=right") || !strings.Contains(asked[0].Path, "size=20") {
		t.Errorf("the upstream was asked %v", asked)
	}
	if r := h.run("npm", "search", "nothing-of-that-name", "--json"); strings.TrimSpace(r.Stdout) != "[]" {
		t.Errorf("npm search for nothing: %q", r.Stdout)
	}
	if a := ask(t, "GET", w.URL, "/npm/-/v1/search"); a.StatusCode != http.StatusBadRequest {
		t.Errorf("search without a text: %s", a.Status)
	}
}

// TestNpmTags: tags, and what they and exact versions stand for.
func TestNpmTags(t *testing.T) {
	w, up := startNpm(t, "fresh: 1h")
	publishLeft(up)
	h := newNpmHome(t, w.URL+"/npm/")
	if got := h.run("npm", "dist-tag", "ls", "left").Stdout; strings.TrimSpace(got) != "latest: 1.1.0\nnext: 2.0.0-rc.1" {
		t.Errorf("npm dist-tag ls: %q", got)
	}
	if got := strings.TrimSpace(h.run("npm", "view", "left@next", "version").Stdout); got != "2.0.0-rc.1" {
		t.Errorf("npm view of a tag: %q", got)
	}
	for path, want := range map[string]string{"left/1.0.0": "1.0.0", "left/latest": "1.1.0", "left/next": "2.0.0-rc.1", "@acme%2fright/latest": "1.0.0", "@acme/right/1.0.0": "1.0.0"} {
		a := ask(t, "GET", w.URL, "/npm/"+path)
		v := decode[struct {
			Version string
			Dist    struct {
				Tarball    string
				Signatures []any
			}
		}](t, a)
		if a.StatusCode != 200 || v.Version != want || !strings.HasPrefix(v.Dist.Tarball, w.URL+"/npm/") || len(v.Dist.Signatures) != 1 {
			t.Errorf("%s: %s, %+v", path, a.Status, v)
		}
	}
	for _, path := range []string{"left/9.9.9", "left/^1.0.0", "left/%5E1.0.0"} {
		if a := ask(t, "GET", w.URL, "/npm/"+path); a.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %s", path, a.Status)
		}
	}
}

// TestNpmDeprecation: a message set after a version was cached is shown once
// the packument is no longer fresh.
func TestNpmDeprecation(t *testing.T) {
	w, up := startNpm(t)
	publishLeft(up)
	before := newNpmHome(t, w.URL+"/npm/")
	if r := before.run("npm", "install", "left@1.1.0", "--no-audit"); strings.Contains(r.Stderr, "deprecated") {
		t.Fatalf("deprecated too early: %s", r.Stderr)
	}
	up.Deprecate("left", "1.1.0", "lean on something else")
	lab.Eventually(t, 20*time.Second, "the deprecation", func() error {
		got := decode[packument](t, ask(t, "GET", w.URL, "/npm/left", "Accept", corgiAccept)).Versions["1.1.0"].Deprecated
		if got != "lean on something else" {
			return fmt.Errorf("deprecated: %q", got)
		}
		return nil
	})
	after := newNpmHome(t, w.URL+"/npm/")
	if r := after.run("npm", "install", "left@1.1.0", "--no-audit"); !strings.Contains(r.Stderr, "lean on something else") {
		t.Errorf("npm does not show it: %s", r.Stderr)
	}
}

// TestNpmTakedown: a version that its registry has taken back is gone: from
// the packument, as a version, and as a tarball, although the bytes are cached.
func TestNpmTakedown(t *testing.T) {
	w, up := startNpm(t)
	publishLeft(up)
	h := newNpmHome(t, w.URL+"/npm/")
	h.run("npm", "install", "left@1.1.0", "--no-audit")
	if a := ask(t, "GET", w.URL, "/npm/left/-/left-1.1.0.tgz"); a.StatusCode != http.StatusOK {
		t.Fatalf("before: %s", a.Status)
	}
	up.TakeDown("left", "1.1.0")
	lab.Eventually(t, 20*time.Second, "the version to go", func() error {
		if _, ok := decode[packument](t, ask(t, "GET", w.URL, "/npm/left")).Versions["1.1.0"]; ok {
			return fmt.Errorf("it is in the packument")
		}
		return nil
	})
	for _, path := range []string{"/npm/left/-/left-1.1.0.tgz", "/npm/left/1.1.0"} {
		if a := ask(t, "GET", w.URL, path); a.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %s", path, a.Status)
		}
	}
	if a := ask(t, "GET", w.URL, "/npm/left/-/left-1.0.0.tgz"); a.StatusCode != http.StatusOK {
		t.Errorf("what is left: %s", a.Status)
	}
	if got := decode[packument](t, ask(t, "GET", w.URL, "/npm/left", "Accept", corgiAccept)).Tags["latest"]; got == "1.1.0" {
		t.Errorf("latest is %s", got)
	}
	fresh := newNpmHome(t, w.URL+"/npm/")
	if r := fresh.try("npm", "install", "left@1.1.0", "--no-audit"); r.Code == 0 || !strings.Contains(r.Stderr, "ETARGET") {
		t.Errorf("npm install: status %d, %s", r.Code, r.Stderr)
	}
}

// TestNpmPublicURL: tarballs are below the address that clients use, whatever
// it is, and a client that insists on that is content.
func TestNpmPublicURL(t *testing.T) {
	up := newNpmLab(t)
	publishLeft(up)
	w := lab.StartWeir(t, "public_url: https://packages.example.com/cache\n"+npmConfig(up.URL, "fresh: 1h"))
	for _, accept := range []string{"application/json", corgiAccept} {
		doc := decode[packument](t, ask(t, "GET", w.URL, "/npm/@acme%2fright", "Accept", accept))
		if got, want := doc.Versions["1.0.0"].Dist.Tarball, "https://packages.example.com/cache/npm/@acme/right/-/right-1.0.0.tgz"; got != want {
			t.Errorf("tarball %q, not %q", got, want)
		}
	}
	plain := lab.StartWeir(t, npmConfig(up.URL, "fresh: 1h"))
	for _, host := range []string{plain.Addr, strings.Replace(plain.Addr, "127.0.0.1", "localhost", 1)} {
		doc := decode[packument](t, ask(t, "GET", "http://"+host, "/npm/left"))
		if got, want := doc.Versions["1.1.0"].Dist.Tarball, "http://"+host+"/npm/left/-/left-1.1.0.tgz"; got != want {
			t.Errorf("tarball %q, not %q", got, want)
		}
	}
	insistOnBase(t, plain.URL)
	named := lab.NewWeir(t, t.TempDir(), "")
	public := "http://" + strings.Replace(named.Addr, "127.0.0.1", "localhost", 1)
	named.Configure("public_url: " + public + "\n" + npmConfig(up.URL, "fresh: 1h"))
	named.Start()
	insistOnBase(t, public)
}

// insistOnBase installs with allow-remote=none, which npm 12 has by default:
// npm then takes nothing from an address that is not below its registry's.
func insistOnBase(t *testing.T, base string) {
	t.Helper()
	h := newNpmHome(t, base+"/npm/")
	h.run("npm", "install", "@acme/right", "--no-audit", "--allow-remote=none", "--omit-lockfile-registry-resolved=false")
	lock, err := os.ReadFile(filepath.Join(h.dir(), "package-lock.json"))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(lock), `"resolved": "`+base+"/npm/"); n != 2 {
		t.Errorf("%d addresses below weir's in the lockfile:\n%s", n, lock)
	}
}
