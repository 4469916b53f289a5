package conformance_test

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/lab"
	"github.com/weir-registry/weir/conformance/npmlab"
)

const (
	largeVersions = 10_000
	largeBytes    = 64 << 20
	largeReaders  = 20
)

// largePackument is a packument of so many versions and at least so many
// bytes, which do not compress to nothing: each version has a text of its own.
func largePackument(name string, versions, size int, tarball []byte) []byte {
	sum := sha512.Sum512(tarball)
	integrity := "sha512-" + base64.StdEncoding.EncodeToString(sum[:])
	rng := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, size/versions/2)
	var b bytes.Buffer
	fmt.Fprintf(&b, `{"_id":%q,"name":%q,"dist-tags":{"latest":"1.0.%d"},"versions":{`, name, name, versions-1)
	for i := range versions {
		if i > 0 {
			b.WriteByte(',')
		}
		for j := range noise {
			noise[j] = byte(rng.Uint32())
		}
		v := fmt.Sprintf("1.0.%d", i)
		fmt.Fprintf(&b, `%q:{"name":%q,"version":%q,"_id":"%s@%s","description":%q,"dependencies":{},`+
			`"dist":{"integrity":%q,"tarball":"http://registry.invalid/%s/-/%s-%s.tgz"}}`,
			v, name, v, name, v, hex.EncodeToString(noise), integrity, name, name, v)
	}
	b.WriteString(`},"time":{"created":"2020-01-01T00:00:00.000Z","modified":"2026-01-01T00:00:00.000Z"`)
	for i := range versions {
		fmt.Fprintf(&b, `,"1.0.%d":"2025-01-01T00:00:00.000Z"`, i)
	}
	b.WriteString(`},"readme":"It is large."}`)
	return b.Bytes()
}

// TestNpmLarge: a packument of 64 MB with 10,000 versions works, for twenty
// readers at once, in memory that is not twenty times its size; the second
// time it is given as it is kept.
func TestNpmLarge(t *testing.T) {
	up := newNpmLab(t)
	tarball := npmlab.Tarball(map[string]string{"package.json": `{"name":"large","version":"1.0.9999"}`, "index.js": ""})
	doc := largePackument("large", largeVersions, largeBytes, tarball)
	doc = bytes.ReplaceAll(doc, []byte("http://registry.invalid"), []byte(up.URL))
	if len(doc) < largeBytes {
		t.Fatalf("only %d bytes", len(doc))
	}
	up.PublishRaw("large", doc, tarball)
	up.Publish(npmlab.Version{Name: "small", Version: "1.0.0"})
	w := lab.StartWeir(t, "cache: {memory: 64MiB}\n"+npmConfig(up.URL, "fresh: 1h"))
	ask(t, "GET", w.URL, "/npm/small")
	idle := peakMemory(t, w.Pid())

	cold := readLarge(t, w, len(doc)*9/10)
	if n := len(up.Requests("large")); n != 1 {
		t.Errorf("the upstream was asked %d times", n)
	}
	warm := readLarge(t, w, len(doc)*9/10)
	peak := peakMemory(t, w.Pid())
	t.Logf("%d readers of %d MB: %.1f s cold, %.1f s warm; memory %d MB idle, %d MB at most",
		largeReaders, len(doc)>>20, cold.Seconds(), warm.Seconds(), idle>>20, peak>>20)
	if limit := idle + 4*largeBytes; peak > limit {
		t.Errorf("memory went to %d MB: more than %d MB for a document of %d MB", peak>>20, limit>>20, len(doc)>>20)
	}
	// Twenty answers of zipped megabytes over loopback, nothing to be made.
	if warm > 20*time.Second || warm > cold {
		t.Errorf("it took %v warm, %v cold", warm, cold)
	}
	h := newNpmHome(t, w.URL+"/npm/")
	h.run("npm", "install", "large@1.0.9999", "--no-audit")
	if a := ask(t, "GET", w.URL, "/npm/large/1.0.5000"); a.StatusCode != http.StatusOK || !strings.Contains(string(a.body), `"1.0.5000"`) {
		t.Errorf("one version: %s", a.Status)
	}
	if a := ask(t, "GET", w.URL, "/npm/large/-/large-1.0.77.tgz"); a.StatusCode != http.StatusOK || !bytes.Equal(a.raw, tarball) {
		t.Errorf("one tarball: %s", a.Status)
	}
}

// readLarge has many clients read the full packument at once, all as they
// would: some zipped, some not. least is how many bytes it must have unzipped.
func readLarge(t *testing.T, w *lab.Weir, least int) time.Duration {
	t.Helper()
	start := time.Now()
	var wg sync.WaitGroup
	type result struct {
		sum string
		err error
	}
	results := make([]result, largeReaders)
	for i := range largeReaders {
		encoding := "gzip"
		if i%4 == 0 {
			encoding = "identity"
		}
		wg.Go(func() {
			sum, n, err := fetchSum(w.URL+"/npm/large", encoding)
			if err == nil && encoding == "identity" && n < int64(least) {
				err = fmt.Errorf("%d bytes", n)
			}
			results[i] = result{encoding + " " + sum, err}
		})
	}
	wg.Wait()
	sums := map[string]int{}
	for i, r := range results {
		if r.err != nil {
			t.Fatalf("reader %d: %v", i, r.err)
		}
		sums[r.sum]++
	}
	if len(sums) != 2 {
		t.Errorf("the readers of two encodings got %d different answers", len(sums))
	}
	return time.Since(start)
}

// fetchSum reads an answer without keeping it. Told to come back later, which
// a slow machine may be while the document is on its way, it does, as clients
// do.
func fetchSum(url, encoding string) (sum string, n int64, err error) {
	req, err := http.NewRequest("GET", url, nil)
	if err != nil {
		return "", 0, err
	}
	req.Header.Set("Accept-Encoding", encoding)
	client := &http.Client{Transport: plainTransport, Timeout: 3 * time.Minute}
	for try := 0; ; try++ {
		resp, err := client.Do(req)
		if err != nil {
			return "", 0, err
		}
		defer resp.Body.Close()
		later, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
		switch {
		case resp.StatusCode == http.StatusOK:
			h := sha256.New()
			n, err = io.Copy(h, resp.Body)
			return hex.EncodeToString(h.Sum(nil)), n, err
		case resp.StatusCode != http.StatusServiceUnavailable || later < 1 || try == 5:
			return "", 0, fmt.Errorf("%s, Retry-After %d, after %d tries", resp.Status, later, try)
		}
		<-time.After(time.Duration(later) * time.Second)
	}
}

// peakMemory is the most memory that a process has had at any time, in bytes.
func peakMemory(t *testing.T, pid int) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kb << 10
		}
	}
	t.Fatal("no VmHWM")
	return 0
}
