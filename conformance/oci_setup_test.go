package conformance_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/lab"
)

// ociFresh is for how long the OCI tests' weirs do not ask about a tag again.
const ociFresh = time.Second

// An ociBench is weir in front of a real registry, with a proxy between the
// two that counts and breaks things.
type ociBench struct {
	*lab.Weir
	registry *lab.Registry
	proxy    *lab.Proxy
	client   *http.Client
}

// ociConfig is the configuration of a weir whose upstreams are at these
// addresses, followed by more of it.
func ociConfig(more string, upstreams ...string) string {
	var b strings.Builder
	b.WriteString("oci:\n  default: docker.io\n  upstreams:\n")
	for i := 0; i < len(upstreams); i += 2 {
		fmt.Fprintf(&b, "    %q: {url: %q, fresh: %v, stale: 720h}\n", upstreams[i], upstreams[i+1], ociFresh)
	}
	grants := `"pull oci:*"`
	for i := 0; i < len(upstreams); i += 2 {
		grants += fmt.Sprintf(", %q", "pull oci:"+upstreams[i]+"/*")
	}
	// No npm upstream to find: these tests are about images.
	b.WriteString("npm: {upstreams: {none: {url: \"http://127.0.0.1:1\"}}}\n")
	fmt.Fprintf(&b, "access:\n  anonymous: [%s]\n%s\n", grants, more)
	return b.String()
}

// startOCI starts a registry, a proxy before it and a weir for which it is
// docker.io; more is added to weir's configuration.
func startOCI(t *testing.T, more string) *ociBench {
	t.Helper()
	return startOCIBefore(t, lab.StartRegistry(t), more)
}

// startOCIBefore is [startOCI] with a registry that is there already.
func startOCIBefore(t *testing.T, r *lab.Registry, more string) *ociBench {
	t.Helper()
	p := lab.StartProxy(t, r.URL)
	return &ociBench{
		Weir:     lab.StartWeir(t, ociConfig(more, "docker.io", p.URL)),
		registry: r, proxy: p, client: ociClient(t),
	}
}

// ociClient is an HTTP client that keeps its own connections and asks for
// nothing by itself.
func ociClient(t *testing.T) *http.Client {
	tr := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 128}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 2 * time.Minute}
}

// An ociAnswer is what one request to weir got.
type ociAnswer struct {
	status int
	header http.Header
	body   []byte
	// err is why the body did not come whole; nil if it did.
	err error
}

// ask makes one request and reads its answer to the end.
func (b *ociBench) ask(t *testing.T, method, path string, header ...string) ociAnswer {
	t.Helper()
	a, err := ociAsk(b.client, method, b.URL+path, header...)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return a
}

func ociAsk(c *http.Client, method, url string, header ...string) (ociAnswer, error) {
	req, err := http.NewRequest(method, url, nil)
	if err != nil {
		return ociAnswer{}, err
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		return ociAnswer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return ociAnswer{resp.StatusCode, resp.Header, body, err}, nil
}

// right fails the test unless the answer is 200 (or 206) with exactly want.
func (a ociAnswer) right(t *testing.T, what string, status int, want []byte) {
	t.Helper()
	if a.status != status || a.err != nil || !bytes.Equal(a.body, want) {
		t.Errorf("%s: got %d with %d bytes (%.200q), %v; want %d with %d bytes",
			what, a.status, len(a.body), a.body, a.err, status, len(want))
	}
}

// refused fails the test unless the answer is an OCI error of this status,
// with one of the codes if any are given.
func (a ociAnswer) refused(t *testing.T, what string, status int, codes ...string) {
	t.Helper()
	if a.status != status {
		t.Errorf("%s: got %d (%.300q), want %d", what, a.status, a.body, status)
		return
	}
	ociCheckError(t, what, a, codes...)
}

// ociCheckError fails the test unless the answer's body is an OCI error.
func ociCheckError(t *testing.T, what string, a ociAnswer, codes ...string) {
	t.Helper()
	var e struct {
		Errors []struct{ Code, Message string }
	}
	if ct := a.header.Get("Content-Type"); !strings.HasPrefix(ct, "application/json") {
		t.Errorf("%s: the error's Content-Type is %q (%.200q)", what, ct, a.body)
	}
	if err := json.Unmarshal(a.body, &e); err != nil || len(e.Errors) == 0 || e.Errors[0].Code == "" || e.Errors[0].Message == "" {
		t.Errorf("%s: not an OCI error: %.300q", what, a.body)
		return
	}
	if e.Errors[0].Code != strings.ToUpper(e.Errors[0].Code) {
		t.Errorf("%s: error code %q", what, e.Errors[0].Code)
	}
	for _, c := range codes {
		if e.Errors[0].Code == c {
			return
		}
	}
	if len(codes) > 0 {
		t.Errorf("%s: error code %s, want one of %v", what, e.Errors[0].Code, codes)
	}
}

// pushBlobs pushes an image with these layers to the registry, not through
// weir, as repo:tag, and returns the layers' digests.
func (b *ociBench) pushBlobs(t *testing.T, ref string, blobs ...[]byte) []string {
	t.Helper()
	lab.Push(t, b.registry.Addr, ref, lab.MakeBlobs(t, blobs...))
	digests := make([]string, len(blobs))
	for i, blob := range blobs {
		digests[i] = ociDigest(blob)
	}
	return digests
}

// learn makes weir ask for repo's manifest, so that it knows what repo holds.
func (b *ociBench) learn(t *testing.T, repo, tag string) ociAnswer {
	t.Helper()
	a := b.ask(t, "GET", "/v2/"+repo+"/manifests/"+tag)
	if a.status != http.StatusOK || a.err != nil {
		t.Fatalf("manifest of %s:%s: %d %.300q %v", repo, tag, a.status, a.body, a.err)
	}
	return a
}

func ociDigest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// ociStale waits until what weir asked before now is so old that it asks again
// before it answers: twice as old as it may be, since an answer that is only a
// little too old is given while it is being asked again.
func ociStale(t *testing.T) {
	t.Helper()
	asked := time.Now()
	lab.Eventually(t, 3*ociFresh, "the tag to become stale", func() error {
		if age := time.Since(asked); age <= 2*ociFresh+50*time.Millisecond {
			return fmt.Errorf("asked %v ago", age)
		}
		return nil
	})
}

// ociUntar reads the regular files of a tar stream, gzipped or not, over those
// in files: as one layer lies over others.
func ociUntar(t *testing.T, r io.Reader, files lab.Files) {
	t.Helper()
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	r = bytes.NewReader(data)
	if bytes.HasPrefix(data, []byte{0x1f, 0x8b}) {
		if r, err = gzip.NewReader(r); err != nil {
			t.Fatal(err)
		}
	}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		body, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		files[strings.TrimPrefix(h.Name, "./")] = string(body)
	}
}

// ociSame fails the test unless every file of want is in got, and right.
func ociSame(t *testing.T, what string, got, want lab.Files) {
	t.Helper()
	for p, body := range want {
		if g, ok := got[p]; !ok {
			t.Errorf("%s: there is no file %s", what, p)
		} else if g != body {
			t.Errorf("%s: %s has %d bytes (%.40q), want %d (%.40q)", what, p, len(g), g, len(body), body)
		}
	}
}
