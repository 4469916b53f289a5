package conformance_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/lab"
)

// TestOCIGracefulStop asks weir to stop while a blob is going out: the client
// gets all of it, new ones are not let in, and weir ends with status 0.
func TestOCIGracefulStop(t *testing.T) {
	t.Parallel()
	b := startOCI(t, "")
	blob := lab.Noise("graceful", 24*mib)
	path := "/v2/library/graceful/blobs/" + b.pushBlobs(t, "library/graceful:1", blob)[0]
	b.learn(t, "library/graceful", "1")
	b.proxy.Inject(lab.Fault{Path: "/blobs/", Rate: 12 * mib})
	first := make(chan struct{})
	var client sync.WaitGroup
	client.Go(func() {
		defer func() {
			select {
			case <-first:
			default:
				close(first)
			}
		}()
		resp, err := b.client.Get(b.URL + path)
		if err != nil {
			t.Error(err)
			return
		}
		defer resp.Body.Close()
		got := make([]byte, len(blob))
		if _, err := io.ReadFull(resp.Body, got[:1]); err != nil {
			t.Error(err)
			return
		}
		close(first)
		if n, err := io.ReadFull(resp.Body, got[1:]); err != nil || ociDigest(got) != ociDigest(blob) {
			t.Errorf("stopped after %d bytes: %v", n, err)
		}
	})
	<-first
	if err := syscall.Kill(b.Pid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	lab.Eventually(t, 5*time.Second, "new connections to be refused", func() error {
		c, err := net.Dial("tcp", b.Addr)
		if err == nil {
			c.Close()
			return errors.New("it still listens")
		}
		return nil
	})
	client.Wait()
	select {
	case <-b.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("it runs on with nothing to do")
	}
	if code := b.ExitCode(); code != 0 {
		t.Errorf("ended with status %d\n%s", code, b.Log())
	}
	b.proxy.Down()
	b.Start()
	b.ask(t, "GET", path).right(t, "after the stop", 200, blob)
}

// TestOCIObservable checks what operators and the tests of others rely on: the
// metrics by name, Cache-Status for each way an answer comes about, a request's
// id in the log, and the health address.
func TestOCIObservable(t *testing.T) {
	t.Parallel()
	b := startOCI(t, "")
	blob := lab.Noise("observable", 5*mib)
	small := []byte("a small layer")
	digests := b.pushBlobs(t, "library/seen:1", blob, small)
	status := func(path string) string {
		t.Helper()
		a := b.ask(t, "GET", path)
		if a.status != 200 {
			t.Errorf("%s: %d", path, a.status)
		}
		return a.header.Get("Cache-Status")
	}
	for _, c := range []struct{ path, want string }{
		{"/v2/library/seen/manifests/1", "weir; fwd=miss"},
		{"/v2/library/seen/manifests/1", "weir; hit"},
		{"/v2/library/seen/blobs/" + digests[0], "weir; fwd=miss"},
		{"/v2/library/seen/blobs/" + digests[0], "weir; hit; detail=disk"},
		{"/v2/library/seen/blobs/" + digests[1], "weir; fwd=miss"},
		{"/v2/library/seen/blobs/" + digests[1], "weir; hit; detail=memory"},
	} {
		if got := status(c.path); !strings.HasPrefix(got, c.want) {
			t.Errorf("%s: Cache-Status %q, want %q", c.path, got, c.want)
		}
	}
	a := b.ask(t, "GET", "/v2/library/seen/manifests/none")
	id := a.header.Get("X-Request-Id")
	if id == "" {
		t.Errorf("no X-Request-Id: %v", a.header)
	}
	lab.Eventually(t, 5*time.Second, "the request's id in the log", func() error {
		if !strings.Contains(b.Log(), id) {
			return fmt.Errorf("%s is not in the log", id)
		}
		return nil
	})
	for name, least := range map[string]float64{
		"weir_requests_total": 7, "weir_request_seconds_count": 7, "weir_tier_hits_total": 2, "weir_upstream_requests_total": 3,
	} {
		if got := b.Metric(name); got < least {
			t.Errorf("%s is %v, want %v or more", name, got, least)
		}
	}
	if got := b.Metric("weir_upstream_requests_total", `upstream="docker.io"`, `code="404"`); got < 1 {
		t.Errorf("the upstream's 404 is not counted: %v", got)
	}
	metrics := b.Metrics()
	for _, name := range []string{"weir_tier_bytes", "weir_fills_active", "weir_collapsed_total"} {
		if !strings.Contains(metrics, "\n"+name) {
			t.Errorf("there is no metric %s", name)
		}
	}
	for _, path := range []string{"/healthz", "/readyz"} {
		resp, err := http.Get("http://" + b.Ops + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 200 {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
}
