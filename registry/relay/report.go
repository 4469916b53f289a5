package relay

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/weir-registry/weir/registry"
)

const (
	// reportTime is how long a report may take.
	reportTime = 3 * time.Second
	// reportPace is the least time from one report to the next: acknowledgements
	// of changes that come faster travel together.
	reportPace = 20 * time.Millisecond
)

// Used notes when tokens were used at nodes in front, to be passed on. It is
// made for Config.Used.
func (c *Client) Used(used map[string]time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, at := range used {
		was, ok := c.uses[id]
		switch {
		case !ok && len(c.uses) >= maxPending, id == "", !shortText(id):
			continue // it is a convenience
		case at.After(was):
			c.uses[id] = at
		}
	}
}

// takeUses are those to be reported next.
func (c *Client) takeUses() map[string]time.Time {
	c.Used(c.o.Copy.Uses())
	c.mu.Lock()
	defer c.mu.Unlock()
	take := make(map[string]time.Time, min(len(c.uses), maxUses))
	for id, at := range c.uses {
		if len(take) == maxUses {
			break
		}
		take[id] = at
		delete(c.uses, id)
	}
	return take
}

// leave has a node told that another is followed, once that one has been told.
func (c *Client) leave(n *behind) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left = n
	if c.followed == n {
		c.followed = nil
	}
}

// takeLeft is the node to be told that it has been left, now that another has
// been told how this one is; nil if there is none.
func (c *Client) takeLeft(told *behind) *behind {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.left
	if n == told && c.followed != told {
		return nil // that report was under way when it was left
	}
	if c.left = nil; n == told {
		return nil // it is followed again
	}
	return n
}

// front are the nodes in front of this one that have changed since.
func (c *Client) front(since uint64) (list []registry.NodeStanding, last uint64, next <-chan struct{}) {
	if c.o.Board == nil {
		return nil, 0, nil
	}
	return c.o.Board.since(since)
}

// report tells the node that is followed how this node's copy is, and those of
// nodes in front: at once what has changed, and all of it every two seconds.
// Only one report is under way at a time; what changes meanwhile is in the next.
func (c *Client) report(ctx context.Context) {
	tick := time.NewTimer(reportEvery)
	defer tick.Stop()
	_, last, next := c.front(0)
	var to *behind
	all := true
	for {
		select {
		case <-c.applied:
		case <-next:
		case <-tick.C:
			all = true
			tick.Reset(reportEvery)
		case <-ctx.Done():
			return
		}
		begun := time.Now()
		n := c.current()
		if n != to {
			to, all = n, true
		}
		if all {
			last = 0
		}
		var list []registry.NodeStanding
		list, last, next = c.front(last)
		if n == nil {
			c.Used(c.o.Copy.Uses()) // nobody to tell; they are kept within limits
			continue
		}
		all = !c.tell(ctx, n, list, all)
		select {
		case <-time.After(reportPace - time.Since(begun)):
		case <-ctx.Done():
			return
		}
	}
}

// tell sends one report, and reports whether it arrived.
func (c *Client) tell(ctx context.Context, n *behind, list []registry.NodeStanding, all bool) bool {
	now := c.o.Now()
	r := report{Self: stateOf(c.o.Copy.State(), now), All: all}
	for _, s := range list {
		if len(s.Via) < maxVia && len(r.Front) < boardLimit {
			r.Front = append(r.Front, frontText{Node: s.Node, Via: s.Via, stateText: stateOf(s.Standing, now), Heard: max(ageOf(s.Heard, now), 0)})
		}
	}
	var uses map[string]time.Time
	if all {
		if uses = c.takeUses(); len(uses) > 0 {
			r.Used = make(map[string]age, len(uses))
			for id, at := range uses {
				r.Used[id] = max(ageOf(at, now), 0)
			}
		}
	}
	if err := c.post(ctx, n, r); err != nil {
		c.Used(uses)
		c.o.Log.Debug("a node behind could not be told how this one's copy is", "node", n.host, "err", err)
		return false
	}
	if left := c.takeLeft(n); left != nil {
		go func() { _ = c.post(ctx, left, report{Gone: true}) }() // it forgets by itself, too
	}
	return true
}

// post sends a report.
func (c *Client) post(ctx context.Context, n *behind, r report) error {
	text, err := json.Marshal(r)
	if err != nil {
		return registry.Wrap(registry.ErrInvalid, err, "report")
	}
	ctx, cancel := context.WithTimeout(ctx, reportTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, n.address+seenPath, bytes.NewReader(text))
	if err != nil {
		return registry.Wrap(registry.ErrInvalid, err, "report")
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.rt.RoundTrip(req)
	if err != nil {
		return registry.Wrap(registry.ErrUnavailable, err, "report to "+n.host)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent || resp.Header.Get(kindHeader) != "" {
		return failed(resp, n.host)
	}
	return nil
}
