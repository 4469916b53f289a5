// Package gcs is a bucket of Google Cloud Storage, or of its emulator.
package gcs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"cloud.google.com/go/storage"
	"github.com/googleapis/gax-go/v2"
	"google.golang.org/api/googleapi"
	"google.golang.org/api/option"
	htransport "google.golang.org/api/transport/http"

	"github.com/weir-registry/weir/cachetiers/origin"
	"github.com/weir-registry/weir/registry"
)

const (
	// Scheme is what addresses of such buckets begin with, before "://".
	Scheme = "gs"
	// attempts is how often the library asks in all.
	attempts = 3
	// chunkRetry is for how long the library tries to send one chunk.
	chunkRetry = 30 * time.Second
)

// Options are a Bucket's settings; the zero value is right.
type Options struct {
	// Chunk is how many bytes of an object are sent at once, a multiple of
	// 256 KiB; each Put has so much memory. 0: 8 MiB.
	Chunk int
	// Backoff is the longest pause between the library's attempts; 0: 2 s.
	Backoff time.Duration
}

// A Bucket is an origin.Bucket in Google Cloud Storage. A Get is one request
// on a connection of its own while it runs; if it breaks off the library opens
// it again where it was. The library asks three times in all if it gets no
// answer, or one that says to try again.
type Bucket struct {
	client    *storage.Client
	transport *origin.Transport
	handle    *storage.BucketHandle
	addr      origin.Address
	o         Options
	present   origin.Presence
}

var _ origin.Bucket = (*Bucket)(nil)

// parse is Check's work.
func parse(text string) (a origin.Address, endpoint string, err error) {
	if a, err = origin.ParseAddress(text, Scheme, "endpoint"); err != nil {
		return a, "", err
	}
	if endpoint, err = a.Endpoint(); endpoint != "" && !strings.HasSuffix(endpoint, "/") {
		endpoint += "/"
	}
	return a, endpoint, err
}

// Check finds what is wrong with an address, without touching anything.
func Check(text string) error {
	_, _, err := parse(text)
	return err
}

// Open is the bucket at an address:
//
//	gs://bucket/prefix?endpoint=http://127.0.0.1:4443/storage/v1/
//
// endpoint may be left out; it is a server other than Google's, which is sent
// no credentials if it is plain http. Credentials are found as Google's own
// programs find them: GOOGLE_APPLICATION_CREDENTIALS, the shared file, the
// machine's service account. The bucket itself is not asked for anything. The
// caller closes the Bucket.
func Open(ctx context.Context, address string, o Options) (*Bucket, error) {
	a, endpoint, err := parse(address)
	if err != nil {
		return nil, err
	}
	if o.Chunk <= 0 {
		o.Chunk = 8 << 20
	}
	if o.Backoff <= 0 {
		o.Backoff = 2 * time.Second
	}
	b := &Bucket{transport: origin.NewTransport(), addr: a, o: o}
	auth := []option.ClientOption{option.WithScopes(storage.ScopeReadWrite)}
	plain := strings.HasPrefix(endpoint, "http://")
	if plain {
		auth = []option.ClientOption{option.WithoutAuthentication()}
	}
	through, err := htransport.NewTransport(ctx, b.transport, auth...)
	if err != nil {
		return nil, fmt.Errorf("%s: no credentials of Google's on this machine; set GOOGLE_APPLICATION_CREDENTIALS: %w", b, err)
	}
	with := []option.ClientOption{option.WithHTTPClient(&http.Client{Transport: through}), storage.WithJSONReads()}
	if plain {
		with = append(with, option.WithoutAuthentication())
	}
	if endpoint != "" {
		with = append(with, option.WithEndpoint(endpoint))
	}
	if b.client, err = storage.NewClient(ctx, with...); err != nil {
		return nil, fmt.Errorf("%s: %w", b, err)
	}
	b.client.SetRetry(storage.WithMaxAttempts(attempts),
		storage.WithBackoff(gax.Backoff{Initial: min(100*time.Millisecond, o.Backoff), Max: o.Backoff, Multiplier: 2}))
	b.handle = b.client.Bucket(a.Bucket)
	return b, nil
}

// String implements origin.Bucket.
func (b *Bucket) String() string { return b.addr.String() }

// Close closes the connections that nobody uses.
func (b *Bucket) Close() error {
	err := b.client.Close()
	b.transport.CloseIdleConnections()
	return err
}

func (b *Bucket) object(key string) *storage.ObjectHandle {
	return b.handle.Object(b.addr.Prefix + key)
}

// Get implements origin.Bucket.
func (b *Bucket) Get(ctx context.Context, key string, offset, length int64) (origin.Object, error) {
	if length < 0 {
		length = -1
	}
	r, err := b.object(key).NewRangeReader(ctx, offset, length)
	if err != nil {
		return origin.Object{}, b.trouble(ctx, err, "get "+key)
	}
	if r.Attrs.StartOffset != offset {
		r.Close()
		return origin.Object{}, &registry.Error{Kind: registry.ErrUnavailable,
			Text: fmt.Sprintf("get %s: asked for bytes from %d on, given them from %d on", key, offset, r.Attrs.StartOffset)}
	}
	return origin.Object{Size: r.Attrs.Size, Body: r}, nil
}

// Stat implements origin.Bucket.
func (b *Bucket) Stat(ctx context.Context, key string) (int64, error) {
	attrs, err := b.object(key).Attrs(ctx)
	if err != nil {
		return 0, b.trouble(ctx, err, "look at "+key)
	}
	return attrs.Size, nil
}

// Delete implements origin.Bucket.
func (b *Bucket) Delete(ctx context.Context, key string) error {
	// By the generation it has now, so that the library may ask again.
	attrs, err := b.object(key).Attrs(ctx)
	if err == nil {
		err = b.object(key).If(storage.Conditions{GenerationMatch: attrs.Generation}).Delete(ctx)
	}
	if err = b.trouble(ctx, err, "delete "+key); registry.KindOf(err) == registry.ErrNotFound {
		return nil
	}
	return err
}

// Put implements origin.Bucket, in chunks of one resumable write. The library
// sends a checksum along, so that what was damaged on the way is refused. It
// is done on condition that nothing is there, or what is there is of another
// size, which makes it safe to try again when an answer was lost.
func (b *Bucket) Put(ctx context.Context, key string, content io.ReaderAt, size int64) error {
	o := b.object(key)
	err := b.write(ctx, o.If(storage.Conditions{DoesNotExist: true}), content, size)
	if !taken(err) {
		return b.trouble(ctx, err, "put "+key)
	}
	attrs, err := o.Attrs(ctx)
	if err != nil {
		return b.trouble(ctx, err, "look at "+key)
	}
	if attrs.Size == size {
		return nil
	}
	err = b.write(ctx, o.If(storage.Conditions{GenerationMatch: attrs.Generation}), content, size)
	return b.trouble(ctx, err, "put "+key)
}

// taken reports whether err says that the condition did not hold.
func taken(err error) bool {
	var api *googleapi.Error
	return errors.As(err, &api) && api.Code == http.StatusPreconditionFailed
}

func (b *Bucket) write(ctx context.Context, o *storage.ObjectHandle, content io.ReaderAt, size int64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// For writes the library counts no attempts: without this it would go on
	// until ctx ends, and then not tell why.
	var failed atomic.Int32 // since there was progress
	w := o.Retryer(storage.WithErrorFunc(func(err error) bool {
		return worthwhile(err) && failed.Add(1) < attempts
	})).NewWriter(ctx)
	w.ProgressFunc = func(int64) { failed.Store(0) }
	w.ChunkSize, w.ChunkRetryDeadline, w.ContentType = b.o.Chunk, chunkRetry, "application/octet-stream"
	n, err := io.Copy(w, io.NewSectionReader(content, 0, size))
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		cancel() // before Close, which would make an object of what was sent
		if closing := w.Close(); taken(closing) {
			return closing
		}
		return err
	}
	return w.Close()
}

// worthwhile reports whether asking again may help; a full bucket stays full.
func worthwhile(err error) bool {
	var api *googleapi.Error
	return storage.ShouldRetry(err) && !(errors.As(err, &api) && api.Code == http.StatusInsufficientStorage)
}

// trouble is err as a failure of one of registry's kinds.
func (b *Bucket) trouble(ctx context.Context, err error, doing string) error {
	if err == nil {
		return nil
	}
	t := b.read(err)
	if t.Status != http.StatusNotFound || t.Code == "NoSuchBucket" || t.Code == "NoSuchKey" {
		return t.Error(doing)
	}
	absent := &registry.Error{Kind: registry.ErrNotFound, Text: doing, Err: err}
	return b.present.Missing(ctx, absent, func(ctx context.Context) error {
		_, err := b.handle.Attrs(ctx)
		if err == nil {
			return nil
		}
		switch t := b.read(err); t.Status {
		case http.StatusForbidden, http.StatusUnauthorized:
			return nil // it is there, and may not be looked at
		case http.StatusNotFound:
			t.Code = "NoSuchBucket"
			return t.Error("look for " + b.String())
		default:
			return t.Error("look for " + b.String())
		}
	})
}

// read takes an error of the library apart.
func (b *Bucket) read(err error) origin.Trouble {
	t := origin.Trouble{Err: err}
	var api *googleapi.Error
	if !errors.As(err, &api) {
		if errors.Is(err, storage.ErrObjectNotExist) || errors.Is(err, storage.ErrBucketNotExist) {
			t.Status = http.StatusNotFound
		}
		return t
	}
	t.Status, t.Header = api.Code, api.Header
	if len(api.Errors) > 0 {
		t.Code = api.Errors[0].Reason
	}
	if api.Code == http.StatusNotFound {
		switch text := api.Message + api.Body; {
		case strings.Contains(text, "bucket does not exist"):
			t.Code = "NoSuchBucket"
		case strings.Contains(text, "No such object"):
			t.Code = "NoSuchKey"
		}
	}
	return t
}
