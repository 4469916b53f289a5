package peer_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weir-registry/weir/cachetiers"
	"github.com/weir-registry/weir/cachetiers/peer"
	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/registry"
)

const ping = "/weir/v1/ping"

// TestLateSigns: a dial that ends after another connection has brought the
// answer is no reason to cut that off a second later.
func TestLateSigns(t *testing.T) {
	server, client := pki(t)
	s := startShield(t, server, new(conformance.Upstream))
	var mu sync.Mutex
	var traces []*httptrace.ClientTrace
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		traces = append(traces, httptrace.ContextClientTrace(ctx))
		return client(ctx, network, addr)
	}
	rest := make(chan struct{})
	s.intercept(func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Connection", "close") // each request dials
		if r.URL.Path == ping {
			return false
		}
		w.Header().Set("Weir-Run", "5 0 5")
		w.Header().Set("Content-Length", "5")
		io.WriteString(w, "he")
		w.(http.Flusher).Flush()
		<-rest
		io.WriteString(w, "llo")
		return true
	})
	g := group(t, peer.Options{Nodes: []string{s.url()}, Dial: dial})
	b, err := g.Open(t.Context(), whole(conformance.Describe("", []byte("hello"))))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	mu.Lock()
	for _, trace := range traces {
		trace.ConnectDone("tcp", s.addr, nil)
	}
	mu.Unlock()
	time.AfterFunc(2500*time.Millisecond, func() { close(rest) }) // more than any silence before an answer
	if got, err := io.ReadAll(b); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestFullIsNotDead: a node at which as much is open as may be is not taken for
// dead by those who wait for a turn.
func TestFullIsNotDead(t *testing.T) {
	s, g := pair(t)
	stop := make(chan struct{})
	t.Cleanup(func() { close(stop) })
	s.intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == ping {
			return false
		}
		w.Header().Set("Weir-Run", "5 0 5")
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
		select {
		case <-stop:
		case <-r.Context().Done():
		}
		return true
	})
	d := conformance.Describe("", []byte("hello"))
	open := make([]registry.Blob, 512)
	var wg sync.WaitGroup
	turns := make(chan struct{}, 4)
	for i := range open {
		wg.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			var err error
			if open[i], err = g.Open(t.Context(), whole(d)); err != nil {
				t.Error(err)
			}
		})
	}
	if wg.Wait(); t.Failed() {
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
	defer cancel()
	if _, err := g.Open(ctx, whole(d)); registry.KindOf(err) != registry.ErrUnavailable {
		t.Errorf("one too many: %v", err)
	}
	if state := g.States()[0]; !state.Up {
		t.Errorf("the node is taken for dead: %+v", state)
	}
	open[0].Close()
	open[0].Close() // gives back one turn, not two
	b, err := g.Open(t.Context(), whole(d))
	if err != nil {
		t.Fatal(err)
	}
	open[0] = b
	for _, b := range open {
		b.Close()
	}
}

// TestLongQuestion: an address that some package gave its tarball is no reason
// to take the node for dead that refuses so long a header.
func TestLongQuestion(t *testing.T) {
	s, g := pair(t)
	w := whole(s.up.PutBlob([]byte("x")))
	w.Location = "https://packages.example/" + strings.Repeat("x", 2<<20)
	if _, err := g.Open(t.Context(), w); registry.KindOf(err) != registry.ErrUnavailable {
		t.Error(err)
	}
	if state := g.States()[0]; !state.Up {
		t.Errorf("the node is taken for dead: %+v", state)
	}
}

// TestRunOfUnknownSize: a run of a blob whose size not even the authority has
// said is an answer like any other.
func TestRunOfUnknownSize(t *testing.T) {
	s, g := pair(t)
	s.service.Blobs = passing{unsized{s.up}}
	w := whole(s.up.PutBlob([]byte("hello")))
	w.Size, w.Offset, w.Length = -1, 1, 3
	if got := string(readAll(t, g, w)); got != "ell" {
		t.Errorf("%q", got)
	}
	if state := g.States()[0]; !state.Up {
		t.Errorf("the node is taken for dead: %+v", state)
	}
}

// unsized gives blobs whose size it does not say.
type unsized struct{ registry.Source }

func (u unsized) Open(ctx context.Context, w registry.Want) (registry.Blob, error) {
	b, err := u.Source.Open(ctx, w)
	return unsizedBlob{b}, err
}

type unsizedBlob struct{ registry.Blob }

func (b unsizedBlob) Descriptor() registry.Descriptor {
	d := b.Blob.Descriptor()
	d.Size = -1
	return d
}

// TestPanicIsOneAnswers: what goes wrong in one answer ends that and no more.
func TestPanicIsOneAnswers(t *testing.T) {
	s, g := pair(t)
	kept := s.service.Blobs
	s.service.Blobs = passing{panicking{}}
	d := s.up.PutBlob([]byte("x"))
	if _, err := g.Open(t.Context(), whole(d)); registry.KindOf(err) != registry.ErrUnavailable {
		t.Error(err)
	}
	s.service.Blobs = kept
	conformance.Eventually(t, "the node is up again", func() bool { return g.States()[0].Up })
	passed := make(chan struct{})
	time.AfterFunc(200*time.Millisecond, func() { close(passed) }) // what it left has fired by then
	<-passed
	readAll(t, g, whole(d))
}

type panicking struct{}

func (panicking) Open(context.Context, registry.Want) (registry.Blob, error) {
	panic(http.ErrAbortHandler) // which the server does not log
}

// TestTruthEndsAHedge: once one node has said what the authority says, the other
// is not waited for.
func TestTruthEndsAHedge(t *testing.T) {
	up, shields, g := three(t, nil)
	for i := range 45 { // to earn something
		readAll(t, g, whole(up.PutBlob(fmt.Appendf(nil, "earn %d", i))))
	}
	var mu sync.Mutex
	var second chan struct{}
	for _, s := range shields {
		s.intercept(func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == ping {
				return false
			}
			mu.Lock()
			first := second == nil
			if first {
				second = make(chan struct{})
			}
			asked := second
			mu.Unlock()
			if first {
				select {
				case <-asked:
				case <-r.Context().Done():
				}
				w.Header().Set("Weir-Error", "notfound")
				w.WriteHeader(404)
				return true
			}
			close(asked)
			for tick := time.NewTicker(100 * time.Millisecond); ; {
				select {
				case <-tick.C:
					w.WriteHeader(http.StatusProcessing)
				case <-r.Context().Done():
					tick.Stop()
					return true
				}
			}
		})
	}
	begun := time.Now()
	_, err := g.Open(t.Context(), whole(conformance.Describe("", []byte("nowhere"))))
	if took := time.Since(begun); registry.KindOf(err) != registry.ErrNotFound || took > 3*time.Second {
		t.Errorf("%v after %v", err, took)
	}
}

// TestWrongSizeElsewhere: what another repository's manifest says of the size of
// a blob casts no doubt on those who hold it.
func TestWrongSizeElsewhere(t *testing.T) {
	s, g := pair(t)
	edge := cachetiers.NewTier(cachetiers.NewMemory(1<<20), g, cachetiers.Options{Name: "memory"})
	d := s.up.PutBlob([]byte("hello"))
	readAll(t, s.service.Blobs, whole(d))
	wrong := whole(d)
	wrong.Size = 4
	if _, err := edge.Open(t.Context(), wrong); err == nil || registry.KindOf(err) == registry.ErrNotFound {
		t.Errorf("a wrong size: %v", err)
	}
	same(t, "the blob", readAll(t, edge, whole(d)), []byte("hello"))
}
