package origin

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/weir-registry/weir/registry"
)

// Stage implements registry.Store.
func (s *Store) Stage(_ context.Context, expect registry.Descriptor) (registry.Stage, error) {
	h := digest.SHA256.Hash()
	if expect.Digest != "" {
		var err error
		if h, err = registry.NewHash(expect.Digest); err != nil {
			return nil, err
		}
	}
	f, err := os.CreateTemp(s.o.Spool, spoolPrefix+"*")
	if err != nil {
		return nil, spoolFull(err)
	}
	if expect.Size > 0 {
		// Reserve it: better to be told now than in the middle. What the file
		// system cannot do is no failure.
		err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, expect.Size)
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EFBIG) || errors.Is(err, unix.EDQUOT) {
			f.Close()
			os.Remove(f.Name())
			return nil, spoolFull(err)
		}
	}
	return &spool{s: s, expect: expect, hash: h, f: f}, nil
}

func spoolFull(err error) error {
	return registry.Wrap(registry.ErrNoRoom, err, "spool a blob for the origin store")
}

// A spool is a blob on its way into a bucket, in a file.
type spool struct {
	s      *Store
	expect registry.Descriptor
	hash   hash.Hash
	f      *os.File
	n      atomic.Int64 // bytes written
	closed bool
}

var _ registry.FileStage = (*spool)(nil)

// Write implements registry.Stage.
func (p *spool) Write(b []byte) (int, error) {
	n, err := p.f.Write(b)
	p.hash.Write(b[:n])
	p.n.Add(int64(n))
	if err != nil {
		return n, spoolFull(err)
	}
	return n, nil
}

// ReadAt implements registry.Stage.
func (p *spool) ReadAt(b []byte, off int64) (int, error) {
	rest := max(p.n.Load()-off, 0)
	if rest >= int64(len(b)) {
		return p.f.ReadAt(b, off)
	}
	n, err := p.f.ReadAt(b[:rest], off)
	if err == nil {
		err = io.EOF
	}
	return n, err
}

// File implements registry.FileStage; its name in /proc outlives the one in
// the directory.
func (p *spool) File() (*os.File, error) {
	return os.Open("/proc/self/fd/" + strconv.Itoa(int(p.f.Fd())))
}

// Commit implements registry.Stage.
func (p *spool) Commit(ctx context.Context) (registry.Descriptor, error) {
	if p.closed {
		return registry.Descriptor{}, registry.Errorf(registry.ErrInvalid, "commit of a closed stage")
	}
	got := registry.Descriptor{MediaType: p.expect.MediaType, Size: p.n.Load(),
		Digest: registry.Sum(registry.AlgorithmOf(p.expect.Digest), p.hash)}
	if p.expect.Digest != "" && got.Digest != p.expect.Digest {
		return registry.Descriptor{}, registry.Errorf(registry.ErrCorrupt, "content for %s has digest %s", p.expect.Digest, got.Digest)
	}
	if p.expect.Size >= 0 && got.Size != p.expect.Size {
		return registry.Descriptor{}, registry.Errorf(registry.ErrCorrupt, "content for %s has %d bytes where %d were announced",
			got.Digest, got.Size, p.expect.Size)
	}
	if err := p.s.put(ctx, got, p.f); err != nil {
		return registry.Descriptor{}, err
	}
	return got, nil
}

// Close implements registry.Stage.
func (p *spool) Close() error {
	if p.closed {
		return nil
	}
	p.closed = true
	return errors.Join(os.Remove(p.f.Name()), p.f.Close())
}

// watchedAt tells a watch that its file is being read, and fails for bytes
// that have gone from it.
type watchedAt struct {
	f     *os.File
	watch *watch
	limit time.Duration
}

// ReadAt implements io.ReaderAt.
func (r *watchedAt) ReadAt(p []byte, off int64) (int, error) {
	r.watch.again(r.limit)
	n, err := r.f.ReadAt(p, off)
	if err != nil && err != io.EOF {
		return n, fmt.Errorf("read the spooled blob: %w", err)
	}
	return n, err
}
