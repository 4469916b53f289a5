package audit

import (
	"net/netip"
	"time"

	"github.com/weir-registry/weir/registry"
)

// foldKey is what refusals have in common that become one line: who, what and
// from where. A client that retries, or guesses, differs in nothing else.
type foldKey struct {
	who      registryWho
	action   registry.Action
	space    string
	repo     string
	from     netip.Addr
	decision string
}

type registryWho struct {
	name, uid, token string
	node             bool
}

// fold is refusals after a first one, which has been recorded.
type fold struct {
	until time.Time
	last  Event // its Count says how many
}

// refused records a refusal: the first of its kind at once, and those that follow
// within foldWindow as one.
func (l *Log) refused(c *registry.Call, err error) {
	decision := Fail
	switch registry.KindOf(err) {
	case registry.ErrUnauthenticated, registry.ErrDenied, registry.ErrLimited:
		decision = Deny
	}
	e := eventOf(c, decision, err)
	l.fill(&e)
	key := foldKey{
		who:    registryWho{c.Who.Name, c.Who.UID, c.Who.Token, c.Who.Node},
		action: c.Action, space: c.Name.Space, repo: c.Name.Repo, from: c.Addr, decision: decision,
	}
	before, folded := l.fold(key, e)
	if before.Count > 0 {
		l.put(before)
	}
	if !folded {
		l.put(e)
	}
}

// fold adds e to those like it, if there was one just now. before is what was
// added to one whose time has passed.
func (l *Log) fold(key foldKey, e Event) (before Event, folded bool) {
	l.foldMu.Lock()
	defer l.foldMu.Unlock()
	f := l.folds[key]
	switch {
	case f != nil && e.Time.Before(f.until):
		e.Count = f.last.Count + 1
		f.last = e
		return Event{}, true
	case f != nil:
		before = f.last
	case len(l.folds) >= maxFolds || len(key.repo) > 512:
		return Event{}, false
	}
	l.folds[key] = &fold{until: e.Time.Add(foldWindow)}
	return before, false
}

// unfold takes what has been folded and whose time has passed, or everything.
func (l *Log) unfold(now time.Time, all bool) []Event {
	l.foldMu.Lock()
	defer l.foldMu.Unlock()
	var events []Event
	for key, f := range l.folds {
		if !all && now.Before(f.until) {
			continue
		}
		delete(l.folds, key)
		if f.last.Count > 0 {
			events = append(events, f.last)
		}
	}
	return events
}
