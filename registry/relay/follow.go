package relay

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"time"

	"github.com/weir-registry/weir/registry"
)

const (
	// lagging is how old the confirmation of the node with the database must be
	// for another node to be looked for, and fresher by how much that one's must
	// be younger.
	lagging = 2 * time.Second
	fresher = time.Second
	// wentBack is by how much the confirmation of an older version must be younger
	// than a copy for the database to have gone back: by more than frames are ever
	// under way.
	wentBack = 10 * time.Second
	// scoutMost is the longest time between two looks for a node that is better.
	scoutMost = 5 * time.Second
)

// follow follows one node after the other until ctx is done.
func (c *Client) follow(ctx context.Context) {
	defer c.setCurrent(nil)
	pause := time.Duration(0)
	next := 0
	for failures := 0; ctx.Err() == nil; {
		n := c.nodes[next]
		if n.passedOver(c.o.Now()) {
			failures++
		} else {
			begun := time.Now()
			better, err := c.followOne(ctx, n)
			if ctx.Err() != nil {
				return
			}
			if better != nil {
				next, failures, pause = better.index, 0, 0
				continue
			}
			if errors.Is(err, errBye) && time.Since(begun) > steady {
				failures, pause = 0, 0
				continue // the same again
			}
			worked := c.setCurrent(nil) == n && time.Since(begun) > steady
			c.failed(n, err)
			if failures++; worked {
				failures, pause = 1, 0 // the others may have come back meanwhile
			}
		}
		next = (next + 1) % len(c.nodes)
		if failures >= len(c.nodes) {
			pause = min(max(2*pause, firstPause), longestPause)
			failures, next = 0, 0
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
		}
	}
}

// failed says that a node cannot be followed, if it has not been said.
func (c *Client) failed(n *behind, err error) {
	if registry.KindOf(err) == registry.ErrConflict {
		if n.pass(c.o.Now()) {
			c.o.Meter.Event("entitlements of another database", n.host)
			c.o.Log.Error("a node behind has the entitlements of another database than this node's copy, or of an earlier state of it, and is passed over;"+
				" let `next` name nodes of one database, or, to follow that one from now on, stop this node, remove the file `entitlements` in its data directory and start it again",
				"node", n.host, "database", c.o.Copy.State().Database, "err", err)
		}
		return
	}
	if !n.lost {
		n.lost = true
		c.o.Meter.Event("entitlements lost", n.host)
		c.o.Log.Warn("a node behind cannot be followed for entitlements", "node", n.host, "err", err)
	}
}

// follower is one node being followed.
type follower struct {
	c      *Client
	n      *behind
	l      *line
	change time.Time   // when the copy last got a version, or began to follow
	fresh  bool        // a snapshot is asked for, whatever the copy has
	again  bool        // a snapshot that was asked for so has come
	busy   atomic.Bool // a snapshot is under way
}

// followOne follows a node until it fails. better is not nil if that was because
// another is better.
func (c *Client) followOne(ctx context.Context, n *behind) (better *behind, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	f := &follower{c: c, n: n, change: c.o.Now()}
	found := make(chan *behind, 1)
	scouting := false
	for {
		if f.l, err = c.open(ctx, n, where{state: c.o.Copy.State(), fresh: f.fresh}); err == nil {
			if !scouting && len(c.nodes) > 1 {
				scouting = true
				go f.scout(ctx, func(other *behind) { found <- other; cancel(errSwitch) })
			}
			err = f.run()
			f.l.close()
		}
		select {
		case better := <-found:
			c.leave(n)
			return better, nil
		default:
		}
		if !errors.Is(err, registry.ErrGone) || f.again {
			return nil, err
		}
		// The copy is not what it should be.
		c.o.Meter.Event("entitlements gap", n.host)
		c.o.Log.Warn("the copy of the entitlements does not follow up; a whole one is asked for", "node", n.host, "err", err)
		f.fresh, f.again = true, true
	}
}

// run takes what comes. Its error is never nil; ErrGone asks for a snapshot.
func (f *follower) run() error {
	is, err := f.l.hello(f.c.o.Now)
	if err != nil {
		return err
	}
	if own := f.c.o.Copy.State(); own.Whole() && own.Database != is.Database {
		return registry.Errorf(registry.ErrConflict, "%s has the entitlements of database %s", f.n.host, is.Database)
	}
	for {
		kind, payload, err := f.l.frame()
		switch {
		case err == io.EOF:
			return registry.Errorf(registry.ErrUnavailable, "%s has ended the stream", f.n.host)
		case err != nil:
			return err
		case kind == pieceFrame || kind == endFrame:
			err = f.snapshot(kind, payload)
		case kind == deltaFrame:
			err = f.apply(payload)
		case kind == confirmFrame:
			err = f.confirm(payload)
		case kind == helloFrame:
			err = f.behind(payload)
		case kind == byeFrame:
			_, _, _ = f.l.frame() // to its end, so that the connection can be used again
			return errBye
		}
		if err != nil {
			return err
		}
	}
}

// snapshot takes a snapshot whose first frame has come.
func (f *follower) snapshot(kind byte, first []byte) error {
	if kind != pieceFrame {
		return registry.Errorf(registry.ErrCorrupt, "a snapshot of nothing")
	}
	p := &pieceReader{f: &f.l.frames, left: first, total: int64(len(first))}
	f.busy.Store(true)
	defer f.busy.Store(false)
	begun := time.Now()
	timer := time.AfterFunc(snapshotTime, func() { f.l.cancel(errSilent) })
	defer timer.Stop()
	if err := f.c.o.Copy.ReadSnapshot(p); err != nil {
		if p.err != nil && p.err != io.EOF {
			err = p.err // it is for want of the rest
		}
		return registry.Wrap(registry.ErrCorrupt, err, "take a snapshot of the entitlements from "+f.n.host)
	}
	if err := p.finish(); err != nil {
		return registry.Wrap(registry.ErrUnavailable, err, "take a snapshot of the entitlements from "+f.n.host)
	}
	is := f.c.o.Copy.State()
	f.c.o.Meter.Event("entitlements snapshot", f.n.host)
	f.c.o.Log.Info("took a snapshot of the entitlements", "node", f.n.host, "version", is.Version, "records", is.Records, "bytes", p.total, "took", time.Since(begun).Round(time.Millisecond).String())
	f.news()
	return nil
}

// apply takes changes, but for those that the copy has.
func (f *follower) apply(payload []byte) error {
	ds, err := parseDeltas(payload)
	if err != nil {
		return err
	}
	have := f.c.o.Copy.State().Version
	for len(ds) > 0 && ds[0].Version <= have {
		ds = ds[1:]
	}
	if len(ds) == 0 {
		return nil
	}
	if err := f.c.o.Copy.Apply(ds); err != nil {
		return registry.Wrap(registry.ErrUnavailable, err, "apply changes of the entitlements from "+f.n.host)
	}
	f.news()
	return nil
}

// news notes that the copy has a new version, and has it reported.
func (f *follower) news() {
	f.change = f.c.o.Now()
	select {
	case f.c.applied <- struct{}{}:
	default:
	}
}

// confirm takes a confirmation.
func (f *follower) confirm(payload []byte) error {
	s, err := parseState(payload, f.c.o.Now())
	if err != nil {
		return err
	}
	if err := f.c.o.Copy.Confirm(s); err != nil {
		return registry.Wrap(registry.ErrGone, err, "compare the copy of the entitlements with that of "+f.n.host)
	}
	f.fresh, f.again = false, false
	f.good()
	return nil
}

// good notes that the node can be followed.
func (f *follower) good() {
	if f.c.current() == f.n {
		return
	}
	f.c.setCurrent(f.n)
	f.n.lost = false
	f.n.forgive()
	f.c.o.Meter.Event("entitlements followed", f.n.host)
	f.c.o.Log.Info("following a node for entitlements", "node", f.n.host)
	f.news()
}

// behind takes it that the node has a version that is older than the copy's, or
// none for it yet. Most likely it will get it. But if the node with the database
// has confirmed that one after the copy got its own, then it has gone back: it
// was restored from a backup. To follow it would bring back what has been revoked
// since, so that is for a person to decide.
func (f *follower) behind(payload []byte) error {
	s, err := parseState(payload, f.c.o.Now())
	if err != nil {
		return err
	}
	if own := f.c.o.Copy.State(); own.Version > s.Version && s.Confirmed.After(f.change.Add(wentBack)) {
		return registry.Errorf(registry.ErrConflict, "version %d of %s has been confirmed since this node has version %d: the database has gone back", s.Version, f.n.host, own.Version)
	}
	return nil
}

// scout looks for a node that is better than the one that is followed: one that
// comes before it, or one whose confirmation is younger if that one's is old. A
// snapshot that is under way is not given up for that. It calls found once at
// most, and ends with ctx.
func (f *follower) scout(ctx context.Context, found func(*behind)) {
	c, n := f.c, f.n
	tick := time.NewTicker(min(c.o.Prefer, lagging/4))
	defer tick.Stop()
	preferred, looked, wait := time.Now(), time.Time{}, fresher
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if f.busy.Load() {
			continue
		}
		old := c.lag()
		var candidates []*behind
		switch {
		case old > lagging && time.Since(looked) >= wait:
			looked, wait = time.Now(), min(2*wait, scoutMost)
			candidates = c.nodes
		case old <= lagging && time.Since(preferred) >= c.o.Prefer:
			preferred, wait = time.Now(), fresher
			candidates = c.nodes[:n.index]
		}
		for _, other := range candidates {
			if other != n && c.better(ctx, other, old) && !f.busy.Load() {
				found(other)
				return
			}
		}
	}
}

// lag is how old the confirmation of the copy is.
func (c *Client) lag() time.Duration {
	is := c.o.Copy.State()
	if is.Confirmed.IsZero() {
		return maxAge
	}
	return c.o.Now().Sub(is.Confirmed)
}

// better reports whether a node that is not followed should be, if the
// confirmation of the copy is old by so much.
func (c *Client) better(ctx context.Context, n *behind, old time.Duration) bool {
	if n.passedOver(c.o.Now()) {
		return false
	}
	is, err := c.probe(ctx, n)
	if err != nil || ctx.Err() != nil {
		return false
	}
	own := c.o.Copy.State()
	if own.Whole() && own.Database != is.Database || is.Confirmed.IsZero() {
		return false
	}
	theirs := c.o.Now().Sub(is.Confirmed)
	if old > lagging {
		return theirs < old-fresher
	}
	return theirs < old+fresher
}
