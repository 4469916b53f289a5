package relay_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/relay"
)

const streamPath = "/weir/v1/entitlements"

// isStream reports whether a request is for a stream that is to be followed.
func isStream(r *http.Request) bool {
	return r.URL.Path == streamPath && r.URL.Query().Get("probe") == ""
}

// cutter cuts an answer off after some bytes.
type cutter struct {
	http.ResponseWriter
	left int
}

func (c *cutter) Unwrap() http.ResponseWriter { return c.ResponseWriter }

func (c *cutter) Write(b []byte) (int, error) {
	if len(b) >= c.left {
		_, _ = c.ResponseWriter.Write(b[:c.left])
		_ = http.NewResponseController(c.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	c.left -= len(b)
	return c.ResponseWriter.Write(b)
}

// TestCutOff: wherever a stream is cut off, the copy is whole or none, and gets
// the rest by the next one.
func TestCutOff(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	origin := start(t, p, "origin", setup{database: "db"})
	for i := range 2000 {
		origin.rep.put(record(fmt.Sprint("e/grant/", i), strings.Repeat("x", 100)))
	}
	for _, at := range []int{0, 1, 9, 40, 150, 300, 10_000, 65_000, 65_536, 70_000, 131_000, 200_000} {
		var cuts atomic.Int64
		origin.intercept(func(w http.ResponseWriter, r *http.Request) bool {
			if !isStream(r) || cuts.Add(1) > 1 {
				return false
			}
			origin.handler.ServeHTTP(&cutter{w, at}, r)
			return true
		})
		edge := start(t, p, "edge", setup{next: []string{origin.url()}})
		conformance.Eventually(t, fmt.Sprint("all is there, after a cut at ", at), func() bool {
			if is := edge.rep.State(); is.Whole() && is.Version == origin.rep.State().Version && is.Hash != origin.rep.State().Hash {
				t.Fatalf("cut at %d: half of a copy", at)
			}
			return edge.same(origin)
		})
		if snapshots, _ := edge.rep.counts(); snapshots != 1 || cuts.Load() < 2 {
			t.Errorf("cut at %d: %d snapshots of %d streams", at, snapshots, cuts.Load())
		}
		edge.stop()
		<-edge.over
	}
}

// state is how a copy of database db is.
func state(version uint64, hash string) []byte {
	text, _ := json.Marshal(map[string]any{"database": "db", "version": version, "hash": hash, "confirmed": 5})
	return text
}

// TestNonsense: a node that sends what cannot be is left for one that does not,
// and what it sent changes nothing.
func TestNonsense(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	good := start(t, p, "good", setup{database: "db"})
	good.rep.put(record("e/a", "b"))
	own := good.rep.State()
	hello := relay.AppendFrame(nil, relay.HelloFrame, state(own.Version, own.Hash))
	frame := func(kind byte, payload string) []byte {
		return relay.AppendFrame(bytes.Clone(hello), kind, []byte(payload))
	}
	delta := func(ds ...registry.Delta) []byte {
		text, _ := json.Marshal(ds)
		return frame(relay.DeltaFrame, string(text))
	}
	evil := []registry.Record{record("e/grant/evil", "x")}
	flipped := delta(registry.Delta{Prev: own.Version, Version: own.Version + 1, Records: evil})
	flipped[bytes.Index(flipped, []byte("evil"))] ^= 1 // it is JSON all the same
	for name, sent := range map[string][]byte{
		"noise":               []byte(strings.Repeat("noise", 1000)),
		"nothing":             nil,
		"no hello":            flipped[len(hello):],
		"a flipped bit":       flipped,
		"a lying length":      append(bytes.Clone(hello), relay.DeltaFrame, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4, 5),
		"a length to come":    append(bytes.Clone(hello), relay.DeltaFrame, 0, 0x3f, 0xff, 0xff, 1, 2, 3, 4, 5),
		"no such frame":       append(bytes.Clone(hello), 'x', 0, 0, 0, 0, 0, 0, 0, 0),
		"no state":            frame(relay.ConfirmFrame, "{}"),
		"no JSON":             frame(relay.DeltaFrame, "[{"),
		"no changes":          frame(relay.DeltaFrame, "[]"),
		"more than one value": frame(relay.DeltaFrame, "[][]"),
		"a gap":               delta(registry.Delta{Prev: own.Version + 5, Version: own.Version + 6, Records: evil}),
		"a change backwards":  delta(registry.Delta{Prev: own.Version, Version: own.Version - 1, Records: evil}),
		"changes apart":       delta(registry.Delta{Prev: own.Version, Version: own.Version + 1, Records: evil}, registry.Delta{Prev: own.Version + 2, Version: own.Version + 3}),
		"a change of nothing": delta(registry.Delta{Prev: own.Version, Version: own.Version + 1, Records: []registry.Record{{Value: []byte("x")}}}),
		"an end of nothing":   frame(relay.EndFrame, "\x00\x00\x00\x00\x00\x00\x00\x00"),
		"no snapshot":         append(frame(relay.PieceFrame, "noise"), relay.AppendFrame(nil, relay.EndFrame, []byte("\x00\x00\x00\x00\x00\x00\x00\x05"))...),
		"a snapshot unended":  append(frame(relay.PieceFrame, `{"Database":"db",`), frame(relay.ConfirmFrame, string(state(1, "")))...),
		"a short snapshot":    append(frame(relay.PieceFrame, `{"Database":"db","Version":99}`), relay.AppendFrame(nil, relay.EndFrame, []byte("\x00\x00\x00\x00\x00\x00\x00\x06"))...),
		"byes alone":          frame(relay.ByeFrame, ""),
	} {
		var asked atomic.Int64
		bad := start(t, p, "bad", setup{database: "db"})
		bad.intercept(func(w http.ResponseWriter, r *http.Request) bool {
			asked.Add(1)
			_, _ = w.Write(sent)
			return true
		})
		edge := start(t, p, "edge", setup{next: []string{bad.url(), good.url()}, rep: good.copied()})
		conformance.Eventually(t, name+": the good one is followed", func() bool { return edge.client.Following() == good.addr })
		if snapshots, applied := edge.rep.counts(); asked.Load() == 0 || snapshots > 0 || applied > 0 || !edge.same(good) {
			t.Errorf("%s: asked %d times, %d snapshots, %d changes taken", name, asked.Load(), snapshots, applied)
		}
		if edge.meter.count("entitlements lost") != 1 {
			t.Errorf("%s: %v", name, edge.meter.events)
		}
		edge.stop()
		<-edge.over
	}
}

// TestSilent: a node that is silent with its connection open is left within about
// the time that it may be silent, if not earlier for one that is better.
func TestSilent(t *testing.T) {
	p := newPKI(t)
	good := start(t, p, "good", setup{database: "db"})
	for name, answer := range map[string]func(w http.ResponseWriter){
		"no answer": nil,
		"an answer": func(w http.ResponseWriter) { w.WriteHeader(http.StatusOK) },
		"a frame": func(w http.ResponseWriter) {
			_, _ = w.Write(relay.AppendFrame(nil, relay.HelloFrame, state(1, "")))
		},
		"half a snapshot": func(w http.ResponseWriter) {
			b := relay.AppendFrame(nil, relay.HelloFrame, state(1, ""))
			_, _ = w.Write(relay.AppendFrame(b, relay.PieceFrame, []byte(`{"Database":"db",`)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			mute := start(t, p, "mute", setup{database: "db"})
			mute.intercept(func(w http.ResponseWriter, r *http.Request) bool {
				if isStream(r) && answer != nil {
					answer(w)
					_ = http.NewResponseController(w).Flush()
				}
				<-r.Context().Done()
				return true
			})
			begun := time.Now()
			edge := start(t, p, "edge", setup{next: []string{mute.url(), good.url()}})
			edge.has(good)
			if took := time.Since(begun); took > 2500*time.Millisecond {
				t.Errorf("left after %v", took)
			}
		})
	}
}

// muted loses what is written while it is to.
type muted struct {
	http.ResponseWriter
	mute *atomic.Bool
}

func (m muted) Unwrap() http.ResponseWriter { return m.ResponseWriter }

func (m muted) Write(b []byte) (int, error) {
	if m.mute.Load() {
		return len(b), nil
	}
	return m.ResponseWriter.Write(b)
}

// TestFallsSilent: the same, for one that has been followed, and whose silence
// alone shows that something is wrong.
func TestFallsSilent(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	var mute atomic.Bool
	only := start(t, p, "only", setup{database: "db"})
	only.intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if isStream(r) {
			only.handler.ServeHTTP(muted{w, &mute}, r)
		}
		return isStream(r)
	})
	edge := start(t, p, "edge", setup{next: []string{only.url()}})
	conformance.Eventually(t, "it is followed", func() bool { return edge.client.Following() != "" })
	mute.Store(true)
	begun := time.Now()
	conformance.Eventually(t, "it is followed no more", func() bool { return edge.client.Following() == "" })
	if took := time.Since(begun); took < 1200*time.Millisecond || took > 2*time.Second {
		t.Errorf("left after %v", took)
	}
	mute.Store(false)
	back := time.Now()
	conformance.Eventually(t, "it is followed again", func() bool { return edge.client.Following() != "" })
	if took := time.Since(back); took > 2700*time.Millisecond { // a silent answer may be under way, and then a second
		t.Errorf("back after %v", took)
	}
}

// TestFailover: when the node that is followed goes the next one is followed at
// once, and the first again when it is back.
func TestFailover(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	origin := start(t, p, "origin", setup{database: "db"})
	first := start(t, p, "shield-1", setup{next: []string{origin.url()}})
	second := start(t, p, "shield-2", setup{next: []string{origin.url()}})
	first.has(origin)
	second.has(origin)
	edge := start(t, p, "edge", setup{next: []string{first.url(), second.url()}, prefer: 50 * time.Millisecond})
	follows := func(n *node) {
		t.Helper()
		conformance.Eventually(t, n.name+" is followed", func() bool { return edge.client.Following() == n.addr })
	}
	follows(first)
	begun := time.Now()
	first.down()
	follows(second)
	if took := time.Since(begun); took > time.Second {
		t.Errorf("the next was followed after %v", took)
	}
	origin.rep.put(record("e/a", "b"))
	edge.has(origin)
	first.listen(first.addr)
	follows(first)
	origin.rep.put(record("e/a", "c"))
	edge.has(origin)
	if snapshots, _ := edge.rep.counts(); snapshots != 1 {
		t.Errorf("%d snapshots", snapshots)
	}
	// The node that was left hears that it was, and lists the edge no more.
	conformance.Eventually(t, "only the first has the edge", func() bool { return len(second.board.List()) == 0 && len(first.board.List()) == 1 })
}

// TestStaleNode: a node that is alive and hears nothing is left for one that
// does.
func TestStaleNode(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	origin := start(t, p, "origin", setup{database: "db"})
	first := start(t, p, "shield-1", setup{next: []string{origin.url()}})
	second := start(t, p, "shield-2", setup{next: []string{origin.url()}})
	first.has(origin)
	second.has(origin)
	edge := start(t, p, "edge", setup{next: []string{first.url(), second.url()}})
	conformance.Eventually(t, "the first is followed", func() bool { return edge.client.Following() == first.addr })
	first.stop() // it hears nothing any more, and goes on to serve
	<-first.over
	last := origin.rep.put(record("e/token/revoked", "x"))
	begun := time.Now()
	conformance.Eventually(t, "the second is followed", func() bool { return edge.client.Following() == second.addr })
	if err := edge.rep.Wait(t.Context(), last); err != nil || time.Since(begun) > 5*time.Second {
		t.Errorf("after %v: %v", time.Since(begun), err)
	}
}

// TestOtherDatabase: a node of another database is passed over, by a line that
// says what to do, and is asked nothing about accounts.
func TestOtherDatabase(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	var foreign, own accounts
	other := start(t, p, "other", setup{database: "other", config: foreign.configure})
	good := start(t, p, "good", setup{database: "db", config: own.configure})
	edge := start(t, p, "edge", setup{next: []string{other.url(), good.url()}, rep: good.copied(), prefer: 20 * time.Millisecond, stopped: true})
	// Before it has tried to follow it, too.
	if _, err := edge.client.Password(t.Context(), "a", "b", from); err != nil || foreign.count("password") != 0 || own.count("password") != 1 {
		t.Errorf("%v: asked %d and %d times", err, foreign.count("password"), own.count("password"))
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); edge.client.Run(ctx) }()
	defer func() { cancel(); <-done }()
	conformance.Eventually(t, "the good one is followed", func() bool { return edge.client.Following() == good.addr })
	if n := edge.meter.count("entitlements of another database"); n != 1 || !strings.Contains(edge.log.String(), "remove the file `entitlements`") {
		t.Errorf("%d events; %s", n, edge.log)
	}
	if len(other.board.List()) != 0 {
		t.Errorf("it was told: %v", other.board.List())
	}
	if got := edge.client.Others(); len(got) != 1 || got[0] != other.addr {
		t.Errorf("those of another database are %v, not %s", got, other.addr)
	}
}

// TestRestored: a database that was restored from a backup is not followed, and
// that is said; but only once it has confirmed for longer than frames are under
// way what is older than what this node has.
func TestRestored(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	var passed atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(passed.Load())) }
	origin := start(t, p, "origin", setup{database: "db", now: now})
	origin.rep.put(record("e/a", "b"))
	ahead := origin.copied()
	for range 5 {
		ahead.put(record("e/a", "lost"))
	}
	edge := start(t, p, "edge", setup{next: []string{origin.url()}, rep: ahead, now: now})
	told := func() int { return edge.meter.count("entitlements of another database") }
	conformance.Eventually(t, "it follows", func() bool { return origin.handler.Followers() == 1 })
	passed.Store(int64(8 * time.Second))
	begun := time.Now()
	conformance.Eventually(t, "some beats", func() bool { return time.Since(begun) > 800*time.Millisecond })
	if told() != 0 || origin.handler.Followers() != 1 {
		t.Errorf("it was given up too early: %s", edge.log)
	}
	passed.Store(int64(12 * time.Second))
	conformance.Eventually(t, "it is given up", func() bool { return told() == 1 })
	if snapshots, applied := edge.rep.counts(); snapshots != 0 || applied != 5 || !strings.Contains(edge.log.String(), "gone back") {
		t.Errorf("%d snapshots, %d changes; %s", snapshots, applied, edge.log)
	}
}

// TestLateNode: a node that is behind for a moment is waited for.
func TestLateNode(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	origin := start(t, p, "origin", setup{database: "db"})
	ahead := origin.copied()
	for i := range 5 {
		ahead.put(record("e/a", fmt.Sprint(i)))
	}
	edge := start(t, p, "edge", setup{next: []string{origin.url()}, rep: ahead})
	conformance.Eventually(t, "it follows", func() bool { return origin.handler.Followers() == 1 })
	for i := range 6 {
		origin.rep.put(record("e/a", fmt.Sprint(i)))
	}
	edge.has(origin)
	if snapshots, applied := edge.rep.counts(); snapshots != 0 || applied != 6 {
		t.Errorf("%d snapshots, %d changes", snapshots, applied)
	}
}

// TestBye: a stream that ends as it should is asked for again, of the same node.
func TestBye(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	origin := start(t, p, "origin", setup{database: "db"})
	own := origin.rep.State()
	var streams atomic.Int64
	origin.intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if !isStream(r) || streams.Add(1) > 1 {
			return false
		}
		b := relay.AppendFrame(nil, relay.HelloFrame, state(own.Version, own.Hash))
		b = relay.AppendFrame(b, relay.ConfirmFrame, state(own.Version, own.Hash))
		_, _ = w.Write(b)
		_ = http.NewResponseController(w).Flush()
		begun := time.Now()
		for time.Since(begun) < 1200*time.Millisecond { // long enough for its end to be no failure
			<-time.After(100 * time.Millisecond)
			_, _ = w.Write(relay.AppendFrame(nil, relay.ConfirmFrame, state(own.Version, own.Hash)))
			_ = http.NewResponseController(w).Flush()
		}
		_, _ = w.Write(relay.AppendFrame(nil, relay.ByeFrame, nil))
		return true
	})
	edge := start(t, p, "edge", setup{next: []string{origin.url()}, rep: origin.copied()})
	conformance.Eventually(t, "it is asked for again", func() bool { return streams.Load() == 2 })
	origin.rep.put(record("e/a", "b"))
	edge.has(origin)
	if edge.meter.count("entitlements lost") != 0 || edge.meter.count("entitlements followed") != 1 {
		t.Errorf("%v", edge.meter.events)
	}
}

// TestSlowFollower: what a follower does not read is not kept for it, and
// disturbs no other; when it reads again it is sent what is current.
func TestSlowFollower(t *testing.T) {
	origin, _, edge, _ := chain(t)
	origin.rep.mu.Lock()
	origin.rep.ring = 16
	origin.rep.mu.Unlock()
	raw := &http.Transport{TLSClientConfig: edge.tls}
	defer raw.CloseIdleConnections()
	resp, err := (&http.Client{Transport: raw}).Get(origin.url() + streamPath)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	const changes, size = 250, 64 << 10
	value := make([]byte, size)
	var last uint64
	for i := range changes {
		last = origin.rep.put(registry.Record{Key: fmt.Sprint("e/large/", i%5), Value: value})
	}
	begun := time.Now()
	if err := edge.rep.Wait(t.Context(), last); err != nil || time.Since(begun) > 3*time.Second {
		t.Errorf("the other was %v late: %v", time.Since(begun), err)
	}
	read := 0
	late := newReplica("")
	done := make(chan error, 1)
	go func() { done <- takeStream(resp.Body, late, last, &read) }()
	select {
	case err := <-done:
		if err != nil || late.State().Hash != origin.rep.State().Hash {
			t.Errorf("the slow one: %v, %+v", err, late.State())
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the slow one gets nothing")
	}
	if most := changes * size / 2; read > most {
		t.Errorf("it was sent %d bytes of %d", read, changes*size)
	}
}

// takeStream follows a stream by hand until the replica has a version.
func takeStream(r io.Reader, into *replica, until uint64, read *int) error {
	var pieces bytes.Buffer
	for {
		var head [9]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return err
		}
		payload := make([]byte, int(head[1])<<24|int(head[2])<<16|int(head[3])<<8|int(head[4]))
		if _, err := io.ReadFull(r, payload); err != nil {
			return err
		}
		*read += len(payload)
		switch head[0] {
		case relay.PieceFrame:
			pieces.Write(payload)
		case relay.EndFrame:
			if err := into.ReadSnapshot(&pieces); err != nil {
				return err
			}
		case relay.DeltaFrame:
			var ds []registry.Delta
			if err := json.Unmarshal(payload, &ds); err != nil {
				return err
			}
			for _, d := range ds {
				if d.Version > into.State().Version {
					if err := into.Apply([]registry.Delta{d}); err != nil {
						return err
					}
				}
			}
		case relay.ConfirmFrame:
			if into.State().Version >= until {
				return nil
			}
		}
	}
}
