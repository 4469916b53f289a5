package audit

import (
	"net/netip"
	"time"

	"github.com/weir-registry/weir/registry"
)

const (
	// foldWindow is the time in which refusals that are alike become one line.
	foldWindow = time.Second
	// addressLines and allLines are how many lines refusals may make in that
	// time, those of one address (of IPv6, of 64 bits) and all together. Whoever
	// asks for ever new things would else push all there is out of the log.
	addressLines = 20
	allLines     = 200
	// maxFolds is how many kinds of refusal are remembered, while the log cannot
	// be written too.
	maxFolds = 4096
)

// foldKey is what refusals have in common that become one line: who, what and
// from where. A client that retries, or guesses, differs in nothing else. The
// refusals of an address that are too many have the address and the decision in
// common, and those that are too many together the decision.
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

// fold is refusals after a first one, which has been recorded; of those that are
// too many, all.
type fold struct {
	until time.Time
	last  Event // its Count says how many
}

// A spending is how many lines refusals have made in this window.
type spending struct {
	until time.Time
	all   int
	by    map[netip.Addr]int
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
	l.putFolded(foldKey{
		who:    registryWho{c.Who.Name, c.Who.UID, c.Who.Token, c.Who.Node},
		action: c.Action, space: c.Name.Space, repo: c.Name.Repo, from: c.Addr, decision: decision,
	}, e)
}

// putFolded queues a refusal, or adds it to those like it.
func (l *Log) putFolded(key foldKey, e Event) {
	before, folded := l.fold(key, e)
	for _, b := range before {
		l.put(b)
	}
	if !folded {
		l.put(e)
	}
}

// fold adds e to those like it, if there was one just now, or to those that are
// too many. before is what was added to others whose time has passed.
func (l *Log) fold(key foldKey, e Event) (before []Event, folded bool) {
	l.foldMu.Lock()
	defer l.foldMu.Unlock()
	if f := l.folds[key]; f != nil {
		if e.Time.Before(f.until) {
			f.add(e)
			return nil, true
		}
		before = f.passed(before)
		delete(l.folds, key)
	}
	rest, over := l.spent.line(key, e.Time)
	if len(l.folds) >= maxFolds {
		rest, over = foldKey{decision: key.decision}, true
	}
	if !over {
		l.folds[key] = &fold{until: e.Time.Add(foldWindow)}
		return before, false
	}
	f := l.folds[rest]
	if f == nil || !e.Time.Before(f.until) {
		before = f.passed(before)
		f = &fold{until: e.Time.Add(foldWindow)}
		l.folds[rest] = f
	}
	e.Why = clip("one of many refusals: "+e.Why, 512)
	f.add(e)
	return before, true
}

func (f *fold) add(e Event) {
	e.Count = f.last.Count + 1
	f.last = e
}

// passed appends what was added to f.
func (f *fold) passed(events []Event) []Event {
	if f == nil || f.last.Count == 0 {
		return events
	}
	return append(events, f.last)
}

// line takes a line for a refusal. If there is none left, over, rest is what it has
// in common with others that are too many.
func (s *spending) line(key foldKey, now time.Time) (rest foldKey, over bool) {
	if left := s.until.Sub(now); left <= 0 || left > foldWindow { // or the clock was set back
		*s = spending{until: now.Add(foldWindow), by: map[netip.Addr]int{}}
	}
	from := registry.Network(key.from).Addr()
	switch {
	case s.all >= allLines:
		return foldKey{decision: key.decision}, true
	case s.by[from] >= addressLines:
		return foldKey{from: from, decision: key.decision}, true
	}
	s.all++
	s.by[from]++
	return foldKey{}, false
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
		events = f.passed(events)
	}
	return events
}
