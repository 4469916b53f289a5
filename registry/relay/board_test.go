package relay_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/relay"
)

// post is a node in front in a report.
type posted struct {
	Node      string   `json:"node"`
	Via       []string `json:"via,omitempty"`
	Database  string   `json:"database"`
	Version   uint64   `json:"version"`
	Confirmed int64    `json:"confirmed"`
	Heard     int64    `json:"heard"`
}

// told gives a board what nodes report, without a connection.
type told struct {
	t     *testing.T
	h     *relay.Handler
	board *relay.Board
	node  string
}

func newTold(t *testing.T) *told {
	c := &told{t: t, board: relay.NewBoard(nil)}
	c.h = relay.New(relay.Config{Source: newReplica("db"), Node: func(*http.Request) string { return c.node }, Board: c.board})
	return c
}

// by has a node report its version, and nodes in front of it.
func (c *told) by(node string, version uint64, all bool, front ...posted) {
	c.t.Helper()
	c.send(node, map[string]any{"self": posted{Node: "somebody else", Database: "db", Version: version}, "all": all, "front": front})
}

func (c *told) send(node string, report any) {
	c.t.Helper()
	c.node = node
	text, err := json.Marshal(report)
	if err != nil {
		c.t.Fatal(err)
	}
	r, _ := http.NewRequest(http.MethodPost, streamPath+"/seen", strings.NewReader(string(text)))
	w := &recorder{header: http.Header{}}
	if c.h.ServeHTTP(w, r); w.status != http.StatusNoContent {
		c.t.Fatalf("%s: %d %s", node, w.status, w.Bytes())
	}
}

// list is what the board has, as text.
func (c *told) list() string {
	var list []string
	for _, s := range c.board.List() {
		list = append(list, fmt.Sprint(s.Via, s.Node, " ", s.Version))
	}
	return strings.Join(list, ", ")
}

func (c *told) is(want string) {
	c.t.Helper()
	if got := c.list(); got != want {
		c.t.Errorf("the board has %s; want %s", got, want)
	}
}

// TestLiar: a node that says of others what is not so spoils what it says itself
// and nothing else.
func TestLiar(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTold(t)
		c.by("edge-1", 5, true)
		c.by("shield", 7, true, posted{Node: "edge-2", Database: "db", Version: 6})
		c.by("liar", 9, true,
			posted{Node: "edge-1", Database: "db", Version: 9},                          // has a certificate of its own
			posted{Node: "edge-2", Database: "db", Version: 9},                          // is the shield's
			posted{Node: "edge-2", Via: []string{"shield"}, Database: "db", Version: 9}, // not by way of the liar
			posted{Node: "liar", Database: "db", Version: 9},                            // in front of itself
			posted{Node: "edge-3", Via: []string{"liar"}, Database: "db", Version: 9},
			posted{Node: "edge-4", Database: "other", Version: 9},
		)
		c.is("[]edge-1 5, [liar]edge-1 9, [liar]edge-2 9, [liar shield]edge-2 9, [shield]edge-2 6, []liar 9, []shield 7")
		var reached []string
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		without, err := c.board.Wait(ctx, 9, func(s registry.NodeStanding) { reached = append(reached, fmt.Sprint(s.Via, s.Node)) })
		if !errors.Is(err, context.DeadlineExceeded) || len(without) != 3 || len(reached) != 4 {
			t.Errorf("reached %v, not %v; %v", reached, without, err)
		}
		// Nobody takes back what another has said, nor leaves for it.
		c.send("liar", map[string]any{"gone": true, "self": posted{Node: "edge-1"}})
		c.is("[]edge-1 5, [shield]edge-2 6, []shield 7")
	})
}

// TestWait: it ends when all have the version, or nobody who has not is heard of.
func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTold(t)
		if without, err := c.board.Wait(t.Context(), 9, nil); err != nil || without != nil {
			t.Errorf("with nobody in front: %v, %v", without, err)
		}
		c.by("edge-1", 9, true)
		c.by("edge-2", 8, true)
		c.by("edge-3", 8, true)
		begun := time.Now()
		var reached []string
		var without []registry.NodeStanding
		done := make(chan error)
		go func() {
			var err error
			without, err = c.board.Wait(t.Context(), 9, func(s registry.NodeStanding) {
				reached = append(reached, fmt.Sprint(s.Node, " ", time.Since(begun)))
			})
			done <- err
		}()
		for second := range 5 {
			<-time.After(time.Second)
			synctest.Wait()
			if second == 3 {
				c.by("edge-2", 10, true)
			} else {
				c.by("edge-2", 8, true)
			}
		}
		err := <-done
		if got := fmt.Sprint(reached); err != nil || got != "[edge-1 0s edge-2 4s]" || len(without) != 1 || without[0].Node != "edge-3" {
			t.Errorf("reached %v, not %v; %v", got, without, err)
		}
		if took := time.Since(begun); took < 10*time.Second || took > 12*time.Second {
			t.Errorf("it waited %v for one that is silent", took)
		}
	})
}

// TestWaitMoved: a node whose way has died has moved, and is not waited for on
// that way once it has been heard of on another, though that was not known when
// the waiting began. One that is only said to have the version while its own way
// lives is waited for.
func TestWaitMoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTold(t)
		at := func(node string, version uint64) posted { return posted{Node: node, Database: "db", Version: version} }
		c.by("shield-1", 8, true, at("edge-1", 8), at("edge-2", 8))
		c.by("shield-2", 8, true, at("edge-2", 8), at("edge-3", 8))
		begun := time.Now()
		var reached []string
		done := make(chan []registry.NodeStanding)
		ctx, cancel := context.WithTimeout(t.Context(), 9*time.Second)
		defer cancel()
		go func() {
			without, _ := c.board.Wait(ctx, 9, func(s registry.NodeStanding) {
				reached = append(reached, fmt.Sprint(s.Via, s.Node, " ", time.Since(begun)))
			})
			done <- without
		}()
		// shield-1 is dead, and edge-1 goes on with shield-2, which also says what
		// is not true of edge-4.
		c.by("edge-4", 8, true)
		for range 8 {
			<-time.After(time.Second)
			synctest.Wait()
			c.by("edge-4", 8, true)
			c.by("shield-2", 9, true, at("edge-1", 9), at("edge-2", 8), at("edge-3", 9), at("edge-4", 9))
			synctest.Wait()
		}
		var without []string
		for _, s := range <-done {
			without = append(without, fmt.Sprint(s.Via, s.Node))
		}
		// It looks once a second if nothing changes, and so may be one late.
		if got := fmt.Sprint(reached); got != "[[shield-2]edge-3 1s []shield-2 1s [shield-2]edge-1 3s]" && got != "[[shield-2]edge-3 1s []shield-2 1s [shield-2]edge-1 4s]" {
			t.Errorf("reached %v", got)
		}
		if got := fmt.Sprint(without); got != "[[shield-1]edge-2 [shield-2]edge-2 []edge-4 []shield-1]" {
			t.Errorf("without are %v", got)
		}
	})
}

// TestForget: whoever is silent for ten minutes is forgotten, also if another
// speaks of it.
func TestForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTold(t)
		c.by("edge", 1, true)
		c.by("shield", 1, true, posted{Node: "old", Database: "db", Version: 1, Heard: (9 * time.Minute).Microseconds()},
			posted{Node: "dead", Database: "db", Version: 1, Heard: (11 * time.Minute).Microseconds()})
		c.is("[]edge 1, [shield]old 1, []shield 1")
		<-time.After(2 * time.Minute)
		c.is("[]edge 1, []shield 1")
		c.by("shield", 2, true)
		<-time.After(9 * time.Minute)
		c.is("[]shield 2")
		// What a whole report does not have any more is gone; one of changes says
		// nothing of the rest.
		c.by("shield", 3, true, posted{Node: "a", Database: "db", Version: 1}, posted{Node: "b", Database: "db", Version: 1})
		c.by("shield", 3, false, posted{Node: "b", Database: "db", Version: 2})
		c.is("[shield]a 1, [shield]b 2, []shield 3")
		c.by("shield", 3, true, posted{Node: "b", Database: "db", Version: 2})
		c.is("[shield]b 2, []shield 3")
	})
}

// TestFull: there is an end to what is remembered, and who says most of others
// does not keep out those who speak for themselves, or others who say less.
func TestFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTold(t)
		var many []posted
		for i := range relay.BoardLimit {
			many = append(many, posted{Node: fmt.Sprint("made-up-", i), Database: "db", Version: 1})
		}
		c.by("liar", 1, true, many...)
		if n := len(c.board.List()); n != relay.BoardLimit {
			t.Fatalf("%d nodes", n)
		}
		c.by("edge", 1, true)
		c.by("shield", 1, true, posted{Node: "edge-2", Database: "db", Version: 1})
		c.by("liar", 1, true, many...)
		list := c.list()
		if n := len(c.board.List()); n != relay.BoardLimit {
			t.Errorf("%d nodes", n)
		}
		for _, want := range []string{"[]edge 1", "[shield]edge-2 1", "[]shield 1", "[]liar 1"} {
			if !strings.Contains(list, want) {
				t.Errorf("no room for %s", want)
			}
		}
		// One more in a report is too many.
		c.node = "liar"
		text, _ := json.Marshal(map[string]any{"front": append(many, many[0])})
		r, _ := http.NewRequest(http.MethodPost, streamPath+"/seen", strings.NewReader(string(text)))
		w := &recorder{header: http.Header{}}
		if c.h.ServeHTTP(w, r); w.status != http.StatusBadRequest {
			t.Errorf("%d", w.status)
		}
	})
}
