package origin_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weir-registry/weir/cachetiers/origin"
	"github.com/weir-registry/weir/cachetiers/origin/s3"
	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/registry"
)

// TestSpool: what an earlier run left goes when a store is opened, nothing is
// left by stages of any fate, and what is not the store's own stays.
func TestSpool(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	store, err := origin.NewStore(new(origin.MemoryBucket), origin.StoreOptions{Spool: dir})
	if err != nil {
		t.Fatal(err)
	}
	list := func() []string {
		names, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		return names
	}
	if _, err := commit(store, []byte("whole")); err != nil {
		t.Fatal(err)
	}
	if got := list(); len(got) != 0 {
		t.Errorf("after a commit there is %v", got)
	}
	stage, err := store.Stage(context.Background(), registry.Descriptor{Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer stage.Close()
	if _, err := stage.Write([]byte("half")); err != nil || len(list()) != 1 {
		t.Fatalf("half written: %v, %v", list(), err)
	}
	other := filepath.Join(dir, "notes.txt")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := origin.NewStore(new(origin.MemoryBucket), origin.StoreOptions{Spool: dir}); err != nil {
		t.Fatal(err)
	}
	if got := list(); len(got) != 1 || got[0] != other {
		t.Errorf("after it was opened again there is %v", got)
	}
	_, err = store.Stage(context.Background(), registry.Descriptor{Size: 1 << 60})
	wantKind(t, err, registry.ErrNoRoom, "a blob larger than any disk")
	if got := list(); len(got) != 1 {
		t.Errorf("after that there is %v", got)
	}
	if _, err := origin.NewStore(new(origin.MemoryBucket), origin.StoreOptions{Spool: other}); err == nil {
		t.Error("a file was taken for a directory")
	}
}

// trickle is a bucket whose bodies and Puts move a byte a pause.
type trickle struct {
	origin.MemoryBucket
	pause time.Duration
}

func (b *trickle) Get(ctx context.Context, key string, offset, length int64) (origin.Object, error) {
	o, err := b.MemoryBucket.Get(ctx, key, offset, length)
	o.Body = io.NopCloser(&slowReader{ctx, o.Body, b.pause})
	return o, err
}

func (b *trickle) Put(ctx context.Context, key string, content io.ReaderAt, size int64) error {
	for i := range size {
		content.ReadAt(make([]byte, 1), i)
		if err := pause(ctx, b.pause); err != nil {
			return err
		}
	}
	return b.MemoryBucket.Put(ctx, key, content, size)
}

type slowReader struct {
	ctx   context.Context
	r     io.Reader
	pause time.Duration
}

func (r *slowReader) Read(p []byte) (int, error) {
	if err := pause(r.ctx, r.pause); err != nil {
		return 0, err
	}
	return r.r.Read(p[:1])
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// TestTimeLimits are about progress: what is slow goes on, what is silent ends,
// and a reader that takes its time is no silence.
func TestTimeLimits(t *testing.T) {
	data := conformance.Bytes(1, 100)
	for _, c := range []struct {
		pause    time.Duration
		ok       bool
		put, get time.Duration
	}{
		{14 * time.Second, true, 1400 * time.Second, 1400 * time.Second},
		{16 * time.Second, false, 1600 * time.Second, 15 * time.Second},
		{61 * time.Second, false, 60 * time.Second, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			b := &trickle{pause: c.pause}
			store := newStore(t, b)
			start := time.Now()
			d, err := commit(store, data)
			if took := time.Since(start); took != c.put || (err == nil) != (c.pause < time.Minute) {
				t.Errorf("put with pauses of %v: %v after %v", c.pause, err, took)
			}
			if c.get == 0 {
				wantKind(t, err, registry.ErrUnavailable, "a put that stops")
				return
			}
			start = time.Now()
			got, err := read(store, d, 0, -1)
			if took := time.Since(start); took != c.get || (err == nil) != c.ok || c.ok && !bytes.Equal(got, data) {
				t.Errorf("get with pauses of %v: %v after %v", c.pause, err, took)
			}
			if !c.ok {
				wantKind(t, err, registry.ErrUnavailable, "a body that stops")
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		store := newStore(t, &trickle{pause: time.Millisecond})
		d, err := commit(store, data)
		if err != nil {
			t.Fatal(err)
		}
		b, err := store.Open(context.Background(), registry.Want{Descriptor: d, Length: -1})
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		got := make([]byte, 100)
		for i := range 100 {
			if _, err := io.ReadFull(b, got[i:i+1]); err != nil {
				t.Fatalf("after %d bytes: %v", i, err)
			}
			pass(time.Hour) // a client on a very slow line
		}
		if !bytes.Equal(got, data) {
			t.Error("wrong bytes")
		}
	})
	synctest.Test(t, func(t *testing.T) {
		b := new(moody)
		b.hang.Store(true)
		start := time.Now()
		_, err := read(newStore(t, b), conformance.Describe("", data), 0, -1)
		wantKind(t, err, registry.ErrUnavailable, "no answer")
		if took := time.Since(start); took != 20*time.Second {
			t.Errorf("gave up after %v", took)
		}
	})
}

// badServer answers every GET of S3's kind with what answer does.
func badServer(t *testing.T, answer http.HandlerFunc) (*origin.Store, *httptest.Server) {
	t.Helper()
	server := httptest.NewServer(answer)
	t.Cleanup(server.Close)
	for _, env := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} {
		t.Setenv(env, "not-secret")
	}
	b, err := s3.Open(context.Background(), "s3://weir-blobs?endpoint="+server.URL, s3.Options{Backoff: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return newStore(t, b), server
}

// TestServersThatLie: ranges that are not what was asked for are refused.
func TestServersThatLie(t *testing.T) {
	data := conformance.Bytes(1, 1000)
	d := conformance.Describe("", data)
	var header string
	var status int
	store, _ := badServer(t, func(w http.ResponseWriter, r *http.Request) {
		if header != "" {
			w.Header().Set("Content-Range", header)
		}
		w.Header().Set("Content-Length", "1000")
		w.WriteHeader(status)
		w.Write(data)
	})
	for _, c := range []struct {
		status         int
		header         string
		offset, length int64
		kind           error
	}{
		{200, "", 0, -1, nil},
		{200, "", 0, 10, nil}, // ignores ranges, and the run is its beginning
		{200, "", 10, 10, registry.ErrUnavailable},
		{206, "bytes 0-999/1000", 10, 10, registry.ErrUnavailable},
		{206, "bytes 10-19/1001", 10, 10, registry.ErrCorrupt},
		{206, "bytes 10-19/*", 10, 10, registry.ErrUnavailable},
		{206, "nonsense", 10, 10, registry.ErrUnavailable},
	} {
		header, status = c.header, c.status
		got, err := read(store, d, c.offset, c.length)
		wantKind(t, err, c.kind, fmt.Sprintf("%d %q for [%d,+%d]", c.status, c.header, c.offset, c.length))
		if err == nil && !bytes.Equal(got, data[:len(got)]) || c.length == 10 && err == nil && len(got) != 10 {
			t.Errorf("%d bytes for [%d,+%d]", len(got), c.offset, c.length)
		}
	}
}

// TestStreamsAreConnections: runs that are read at once do not share a
// connection, whose rate may be limited, and later ones use them again.
func TestStreamsAreConnections(t *testing.T) {
	data := conformance.Bytes(1, 1000)
	d := conformance.Describe("", data)
	var mu sync.Mutex
	from := map[string]bool{}
	arrived := make(chan struct{}, 8)
	release := make(chan struct{})
	store, _ := badServer(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		from[r.RemoteAddr] = true
		mu.Unlock()
		arrived <- struct{}{}
		<-release
		w.Header().Set("Content-Length", "1000")
		w.Write(data)
	})
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			if _, err := read(store, d, 0, -1); err != nil {
				t.Error(err)
			}
		})
	}
	for range 8 {
		<-arrived
	}
	close(release)
	group.Wait()
	for range 8 {
		if _, err := read(store, d, 0, -1); err != nil {
			t.Error(err)
		}
		<-arrived
	}
	if len(from) != 8 {
		t.Errorf("%d connections for 8 streams at once and 8 after them", len(from))
	}
}
