package npm_test

import (
	"bytes"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/cachetiers"
	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/npm"
	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/names"
	"github.com/weir-registry/weir/registry/reply"
)

// integrityOf is a digest in both its forms.
func integrityOf(data []byte) (sri string, d digest.Digest) {
	sum := sha512.Sum512(data)
	return "sha512-" + base64.StdEncoding.EncodeToString(sum[:]), digest.Digest("sha512:" + hex.EncodeToString(sum[:]))
}

// packumentOf is that of one version with an integrity and a text.
func packumentOf(pkg, tarball, sri, text string) []byte {
	return fmt.Appendf(nil, `{"name":%q,"dist-tags":{"latest":"1.0.0"},"versions":{"1.0.0":{"name":%q,"version":"1.0.0","description":%q,"dist":{"integrity":%q,"tarball":%q}}}}`,
		pkg, pkg, text, sri, tarball)
}

// files is a registry of documents and tarballs by path, which counts.
type files struct {
	mu    sync.Mutex
	data  map[string][]byte // guarded by mu
	asked []string          // guarded by mu
	down  bool              // guarded by mu
}

func (f *files) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, r.Method+" "+r.URL.Path)
	data, ok := f.data[r.URL.Path]
	if f.down {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(data)))
	if r.Method != http.MethodHead {
		w.Write(data)
	}
}

func (f *files) took() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	asked := strings.Join(f.asked, ", ")
	f.asked = nil
	return asked
}

func (f *files) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func startFiles(t *testing.T) (*files, string) {
	f := &files{data: map[string][]byte{}}
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	return f, s.URL
}

// isolated is a node whose packages must show what they have, and its handler.
func isolated(t *testing.T, guard registry.Guard, registries ...npm.Registry) (*registry.Service, func(*slog.Logger) http.Handler) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	up, err := npm.NewUpstreams(registries, npm.Options{Log: log})
	if err != nil {
		t.Fatal(err)
	}
	s := &registry.Service{Guard: guard, Names: &names.Memory{}, Log: log, Witness: new(registry.Witness),
		Prove: func(registry.Name) bool { return true }, Spaces: map[string]registry.Space{"npm": up.Space()}}
	s.Blobs = cachetiers.NewTier(cachetiers.NewMemory(512<<20), s.Witness.Over(up), cachetiers.Options{Log: log})
	return s, func(log *slog.Logger) http.Handler {
		return reply.Handler(npm.New(npm.Config{Service: s, Upstreams: up, PublicURL: "http://weir.test", Log: log}), reply.Options{Space: "npm", Log: log})
	}
}

func TestCutPackage(t *testing.T) {
	const giga = 1 << 30
	up, url := startFiles(t)
	sri, d := integrityOf([]byte("a gigabyte"))
	up.data["/big"] = packumentOf("big", url+"/big/-/big-1.0.0.tgz", sri, strings.Repeat("long ", 4<<20))
	warden := new(conformance.Warden)
	s, handler := isolated(t, warden, npm.Registry{Name: "public", URL: url, Packages: []string{"*"}})
	s.Prove = nil // which the upstream would have to stand for
	s.Blobs = conformance.NewSparse(t, s.Blobs, giga, d)
	conformance.TestCut(t, warden, handler, reply.WriteTimeout, []conformance.CutCase{
		{Name: "tarball", Target: "/big/-/big-1.0.0.tgz", Status: 200, Files: true},
		{Name: "range", Target: "/big/-/big-1.0.0.tgz", Header: http.Header{"Range": {"bytes=7-"}}, Status: 206, Files: true},
		{Name: "packument", Target: "/big", Status: 200},
		{Name: "version", Target: "/big/1.0.0", Status: 200},
	})
}

var requestID = regexp.MustCompile(`(?m)^(X-Request-Id|Date): .*$`)

// TestForeignIntegrity: a package whose document has another's integrity is not
// given its tarball, and nobody is told whether that is here.
func TestForeignIntegrity(t *testing.T) {
	tarball := bytes.Repeat([]byte("secret "), 1000)
	sri, _ := integrityOf(tarball)
	answers := map[bool][]string{}
	for _, cached := range []bool{false, true} {
		theirs, theirURL := startFiles(t)
		ours, ourURL := startFiles(t)
		theirs.data["/@theirs/a"] = packumentOf("@theirs/a", theirURL+"/@theirs/a/-/a-1.0.0.tgz", sri, "")
		theirs.data["/@theirs/a/-/a-1.0.0.tgz"] = tarball
		ours.data["/mine"] = packumentOf("mine", ourURL+"/mine/-/mine-1.0.0.tgz", sri, "")
		_, handler := isolated(t, everyone{}, npm.Registry{Name: "theirs", URL: theirURL, Packages: []string{"@theirs/*"}},
			npm.Registry{Name: "ours", URL: ourURL, Packages: []string{"*"}})
		h := handler(slog.New(slog.DiscardHandler))
		do := func(method, target string, header ...string) (string, *httptest.ResponseRecorder) {
			req := httptest.NewRequest(method, "http://weir.test"+target, nil)
			if len(header) > 0 {
				req.Header.Set(header[0], header[1])
			}
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, req)
			var head strings.Builder
			rec.Header().Write(&head)
			return fmt.Sprintln(rec.Code) + requestID.ReplaceAllString(head.String(), "") + rec.Body.String(), rec
		}
		if cached {
			for range 2 {
				if _, rec := do("GET", "/@theirs/a/-/a-1.0.0.tgz"); rec.Code != 200 || !bytes.Equal(rec.Body.Bytes(), tarball) {
					t.Fatal(rec.Code, rec.Body)
				}
			}
			if asked := theirs.took(); asked != "GET /@theirs/a, GET /@theirs/a/-/a-1.0.0.tgz" {
				t.Errorf("their own pulls cost %s", asked)
			}
		}
		for range 2 {
			for _, method := range []string{"HEAD", "GET"} {
				for _, header := range [][]string{nil, {"Range", "bytes=0-9"}, {"If-None-Match", `"x"`}} {
					said, rec := do(method, "/mine/-/mine-1.0.0.tgz", header...)
					if rec.Code != 404 || strings.Contains(said, "secret") {
						t.Errorf("cached %v: %s %v: %s", cached, method, header, said)
					}
					answers[cached] = append(answers[cached], said)
				}
			}
		}
		// Who has it, says so once.
		ours.took()
		ours.set(func() { ours.data["/mine/-/mine-1.0.0.tgz"] = tarball })
		if cached {
			ours.set(func() { ours.down = true })
			if _, rec := do("GET", "/mine/-/mine-1.0.0.tgz"); rec.Code != 503 {
				t.Errorf("nobody to ask: %d", rec.Code)
			}
			ours.set(func() { ours.down = false })
			ours.took()
			for range 2 {
				if _, rec := do("GET", "/mine/-/mine-1.0.0.tgz"); rec.Code != 200 || !bytes.Equal(rec.Body.Bytes(), tarball) {
					t.Errorf("it has it: %d", rec.Code)
				}
			}
			if asked := ours.took(); asked != "HEAD /mine/-/mine-1.0.0.tgz" {
				t.Errorf("to show what it has cost %s", asked)
			}
		}
	}
	for i, cold := range answers[false] {
		if cold != answers[true][i] {
			t.Errorf("%d: not cached:\n%s\ncached:\n%s", i, cold, answers[true][i])
		}
	}
}
