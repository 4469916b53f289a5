package outbound

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/failsafe-go/failsafe-go/circuitbreaker"

	"github.com/weir-registry/weir/registry"
)

const (
	// A breaker opens when breakShare of the answers of breakWindow have
	// failed, of breakLeast or more.
	breakShare  = 0.5
	breakLeast  = 20
	breakWindow = 30 * time.Second
	// breakDelay is for how long it stays open; then breakProbes requests are
	// let through, and it closes if all of them succeed.
	breakDelay  = 5 * time.Second
	breakProbes = 2
	// longestPause bounds what a Retry-After can do.
	longestPause = time.Minute
	// pauseProbes is how many requests are let through within the time that a
	// 429's Retry-After names, to learn whether it means what it says.
	pauseProbes = 3
	// maxHosts bounds the hosts of which anything is known: redirects name them.
	maxHosts = 64
	// perSubject is how many failures about one repository or package count in
	// a window, each of another address.
	perSubject = 3
	// failuresKept is how many failed requests are remembered, per host.
	failuresKept = 32
	// aboutBytes is how much of a request's address tells it from others.
	aboutBytes = 512
)

// hosts is what is known of the hosts that an upstream's requests go to: its
// own, its token server, the content network that it redirects to. Each has a
// breaker and pauses of its own, so that one that is down or limits how often
// it may be asked does not take the others with it.
type hosts struct {
	name  string // the upstream's
	slow  time.Duration
	meter registry.Meter
	log   *slog.Logger

	mu sync.Mutex
	m  map[string]*health // by host and port; guarded by mu
}

// health is one host's.
type health struct {
	of   *hosts
	host string
	used time.Time // guarded by of.mu

	// All below is guarded by mu, and the breaker is only called with it held.
	mu      sync.Mutex
	breaker circuitbreaker.CircuitBreaker[any]
	turn    int // changes with the breaker's state
	failed  [failuresKept]failure
	next    int      // in failed
	pauses  [2]pause // for documents, for blobs
}

// failure is a request that failed, and when.
type failure struct {
	about   string
	subject string
	at      time.Time
}

// A pause is a time for which a host has asked to be left alone.
type pause struct {
	until   time.Time
	length  time.Duration
	subject string    // of the request that was answered so first
	limited bool      // by 429s about more than one: nobody but probes may pass
	probe   time.Time // when the next one may
}

// A question is one Do on its way, through however many hosts.
type question struct {
	Load
	about string
}

// subject is what q is about, in the words of whoever asks.
func (q question) subject() string {
	if q.Subject != "" {
		return q.Subject
	}
	return q.about
}

// kind is the index of a question's pause.
func (q question) kind() int {
	if q.Blob {
		return 1
	}
	return 0
}

// A permit is the right to one exchange with a host. It must be settled: a
// breaker that is trying whether a host has recovered lets no one else pass
// before.
type permit struct {
	h     *health
	turn  int
	begun time.Time
	lifts bool // given during a pause, which a good answer ends
}

func (hs *hosts) of(host string) *health {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	h := hs.m[host]
	if h == nil {
		h = &health{of: hs, host: host}
		h.breaker = circuitbreaker.NewBuilder[any]().
			WithFailureRateThreshold(breakShare, breakLeast, breakWindow).
			WithSuccessThreshold(breakProbes).WithDelay(breakDelay).
			OnStateChanged(h.changed).Build()
		if len(hs.m) >= maxHosts {
			hs.dropLocked()
		}
		if hs.m == nil {
			hs.m = map[string]*health{}
		}
		hs.m[host] = h
	}
	h.used = time.Now()
	return h
}

// dropLocked forgets the host that has not been asked for longest.
func (hs *hosts) dropLocked() {
	var oldest *health
	for _, h := range hs.m {
		if oldest == nil || h.used.Before(oldest.used) {
			oldest = h
		}
	}
	delete(hs.m, oldest.host)
}

// changed is called by the breaker, and so with h.mu held. That probes fail is
// no news.
func (h *health) changed(e circuitbreaker.StateChangedEvent) {
	h.turn++
	switch {
	case e.NewState == circuitbreaker.OpenState && e.OldState == circuitbreaker.ClosedState:
		h.of.meter.Event("breaker open", h.of.name)
		h.of.log.Warn("upstream fails too often, left alone for a while", "upstream", h.of.name, "host", h.host,
			"failed", e.Metrics().Failures(), "of", e.Metrics().Executions(), "for", breakDelay)
	case e.NewState == circuitbreaker.ClosedState:
		h.of.meter.Event("breaker closed", h.of.name)
		h.of.log.Info("upstream answers again", "upstream", h.of.name, "host", h.host)
	}
}

// refused is why q must not be put to a host now, nil if it may.
func (hs *hosts) refused(host string, q question) error {
	h := hs.of(host)
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.refusedLocked(q, time.Now())
}

// admit is refused, and the permit if it is not.
func (hs *hosts) admit(host string, q question) (permit, error) {
	h := hs.of(host)
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	if err := h.refusedLocked(q, now); err != nil {
		return permit{}, err
	}
	if !h.breaker.TryAcquirePermit() {
		return permit{}, h.openLocked()
	}
	p := permit{h: h, turn: h.turn, begun: now}
	if pz := &h.pauses[q.kind()]; now.Before(pz.until) {
		p.lifts = true
		pz.probe = now.Add(pz.length / pauseProbes)
	}
	return p, nil
}

// refusedLocked tells what the pauses and the breaker say without asking the
// breaker for a permit, of which there may be few.
func (h *health) refusedLocked(q question, now time.Time) error {
	if h.breaker.RemainingDelay() > 0 {
		return h.openLocked()
	}
	pz := h.pauses[q.kind()]
	switch {
	case !now.Before(pz.until):
	case pz.limited && (q.Background || now.Before(pz.probe)):
		return &registry.Error{Kind: registry.ErrLimited, Text: h.of.name + " is not asked: " + h.host + " has answered 429",
			Public: h.of.name + " limits how often it may be asked", After: whole(pz.until.Sub(now))}
	case q.Background:
		return &registry.Error{Kind: registry.ErrUnavailable, Text: h.of.name + " is not asked: " + h.host + " wants to be left alone",
			Public: h.of.name + " is overloaded", After: whole(pz.until.Sub(now))}
	}
	return nil
}

func (h *health) openLocked() error {
	return &registry.Error{Kind: registry.ErrUnavailable, Text: h.of.name + " is not asked: " + h.host + " has failed too often of late",
		Public: h.of.name + " fails too often, and is not asked at the moment", After: whole(h.breaker.RemainingDelay())}
}

// whole is d in whole seconds, one at least.
func whole(d time.Duration) time.Duration {
	return max((d + time.Second - 1).Truncate(time.Second), time.Second)
}

// settle learns from an exchange: from resp, or from why there is none.
func (p permit) settle(q question, resp *http.Response, err error) {
	h, now := p.h, time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	good, bad := p.verdict(resp, err, now)
	if bad {
		bad = h.countsLocked(q, now)
	}
	if p.turn == h.turn { // else it says nothing about how things are now
		switch half := h.breaker.IsHalfOpen(); {
		case good:
			h.breaker.RecordSuccess()
		case bad, half: // a probe without an outcome has not succeeded
			h.breaker.RecordFailure()
		}
	}
	if resp != nil {
		h.heedLocked(p, q, resp, now)
	}
}

// verdict is what an exchange says about the health of its host: a status that
// is about the request says that it does well; a rule of weir's own, or a
// caller who has no time, say nothing.
func (p permit) verdict(resp *http.Response, err error, now time.Time) (good, bad bool) {
	var rule *refusal
	switch {
	case resp != nil:
		bad = resp.StatusCode >= 500 && resp.StatusCode != http.StatusNotImplemented
		return !bad, bad
	case errors.As(err, &rule):
		return false, false
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, errSlow):
		return false, now.Sub(p.begun) >= p.h.of.slow
	}
	return false, true
}

// countsLocked reports whether q's failure says something about more than what
// it is about, and remembers it: one package that cannot be had, however often
// it is asked for, is no reason to leave a registry alone.
func (h *health) countsLocked(q question, now time.Time) bool {
	same := 0
	for _, f := range h.failed {
		if now.Sub(f.at) >= breakWindow {
			continue
		}
		if f.about == q.about {
			return false
		}
		if f.subject == q.subject() {
			same++
		}
	}
	if same >= perSubject {
		return false
	}
	h.failed[h.next] = failure{q.about, q.subject(), now}
	h.next = (h.next + 1) % failuresKept
	return true
}

// heedLocked begins a pause, or ends one.
func (h *health) heedLocked(p permit, q question, resp *http.Response, now time.Time) {
	pz := &h.pauses[q.kind()]
	limits := resp.StatusCode == http.StatusTooManyRequests
	if !limits && resp.StatusCode != http.StatusServiceUnavailable {
		if p.lifts && resp.StatusCode < 500 {
			*pz = pause{}
		}
		return
	}
	after := min(retryAfter(resp.Header.Get("Retry-After"), now), longestPause)
	if after <= 0 {
		return
	}
	if !now.Before(pz.until) {
		*pz = pause{length: after, subject: q.subject(), probe: now}
	}
	if until := now.Add(after); until.After(pz.until) {
		pz.until = until
	}
	if limits && !pz.limited && pz.subject != q.subject() {
		pz.limited = true
		h.of.meter.Event("rate limited", h.of.name)
		h.of.log.Warn("upstream limits how often it may be asked, left alone for a while", "upstream", h.of.name,
			"host", h.host, "blobs", q.Blob, "for", after)
	}
}

// silent learns that a body which had begun did not go on.
func (hs *hosts) silent(host string, q question) {
	h := hs.of(host)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.countsLocked(q, time.Now()) && h.breaker.IsClosed() {
		h.breaker.RecordFailure()
	}
}
