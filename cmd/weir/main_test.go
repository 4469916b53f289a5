package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestMain lets the tests run this binary again as weir itself.
func TestMain(m *testing.M) {
	if os.Getenv("WEIR_TEST_MAIN") != "" {
		os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// try runs a command line in this process.
func try(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(args, &out, &errs)
	return code, out.String(), errs.String()
}

func TestUsage(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.yaml")
	if err := os.WriteFile(bad, []byte("cache:\n  disc: 1GiB\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		code int
		want string // all of stderr begins with it
	}{
		{[]string{"srve"}, 2, `weir: there is no command "srve"; did you mean "serve"?`},
		{[]string{"nonsense"}, 2, `weir: there is no command "nonsense"`},
		{[]string{"config", "shwo"}, 2, `weir: there is no command "shwo"`},
		{[]string{"serve", "x"}, 2, `weir: "weir serve" takes no arguments`},
		{[]string{"serve", "--lisen", "x"}, 2, "weir: unknown flag: --lisen"},
		{[]string{"serve", "-c"}, 2, "weir: flag needs an argument"},
		{[]string{"config", "check"}, 2, "weir: config check: which file?"},
		{[]string{"config", "show", "-o", "xml"}, 2, "weir: -o xml"},
		{[]string{"version", "-o", "xml"}, 2, "weir: -o xml"},
		{[]string{"config", "check", "-c", bad}, 1, "weir: " + bad + `:2:3: cache.disc: unknown key; did you mean "disk"?`},
		{[]string{"config", "check", "-c", filepath.Join(dir, "none")}, 1, "weir: configuration: open "},
		{[]string{"serve", "-c", bad}, 1, "weir: " + bad + ":2:3: cache.disc"},
		{[]string{"serve", "--data", filepath.Join(file, "x")}, 1, "weir: data directory " + filepath.Join(file, "x") + " cannot be made: not a directory"},
		{[]string{"serve", "--data", file}, 1, "weir: data directory " + file},
		{[]string{"serve", "--data", "/proc/self"}, 1, "weir: data directory /proc/self is not writable"},
		{[]string{"serve", "--data", dir, "--listen", "5000"}, 1, `weir: listen: "5000" is not an address`},
		{[]string{"serve", "--data", dir, "--listen", "192.0.2.1:0"}, 1, "weir: listen: cannot listen on 192.0.2.1:0"},
		{[]string{"serve", "--data", dir, "--listen", "127.0.0.1:0", "--registry", "nowhere"}, 1, `weir: --registry: "nowhere" is not an http`},
	} {
		code, stdout, stderr := try(c.args...)
		if code != c.code || !strings.HasPrefix(stderr, c.want) || strings.Count(stderr, "\n") != 1 || stdout != "" {
			t.Errorf("weir %q: %d\n got %q\nwant %q", c.args, code, stderr, c.want)
		}
	}
}

func TestHelp(t *testing.T) {
	for _, args := range [][]string{{}, {"--help"}, {"serve", "--help"}, {"config"}, {"config", "check", "--help"}, {"config", "show", "--help"}, {"version", "--help"},
		{"tiers"}, {"tiers", "invite", "--help"}, {"tiers", "join", "--help"}, {"tiers", "ls", "--help"}, {"tiers", "revoke", "--help"},
		{"user"}, {"user", "add", "--help"}, {"user", "list", "--help"}, {"user", "show", "--help"}, {"user", "remove", "--help"}, {"user", "password", "--help"},
		{"user", "disable", "--help"}, {"user", "enable", "--help"}, {"robot"}, {"robot", "add", "--help"}, {"robot", "list", "--help"},
		{"team"}, {"team", "add", "--help"}, {"team", "join", "--help"}, {"team", "leave", "--help"}, {"team", "show", "--help"},
		{"token"}, {"token", "create", "--help"}, {"token", "list", "--help"}, {"token", "show", "--help"}, {"token", "revoke", "--help"},
		{"grant"}, {"grant", "add", "--help"}, {"grant", "deny", "--help"}, {"grant", "list", "--help"}, {"grant", "revoke", "--help"}} {
		code, stdout, stderr := try(args...)
		if code != 0 || stderr != "" || !strings.Contains(stdout, "Usage:") || !strings.Contains(stdout, "Examples:\n  weir ") {
			t.Errorf("weir %q: %d %q %q", args, code, stdout, stderr)
		}
	}
}

func TestVersion(t *testing.T) {
	if code, stdout, _ := try("version"); code != 0 || !strings.HasPrefix(stdout, "weir "+version+" (go") {
		t.Errorf("version: %d %q", code, stdout)
	}
	_, said, _ := try("version")
	if code, stdout, stderr := try("--version"); code != 0 || stdout != said || stderr != "" {
		t.Errorf("--version: %d %q %q, version says %q", code, stdout, stderr, said)
	}
	code, stdout, _ := try("version", "-o", "json")
	var v versionInfo
	if err := json.Unmarshal([]byte(stdout), &v); code != 0 || err != nil || v.Version != version || v.Go == "" {
		t.Errorf("version -o json: %d %q %v", code, stdout, err)
	}
}

func TestConfigCommands(t *testing.T) {
	file := filepath.Join(t.TempDir(), "weir.yaml")
	if err := os.WriteFile(file, []byte("oci: {upstreams: {ghcr.io: {username: me, password: hidden}}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, stdout, stderr := try("config", "check", "-c", file); code != 0 || stdout != file+": ok (1 OCI and 1 npm upstreams)\n" {
		t.Errorf("check: %d %q %q", code, stdout, stderr)
	}
	code, stdout, stderr := try("config", "show", "-c", file, "-o", "json")
	var shown struct {
		OCI struct {
			Default   string
			Upstreams map[string]struct{ URL, Password string }
		}
	}
	if err := json.Unmarshal([]byte(stdout), &shown); code != 0 || err != nil {
		t.Fatalf("show: %d %q %q %v", code, stdout, stderr, err)
	}
	if u := shown.OCI.Upstreams["ghcr.io"]; u.URL != "https://ghcr.io" || u.Password != masked || shown.OCI.Default != "" || strings.Contains(stdout, "hidden") {
		t.Errorf("shown: %s", stdout)
	}
}

// A process is weir running as a process of its own.
type process struct {
	*exec.Cmd
	base   string // what it says that it serves on
	mu     sync.Mutex
	stdout strings.Builder // guarded by mu
	stderr bytes.Buffer
	ended  chan error
}

// start runs weir serve on free ports and waits until it serves. path is what
// its PATH is.
func start(t *testing.T, path string, args ...string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(os.Args[0], append([]string{"serve"}, args...)...), ended: make(chan error, 1)}
	p.Env = append(os.Environ(), "WEIR_TEST_MAIN=1", "PATH="+path)
	p.Stderr = &p.stderr
	out, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	serving := make(chan string, 1)
	go func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			p.mu.Lock()
			p.stdout.WriteString(lines.Text() + "\n")
			p.mu.Unlock()
			if _, rest, ok := strings.Cut(lines.Text(), " is serving on "); ok {
				base, _, _ := strings.Cut(rest, ",")
				serving <- base
			}
		}
		p.ended <- p.Wait()
	}()
	t.Cleanup(func() { p.Process.Kill() })
	select {
	case p.base = <-serving:
	case err := <-p.ended:
		t.Fatalf("weir ended: %v\n%s", err, p.stderr.String())
	case <-time.After(30 * time.Second):
		t.Fatal("weir does not start")
	}
	return p
}

// stop ends it as an operator does and returns what it printed.
func (p *process) stop(t *testing.T) string {
	t.Helper()
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.wait(t)
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stdout.String()
}

func (p *process) wait(t *testing.T) {
	t.Helper()
	select {
	case err := <-p.ended:
		if err != nil {
			t.Fatalf("weir ended with %v\n%s", err, p.stderr.String())
		}
	case <-time.After(30 * time.Second):
		t.Fatalf("weir does not stop\n%s", p.stderr.String())
	}
}

// configure writes a configuration of free ports and the given text.
func configure(t *testing.T, text string) (file, data string) {
	t.Helper()
	dir := t.TempDir()
	file, data = filepath.Join(dir, "weir.yaml"), filepath.Join(dir, "data")
	text = fmt.Sprintf("listen: 127.0.0.1:0\nops: off\ndata: %q\n%s", data, text)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file, data
}

func get(t *testing.T, url string) (*http.Response, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

func TestServe(t *testing.T) {
	up := httptest.NewServer(http.NotFoundHandler())
	defer up.Close()
	file, data := configure(t, "npm: {upstreams: {public: {url: \""+up.URL+"\"}}}")
	p := start(t, t.TempDir(), "-c", file)
	if resp, body := get(t, p.base+"/"); resp.StatusCode != 200 || !strings.HasPrefix(body, "This is weir") {
		t.Errorf("/: %s %q", resp.Status, body)
	}
	if resp, body := get(t, p.base+"/other"); resp.StatusCode != 404 || !strings.Contains(body, "/v2/") {
		t.Errorf("/other: %s %q", resp.Status, body)
	}
	if resp, body := get(t, p.base+"/healthz"); resp.StatusCode != 404 || !strings.Contains(body, "/healthz, /readyz and /metrics are on the ops address") {
		t.Errorf("/healthz for clients: %s %q", resp.Status, body)
	}
	if resp, _ := get(t, p.base+"/v2/"); resp.StatusCode != 200 || resp.Header.Get("X-Request-Id") == "" {
		t.Errorf("/v2/: %s %v", resp.Status, resp.Header)
	}
	if resp, body := get(t, p.base+"/npm/-/ping"); resp.StatusCode != 200 {
		t.Errorf("ping: %s %q", resp.Status, body)
	}
	// The path is nobody's to clean: this is a malformed name, not a redirect.
	if resp, body := get(t, p.base+"/v2/a//b/manifests/1"); resp.StatusCode == 200 || resp.Request.URL.Path != "/v2/a//b/manifests/1" {
		t.Errorf("a path with //: %s %q", resp.Status, body)
	}
	if info, err := os.Stat(data); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the data directory: %v %v", info.Mode(), err)
	}
	code, _, stderr := try("serve", "-c", file)
	if want := fmt.Sprintf("weir: data directory %s is in use by another weir (pid %d)\n", data, p.Process.Pid); code != 1 || stderr != want {
		t.Errorf("a second weir: %d %q, want %q", code, stderr, want)
	}
	other := filepath.Join(t.TempDir(), "data")
	addr := strings.TrimPrefix(p.base, "http://")
	if code, _, stderr := try("serve", "-c", file, "--data", other, "--listen", addr); code != 1 || stderr != "weir: listen: "+addr+" is in use by another process\n" {
		t.Errorf("an address in use: %d %q", code, stderr)
	}
	printed := p.stop(t)
	for _, want := range []string{
		`"registry-mirrors": ["` + p.base + `"]`, "/etc/containerd/certs.d/docker.io/hosts.toml", "/etc/containerd/certs.d/ghcr.io/hosts.toml",
		`[host."` + p.base + `"]`, "/etc/containers/registries.conf.d/weir.conf:", "insecure = true",
		"the same for gcr.io, mcr.microsoft.com, public.ecr.aws, quay.io, registry.k8s.io,", "crane pull " + strings.TrimPrefix(p.base, "http://") + "/docker.io/", "npm config set registry " + p.base + "/npm/\n",
	} {
		if !strings.Contains(printed, want) {
			t.Errorf("it does not print %q:\n%s", want, printed)
		}
	}
	if strings.Contains(printed, "anyone who can reach") {
		t.Errorf("it warns of clients that cannot reach a loopback address:\n%s", printed)
	}
	for line := range strings.Lines(p.stderr.String()) {
		var entry map[string]any
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Errorf("a log line that is not JSON: %q", line)
		}
	}
	start(t, t.TempDir(), "-c", file).stop(t) // the lock went with the process
}

// fakeNPM is a directory with an npm that says one registry.
func fakeNPM(t *testing.T, registry string) string {
	t.Helper()
	dir := t.TempDir()
	script := "#!/bin/sh\nif [ \"$*\" = \"config get registry\" ] && [ \"$PWD\" = / ]; then echo '" + registry + "'; else exit 1; fi\n"
	if err := os.WriteFile(filepath.Join(dir, "npm"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return dir + ":/bin:/usr/bin"
}

func TestNPMRegistry(t *testing.T) {
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"name":"a","dist-tags":{"latest":"1.0.0"},"versions":{"1.0.0":{"name":"a","version":"1.0.0","dist":{"tarball":"http://x/a/-/a-1.0.0.tgz","shasum":"da39a3ee5e6b4b0d3255bfef95601890afd80709"}}}}`)
	}))
	defer up.Close()
	works := func(p *process, want int) {
		t.Helper()
		if resp, body := get(t, p.base+"/npm/a"); resp.StatusCode != want || want == 503 && (!strings.HasPrefix(body, `{"error":"npm packages are not served here: `) || resp.Header.Get("Retry-After") == "") {
			t.Errorf("/npm/a: %s %q, want %d", resp.Status, body, want)
		}
	}
	file, data := configure(t, "")
	self := "127.0.0.1:" + freePort(t)

	p := start(t, "/nowhere", "-c", file)
	works(p, 503)
	if out := p.stop(t); !strings.Contains(out, "npm is off: there is no npm on this machine") || strings.Contains(out, "npm config set") {
		t.Errorf("without npm it says:\n%s", out)
	}
	p = start(t, "/nowhere", "-c", file, "--registry", up.URL)
	works(p, 200)
	p.stop(t)
	p = start(t, fakeNPM(t, "http://"+self+"/npm/"), "-c", file, "--listen", self)
	works(p, 503)
	if out := p.stop(t); !strings.Contains(out, "which is this weir; say which registry is behind it") {
		t.Errorf("with npm set to this weir it says:\n%s", out)
	}
	p = start(t, fakeNPM(t, up.URL+"/"), "-c", file, "--listen", self)
	works(p, 200)
	p.stop(t)
	// npm is told to use weir, as weir said, and weir is started again.
	p = start(t, fakeNPM(t, "http://localhost:"+strings.TrimPrefix(self, "127.0.0.1:")+"/npm/"), "-c", file, "--listen", self)
	works(p, 200)
	p.stop(t)

	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, append(text, "\nnpm: {upstreams: {public: {fresh: 1m}}}\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", "/nowhere")
	if err := os.Remove(filepath.Join(data, "npm-registry")); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := try("serve", "-c", file); code != 1 || !strings.HasPrefix(stderr, "weir: npm: there is no npm on this machine") {
		t.Errorf("npm asked for and not to be had: %d %q", code, stderr)
	}
}

// TestNoNPM: where no npm registry is wanted a package is not found, for good.
func TestNoNPM(t *testing.T) {
	file, _ := configure(t, "npm: {upstreams: {}}")
	p := start(t, "/nowhere", "-c", file)
	resp, body := get(t, p.base+"/npm/a")
	if resp.StatusCode != 404 || body != `{"error":"npm packages are not served here: no npm upstream is configured"}` ||
		resp.Header.Get("Retry-After") != "" || resp.Header.Get("Content-Type") != "application/json" {
		t.Errorf("/npm/a: %s %v %q", resp.Status, resp.Header, body)
	}
	if out := p.stop(t); strings.Contains(out, "npm is off") || strings.Contains(out, "npm config set") {
		t.Errorf("without npm upstreams it says:\n%s", out)
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

func TestIsSelf(t *testing.T) {
	for _, c := range []struct {
		listen, public, address string
		want                    bool
	}{
		{"127.0.0.1:5000", "", "http://127.0.0.1:5000/npm/", true},
		{"127.0.0.1:5000", "", "http://localhost:5000/npm/", true},
		{"127.0.0.1:5000", "", "http://[::1]:5000/npm/", true},
		{"127.0.0.1:5000", "", "http://127.0.0.1:4873/", false},
		{"0.0.0.0:80", "", "http://localhost/npm/", true},
		{":5000", "", "http://127.0.0.1:5000/", true},
		{":5000", "", "http://registry.example.com:5000/", false},
		{"192.0.2.1:5000", "", "http://192.0.2.1:5000/", true},
		{"192.0.2.1:5000", "", "http://127.0.0.1:5000/", false},
		{"127.0.0.1:5000", "https://packages.example.com", "https://packages.example.com/npm/", true},
		{"127.0.0.1:5000", "", "::", false},
	} {
		if got := (&Config{Listen: c.listen, PublicURL: c.public}).isSelf(c.address); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

// TestStopFinishesWhatRuns: a download that is running when weir is told to
// stop is finished, a new connection is refused, and a second signal ends it.
func TestStopFinishesWhatRuns(t *testing.T) {
	release := make(chan struct{})
	var asked sync.Once
	arrived := make(chan struct{})
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Do(func() { close(arrived) })
		select {
		case <-release:
		case <-r.Context().Done():
		}
		fmt.Fprint(w, `{"name":"a","versions":{}}`)
	}))
	defer up.Close()
	file, _ := configure(t, "npm: {upstreams: {public: {url: \""+up.URL+"\"}}}")
	p := start(t, "/nowhere", "-c", file)
	answer := make(chan error, 1)
	go func() {
		resp, err := http.Get(p.base + "/npm/a")
		if err == nil {
			_, err = io.ReadAll(resp.Body)
			resp.Body.Close()
			if err == nil && resp.StatusCode != 200 {
				err = fmt.Errorf("status %s", resp.Status)
			}
		}
		answer <- err
	}()
	<-arrived
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	refused(t, strings.TrimPrefix(p.base, "http://"))
	close(release)
	if err := <-answer; err != nil {
		t.Errorf("the request that was running: %v", err)
	}
	p.wait(t)
}

// refused waits until nobody listens on an address.
func refused(t *testing.T, addr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		if ctx.Err() != nil {
			t.Fatalf("%s still takes connections", addr)
		}
		if err != nil {
			return
		}
		c.Close()
	}
}

func TestStopHasALimit(t *testing.T) {
	arrived := make(chan struct{}, 8)
	up := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		<-r.Context().Done()
	}))
	defer up.Close()
	for _, limit := range []string{"200ms", "1h"} {
		file, _ := configure(t, "limits: {stop: "+limit+"}\nnpm: {upstreams: {public: {url: \""+up.URL+"\"}}}")
		p := start(t, "/nowhere", "-c", file)
		go http.Get(p.base + "/npm/a")
		<-arrived
		if err := p.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if limit == "200ms" {
			p.wait(t)
			if !strings.Contains(p.stderr.String(), "requests were still running") || !strings.Contains(p.stderr.String(), "questions to upstreams were still open") {
				t.Errorf("it does not say what it cut off:\n%s", p.stderr.String())
			}
			continue
		}
		refused(t, strings.TrimPrefix(p.base, "http://")) // the first signal has arrived
		if err := p.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-p.ended:
			if err == nil {
				t.Error("a second signal ended it as if all were finished")
			}
		case <-time.After(10 * time.Second):
			t.Error("a second signal does not end it")
		}
	}
}

// TestConnectionsAreLimited: with all slots taken a client waits, and is
// served when one is given back; large headers are refused.
func TestConnectionsAreLimited(t *testing.T) {
	file, _ := configure(t, "limits: {connections: 2, headers: 4KiB}\nnpm: {upstreams: {}}")
	p := start(t, "/nowhere", "-c", file)
	addr := strings.TrimPrefix(p.base, "http://")
	var idle []net.Conn
	for range 2 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		ping(t, c, "")
		idle = append(idle, c)
	}
	third, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer third.Close()
	fmt.Fprintf(third, "GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
	third.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	if _, err := third.Read(make([]byte, 1)); err == nil {
		t.Error("a third client was served over a limit of two")
	}
	idle[0].Close()
	third.SetReadDeadline(time.Now().Add(10 * time.Second))
	resp, err := http.ReadResponse(bufio.NewReader(third), nil)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("the third client, when there was room: %v", err)
	}
	if status := ping(t, idle[1], strings.Repeat("x", 16<<10)); status != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a header of 16 KiB: %d", status)
	}
	p.stop(t)
}

func ping(t *testing.T, c net.Conn, header string) int {
	t.Helper()
	fmt.Fprintf(c, "GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Long: %s\r\n\r\n", header)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}
