package trust

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"
)

const (
	// pollTicks is how many ticks lie between two questions who has been
	// revoked, saveTicks between two times that seen.json is written.
	pollTicks, saveTicks = 2, 15
	// renewWait is how long a failed renewal waits at first; each time twice
	// as long, to renewMost.
	renewWait, renewMost = time.Minute, time.Hour
	// remindEvery is how often the log is reminded of what a person must mend.
	remindEvery = time.Hour
)

// Run does what has to be done beside requests until ctx is done: it renews
// this node's certificates at two thirds of their life, asks others every two
// seconds who has been revoked, and writes down when nodes were seen. Nothing
// that fails ends it; the log and the meter are told.
func (t *Trust) Run(ctx context.Context) {
	if t.files != nil {
		<-ctx.Done()
		return
	}
	tr := t.Transport()
	defer tr.CloseIdleConnections()
	c := client(tr)
	var wg sync.WaitGroup
	wg.Go(func() { t.every(ctx, 1, func() { t.renewDue(ctx, c) }) })
	wg.Go(func() { t.every(ctx, pollTicks, func() { t.pollRevoked(ctx, c) }) })
	wg.Go(func() { t.every(ctx, saveTicks, t.saveSeen) })
	wg.Wait()
	t.saveSeen()
}

// every does something now and every so many ticks.
func (t *Trust) every(ctx context.Context, ticks int, do func()) {
	tick := time.NewTicker(t.tick * time.Duration(ticks))
	defer tick.Stop()
	for ctx.Err() == nil {
		do()
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// renewal is how far the renewal of one certificate is.
type renewal struct {
	next time.Time     // when to try again
	wait time.Duration // what was waited last
	told time.Time     // when the log was last reminded
}

// renewDue renews what is due.
func (t *Trust) renewDue(ctx context.Context, c *http.Client) {
	s := t.current()
	for _, m := range s.joined {
		r := t.renewals[m.id]
		if r == nil {
			r = &renewal{}
			t.renewals[m.id] = r
		}
		now, leaf := t.o.Now(), m.cert.Leaf
		again := ": make a join code on the node at " + m.record.Address + " (weir tiers invite) and use it here (weir tiers join)"
		switch {
		case s.revoked.has(m.id, leaf):
			t.remind(r, now, m, "this node has been revoked"+again)
		case now.After(leaf.NotAfter):
			t.remind(r, now, m, "this node's certificate has expired, and the nodes behind answer it no more"+again)
		case now.Before(leaf.NotBefore):
			t.remind(r, now, m, "this node's certificate is not valid yet: the clock is behind by "+leaf.NotBefore.Sub(now).Round(time.Second).String()+" or more")
		case !due(leaf, now):
			r.wait = 0
		case r.wait == 0 || !now.Before(r.next) || r.next.Sub(now) > renewMost: // the last: the clock was set back
			t.renewOne(ctx, c, m, r)
		}
	}
}

func (t *Trust) remind(r *renewal, now time.Time, m *member, text string) {
	if since := now.Sub(r.told); !r.told.IsZero() && since >= 0 && since < remindEvery {
		return
	}
	r.told = now
	t.o.Log.Error(text, "node", m.record.Name, "at", m.record.Address, "until", m.cert.Leaf.NotAfter)
	t.o.Meter.Event("certificate unusable", m.record.Address)
}

// renewOne renews one certificate, at the node it is from or at one that has
// the same authority.
func (t *Trust) renewOne(ctx context.Context, c *http.Client, m *member, r *renewal) {
	var first error
	for _, address := range t.addresses(m.record.Address) {
		next, err := t.renewAt(ctx, c, m, address)
		if err == nil {
			err = t.change(func() error { return t.dir.keepMember(next, serialText(m.cert.Leaf)) })
		}
		if err == nil {
			r.wait = 0
			c.CloseIdleConnections() // the next ones show the new certificate
			t.o.Log.Info("certificate renewed", "node", m.record.Name, "at", address, "until", next.cert.Leaf.NotAfter)
			return
		}
		if first == nil {
			first = err
		}
	}
	if ctx.Err() != nil {
		return
	}
	r.wait = min(max(2*r.wait, renewWait), renewMost)
	r.next = t.o.Now().Add(r.wait)
	t.o.Log.Warn("a certificate could not be renewed", "err", first, "node", m.record.Name, "at", m.record.Address,
		"until", m.cert.Leaf.NotAfter, "again_in", r.wait.String())
	t.o.Meter.Event("renewal failed", m.record.Address)
}

// renewAt asks one node for m's next certificate.
func (t *Trust) renewAt(ctx context.Context, c *http.Client, m *member, address string) (*member, error) {
	key, request, err := newRequest()
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(renewRequest{Version: fileVersion, CSR: request})
	if err != nil {
		return nil, err
	}
	text, err := ask(ctx, c, http.MethodPost, address+renewPath, body)
	if err != nil {
		return nil, err
	}
	code := Code{Address: m.record.Address, CA: fingerprint(m.ca)}
	answer, next, err := checkJoined(text, code, key, t.o.Now())
	if err == nil && answer.Name != m.record.Name {
		err = fmt.Errorf("a certificate for %q", answer.Name)
	}
	return next, err
}

// addresses is the first one, then all others that are known, each once.
func (t *Trust) addresses(first ...string) []string {
	s := t.current()
	list := append([]string{}, first...)
	for _, m := range s.joined {
		list = append(list, m.record.Address)
	}
	list = append(list, t.o.Equals...)
	if s.own != nil {
		list = append(list, s.own.record.Equals...)
	}
	var out []string
	for _, a := range list {
		if clean, err := cleanAddress(a); err == nil && !slices.Contains(out, clean) {
			out = append(out, clean)
		}
	}
	return out
}

// pollRevoked asks every node that is known who has been revoked.
func (t *Trust) pollRevoked(ctx context.Context, c *http.Client) {
	type result struct {
		address string
		list    []revocation
		err     error
	}
	s := t.current()
	var known []*x509.Certificate
	for _, m := range s.joined {
		known = append(known, m.ca)
	}
	if s.own != nil {
		known = append(known, s.own.cert)
	}
	if len(known) == 0 {
		return
	}
	addresses := t.addresses()
	results := make(chan result, len(addresses))
	for _, a := range addresses {
		go func() {
			text, err := ask(ctx, c, http.MethodGet, a+revokedPath, nil)
			var list []revocation
			if err == nil {
				list, err = heard(text, known)
			}
			results <- result{a, list, err}
		}()
	}
	for range addresses {
		r := <-results
		if ctx.Err() != nil {
			continue
		}
		if r.err == nil {
			r.err = t.merge(r.list, r.address)
		}
		t.listening(r.address, r.err)
	}
}

// listening tells when a node can no longer, or again, be heard.
func (t *Trust) listening(address string, err error) {
	switch {
	case err != nil && !t.deaf[address]:
		t.deaf[address] = true
		t.o.Log.Warn("who has been revoked cannot be asked of a node", "at", address, "err", err)
		t.o.Meter.Event("revocations not heard", address)
	case err == nil && t.deaf[address]:
		delete(t.deaf, address)
		t.o.Log.Info("who has been revoked can be asked of a node again", "at", address)
	}
}

// merge adds revocations that others have told of.
func (t *Trust) merge(list []revocation, from string) error {
	s := t.current()
	have := map[revocation]bool{}
	for _, r := range s.nodes.Revoked {
		have[r.key()] = true
	}
	if !slices.ContainsFunc(list, func(r revocation) bool { return !have[r.key()] }) {
		return nil
	}
	return t.change(func() error {
		own, err := t.dir.readAuthority()
		if err != nil {
			return err
		}
		nodes, err := t.dir.readNodes(own != nil)
		if err != nil {
			return err
		}
		added := nodes.revoke(own, list)
		if len(added) == 0 {
			return nil
		}
		if err := t.dir.write(nodesFile, nodes); err != nil {
			return err
		}
		for _, r := range added {
			t.o.Log.Info("node revoked", "node", r.Name, "serial", r.Serial, "heard_from", from)
		}
		return nil
	})
}

// saw notes that a node was here.
func (t *Trust) saw(name string) {
	if t.files != nil {
		return // names that others give are not ours to list
	}
	now := t.o.Now().UTC().Truncate(time.Second)
	t.seenMu.Lock()
	defer t.seenMu.Unlock()
	if !t.seen[name].Equal(now) {
		t.seen[name] = now
		t.unsaved = true
	}
}

// saveSeen writes down who was seen, if anyone was.
func (t *Trust) saveSeen() {
	t.seenMu.Lock()
	r := seenRecord{Version: fileVersion, Seen: maps.Clone(t.seen)}
	unsaved := t.unsaved
	t.unsaved = false
	t.seenMu.Unlock()
	if !unsaved {
		return
	}
	if err := t.dir.write(seenFile, r); err != nil {
		t.o.Log.Warn("when nodes were seen could not be written down", "err", err)
	}
}

// readSeen begins with what was written down.
func (t *Trust) readSeen() {
	t.seenMu.Lock()
	defer t.seenMu.Unlock()
	maps.Copy(t.seen, t.dir.lastSeen())
}

// lastSeen is seen.json; whatever is wrong with it, there is nothing to lose.
func (d directory) lastSeen() map[string]time.Time {
	var r seenRecord
	if err := d.read(seenFile, &r); err != nil {
		return nil
	}
	return r.Seen
}
