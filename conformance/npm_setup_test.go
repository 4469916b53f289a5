package conformance_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/lab"
	"github.com/weir-registry/weir/conformance/npmlab"
)

// npmFresh is how long weir counts a packument as fresh in the tests of what
// changes behind it.
const npmFresh = 300 * time.Millisecond

// npmConfig is weir's configuration with one npm upstream. lines are more
// members of the upstream: "fresh: 1h".
func npmConfig(upstream string, lines ...string) string {
	return fmt.Sprintf("npm:\n  upstreams:\n    public:\n      url: %q\n      packages: [\"*\"]\n      %s\naccess:\n  anonymous: [\"pull npm:*\"]\n",
		upstream, strings.Join(lines, "\n      "))
}

// newNpmLab starts a scripted registry.
func newNpmLab(t testing.TB) *npmlab.Registry {
	t.Helper()
	r, err := npmlab.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// startNpm starts a scripted registry and weir in front of it.
func startNpm(t testing.TB, lines ...string) (*lab.Weir, *npmlab.Registry) {
	t.Helper()
	up := newNpmLab(t)
	if len(lines) == 0 {
		lines = []string{"fresh: " + npmFresh.String()}
	}
	return lab.StartWeir(t, npmConfig(up.URL, lines...)), up
}

// An npmHome is where a client has all that it keeps: its caches, its settings
// and one project.
type npmHome struct {
	t    testing.TB
	root string
	base string // the registry, with a slash at the end
	env  []string
}

// newNpmHome is an empty home whose clients use the registry at base.
func newNpmHome(t testing.TB, base string) *npmHome {
	t.Helper()
	h := &npmHome{t: t, root: t.TempDir(), base: strings.TrimSuffix(base, "/") + "/"}
	h.env = append(quietClients(h.root), "npm_config_registry="+h.base)
	h.write("package.json", `{"name":"project","version":"1.0.0","private":true}`)
	return h
}

// quietClients is the environment that keeps clients within root and from
// asking for what no one told them to.
func quietClients(root string) []string {
	return []string{"HOME=" + root, "XDG_CACHE_HOME=" + root + "/.cache", "XDG_DATA_HOME=" + root + "/.local/share",
		"XDG_STATE_HOME=" + root + "/.local/state", "XDG_CONFIG_HOME=" + root + "/.config",
		"npm_config_userconfig=" + root + "/.npmrc", "npm_config_cache=" + root + "/.npm",
		"npm_config_update_notifier=false", "NO_UPDATE_NOTIFIER=1", "npm_config_fund=false",
		"HTTP_PROXY=", "HTTPS_PROXY=", "http_proxy=", "https_proxy=", "NO_PROXY=127.0.0.1", "no_proxy=127.0.0.1",
		"CI=false", "NO_COLOR=1", "FORCE_COLOR=0", "DO_NOT_TRACK=1",
		"BUN_INSTALL_CACHE_DIR=" + root + "/.bun-cache", "YARN_GLOBAL_FOLDER=" + root + "/.yarn-global"}
}

func (h *npmHome) dir() string { return filepath.Join(h.root, "project") }

func (h *npmHome) write(name, text string) {
	h.t.Helper()
	path := filepath.Join(h.dir(), name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

// try runs a client in the project and leaves it to the caller what its status
// means.
func (h *npmHome) try(client string, args ...string) lab.Result {
	h.t.Helper()
	return lab.Try(h.t, 4*time.Minute, lab.Command{Path: lab.Tool(h.t, client), Args: args, Env: h.env, Dir: h.dir()})
}

// run is try for what must succeed.
func (h *npmHome) run(client string, args ...string) lab.Result {
	h.t.Helper()
	r := h.try(client, args...)
	if r.Code != 0 {
		h.t.Fatalf("%s %s: status %d\n%s\n%s", client, strings.Join(args, " "), r.Code, clipped(r.Stdout), clipped(r.Stderr))
	}
	return r
}

func clipped(s string) string {
	if len(s) > 4000 {
		return "…" + s[len(s)-4000:]
	}
	return s
}

// An answer is a response whose body has been read to its end, or for which
// that failed.
type answer struct {
	*http.Response
	raw  []byte // as it was on the wire
	body []byte // unzipped if it was zipped
	err  error  // of reading the body
}

// ask sends one request; headers come in pairs. The path is sent as it is
// written.
func ask(t testing.TB, method, base, path string, headers ...string) answer {
	t.Helper()
	return askBody(t, method, base, path, nil, headers...)
}

func askBody(t testing.TB, method, base, path string, body []byte, headers ...string) answer {
	t.Helper()
	a, err := tryAsk(method, base, path, body, headers...)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func tryAsk(method, base, path string, body []byte, headers ...string) (answer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, base, bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	req.URL.Opaque = "//" + req.URL.Host + path
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	client := &http.Client{Transport: plainTransport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		return answer{}, fmt.Errorf("%s %s: %w", method, path, err)
	}
	defer resp.Body.Close()
	a := answer{Response: resp}
	a.raw, a.err = io.ReadAll(resp.Body)
	a.body = a.raw
	if resp.Header.Get("Content-Encoding") == "gzip" && len(a.raw) > 0 {
		z, err := gzip.NewReader(bytes.NewReader(a.raw))
		if err != nil {
			return a, fmt.Errorf("%s %s: %w", method, path, err)
		}
		if a.body, err = io.ReadAll(z); err != nil {
			return a, fmt.Errorf("%s %s: %w", method, path, err)
		}
	}
	return a, nil
}

// plainTransport asks for no encoding by itself.
var plainTransport = &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64}

// decode reads a JSON body into a T.
func decode[T any](t testing.TB, a answer) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(a.body, &v); err != nil {
		t.Fatalf("%s: %v in %q", a.Status, err, clipped(string(a.body)))
	}
	return v
}

// A packument is what the tests look at in one.
type packument struct {
	Name     string            `json:"name"`
	Tags     map[string]string `json:"dist-tags"`
	Modified string            `json:"modified"`
	Time     map[string]string `json:"time"`
	Versions map[string]struct {
		Deprecated string `json:"deprecated"`
		Dist       struct {
			Tarball    string `json:"tarball"`
			Integrity  string `json:"integrity"`
			Shasum     string `json:"shasum"`
			Signatures []any  `json:"signatures"`
		} `json:"dist"`
	} `json:"versions"`
}

// npmError is the message of an error answer, which must be in npm's form.
func npmError(t testing.TB, a answer) string {
	t.Helper()
	if ct := a.Header.Get("Content-Type"); !strings.HasPrefix(ct, "application/json") {
		t.Errorf("%s: Content-Type %q", a.Status, ct)
	}
	var e struct {
		Error string `json:"error"`
	}
	if err := json.Unmarshal(a.body, &e); err != nil || e.Error == "" {
		t.Errorf("%s: not an error in npm's form: %q", a.Status, clipped(string(a.body)))
	}
	return e.Error
}

// askRaw sends a request line that no HTTP library would.
func askRaw(t testing.TB, addr, request string) answer {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("%.80q: %v", request, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{Response: resp, raw: body, body: body, err: err}
}

// An npmGateway stands between weir and the machine's own npm registry, so
// that the registry can be made to vanish. It changes nothing.
type npmGateway struct {
	url    string
	server *http.Server
}

// machineRegistry is what npm is set to on this machine.
func machineRegistry(t testing.TB) *url.URL {
	t.Helper()
	out := lab.Run(t, time.Minute, lab.Command{Path: lab.Tool(t, "npm"), Args: []string{"config", "get", "registry"}})
	u, err := url.Parse(strings.TrimSpace(out.Stdout))
	if err != nil || u.Host == "" {
		t.Fatalf("npm config get registry: %q", out.Stdout)
	}
	return u
}

func newNpmGateway(t testing.TB) *npmGateway {
	t.Helper()
	behind := machineRegistry(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(behind) },
		Transport: &http.Transport{DisableCompression: true, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 32},
	}
	g := &npmGateway{url: "http://" + l.Addr().String(), server: &http.Server{Handler: proxy}}
	go g.server.Serve(l)
	t.Cleanup(g.vanish)
	return g
}

// vanish makes the registry unreachable: connections are refused.
func (g *npmGateway) vanish() { g.server.Close() }
