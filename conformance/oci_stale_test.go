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
)

// ociPatience is how long a client may wait for what weir holds, when the
// upstream has nothing to say: below what any client takes for a hang.
const ociPatience = 4500 * time.Millisecond

// ociTroubles are the ways in which an upstream fails, by the name of the
// repository that meets them.
func ociTroubles() map[string]lab.Fault {
	return map[string]lab.Fault{
		"limited":     {Status: 429, Header: http.Header{"Retry-After": {"7"}}},
		"unavailable": {Status: 503},
		"broken":      {Status: 500},
		"gateway":     {Status: 504},
		"teapot":      {Status: 418},
		"login":       {Status: 401},
		"forbidden":   {Status: 403},
		"hanging":     {Hang: true},
	}
}

// ociTrouble makes the upstream's answers about every repository of
// ociTroubles, manifests and blobs, what they say there.
func ociTrouble(b *ociBench) {
	for name, f := range ociTroubles() {
		b.proxy.InjectAt("/library/"+name+"/", f)
	}
}

// TestOCICachedTagInTrouble asks for tags that weir holds and that are no
// longer fresh, while the upstream fails in each way it can: the tag is served,
// soon, and says that it is stale.
func TestOCICachedTagInTrouble(t *testing.T) {
	t.Parallel()
	b := startOCI(t, "")
	blob := lab.Noise("trouble", 100_000)
	manifests := map[string][]byte{}
	for name := range ociTroubles() {
		b.pushBlobs(t, "library/"+name+":1", blob)
		manifests[name] = b.learn(t, "library/"+name, "1").body
		b.ask(t, "GET", "/v2/library/"+name+"/blobs/"+ociDigest(blob)).right(t, "cold", 200, blob)
	}
	ociTrouble(b)
	ociStale(t)
	check := func(t *testing.T, b *ociBench, name, when string) {
		limit := ociPatience
		for _, method := range []string{"GET", "HEAD", "GET"} {
			start := time.Now()
			a := b.ask(t, method, "/v2/library/"+name+"/manifests/1")
			if took := time.Since(start); took > limit {
				t.Errorf("%s, %s: answered after %v", when, method, took)
			}
			limit = time.Second // one may find out that the upstream hangs, once
			body := manifests[name]
			if method == "HEAD" {
				body = nil
			}
			a.right(t, when+", "+method, 200, body)
			if w := a.header.Get("Warning"); !strings.HasPrefix(w, `299 - "`) {
				t.Errorf("%s, %s: Warning %q", when, method, w)
			}
			if cs := a.header.Get("Cache-Status"); !strings.Contains(cs, "fwd=stale") {
				t.Errorf("%s, %s: Cache-Status %q", when, method, cs)
			}
		}
		a := b.ask(t, "GET", "/v2/library/"+name+"/blobs/"+ociDigest(blob))
		a.right(t, when+", blob", 200, blob)
	}
	t.Run("with", func(t *testing.T) {
		for name := range ociTroubles() {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				check(t, b, name, "in trouble")
			})
		}
	})
	b.proxy.Down()
	check(t, b, "broken", "connections refused")
	b.Restart()
	check(t, b, "unavailable", "restarted with connections refused")
}

// TestOCITagComesBack has the upstream limit weir and then answer again: once
// the time it named has passed, weir asks it again and gives what is new.
func TestOCITagComesBack(t *testing.T) {
	t.Parallel()
	b := startOCI(t, "")
	b.pushBlobs(t, "library/back:1", []byte("old"))
	old := b.learn(t, "library/back", "1").body
	b.pushBlobs(t, "library/back:1", []byte("new"))
	b.proxy.Inject(lab.Fault{Status: 429, Header: http.Header{"Retry-After": {"2"}}})
	ociStale(t)
	b.ask(t, "GET", "/v2/library/back/manifests/1").right(t, "limited", 200, old)
	limited := b.proxy.Count("", "/manifests/1")
	for range 5 {
		b.ask(t, "GET", "/v2/library/back/manifests/1").right(t, "limited", 200, old)
	}
	if n := b.proxy.Count("", "/manifests/1"); n > limited {
		t.Errorf("an upstream that said to wait was asked %d times more at once", n-limited)
	}
	b.proxy.Inject()
	lab.Eventually(t, 15*time.Second, "the new manifest", func() error {
		a := b.ask(t, "GET", "/v2/library/back/manifests/1")
		if a.status != 200 || bytes.Equal(a.body, old) {
			return fmt.Errorf("still %d, %s", a.status, a.header.Get("Cache-Status"))
		}
		return nil
	})
}

// TestOCIUncachedInTrouble asks for what weir does not hold while the upstream
// fails: the answer says what is wrong, and is never "there is no such thing".
func TestOCIUncachedInTrouble(t *testing.T) {
	t.Parallel()
	digest := "sha256:" + strings.Repeat("ab", 32)
	// An upstream that fails for most of its repositories is soon not asked any
	// more: those that answer are behind another node.
	failing, answering := startOCI(t, ""), startOCI(t, "")
	ociTrouble(failing)
	ociTrouble(answering)
	// A proxy that is down is the same for manifests and blobs of any name.
	for name, f := range ociTroubles() {
		b := answering
		if f.Hang || f.Status >= 500 {
			b = failing
		}
		for _, path := range []string{"manifests/1", "manifests/" + digest, "blobs/" + digest, "tags/list", "referrers/" + digest} {
			t.Run(name+" "+path, func(t *testing.T) {
				t.Parallel()
				start := time.Now()
				a := b.ask(t, "GET", "/v2/library/"+name+"/"+path)
				if took := time.Since(start); took > 25*time.Second {
					t.Errorf("answered after %v: clients give up at 30 s", took)
				}
				ociCheckTrouble(t, f.Status, a)
			})
		}
	}
}

// ociCheckTrouble fails the test unless a truly says what an upstream's status
// means for what weir does not hold; 0 is no answer at all.
func ociCheckTrouble(t *testing.T, upstream int, a ociAnswer) {
	t.Helper()
	switch upstream {
	case 429:
		a.refused(t, "429", 429, "TOOMANYREQUESTS")
		if after, err := strconv.Atoi(a.header.Get("Retry-After")); err != nil || after < 1 || after > 60 {
			t.Errorf("Retry-After %q, want about 7", a.header.Get("Retry-After"))
		}
	case 401:
		a.refused(t, "401", 401, "UNAUTHORIZED")
	case 403:
		a.refused(t, "403", 403, "DENIED")
	default:
		if a.status != 502 { // an answer that makes no sense
			a.refused(t, fmt.Sprint(upstream), 503)
		}
		if a.header.Get("Retry-After") == "" {
			t.Errorf("%d without Retry-After", a.status)
		}
	}
}

// TestOCIUncachedWithTheUpstreamGone is TestOCIUncachedInTrouble for refused
// connections; and weir starts with the upstream gone.
func TestOCIUncachedWithTheUpstreamGone(t *testing.T) {
	t.Parallel()
	b := startOCI(t, "")
	b.proxy.Down()
	b.Restart()
	start := time.Now()
	digest := "sha256:" + strings.Repeat("ab", 32)
	for _, path := range []string{"manifests/1", "manifests/" + digest, "blobs/" + digest, "tags/list"} {
		a := b.ask(t, "GET", "/v2/library/gone/"+path)
		ociCheckTrouble(t, 0, a)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("four refusals took %v", took)
	}
	b.ask(t, "GET", "/v2/").right(t, "ping", 200, []byte("{}"))
}

// TestOCINotFound asks for what does not exist, and for a tag that is deleted
// upstream: 404 then is the truth.
func TestOCINotFound(t *testing.T) {
	t.Parallel()
	b := startOCI(t, "")
	digest := b.pushBlobs(t, "library/found:1", []byte("a layer"))[0]
	manifest := b.learn(t, "library/found", "1")
	none := "sha256:" + strings.Repeat("cd", 32)
	for path, codes := range map[string][]string{
		"library/found/manifests/2":       {"MANIFEST_UNKNOWN", "NAME_UNKNOWN"},
		"library/found/manifests/" + none: {"MANIFEST_UNKNOWN", "NAME_UNKNOWN"},
		"library/found/blobs/" + none:     {"BLOB_UNKNOWN", "NAME_UNKNOWN"},
		"library/never/manifests/1":       {"MANIFEST_UNKNOWN", "NAME_UNKNOWN"},
		"library/never/tags/list":         {"NAME_UNKNOWN"},
		// The bytes are here, but this repository does not hold them.
		"library/never/blobs/" + digest: {"BLOB_UNKNOWN", "NAME_UNKNOWN"},
		// A blob is not a manifest.
		"library/found/manifests/" + digest: {"MANIFEST_UNKNOWN", "NAME_UNKNOWN"},
	} {
		b.ask(t, "GET", "/v2/"+path).refused(t, path, 404, codes...)
		if a := b.ask(t, "HEAD", "/v2/"+path); a.status != 404 || len(a.body) != 0 {
			t.Errorf("HEAD %s: %d", path, a.status)
		}
	}
	// What exists at the next push is found soon after it.
	b.pushBlobs(t, "library/found:2", []byte("a later layer"))
	lab.Eventually(t, 15*time.Second, "a tag pushed after a 404", func() error {
		if a := b.ask(t, "GET", "/v2/library/found/manifests/2"); a.status != 200 {
			return fmt.Errorf("got %d", a.status)
		}
		return nil
	})

	req, err := http.NewRequest("DELETE", b.registry.URL+"/v2/library/found/manifests/"+manifest.header.Get("Docker-Content-Digest"), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := b.client.Do(req)
	if err != nil || resp.StatusCode != http.StatusAccepted {
		t.Fatalf("delete upstream: %v, %v", resp, err)
	}
	resp.Body.Close()
	lab.Eventually(t, 15*time.Second, "404 for a tag deleted upstream", func() error {
		if a := b.ask(t, "GET", "/v2/library/found/manifests/1"); a.status != 404 {
			return fmt.Errorf("got %d", a.status)
		}
		return nil
	})
	b.proxy.Down()
	b.ask(t, "GET", "/v2/library/found/blobs/"+ociDigest([]byte("a later layer"))) // whatever it says, it must not hang
	if a := b.ask(t, "GET", "/v2/library/found/manifests/1"); a.status == 200 {
		t.Errorf("a tag deleted upstream came back when the upstream was gone")
	}
}
