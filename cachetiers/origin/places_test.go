package origin_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weir-registry/weir/cachetiers/origin"
	"github.com/weir-registry/weir/cachetiers/origin/gcs"
	"github.com/weir-registry/weir/cachetiers/origin/s3"
	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/conformance/lab"
	"github.com/weir-registry/weir/registry"
)

// bucketName is the one that every place has.
const bucketName = "weir-blobs"

// A place is where buckets are.
type place struct {
	name string
	// open is a bucket under a prefix of its own, by way of proxy if there is
	// one; each object of more than 5 MiB is put in parts.
	open func(t *testing.T) origin.Bucket
	// at is the same in another bucket.
	at    func(t *testing.T, bucket string) origin.Bucket
	proxy *lab.Proxy // nil: nothing is in between
	// spoil puts wrong bytes under a key.
	spoil func(t *testing.T, b origin.Bucket, key string, data []byte)
	// slow is how this place says that it is asked too often, full, that no
	// room is left.
	slow, full lab.Fault
}

// places are one of each kind. With servers they take some tenths of a second
// to start, so tests share what one function has started.
func places(t *testing.T) []place {
	return []place{memoryPlace(), s3Place(t), gcsPlace(t)}
}

// prefixes makes each bucket's prefix another.
type prefixes struct{ n atomic.Int64 }

func (p *prefixes) next() string { return fmt.Sprintf("prefix/%d", p.n.Add(1)) }

func memoryPlace() place {
	return place{name: "memory",
		open: func(*testing.T) origin.Bucket { return new(origin.MemoryBucket) },
		spoil: func(_ *testing.T, b origin.Bucket, key string, data []byte) {
			b.(*origin.MemoryBucket).Spoil(key, data)
		}}
}

// putWrong is how those spoil who have the bucket's credentials.
func putWrong(t *testing.T, b origin.Bucket, key string, data []byte) {
	t.Helper()
	if err := b.Delete(context.Background(), key); err != nil {
		t.Fatal(err)
	}
	if err := b.Put(context.Background(), key, bytes.NewReader(data), int64(len(data))); err != nil {
		t.Fatal(err)
	}
}

// s3Place starts a real S3 server, which keeps objects as files, and a proxy
// in front of it.
func s3Place(t *testing.T) place {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, bucketName), 0o755); err != nil {
		t.Fatal(err)
	}
	addr := lab.FreeAddr(t)
	server := lab.Start(t, lab.Command{Path: lab.Tool(t, "versitygw"), Args: []string{"--access", "weir", "--secret", "not-secret",
		"--port", addr, "--keep-alive", "--quiet", "posix", dir}})
	t.Setenv("AWS_ACCESS_KEY_ID", "weir")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "not-secret")
	t.Setenv("AWS_CONFIG_FILE", "/dev/null")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	proxy := lab.StartProxy(t, "http://"+addr)
	prefix := &prefixes{}
	at := func(t *testing.T, bucket string) origin.Bucket {
		t.Helper()
		b, err := s3.Open(context.Background(), "s3://"+bucket+"/"+prefix.next()+"?endpoint="+proxy.URL, s3.Options{Part: 5 << 20, Backoff: 20 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { b.Close() })
		return b
	}
	waitFor(t, server, addr)
	return place{name: "s3", proxy: proxy, at: at, spoil: putWrong,
		open: func(t *testing.T) origin.Bucket { return at(t, bucketName) },
		slow: lab.Fault{Status: 503, Body: s3Error("SlowDown"), Header: http.Header{"Retry-After": {"7"}}},
		full: lab.Fault{Status: 507, Body: s3Error("QuotaExceeded")}}
}

func s3Error(code string) string {
	return `<?xml version="1.0" encoding="UTF-8"?><Error><Code>` + code + `</Code><Message>injected</Message></Error>`
}

// gcsPlace starts the emulator that Google's storage library is tested
// against too, and a proxy in front of it.
func gcsPlace(t *testing.T) place {
	t.Helper()
	addr := lab.FreeAddr(t)
	proxy := lab.StartProxy(t, "http://"+addr)
	host, port, _ := strings.Cut(addr, ":")
	server := lab.Start(t, lab.Command{Path: lab.Tool(t, "fake-gcs-server"), Args: []string{"-backend", "memory", "-scheme", "http",
		"-host", host, "-port", port, "-external-url", proxy.URL, "-public-host", proxy.Addr, "-log-level", "warn"}})
	waitFor(t, server, addr)
	resp, err := http.Post("http://"+addr+"/storage/v1/b?project=weir", "application/json", strings.NewReader(`{"name":"`+bucketName+`"}`))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("make a bucket: %s", resp.Status)
	}
	prefix := &prefixes{}
	at := func(t *testing.T, bucket string) origin.Bucket {
		t.Helper()
		b, err := gcs.Open(context.Background(), "gs://"+bucket+"/"+prefix.next()+"?endpoint="+proxy.URL+"/storage/v1/", gcs.Options{Chunk: 1 << 20, Backoff: 20 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { b.Close() })
		return b
	}
	return place{name: "gcs", proxy: proxy, at: at, spoil: putWrong,
		open: func(t *testing.T) origin.Bucket { return at(t, bucketName) },
		slow: lab.Fault{Status: 429, Body: gcsError(429, "rateLimitExceeded"), Header: http.Header{"Retry-After": {"7"}}},
		full: lab.Fault{Status: 403, Body: gcsError(403, "quotaExceeded")}}
}

func gcsError(status int, reason string) string {
	return fmt.Sprintf(`{"error":{"code":%d,"message":"injected","errors":[{"reason":%q,"message":"injected"}]}}`, status, reason)
}

func waitFor(t *testing.T, server *lab.Process, addr string) {
	t.Helper()
	lab.Eventually(t, 20*time.Second, "a server on "+addr, func() error {
		if !server.Running() {
			t.Fatalf("it ended:\n%s", server.Log())
		}
		resp, err := http.Get("http://" + addr + "/")
		if err == nil {
			resp.Body.Close()
		}
		return err
	})
}

// newStore is a store in b.
func newStore(t *testing.T, b origin.Bucket) *origin.Store {
	t.Helper()
	s, err := origin.NewStore(b, origin.StoreOptions{Spool: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// commit stages data in store and commits it.
func commit(store registry.Store, data []byte) (registry.Descriptor, error) {
	d := conformance.Describe("", data)
	stage, err := store.Stage(context.Background(), d)
	if err != nil {
		return d, err
	}
	defer stage.Close()
	if _, err := stage.Write(data); err != nil {
		return d, err
	}
	return stage.Commit(context.Background())
}

// read opens and reads a run of d.
func read(src registry.Source, d registry.Descriptor, offset, length int64) ([]byte, error) {
	b, err := src.Open(context.Background(), registry.Want{Descriptor: d, Offset: offset, Length: length})
	if err != nil {
		return nil, err
	}
	defer b.Close()
	return io.ReadAll(b)
}

// keyOf is where a store keeps d.
func keyOf(d registry.Descriptor) string {
	hex := d.Digest.Encoded()
	return "blobs/sha256/" + hex[:2] + "/" + hex
}

func wantKind(t *testing.T, err, kind error, what string) {
	t.Helper()
	if registry.KindOf(err) != kind {
		t.Errorf("%s: %v, want kind %v", what, err, kind)
	}
}
