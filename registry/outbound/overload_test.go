package outbound

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weir-registry/weir/registry"
)

// slowNet answers documents after a tenth of a second, and blobs at once with
// bodies that take four seconds; it counts what is open.
type slowNet struct {
	mu         sync.Mutex
	open, most int         // guarded by mu
	begun      []time.Time // of small ones; guarded by mu
	late       []time.Time // of others that did not begin at once; guarded by mu
	start      time.Time   // when all are asked
}

func (n *slowNet) add(delta int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.open += delta
	n.most = max(n.most, n.open)
}

func (n *slowNet) RoundTrip(r *http.Request) (*http.Response, error) {
	n.add(1)
	n.mu.Lock()
	if now := time.Now(); strings.HasPrefix(r.URL.Path, "/small/") {
		n.begun = append(n.begun, now)
	} else if now.After(n.start) {
		n.late = append(n.late, now)
	}
	n.mu.Unlock()
	took := 4 * time.Second
	if strings.HasPrefix(r.URL.Path, "/small/") {
		took = 100 * time.Millisecond
	}
	return &http.Response{StatusCode: 200, Header: http.Header{}, ContentLength: -1, Request: r,
		Body: &slowBody{end: time.Now().Add(took), closed: func() { n.add(-1) }}}, nil
}

// slowBody ends at its time, and what has ended holds no connection.
type slowBody struct {
	end    time.Time
	once   sync.Once
	closed func()
}

func (b *slowBody) Read([]byte) (int, error) {
	<-time.After(time.Until(b.end))
	b.once.Do(b.closed)
	return 0, io.EOF
}

func (b *slowBody) Close() error { b.once.Do(b.closed); return nil }

// TestOverload: a thousand requests at once for an upstream of 64 slots. There
// are never more open, small answers overtake the others, what nobody waits
// for is refused first, and all of them end in time.
func TestOverload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := &slowNet{start: time.Now()}
		c := client(t, "http://up.test", Options{Transport: net})
		loads := map[string]Load{"small": {}, "large": {Blob: true, Size: 2 << 20}, "revalidation": {Background: true}, "prefetch": {Blob: true, Background: true}}
		var mu sync.Mutex
		refused, slowest, queue := map[string]int{}, time.Duration(0), 0
		var all sync.WaitGroup
		for i := range 250 {
			for name, l := range loads {
				if name == "large" {
					l.Size += int64(i) << 20
				}
				all.Go(func() {
					req, _ := http.NewRequest(http.MethodGet, fmt.Sprintf("http://up.test/%s/%d", name, i), nil)
					resp, err := c.Do(t.Context(), req, l)
					took := time.Since(net.start)
					waiting, _ := c.slots.counts()
					mu.Lock()
					queue, slowest = max(queue, waiting), max(slowest, took)
					if err != nil {
						refused[name]++
						if registry.KindOf(err) != registry.ErrUnavailable || registry.RetryAfter(err) == 0 {
							t.Errorf("%s: %v", name, err)
						}
					}
					mu.Unlock()
					if err == nil {
						io.Copy(io.Discard, resp.Body)
						resp.Body.Close()
					}
				})
			}
		}
		all.Wait()
		if waiting, active := c.slots.counts(); waiting != 0 || active != 0 || net.open != 0 {
			t.Errorf("%d wait, %d are open, %d bodies are not closed", waiting, active, net.open)
		}
		if net.most != 64 || queue > 64*queueFactor {
			t.Errorf("%d were open at once, %d waited", net.most, queue)
		}
		if slowest > defaultHeaderTimeout/2 {
			t.Errorf("the slowest took %v until its header", slowest)
		}
		if refused["small"] != 0 || refused["prefetch"] < 150 || refused["revalidation"] < 150 || refused["large"] == 0 {
			t.Errorf("refused: %v", refused)
		}
		for _, s := range net.begun {
			if len(net.late) > 0 && s.After(net.late[0]) {
				t.Fatalf("a small answer was asked for at %v, after a large one at %v", s.Sub(net.start), net.late[0].Sub(net.start))
			}
		}
		t.Logf("open at once %d, in the queue %d, slowest header %v, refused %v of 250 each", net.most, queue, slowest, refused)
	})
}
