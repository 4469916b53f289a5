package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/weir-registry/weir/registry"
)

// An UpstreamFixture is an implementation of registry.Upstream together with
// the authority that it asks, so that the suite can make that one misbehave.
// All of it must be set.
type UpstreamFixture struct {
	Upstream registry.Upstream
	// Name stands for the document Doc of media type MediaType.
	Name      registry.Name
	Doc       []byte
	MediaType string
	// Change makes Name stand for other bytes, which it returns.
	Change func() []byte
	// Missing is a name of which the authority says that there is none.
	Missing registry.Name
	// Blob says how the bytes Data are asked for: all of them, with the From,
	// Location and Descriptor that a document would give.
	Blob registry.Want
	Data []byte
	// Lost asks for a blob of which the authority says that there is none.
	Lost registry.Want
	// Fail makes the authority answer every question with what means the kind
	// (ErrUnauthenticated, ErrDenied, ErrLimited with a time of 7 seconds, or
	// ErrUnavailable); with nil it answers well again.
	Fail func(kind error)
	// Hang makes the authority take questions and not answer them, until the
	// end of the test.
	Hang func()
	// Cut makes the authority break off every body after n bytes.
	Cut func(n int)
	// Bytes is how many bytes of bodies the authority has given so far.
	Bytes func() int64
}

// TestUpstream checks what registry.Upstream promises. fresh returns a fixture
// of its own for each case and closes it by t.Cleanup.
func TestUpstream(t *testing.T, fresh func(t *testing.T) UpstreamFixture) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, f UpstreamFixture)
	}{
		{"ResolveFirst", resolveFirst},
		{"ResolveUnchanged", resolveUnchanged},
		{"ResolveChanged", resolveChanged},
		{"ResolveMissing", resolveMissing},
		{"FailuresAreTruthful", failuresAreTruthful},
		{"FailuresHeal", failuresHeal},
		{"OpenWhole", openWhole},
		{"OpenRanges", openRanges},
		{"OpenPastTheEnd", openPastTheEnd},
		{"OpenDescriptor", openDescriptor},
		{"OpenLost", openLost},
		{"OpenCut", openCut},
		{"HangEndsWithContext", hangEndsWithContext},
		{"CloseEarly", closeEarly},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := fresh(t)
			if f.Upstream == nil || f.Change == nil || f.Fail == nil || f.Hang == nil || f.Cut == nil || f.Bytes == nil ||
				len(f.Doc) == 0 || len(f.Data) < 1000 || f.Blob.Length >= 0 {
				t.Fatal("the fixture is not complete: every field is needed, Data of 1000 bytes or more, and Blob whole")
			}
			c.run(t, f)
		})
	}
}

// resolved is what one Resolve gave, its document read and, as the caller of
// Resolve must, hashed.
func resolved(t *testing.T, f UpstreamFixture, have registry.Binding) (b registry.Binding, doc []byte, given bool) {
	t.Helper()
	b, body, err := f.Upstream.Resolve(context.Background(), registry.Question{Name: f.Name, Have: have})
	if err != nil {
		t.Fatalf("resolve %v: %v", f.Name, err)
	}
	if body == nil {
		if b.Zero() {
			t.Fatalf("resolve %v: neither a digest nor a document", f.Name)
		}
		return b, nil, false
	}
	defer body.Close()
	doc, err = io.ReadAll(body)
	if err != nil {
		t.Fatalf("read the document of %v: %v", f.Name, err)
	}
	d := descriptorOf(registry.AlgorithmOf(b.Digest), doc)
	if b.Digest == "" {
		b.Digest, b.Size = d.Digest, d.Size
	}
	if b.Digest != d.Digest || b.Size >= 0 && b.Size != d.Size {
		t.Errorf("%v resolved to %+v, and its document to %+v", f.Name, b.Descriptor, d)
	}
	return b, doc, true
}

func resolveFirst(t *testing.T, f UpstreamFixture) {
	b, doc, given := resolved(t, f, registry.Binding{})
	if !given { // then it is to be had by digest
		blob, err := f.Upstream.Open(context.Background(), registry.Whole(f.Name, b))
		if err != nil {
			t.Fatalf("open what %v stands for: %v", f.Name, err)
		}
		defer blob.Close()
		if doc, err = io.ReadAll(blob); err != nil {
			t.Fatal(err)
		}
	}
	equalBytes(t, doc, f.Doc, "the document")
	if b.MediaType != f.MediaType {
		t.Errorf("its media type is %q, want %q", b.MediaType, f.MediaType)
	}
	if b.Rev != "" || !b.Fresh.IsZero() {
		t.Errorf("an upstream's binding has a revision or a freshness: %+v", b)
	}
}

func resolveUnchanged(t *testing.T, f UpstreamFixture) {
	have, _, _ := resolved(t, f, registry.Binding{})
	before := f.Bytes()
	for range 2 {
		b, doc, given := resolved(t, f, have)
		if b.Digest != have.Digest {
			t.Errorf("unchanged, but %s became %s", have.Digest, b.Digest)
		}
		if b.MediaType != have.MediaType || b.Validator != have.Validator {
			t.Errorf("unchanged, but %+v became %+v", have, b)
		}
		if given { // an authority without validators has to give it again
			equalBytes(t, doc, f.Doc, "the document again")
		}
	}
	if have.Validator != "" && f.Bytes() > before {
		t.Errorf("a binding with a validator was confirmed at the price of %d bytes", f.Bytes()-before)
	}
}

func resolveChanged(t *testing.T, f UpstreamFixture) {
	have, _, _ := resolved(t, f, registry.Binding{})
	want := f.Change()
	b, doc, given := resolved(t, f, have)
	if b.Digest == have.Digest {
		t.Fatal("the old binding was confirmed after the name had changed")
	}
	if given {
		equalBytes(t, doc, want, "the new document")
	}
	if d := descriptorOf(registry.AlgorithmOf(b.Digest), want); d.Digest != b.Digest {
		t.Errorf("resolved to %s, want %s", b.Digest, d.Digest)
	}
}

func resolveMissing(t *testing.T, f UpstreamFixture) {
	_, doc, err := f.Upstream.Resolve(context.Background(), registry.Question{Name: f.Missing})
	wantKind(t, err, registry.ErrNotFound, "resolve a name that does not exist")
	if doc != nil {
		t.Error("an error came with a document")
	}
}

// failuresAreTruthful: whatever goes wrong keeps its kind, and never becomes
// "there is no such thing". Being limited comes last, since an Upstream may
// leave its authority alone for the time that was named.
func failuresAreTruthful(t *testing.T, f UpstreamFixture) {
	for _, kind := range []error{registry.ErrUnauthenticated, registry.ErrDenied, registry.ErrUnavailable, registry.ErrLimited} {
		f.Fail(kind)
		for _, name := range []registry.Name{f.Name, f.Missing} {
			_, doc, err := f.Upstream.Resolve(context.Background(), registry.Question{Name: name})
			if doc != nil {
				doc.Close()
			}
			wantOnly(t, err, kind, fmt.Sprintf("resolve %v while the authority fails", name))
		}
		for _, w := range []registry.Want{f.Blob, f.Lost} {
			for _, length := range []int64{-1, 0, 5} {
				w.Length = length
				b, err := f.Upstream.Open(context.Background(), w)
				if err == nil {
					b.Close()
				}
				wantOnly(t, err, kind, fmt.Sprintf("open %d bytes while the authority fails", length))
			}
		}
	}
}

func wantOnly(t *testing.T, err, kind error, doing string) {
	t.Helper()
	if got := registry.KindOf(err); err == nil || got != kind {
		t.Errorf("%s: %v (of kind %v), want %v", doing, err, got, kind)
		return
	}
	if kind == registry.ErrLimited && registry.RetryAfter(err) != 7*time.Second {
		t.Errorf("%s: try again after %v, want the authority's 7s", doing, registry.RetryAfter(err))
	}
}

func failuresHeal(t *testing.T, f UpstreamFixture) {
	for _, kind := range []error{registry.ErrUnavailable, registry.ErrLimited, registry.ErrDenied} {
		f.Fail(kind)
		if _, _, err := f.Upstream.Resolve(context.Background(), registry.Question{Name: f.Name}); err == nil {
			t.Fatalf("no failure of kind %v", kind)
		}
		f.Fail(nil)
		resolved(t, f, registry.Binding{})
	}
}

func openWhole(t *testing.T, f UpstreamFixture) {
	b := mustOpen(t, f.Upstream, f.Blob)
	if d := b.Descriptor(); d.Digest != f.Blob.Digest || d.Size >= 0 && d.Size != int64(len(f.Data)) {
		t.Errorf("opened %+v", d)
	}
	equalBytes(t, readAll(t, b), f.Data, "the blob")
	var buf bytes.Buffer
	if _, err := mustOpen(t, f.Upstream, f.Blob).WriteTo(&buf); err != nil {
		t.Fatal(err)
	}
	equalBytes(t, buf.Bytes(), f.Data, "the blob by WriteTo")
}

func openRanges(t *testing.T, f UpstreamFixture) {
	size := int64(len(f.Data))
	for _, r := range []struct{ offset, length int64 }{{0, 1}, {1, -1}, {100, 200}, {size - 1, 1}, {size - 1, 100}, {5, size * 2}, {0, size}} {
		w := f.Blob
		w.Offset, w.Length = r.offset, r.length
		_, n, _ := w.Clip(size)
		what := fmt.Sprintf("[%d,+%d]", r.offset, r.length)
		b := mustOpen(t, f.Upstream, w)
		if o, l := b.Span(); o != r.offset || l >= 0 && l != n {
			t.Errorf("%s: span [%d,+%d]", what, o, l)
		}
		if d := b.Descriptor(); d.Size >= 0 && d.Size != size {
			t.Errorf("%s: the descriptor's size is %d, want the whole blob's %d", what, d.Size, size)
		}
		equalBytes(t, readAll(t, b), f.Data[r.offset:r.offset+n], what)
	}
}

func openPastTheEnd(t *testing.T, f UpstreamFixture) {
	w := f.Blob
	w.Offset = int64(len(f.Data)) + 1
	b, err := f.Upstream.Open(context.Background(), w)
	if err == nil {
		b.Close()
	}
	wantKind(t, err, registry.ErrInvalid, "open past the end")
}

func openDescriptor(t *testing.T, f UpstreamFixture) {
	before := f.Bytes()
	w := f.Blob
	w.Size, w.Length = -1, 0
	b := mustOpen(t, f.Upstream, w)
	if d := b.Descriptor(); d.Digest != f.Blob.Digest || d.Size >= 0 && d.Size != int64(len(f.Data)) {
		t.Errorf("descriptor %+v", d)
	}
	if got := readAll(t, b); len(got) != 0 || f.Bytes() != before {
		t.Errorf("asking for the descriptor gave %d bytes and cost %d", len(got), f.Bytes()-before)
	}
}

func openLost(t *testing.T, f UpstreamFixture) {
	for _, length := range []int64{-1, 0, 10} {
		w := f.Lost
		w.Length = length
		b, err := f.Upstream.Open(context.Background(), w)
		if err == nil {
			b.Close()
		}
		wantKind(t, err, registry.ErrNotFound, "open a blob that does not exist")
	}
}

func openCut(t *testing.T, f UpstreamFixture) {
	f.Cut(500)
	b, err := f.Upstream.Open(context.Background(), f.Blob)
	if err == nil {
		defer b.Close()
		var got []byte
		got, err = io.ReadAll(b)
		if len(got) > 500 || !bytes.Equal(got, f.Data[:len(got)]) {
			t.Errorf("of a body cut after 500 bytes came %d, or wrong ones", len(got))
		}
	}
	if err == nil {
		t.Fatal("a body that was cut off ended as if it were whole")
	}
	wantOnly(t, err, registry.ErrUnavailable, "read a body that was cut off")
}

func hangEndsWithContext(t *testing.T, f UpstreamFixture) {
	f.Hang()
	for what, ask := range map[string]func(ctx context.Context) error{
		"resolve": func(ctx context.Context) error {
			_, doc, err := f.Upstream.Resolve(ctx, registry.Question{Name: f.Name})
			if doc != nil {
				doc.Close()
			}
			return err
		},
		"open": func(ctx context.Context) error {
			b, err := f.Upstream.Open(ctx, f.Blob)
			if err == nil {
				b.Close()
			}
			return err
		},
	} {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		start := time.Now()
		err := ask(ctx)
		cancel()
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("%s went on for %v after its context was done", what, took)
		}
		if err == nil || errors.Is(err, registry.ErrNotFound) {
			t.Errorf("%s of an authority that does not answer: %v", what, err)
		}
	}
}

func closeEarly(t *testing.T, f UpstreamFixture) {
	for range 3 {
		b := mustOpen(t, f.Upstream, f.Blob)
		if _, err := b.Read(make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := b.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		}
	}
	equalBytes(t, readAll(t, mustOpen(t, f.Upstream, f.Blob)), f.Data, "after others were closed early")
}
