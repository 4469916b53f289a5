package relay

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/weir-registry/weir/registry"
)

// TestFrameLimits: a frame of each kind may be as long as it may, and no longer.
func TestFrameLimits(t *testing.T) {
	for _, kind := range []byte{helloFrame, pieceFrame, endFrame, deltaFrame, confirmFrame, byeFrame} {
		for extra, ok := range map[int]bool{0: true, 1: false} {
			f := frames{r: bytes.NewReader(appendFrame(nil, kind, make([]byte, frameLimit(kind)+extra)))}
			got, payload, err := f.next()
			if (err == nil) != ok || ok && (got != kind || len(payload) != frameLimit(kind)) {
				t.Errorf("%c of %d bytes: %v", kind, frameLimit(kind)+extra, err)
			}
			if !ok && registry.KindOf(err) != registry.ErrCorrupt {
				t.Errorf("%c: %v", kind, err)
			}
		}
	}
	// A length that lies costs no memory.
	head := appendFrame(nil, deltaFrame, make([]byte, maxDeltas))[:frameHead]
	f := frames{r: bytes.NewReader(append(head, "some"...))}
	if _, _, err := f.next(); err != io.ErrUnexpectedEOF || f.buf.Cap() > 64<<10 {
		t.Errorf("%v, and %d bytes were set aside", err, f.buf.Cap())
	}
}

// FuzzFrames: whatever comes is refused, or is frames that say just that.
func FuzzFrames(f *testing.F) {
	text, _ := json.Marshal([]registry.Delta{{Prev: 1, Version: 2, Records: []registry.Record{{Key: "e/a", Value: []byte("b"), Rev: 2}, {Key: "e/b"}}}})
	state, _ := json.Marshal(stateText{Database: "db", Version: 3, Hash: "00", Confirmed: 5})
	whole := appendFrame(nil, helloFrame, state)
	whole = appendFrame(whole, pieceFrame, []byte("piece"))
	whole = appendFrame(whole, endFrame, []byte{0, 0, 0, 0, 0, 0, 0, 5})
	whole = appendFrame(whole, deltaFrame, text)
	whole = appendFrame(whole, confirmFrame, state)
	f.Add(appendFrame(whole, byeFrame, nil))
	f.Add(whole[:len(whole)-1])
	f.Add([]byte{deltaFrame, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0})
	f.Add([]byte{byeFrame, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, stream []byte) {
		r := bytes.NewReader(stream)
		frames := frames{r: r}
		var again []byte
		for {
			at := len(stream) - r.Len()
			kind, payload, err := frames.next()
			if err == io.EOF {
				break
			}
			if err != nil {
				if err != io.ErrUnexpectedEOF && registry.KindOf(err) != registry.ErrCorrupt {
					t.Errorf("%v", err)
				}
				again = append(again[:at:at], stream[at:]...)
				break
			}
			again = appendFrame(again, kind, payload)
			switch kind {
			case deltaFrame:
				if ds, err := parseDeltas(payload); err == nil && (len(ds) == 0 || ds[len(ds)-1].Version <= ds[0].Prev) {
					t.Errorf("%+v", ds)
				}
			case helloFrame, confirmFrame:
				now := time.Now()
				if s, err := parseState(payload, now); err == nil && (!s.Whole() || s.Confirmed.After(now) || len(s.Hash) > maxText) {
					t.Errorf("%+v", s)
				}
			case pieceFrame:
				p := &pieceReader{f: &frames, left: payload, total: int64(len(payload))}
				n, err := io.Copy(io.Discard, p)
				if (err == nil) != p.ended || p.ended && n != p.total {
					t.Errorf("%d of %d bytes, ended %v: %v", n, p.total, p.ended, err)
				}
				again = append(again[:0], stream[:len(stream)-r.Len()]...)
			}
		}
		if !bytes.Equal(again, stream) {
			t.Errorf("%x is read as %x", stream, again)
		}
	})
}

// FuzzBodies: whatever a node posts is refused, or is within limits.
func FuzzBodies(f *testing.F) {
	f.Add([]byte(`{"self":{"database":"db","version":18446744073709551615,"confirmed":9223372036854775807},"front":[{"node":"a","via":["b"],"heard":9223372036854775807}],"used":{"t":1}}`))
	f.Add([]byte(`{"front":[{"node":"\u001b[2J","heard":0}],"gone":true}`))
	f.Add([]byte(`{"by":{"Name":"a","Only":[{"Action":"pull"}]},"spec":{"from":["10.0.0.0/8"]},"from":"::1"}`))
	f.Add([]byte(`{"by":{"Node":true}}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, text []byte) {
		now := time.Now()
		board := NewBoard(nil)
		r, err := parseReport(text)
		if err == nil {
			board.take("node", r, now)
			for _, s := range board.List() {
				if s.Node == "" || !shortText(s.Node) || s.Heard.After(now) || s.Confirmed.After(now) || len(s.Via) > maxVia || len(s.Via) > 0 && s.Via[0] != "node" || len(s.Via) == 0 && s.Node != "node" {
					t.Errorf("%+v", s)
				}
			}
			for id, a := range r.Used {
				if id == "" || a.time(now).After(now) {
					t.Errorf("%q %v", id, a)
				}
			}
		} else if registry.KindOf(err) != registry.ErrInvalid {
			t.Errorf("%v", err)
		}
		if q, err := parseQuestion(text); err == nil && q.By.Node {
			t.Errorf("%+v", q)
		} else if err != nil && registry.KindOf(err) != registry.ErrInvalid {
			t.Errorf("%v", err)
		}
	})
}

// FuzzWhere: whatever a follower says of itself is refused, or means one thing.
func FuzzWhere(f *testing.F) {
	f.Add("database=db&version=18446744073709551615&hash=00&snapshot=1&probe=1")
	f.Add("version=-1")
	f.Add("database=%00&%zz")
	f.Fuzz(func(t *testing.T, query string) {
		w, err := parseWhere(query)
		if err != nil {
			if registry.KindOf(err) != registry.ErrInvalid {
				t.Errorf("%v", err)
			}
			return
		}
		if !w.state.Whole() {
			w.state = registry.Standing{}
		}
		_, text, _ := strings.Cut(w.url(), "?")
		if again, err := parseWhere(text); err != nil || again != w {
			t.Errorf("%+v came as %+v, %v", w, again, err)
		}
	})
}

// TestAgeRounds: no age becomes younger on its way, and none overflows.
func TestAgeRounds(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC)
	for _, at := range []time.Time{now, now.Add(-1), now.Add(-time.Microsecond), now.Add(-999_999), now.Add(-time.Hour), {}, now.Add(time.Hour), now.AddDate(-280, 0, 0)} {
		a := ageOf(at, now)
		got := a.time(now)
		switch {
		case at.IsZero():
			if !got.IsZero() {
				t.Errorf("never came as %v", got)
			}
		case now.Sub(at) > maxAge:
			if now.Sub(got) != maxAge {
				t.Errorf("%v came as %v", at, got)
			}
		case at.After(now):
			if !got.Equal(now) {
				t.Errorf("%v came as %v", at, got)
			}
		case got.After(at) || at.Sub(got) >= time.Microsecond:
			t.Errorf("%v came as %v", at, got)
		}
	}
	if got := age(1<<63 - 1).time(now); now.Sub(got) != maxAge {
		t.Errorf("%v", got)
	}
}
