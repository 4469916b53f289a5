package conformance_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/lab"
)

// ociRaw sends text as it is, which a client library would mend, and reads one
// answer.
func ociRaw(t *testing.T, addr, text string) ociAnswer {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	go io.WriteString(c, text) // weir may answer, and close, before it has read all
	method, _, _ := strings.Cut(text, " ")
	resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
	if err != nil {
		return ociAnswer{err: err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return ociAnswer{resp.StatusCode, resp.Header, body, err}
}

// ociGet is a request with this target and these header lines.
func ociGet(target string, lines ...string) string {
	return "GET " + target + " HTTP/1.1\r\nHost: weir\r\n" + strings.Join(lines, "\r\n") +
		strings.Repeat("\r\n", min(len(lines), 1)) + "Connection: close\r\n\r\n"
}

// TestOCIBadRequests sends malformed names, digests, encodings and more than
// fits: each gets an OCI error that says what is wrong, the upstream is not
// asked, and weir goes on.
func TestOCIBadRequests(t *testing.T) {
	t.Parallel()
	b := startOCI(t, "")
	digest := b.pushBlobs(t, "library/fine:1", []byte("fine"))[0]
	manifest := b.learn(t, "library/fine", "1").body
	b.proxy.Reset()
	long := strings.Repeat("a", 300)
	cases := []struct {
		what, text string
		status     []int
		codes      []string
	}{
		{"upper case", ociGet("/v2/Library/Thing/manifests/1"), []int{400}, []string{"NAME_INVALID"}},
		{"dots", ociGet("/v2/library/../thing/manifests/1"), []int{400, 404}, nil},
		{"encoded dots", ociGet("/v2/library/%2e%2e/thing/manifests/1"), []int{400, 404}, nil},
		{"a leading dash", ociGet("/v2/-thing/manifests/1"), []int{400}, []string{"NAME_INVALID"}},
		{"two slashes", ociGet("/v2/library//thing/manifests/1"), []int{400, 404}, nil},
		{"an encoded slash", ociGet("/v2/library%2fthing/manifests/1"), []int{400, 404}, nil},
		{"an encoded percent", ociGet("/v2/library/th%25ing/manifests/1"), []int{400}, nil},
		{"a zero byte", ociGet("/v2/library/th%00ing/manifests/1"), []int{400}, []string{"NAME_INVALID"}},
		{"a newline", ociGet("/v2/library/th%0aing/manifests/1"), []int{400}, []string{"NAME_INVALID"}},
		{"bytes that are not UTF-8", ociGet("/v2/library/%ff%fe/manifests/1"), []int{400}, []string{"NAME_INVALID"}},
		{"an unfinished encoding", ociGet("/v2/library/thing/manifests/1%"), []int{400}, nil},
		{"a wrong encoding", ociGet("/v2/library/th%zzing/manifests/1"), []int{400}, nil},
		{"a long name", ociGet("/v2/library/" + long + "/manifests/1"), []int{400}, []string{"NAME_INVALID"}},
		{"no name", ociGet("/v2//manifests/1"), []int{400, 404}, nil},
		{"a long tag", ociGet("/v2/library/thing/manifests/" + long), []int{400, 404}, nil},
		{"a tag with a dash in front", ociGet("/v2/library/thing/manifests/-1"), []int{400, 404}, nil},
		{"no tag", ociGet("/v2/library/thing/manifests/"), []int{400, 404}, nil},
		{"a short digest", ociGet("/v2/library/thing/manifests/sha256:abc"), []int{400}, []string{"DIGEST_INVALID"}},
		{"a digest in upper case", ociGet("/v2/library/thing/blobs/" + strings.ToUpper(digest)), []int{400}, []string{"DIGEST_INVALID"}},
		{"an unknown algorithm", ociGet("/v2/library/thing/blobs/md5:" + strings.Repeat("a", 32)), []int{400}, []string{"DIGEST_INVALID"}},
		{"a digest with more behind", ociGet("/v2/library/thing/blobs/" + digest + "00"), []int{400}, []string{"DIGEST_INVALID"}},
		{"a tag for a blob", ociGet("/v2/library/thing/blobs/latest"), []int{400}, []string{"DIGEST_INVALID"}},
		{"a path of nothing", ociGet("/v2/library/thing"), []int{404}, nil},
		{"a catalog", ociGet("/v2/_catalog"), []int{404, 405}, nil},
		{"a long path", ociGet("/v2/library/" + strings.Repeat("a/", 30_000) + "manifests/1"), []int{400, 414, 431}, nil},
		{"a long query", ociGet("/v2/library/fine/manifests/1?ns=" + strings.Repeat("a", 60_000)), []int{400, 404, 414, 431}, nil},
		{"a long header", ociGet("/v2/library/fine/manifests/1", "X-Long: "+strings.Repeat("a", 100_000)), []int{431}, nil},
		{"many headers", ociGet("/v2/library/fine/manifests/1", strings.TrimSpace(strings.Repeat("X-Many: a\r\n", 20_000))), []int{431}, nil},
		{"an upload", "POST /v2/library/fine/blobs/uploads/ HTTP/1.1\r\nHost: weir\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", []int{405}, []string{"UNSUPPORTED"}},
		{"a manifest's upload", "PUT /v2/library/fine/manifests/1 HTTP/1.1\r\nHost: weir\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}", []int{405}, []string{"UNSUPPORTED"}},
		{"a delete", "DELETE /v2/library/fine/manifests/1 HTTP/1.1\r\nHost: weir\r\nConnection: close\r\n\r\n", []int{405}, []string{"UNSUPPORTED"}},
		{"an unheard of method", "BREW /v2/library/fine/manifests/1 HTTP/1.1\r\nHost: weir\r\nConnection: close\r\n\r\n", []int{405}, []string{"UNSUPPORTED"}},
		{"no host", "GET /v2/library/fine/manifests/1 HTTP/1.1\r\nConnection: close\r\n\r\n", []int{400}, nil},
		{"not HTTP", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", []int{400}, nil},
	}
	for _, c := range cases {
		a := ociRaw(t, b.Addr, c.text)
		ok := false
		for _, s := range c.status {
			ok = ok || s == a.status
		}
		if !ok {
			t.Errorf("%s: got %d (%.200q), %v; want %v", c.what, a.status, a.body, a.err, c.status)
			continue
		}
		ociCheckError(t, c.what, a, c.codes...)
	}
	if n := b.proxy.Count("", ""); n != 0 {
		t.Errorf("bad requests made weir ask upstream:\n%s", b.proxy.Story())
	}
	b.ask(t, "GET", "/v2/library/fine/manifests/1").right(t, "afterwards", 200, manifest)
	b.ask(t, "GET", "/v2/library/fine/manifests/%31").right(t, "needless encoding", 200, manifest)
	encoded := "/v2/library/fine/blobs/" + strings.Replace(digest, ":", "%3A", 1)
	b.ask(t, "GET", encoded).right(t, "an encoded colon", 200, []byte("fine"))
}

// TestOCIEndlessHeader sends a header that never ends: weir hangs up.
func TestOCIEndlessHeader(t *testing.T) {
	t.Parallel()
	b := startOCI(t, "")
	c, err := net.Dial("tcp", b.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	io.WriteString(c, "GET /v2/ HTTP/1.1\r\nHost: weir\r\nX-Endless: ")
	piece := []byte(strings.Repeat("a", 64<<10))
	sent := 0
	for sent < 64*mib {
		n, err := c.Write(piece)
		sent += n
		if err != nil {
			break
		}
	}
	if sent >= 64*mib {
		t.Errorf("weir took a header of %d bytes", sent)
	}
	b.ask(t, "GET", "/v2/").right(t, "afterwards", 200, []byte("{}"))
}

// TestOCIBadRanges asks for ranges that make no sense: those that ask for
// nothing there are refused, those that are not understood are not there.
func TestOCIBadRanges(t *testing.T) {
	t.Parallel()
	b := startOCI(t, "")
	blob := lab.Noise("bad ranges", 10_000)
	path := "/v2/library/ranges/blobs/" + b.pushBlobs(t, "library/ranges:1", blob)[0]
	b.learn(t, "library/ranges", "1")
	for _, when := range []string{"cold", "warm"} {
		for _, r := range []string{"bytes=10000-", "bytes=99999999999999999-", "bytes=10000-10001", "bytes=-0"} {
			a := b.ask(t, "GET", path, "Range", r)
			a.refused(t, when+", "+r, 416)
			if got := a.header.Get("Content-Range"); got != "bytes */10000" {
				t.Errorf("%s, %s: Content-Range %q", when, r, got)
			}
		}
		for _, r := range []string{"lines=1-2", "bytes=a-b", "bytes=--5", "bytes", "bytes=", "0-10", "bytes=99999999999999999999-"} {
			a := b.ask(t, "GET", path, "Range", r)
			if a.status == 416 || a.status == 400 {
				ociCheckError(t, when+", "+r, a)
				continue
			}
			a.right(t, when+", "+r, 200, blob)
		}
		// An end before the start: RFC 9110 has it ignored, registries refuse it.
		if a := b.ask(t, "GET", path, "Range", "bytes=500-0"); a.status != 416 {
			a.right(t, when+", backwards", 200, blob)
		}
		// Two ranges: the whole is a fair answer, wrong bytes are not.
		if a := b.ask(t, "GET", path, "Range", "bytes=0-1,5-6"); a.status != 206 && a.status != 416 {
			a.right(t, when+", two ranges", 200, blob)
		}
		stale := b.ask(t, "GET", path, "Range", "bytes=5-9", "If-Range", `"other"`)
		stale.right(t, when+", If-Range of something else", 200, blob)
	}
}

// ociStart runs weir until it gives up, which it has to, and returns the one
// line that says why.
func ociStart(t *testing.T, w *lab.Weir) string {
	t.Helper()
	r := lab.Try(t, 20*time.Second, lab.Command{Path: lab.Binary(t), Args: []string{"serve", "-c", w.Config}})
	if r.Code <= 0 {
		t.Fatalf("weir serve ended with status %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	line := strings.TrimSpace(r.Stderr)
	if line == "" || strings.Contains(line, "\n") || strings.Contains(line, "goroutine ") {
		t.Errorf("want one line on stderr, got:\n%s", r.Stderr)
	}
	return line
}

// TestBadConfiguration starts weir with configurations that are wrong: it does
// not start, and one line says where and what.
func TestBadConfiguration(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		config string
		says   []string
	}{
		// Three lines of lab's own come before these.
		"an unknown key":       {"cache: {memory: 1MiB}\nlissten: 127.0.0.1:1", []string{"weir.yaml:5", "lissten"}},
		"an unknown inner key": {"oci:\n  upstreams:\n    docker.io: {url: \"http://127.0.0.1:1\", frehs: 1s}", []string{"weir.yaml:6", "frehs"}},
		"a size":               {"cache: {disk: 20 bananas}", []string{"weir.yaml:4", "bananas"}},
		"a duration":           {"oci:\n  upstreams:\n    docker.io: {fresh: soon}", []string{"weir.yaml:6", "soon"}},
		"a list for a map":     {"cache: [1]", []string{"weir.yaml:4"}},
		"not YAML":             {"oci: {upstreams", []string{"weir.yaml"}},
		"an address":           {"public_url: \"::not a url\"", []string{"public_url"}},
		"an upstream's URL":    {"oci: {upstreams: {docker.io: {url: \"ftp://127.0.0.1\"}}}", []string{"ftp"}},
		"a grant":              {"access: {anonymous: [\"dance oci:*\"]}", []string{"dance"}},
		"a default not there":  {"oci: {default: quay.io, upstreams: {docker.io: {url: \"http://127.0.0.1:1\"}}}", []string{"quay.io"}},
		"a missing variable":   {"oci: {upstreams: {docker.io: {url: \"http://127.0.0.1:1\", username: a, password: \"${WEIR_TEST_NOT_SET}\"}}}", []string{"WEIR_TEST_NOT_SET"}},
	} {
		t.Run(name, func(t *testing.T) {
			line := ociStart(t, lab.NewWeir(t, t.TempDir(), c.config))
			for _, want := range c.says {
				if !strings.Contains(line, want) {
					t.Errorf("%q does not say %q", line, want)
				}
			}
		})
	}
}

// TestBadDataDirectory starts weir on data directories that will not do: one
// that is a file, one that cannot be written, one that another weir uses.
func TestBadDataDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	ociWrite(t, file, "not a directory")
	readonly := filepath.Join(dir, "readonly")
	ociTmpfs(t, readonly, "ro,size=1m")
	for name, data := range map[string]string{"a file": file, "below a file": filepath.Join(file, "below"), "read-only": readonly} {
		line := ociStart(t, lab.NewWeir(t, data, ""))
		if !strings.Contains(line, data) {
			t.Errorf("%s: %q does not name the directory", name, line)
		}
	}
	if got := ociRead(t, file); got != "not a directory" {
		t.Errorf("the file has become %q", got)
	}

	b := startOCI(t, "")
	blob := lab.Noise("in use", 100_000)
	path := "/v2/library/used/blobs/" + b.pushBlobs(t, "library/used:1", blob)[0]
	b.learn(t, "library/used", "1")
	b.ask(t, "GET", path).right(t, "cold", 200, blob)
	line := ociStart(t, lab.NewWeir(t, b.Data, ""))
	if !strings.Contains(line, b.Data) || !strings.Contains(line, "use") {
		t.Errorf("%q does not say that the directory is in use", line)
	}
	b.proxy.Down()
	b.ask(t, "GET", path).right(t, "the weir that was there first", 200, blob)
}

// TestListenAddressTaken starts weir where something listens already.
func TestListenAddressTaken(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	w := lab.NewWeir(t, t.TempDir(), "")
	w.Addr = l.Addr().String()
	w.Configure("")
	if line := ociStart(t, w); !strings.Contains(line, w.Addr) {
		t.Errorf("%q does not name the address", line)
	}
}

// ociTmpfs mounts a small file system at dir for the time of the test.
func ociTmpfs(t *testing.T, dir, options string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() != 0 {
		t.Fatal("this test mounts a file system and needs root")
	}
	lab.Run(t, 10*time.Second, lab.Command{Path: lab.Tool(t, "mount"), Args: []string{"-t", "tmpfs", "-o", options, "tmpfs", dir}})
	t.Cleanup(func() {
		lab.Run(t, 10*time.Second, lab.Command{Path: lab.Tool(t, "umount"), Args: []string{"-l", dir}, Dir: "/"})
	})
}

// TestConfigCommands runs "config check" and "config show": what is right
// passes, what is wrong is said as serve says it, and no secret is shown.
func TestConfigCommands(t *testing.T) {
	t.Parallel()
	w := lab.NewWeir(t, t.TempDir(), "oci: {upstreams: {docker.io: {url: \"http://127.0.0.1:1\", username: me, password: \"${WEIR_TEST_SECRET}\"}}}")
	weir := func(args ...string) lab.Result {
		return lab.Try(t, 20*time.Second, lab.Command{Path: lab.Binary(t), Args: args, Env: []string{"WEIR_TEST_SECRET=hunter2"}})
	}
	if r := weir("config", "check", "-c", w.Config); r.Code != 0 {
		t.Errorf("check: %+v", r)
	}
	r := weir("config", "show", "-c", w.Config)
	if r.Code != 0 || !strings.Contains(r.Stdout, w.Addr) || strings.Contains(r.Stdout+r.Stderr, "hunter2") {
		t.Errorf("show: %+v", r)
	}
	w.Configure("lissten: x")
	if r := weir("config", "check", "-c", w.Config); r.Code == 0 || !strings.Contains(r.Stderr, fmt.Sprintf("%s:4", w.Config)) {
		t.Errorf("check of a wrong one: %+v", r)
	}
	if r := weir("serve", "-c", filepath.Join(t.TempDir(), "none.yaml")); r.Code == 0 || !strings.Contains(r.Stderr, "none.yaml") {
		t.Errorf("a configuration that is not there: %+v", r)
	}
	if r := weir("version"); r.Code != 0 || r.Stdout == "" {
		t.Errorf("version: %+v", r)
	}
}
