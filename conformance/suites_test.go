package conformance_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/registry"
)

// TestUpstreamFake holds the authority in memory to the contract it stands in
// for.
func TestUpstreamFake(t *testing.T) {
	conformance.TestUpstream(t, func(t *testing.T) conformance.UpstreamFixture {
		u := new(conformance.Upstream)
		t.Cleanup(func() { u.Verify(t) })
		name := registry.Name{Space: "oci", Repo: "docker.io/library/alpine", Ref: "3"}
		doc, data := []byte(`{"schemaVersion":2}`), conformance.Bytes(1, 100_000)
		u.Put(name, "application/json", doc)
		d := u.PutBlob(data)
		missing := name
		missing.Ref = "none"
		return conformance.UpstreamFixture{
			Upstream: u, Name: name, Doc: doc, MediaType: "application/json",
			Change: func() []byte {
				changed := []byte(`{"schemaVersion":2,"changed":true}`)
				u.Put(name, "application/json", changed)
				return changed
			},
			Missing: missing,
			Blob:    registry.Want{Descriptor: d, From: name, Length: -1}, Data: data,
			Lost: registry.Want{Descriptor: conformance.Describe("", []byte("lost")), From: name, Length: -1},
			Fail: func(kind error) {
				u.SetScript(func(conformance.Op) conformance.Fault {
					if kind == nil {
						return conformance.Fault{}
					}
					return conformance.Fault{Err: &registry.Error{Kind: kind, Text: "scripted", After: 7e9}}
				})
			},
			Hang: func() { u.SetScript(func(conformance.Op) conformance.Fault { return conformance.Fault{Hang: true} }) },
			Cut: func(n int) {
				u.SetScript(func(conformance.Op) conformance.Fault { return conformance.Fault{Cut: int64(n)} })
			},
			Bytes: u.Bytes,
		}
	})
}

// TestUpstreamFaults shows what a script can do.
func TestUpstreamFaults(t *testing.T) {
	var u conformance.Upstream
	defer u.Verify(t)
	data := conformance.Bytes(2, 1000)
	name := registry.Name{Space: "npm", Repo: "a"}
	want := registry.Want{Descriptor: u.PutBlob(data), From: name, Length: -1}
	read := func(f conformance.Fault) ([]byte, error) {
		u.SetScript(func(conformance.Op) conformance.Fault { return f })
		b, err := u.Open(context.Background(), want)
		if err != nil {
			return nil, err
		}
		defer b.Close()
		return io.ReadAll(b)
	}
	if got, err := read(conformance.Fault{Short: 10}); err != nil || !bytes.Equal(got, data[:10]) {
		t.Errorf("short: %d bytes, %v", len(got), err)
	}
	if got, err := read(conformance.Fault{Cut: 10}); !errors.Is(err, registry.ErrUnavailable) || len(got) != 10 {
		t.Errorf("cut: %d bytes, %v", len(got), err)
	}
	if got, err := read(conformance.Fault{Flip: 10}); err != nil || got[9] == data[9] || !bytes.Equal(got[10:], data[10:]) {
		t.Errorf("flip: %v", err)
	}
	gate := make(chan struct{}, 2)
	gate <- struct{}{}
	gate <- struct{}{}
	u.SetScript(func(conformance.Op) conformance.Fault { return conformance.Fault{Gate: gate, Chunk: 100} })
	b, err := u.Open(context.Background(), want)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	got := make([]byte, 1000)
	if n, err := io.ReadFull(b, got[:200]); n != 200 || err != nil {
		t.Errorf("two chunks of 100: %d, %v", n, err)
	}
	close(gate)
	if _, err := io.ReadFull(b, got[200:]); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the rest after the gate opened: %v", err)
	}
	if u.Opens() != 4 || u.Opened(want.Digest) != 4 || u.Bodies() != 4 || u.Resolves() != 0 || u.Bytes() != 10+10+1000+1000 {
		t.Errorf("counted %d opens and %d bytes", u.Opens(), u.Bytes())
	}
}

// plain is the simplest Store there can be: the suite's own yardstick.
type plain struct {
	blobs chan map[digest.Digest][]byte // of one element, so that it locks
}

func newPlain() *plain {
	p := &plain{blobs: make(chan map[digest.Digest][]byte, 1)}
	p.blobs <- map[digest.Digest][]byte{}
	return p
}

func (p *plain) Open(_ context.Context, w registry.Want) (registry.Blob, error) {
	blobs := <-p.blobs
	data, ok := blobs[w.Digest]
	p.blobs <- blobs
	if !ok {
		return nil, registry.Errorf(registry.ErrNotFound, "no %s", w.Digest)
	}
	offset, length, ok := w.Clip(int64(len(data)))
	if !ok {
		return nil, registry.Errorf(registry.ErrInvalid, "offset %d", w.Offset)
	}
	w.Size = int64(len(data))
	return registry.NewBytesBlob(data, w.Descriptor, offset, length, registry.Via{}), nil
}

func (p *plain) Stage(_ context.Context, expect registry.Descriptor) (registry.Stage, error) {
	if expect.Digest != "" && !registry.ValidDigest(expect.Digest) {
		return nil, registry.Errorf(registry.ErrInvalid, "digest %q", expect.Digest)
	}
	s := &plainStage{p: p, expect: expect, data: make(chan []byte, 1)}
	s.data <- nil
	return s, nil
}

type plainStage struct {
	p      *plain
	expect registry.Descriptor
	data   chan []byte
	closed bool
}

func (s *plainStage) Write(b []byte) (int, error) {
	s.data <- append(<-s.data, b...)
	return len(b), nil
}

func (s *plainStage) ReadAt(b []byte, off int64) (int, error) {
	data := <-s.data
	defer func() { s.data <- data }()
	return bytes.NewReader(data).ReadAt(b, off)
}

func (s *plainStage) Commit(context.Context) (registry.Descriptor, error) {
	data := <-s.data
	defer func() { s.data <- data }()
	probe := s.expect.Digest
	if probe == "" {
		probe = digest.FromBytes(nil)
	}
	h, err := registry.NewHash(probe)
	if err != nil || s.closed {
		return registry.Descriptor{}, registry.Errorf(registry.ErrInvalid, "closed, or %v", err)
	}
	h.Write(data)
	d := registry.Descriptor{Digest: registry.Sum(registry.AlgorithmOf(probe), h), Size: int64(len(data))}
	if s.expect.Digest != "" && d.Digest != s.expect.Digest || s.expect.Size >= 0 && d.Size != s.expect.Size {
		return registry.Descriptor{}, registry.Errorf(registry.ErrCorrupt, "got %+v, want %+v", d, s.expect)
	}
	blobs := <-s.p.blobs
	blobs[d.Digest] = bytes.Clone(data)
	s.p.blobs <- blobs
	return d, nil
}

func (s *plainStage) Close() error { s.closed = true; return nil }

func TestStorePlain(t *testing.T) {
	conformance.TestStore(t, func(*testing.T) registry.Store { return newPlain() })
}
