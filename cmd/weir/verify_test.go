package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/cachetiers"
)

// anImage is a registry with one image of two blobs.
type anImage struct {
	*httptest.Server
	manifest, config, layer []byte
	blobs                   atomic.Int64 // requests for blobs
}

func newImage(t *testing.T) *anImage {
	t.Helper()
	r := rand.NewChaCha8([32]byte{1})
	u := &anImage{config: []byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`), layer: make([]byte, 3<<20)}
	if _, err := io.ReadFull(r, u.layer); err != nil {
		t.Fatal(err)
	}
	u.manifest = fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",`+
		`"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},`+
		`"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":%q,"size":%d}]}`,
		digest.FromBytes(u.config), len(u.config), digest.FromBytes(u.layer), len(u.layer))
	u.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		what := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
		switch {
		case r.URL.Path == "/v2/":
		case strings.Contains(r.URL.Path, "/manifests/"):
			w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
			w.Header().Set("Docker-Content-Digest", string(digest.FromBytes(u.manifest)))
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(u.manifest))
		default:
			u.blobs.Add(1)
			for _, b := range [][]byte{u.config, u.layer} {
				if what == string(digest.FromBytes(b)) {
					http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
					return
				}
			}
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	t.Cleanup(u.Close)
	return u
}

// pull has a node fetch the image.
func (u *anImage) pull(t *testing.T, base string) {
	t.Helper()
	for _, path := range []string{"manifests/1", "blobs/" + string(digest.FromBytes(u.config)), "blobs/" + string(digest.FromBytes(u.layer))} {
		if resp, body := get(t, base+"/v2/app/"+path); resp.StatusCode != 200 {
			t.Fatalf("%s: %s %.200s", path, resp.Status, body)
		}
	}
}

// harm flips a bit of a blob's file under data.
func harm(t *testing.T, data string, blob []byte) (path string) {
	t.Helper()
	hex := digest.FromBytes(blob).Encoded()
	path = filepath.Join(data, "cache", "blobs", "sha256", hex[:2], hex)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text[len(blob)/2] ^= 1
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func sound(path string, blob []byte) error {
	text, err := os.ReadFile(path)
	if err == nil && !bytes.HasPrefix(text, blob) {
		err = errors.New("it is damaged")
	}
	return err
}

// configureImage is a configuration with u behind and an ops address.
func configureImage(t *testing.T, u *anImage, cache string) (file, data string) {
	t.Helper()
	file, data = configure(t, fmt.Sprintf("cache: %s\nnpm: {upstreams: {}}\noci: {default: up.example, upstreams: {up.example: {url: %q}}}\n", cache, u.URL))
	text, err := os.ReadFile(file)
	if err == nil {
		text = bytes.Replace(text, []byte("ops: off"), []byte("ops: 127.0.0.1:"+freePort(t)), 1)
		err = os.WriteFile(file, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return file, data
}

// TestVerifyRunning: a running node finds what is damaged and fetches it again.
func TestVerifyRunning(t *testing.T) {
	u := newImage(t)
	file, data := configureImage(t, u, "{scrub: 0s}")
	p := start(t, "/nowhere", "-c", file)
	u.pull(t, p.base)
	if code, stdout, stderr := try("verify", "-c", file); code != 0 || !strings.HasPrefix(stdout, "3 blobs, 3.0 MiB: 0 damaged, 0 repaired\n") {
		t.Errorf("sound: %d %q %q", code, stdout, stderr)
	}
	layer, config := harm(t, data, u.layer), harm(t, data, u.config)
	before := u.blobs.Load()
	code, stdout, stderr := try("verify", "-c", file)
	lines := strings.Split(stdout, "\n")
	if code != 0 || len(lines) != 4 || !strings.HasPrefix(lines[0], "3 blobs, ") || !strings.HasSuffix(lines[0], ": 2 damaged, 2 repaired") ||
		!slices.Contains(lines, "repaired  "+string(digest.FromBytes(u.layer))) || !slices.Contains(lines, "repaired  "+string(digest.FromBytes(u.config))) {
		t.Errorf("damaged: %d %q %q", code, stdout, stderr)
	}
	if err := errors.Join(sound(layer, u.layer), sound(config, u.config)); err != nil || u.blobs.Load()-before < 2 {
		t.Errorf("afterwards: %v; %d requests behind", err, u.blobs.Load()-before)
	}
	// Behind is dead: what is damaged stays away, and that is said.
	u.Close()
	harm(t, data, u.layer)
	code, stdout, stderr = try("verify", "-c", file, "-o", "json")
	var got verifyLine
	if err := json.Unmarshal([]byte(stdout), &got); code != 1 || err != nil || !got.Done || got.Blobs != 3 || len(got.Repaired) != 0 ||
		!slices.Equal(got.Damaged, []string{string(digest.FromBytes(u.layer))}) || !strings.HasPrefix(stderr, "weir: 1 damaged blob was dropped and not fetched again") {
		t.Errorf("nothing behind: %d %q %q", code, stdout, stderr)
	}
	if code, _, stderr := try("verify", "-c", file, "--data", t.TempDir()); code != 0 || stderr != "" {
		t.Errorf("other data while a node runs: %d %q", code, stderr)
	}
	p.stop(t)
}

// TestVerifyStopped: the data of a node that does not run.
func TestVerifyStopped(t *testing.T) {
	u := newImage(t)
	file, data := configureImage(t, u, "{scrub: 0s}")
	p := start(t, "/nowhere", "-c", file)
	u.pull(t, p.base)
	p.stop(t)
	path := harm(t, data, u.layer)
	code, stdout, stderr := try("verify", "-c", file, "--rate", "1GiB")
	if code != 1 || stdout != "3 blobs, 3.0 MiB: 1 damaged, 0 repaired\ndropped   "+string(digest.FromBytes(u.layer))+"\n" ||
		stderr != "weir: 1 damaged blob was dropped and not fetched again; it comes back when it is asked for\n" {
		t.Errorf("damaged: %d %q %q", code, stdout, stderr)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Error("the damaged file is still there")
	}
	code, stdout, stderr = try("verify", "-c", file, "-o", "json")
	if code != 0 || !strings.HasPrefix(stdout, `{"blobs":2,"of":2,`) || !strings.HasSuffix(stdout, `"damaged":[],"repaired":[],"done":true}`+"\n") || stderr != "" {
		t.Errorf("once more: %d %q %q", code, stdout, stderr)
	}
	p = start(t, "/nowhere", "-c", file)
	u.pull(t, p.base)
	if err := sound(path, u.layer); err != nil {
		t.Errorf("asked for again: %v", err)
	}
	p.stop(t)
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--rate", "fast"}, 2, "weir: --rate: "},
		{[]string{"-o", "xml"}, 2, "weir: -o xml"},
		{[]string{"--data", filepath.Join(data, "none")}, 1, "weir: data directory " + filepath.Join(data, "none") + ": no such file"},
	} {
		if code, stdout, stderr := try(append([]string{"verify", "-c", file}, c.args...)...); code != c.code || stdout != "" || !strings.HasPrefix(stderr, c.want) {
			t.Errorf("%q: %d %q %q", c.args, code, stdout, stderr)
		}
	}
}

// TestScrubOfItsOwn: a node repairs what nobody asks for.
func TestScrubOfItsOwn(t *testing.T) {
	u := newImage(t)
	file, data := configureImage(t, u, "{scrub: 20ms}")
	p := start(t, "/nowhere", "-c", file)
	u.pull(t, p.base)
	path := harm(t, data, u.layer)
	deadline, tick := time.After(20*time.Second), time.NewTicker(10*time.Millisecond)
	defer tick.Stop()
	for sound(path, u.layer) != nil {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not repaired: %v\n%s", sound(path, u.layer), p.stderr.String())
		}
	}
	p.stop(t)
}

// TestSeveralDisks: a node with three disks, one of which is not there, says so
// in its state and its metrics, and serves.
func TestSeveralDisks(t *testing.T) {
	u := newImage(t)
	base := t.TempDir()
	var list []string
	for _, n := range []string{"a", "b", "c"} {
		list = append(list, fmt.Sprintf("{path: %q, size: 100MiB}", filepath.Join(base, n)))
		if n != "b" {
			if err := os.Mkdir(filepath.Join(base, n), 0o700); err != nil {
				t.Fatal(err)
			}
		}
	}
	file, data := configureImage(t, u, "{disks: ["+strings.Join(list, ", ")+"]}")
	p := start(t, "/nowhere", "-c", file)
	u.pull(t, p.base)
	c, err := readConfig(file)
	if err != nil {
		t.Fatal(err)
	}
	_, text := get(t, "http://"+c.Ops+"/admin/status")
	var status nodeStatus
	if err := json.Unmarshal([]byte(text), &status); err != nil || status.Data != data || len(status.Disks) != 3 {
		t.Fatalf("status: %v %s", err, text)
	}
	blobs := 0
	for i, want := range []cachetiers.DiskState{cachetiers.DiskWorks, cachetiers.DiskFailed, cachetiers.DiskWorks} {
		if got := status.Disks[i]; got.State != want || (got.Error == "") != (want == cachetiers.DiskWorks) || got.Limit != 100<<20 {
			t.Errorf("disk %d: %+v", i, got)
		}
		blobs += status.Disks[i].Blobs
	}
	if blobs != 3 {
		t.Errorf("%d blobs on disks", blobs)
	}
	_, metrics := get(t, "http://"+c.Ops+"/metrics")
	for _, want := range []string{
		`weir_disk_up{disk="` + filepath.Join(base, "a") + `"} 1`, `weir_disk_up{disk="` + filepath.Join(base, "b") + `"} 0`,
		`weir_disk_limit_bytes{disk="` + filepath.Join(base, "b") + `"} 1.048576e+08`, `weir_disk_bytes{disk="` + filepath.Join(base, "b") + `"} 0`,
		`weir_events_total{event="disk failed",subject="` + filepath.Join(base, "b") + `"} 1`, `weir_tier_bytes{tier="disk"} 3.1`,
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	p.stop(t)
	if code, stdout, stderr := try("verify", "-c", file); code != 1 || !strings.HasPrefix(stdout, "3 blobs") || !strings.Contains(stderr, filepath.Join(base, "b")) {
		t.Errorf("verify with a disk missing: %d %q %q", code, stdout, stderr)
	}
}

// TestProgress: one line that changes on a terminal, few lines elsewhere, none
// beside JSON.
func TestProgress(t *testing.T) {
	var out bytes.Buffer
	plain := &progress{w: &out}
	for i := range 5 {
		plain.line(verifyLine{Blobs: i, Of: 8, Bytes: int64(i), OfBytes: 8, Damaged: []string{"x"}})
	}
	plain.end()
	if got := out.String(); got != "verify:   0%  0 of 8 blobs, 1 damaged\n" {
		t.Errorf("plain: %q", got)
	}
	out.Reset()
	terminal := &progress{w: &out, terminal: true}
	terminal.line(verifyLine{Blobs: 4, Of: 8, Bytes: 4, OfBytes: 8})
	terminal.end()
	if got := out.String(); got != "\r\x1b[Kverify:  50%  4 of 8 blobs, 0 damaged\r\x1b[K" {
		t.Errorf("terminal: %q", got)
	}
	out.Reset()
	quiet := &progress{w: &out, quiet: true, terminal: true}
	quiet.line(verifyLine{})
	quiet.end()
	if out.Len() > 0 {
		t.Errorf("quiet: %q", out.String())
	}
}
