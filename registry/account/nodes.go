package account

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"github.com/weir-registry/weir/registry"
)

// maxWait is the longest that a request waits for nodes.
const maxWait = 5 * time.Minute

// A Reached is a line of the answer to GET nodes?version=N&wait=10s.
type Reached struct {
	// Node is one that has the version; "" in the last line.
	Node string   `json:"node,omitempty"`
	Via  []string `json:"via,omitempty"`
	// Self reports that it is the node that answers.
	Self bool `json:"self,omitempty"`
	// After is how long it took since the request came, in seconds.
	After float64 `json:"after"`
	// Done reports that this is the last line, and Missing are then the nodes
	// that have not the version.
	Done    bool                    `json:"done,omitempty"`
	Missing []registry.NodeStanding `json:"missing,omitempty"`
}

// nodes lists the nodes, or waits for them.
func (h *admin) nodes(w http.ResponseWriter, c *caller) (any, error) {
	q := c.URL.Query()
	if !q.Has("version") {
		all := []registry.NodeStanding{h.self()}
		if h.o.Board != nil {
			all = append(all, h.o.Board.List()...)
		}
		return Listing{Nodes: all}, nil
	}
	version, err := strconv.ParseUint(q.Get("version"), 10, 64)
	if err != nil {
		return nil, registry.Errorf(registry.ErrInvalid, "%.100q is not a version", q.Get("version"))
	}
	wait := 10 * time.Second
	if text := q.Get("wait"); text != "" {
		if wait, err = time.ParseDuration(text); err != nil || wait < 0 || wait > maxWait {
			return nil, registry.Errorf(registry.ErrInvalid, "%.100q is not a time up to %v such as 10s", text, maxWait)
		}
	}
	h.wait(w, c, version, wait)
	return nil, nil
}

// self is how this node itself is.
func (h *admin) self() registry.NodeStanding {
	n := registry.NodeStanding{Node: h.o.Node, Heard: h.a.o.Now()}
	if h.o.State != nil {
		n.Standing = h.o.State()
	}
	return n
}

// wait writes a line for each node as it has a version.
func (h *admin) wait(w http.ResponseWriter, c *caller, version uint64, limit time.Duration) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(c.Context(), limit)
	defer cancel()
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Cache-Control", "no-store")
	lines := json.NewEncoder(w)
	line := func(r Reached) {
		r.After = time.Since(began).Seconds()
		if lines.Encode(r) != nil || http.NewResponseController(w).Flush() != nil {
			cancel() // nobody hears it
		}
	}
	last := Reached{Done: true}
	if err := h.a.o.Replica.Wait(ctx, version); err != nil {
		last.Missing = append(last.Missing, h.self())
	} else {
		line(Reached{Node: h.o.Node, Self: true})
	}
	if h.o.Board != nil {
		without, _ := h.o.Board.Wait(ctx, version, func(n registry.NodeStanding) {
			line(Reached{Node: n.Node, Via: n.Via})
		})
		last.Missing = append(last.Missing, without...)
	}
	line(last)
}
