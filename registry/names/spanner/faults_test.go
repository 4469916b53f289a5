package spanner_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/weir-registry/weir/conformance/lab"
	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/names/spanner"
)

// fault is what goes wrong with one request.
type fault struct {
	before bool       // it is not sent
	after  bool       // it is, and the answer is lost
	code   codes.Code // what the library is told
}

// faults stand between the library and the emulator.
type faults struct {
	mu     sync.Mutex
	choose func(method string) fault // guarded by mu; nil: none
	count  map[string]int            // faults by method and kind; guarded by mu
}

func (f *faults) set(choose func(method string) fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.choose = choose
}

func (f *faults) next(method string) fault {
	method = method[strings.LastIndexByte(method, '/')+1:]
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.choose == nil || method == "CreateSession" {
		return fault{}
	}
	c := f.choose(method)
	if f.count == nil {
		f.count = map[string]int{}
	}
	if c.before {
		f.count[method+" before"]++
	} else if c.after {
		f.count[method+" after"]++
	}
	return c
}

func (f *faults) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	c := f.next(method)
	if c.before {
		return status.Error(c.code, "injected before "+method)
	}
	err := invoke(ctx, method, req, reply, cc, opts...)
	if err == nil && c.after {
		return status.Error(c.code, "injected after "+method)
	}
	return err
}

func (f *faults) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	c := f.next(method)
	if c.before {
		return nil, status.Error(c.code, "injected before "+method)
	}
	s, err := streamer(ctx, desc, cc, method, opts...)
	if err == nil && c.after {
		return &brokenStream{s, c}, nil
	}
	return s, err
}

// brokenStream loses its answers. It takes them all: a stream that has failed is
// one that has ended.
type brokenStream struct {
	grpc.ClientStream
	fault fault
}

func (s *brokenStream) RecvMsg(m any) error {
	for s.ClientStream.RecvMsg(m) == nil {
	}
	return status.Error(s.fault.code, "injected in a stream")
}

// into puts f between what is opened by o and its emulator.
func (f *faults) into(o spanner.Options) spanner.Options {
	return spanner.WithClientOptions(o, option.WithGRPCDialOption(grpc.WithChainUnaryInterceptor(f.unary)),
		option.WithGRPCDialOption(grpc.WithChainStreamInterceptor(f.stream)))
}

// faulty opens a database through faults.
func faulty(t *testing.T, o spanner.Options, f *faults) metadata { return open(t, f.into(o)) }

// testFaults has every kind of request go wrong now and then in both ways, and
// several count; nothing is lost or done twice, and nobody notices.
func testFaults(t *testing.T, e *emulator) {
	o, f := e.fresh(t), &faults{}
	m := faulty(t, o, f)
	var mu sync.Mutex
	random := rand.New(rand.NewPCG(3, 4))
	f.set(func(string) fault {
		mu.Lock()
		defer mu.Unlock()
		kinds := []codes.Code{codes.Unavailable, codes.Internal, codes.Unknown, codes.DeadlineExceeded, codes.Aborted}
		n := random.IntN(12)
		return fault{before: n == 0, after: n == 1, code: kinds[random.IntN(len(kinds))]}
	})
	const workers, rounds = 3, 12
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			for range rounds {
				if err := increment(m, "n"); err != nil {
					t.Errorf("worker %d: %v", w, err)
				}
			}
		})
	}
	group.Wait()
	for i := range 5 {
		n := 0
		for _, err := range m.List(t.Context(), "", "") {
			if err != nil {
				t.Errorf("list %d: %v", i, err)
			}
			n++
		}
		if n != 1 {
			t.Errorf("%d are listed", n)
		}
	}
	f.set(nil)
	counted(t, m, "n", workers*rounds)
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, want := range []string{"Commit before", "Commit after"} {
		if f.count[want] == 0 {
			t.Errorf("there was no %s: %v", want, f.count)
		}
	}
}

// testLostCommits loses the answer of the first commit of each Put, or the commit
// itself: the Put still says what has happened.
func testLostCommits(t *testing.T, e *emulator) {
	o, f := e.fresh(t), &faults{}
	m, other := faulty(t, o, f), open(t, o)
	for i, c := range []fault{{after: true, code: codes.Unavailable}, {after: true, code: codes.Internal}, {after: true, code: codes.Unknown},
		{after: true, code: codes.DeadlineExceeded}, {after: true, code: codes.Aborted}, {before: true, code: codes.Internal}, {before: true, code: codes.Aborted}} {
		key := fmt.Sprintf("k%d", i)
		left := 1
		f.set(func(method string) fault {
			if method != "Commit" || left == 0 {
				return fault{}
			}
			left--
			return c
		})
		r, err := m.Put(t.Context(), key, 0, []byte("v"))
		if err != nil {
			t.Errorf("%+v: %v", c, err)
			continue
		}
		got, err := other.Get(t.Context(), key)
		if err != nil || got.Rev != r.Rev {
			t.Errorf("%+v: put %d, got %d, %v", c, r.Rev, got.Rev, err)
		}
		if n, err := other.Head(t.Context()); n != uint64(i+1) || err != nil {
			t.Errorf("%+v: head %d, want %d, %v", c, n, i+1, err)
		}
	}
}

// testLostRemoval loses the answer of a removal, which leaves no record to look
// at, while somebody else makes the key anew.
func testLostRemoval(t *testing.T, e *emulator) {
	o, f := e.fresh(t), &faults{}
	m, other := faulty(t, o, f), open(t, o)
	r, err := m.Put(t.Context(), "k", 0, []byte("v"))
	if err != nil {
		t.Fatal(err)
	}
	left := 1
	f.set(func(method string) fault {
		if method != "Commit" || left == 0 {
			// Before the first request that comes after the commit.
			if left == 0 {
				left--
				if _, err := other.Put(context.Background(), "k", 0, []byte("new")); err != nil {
					t.Error(err)
				}
			}
			return fault{}
		}
		left--
		return fault{after: true, code: codes.Internal}
	})
	gone, err := m.Put(t.Context(), "k", r.Rev, nil)
	if err != nil || gone.Rev != r.Rev+1 {
		t.Errorf("the removal: %+v, %v", gone, err)
	}
	if got, err := other.Get(t.Context(), "k"); err != nil || string(got.Value) != "new" || got.Rev != r.Rev+2 {
		t.Errorf("what came after it: %+v, %v", got, err)
	}
}

// testDown opens a database that does not answer, and one that stops answering.
func testDown(t *testing.T, e *emulator) {
	o, f := e.fresh(t), &faults{}
	f.set(func(string) fault { return fault{before: true, code: codes.Unavailable} })
	impatient, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	start := time.Now()
	m, err := spanner.Open(impatient, f.into(o))
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	defer m.Close()
	if _, err := m.Get(impatient, "k"); !errors.Is(err, registry.ErrUnavailable) || time.Since(start) > 2*time.Second {
		t.Errorf("get: %v after %v", err, time.Since(start))
	}
	f.set(nil)
	lab.Eventually(t, 20*time.Second, "it comes up", func() error {
		_, err := m.Put(t.Context(), "k", 0, []byte("v"))
		return err
	})
	f.set(func(string) fault { return fault{before: true, code: codes.Unavailable} })
	ctx, stop := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer stop()
	for what, err := range map[string]error{"put": func() error { _, err := m.Put(ctx, "k2", 0, []byte("v")); return err }(),
		"head": func() error { _, err := m.Head(ctx); return err }()} {
		if !errors.Is(err, registry.ErrUnavailable) {
			t.Errorf("%s: %v", what, err)
		}
	}
	f.set(nil)
	if n, err := m.Head(t.Context()); n != 1 || err != nil {
		t.Errorf("head %d, %v", n, err)
	}
}
