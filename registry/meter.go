package registry

import "time"

// A Meter is told what happens. Its methods must not block and may be called
// from any goroutine.
type Meter interface {
	// Request is one answered request: the protocol, the status, how long
	// until its last byte, how many body bytes, and how it came about.
	Request(space string, status int, took time.Duration, bytes int64, via Via)
	// TierHit is one blob found in a tier.
	TierHit(tier string)
	// Fill is +1 when a fill from behind begins and -1 when it ends.
	Fill(delta int)
	// Collapsed is one reader that joined a running fill or question.
	Collapsed()
	// Upstream is one answer of an upstream; code 0 is no answer.
	Upstream(upstream string, code int, took time.Duration)
	// Event is something that an operator may want to be woken for, and what
	// it happened to: "breaker open", "docker.io". Both come from small sets.
	Event(what, who string)
}

// A Watcher is a Meter that looks for itself how things are, too. It is told
// once for each upstream, by a name that need not be the only one, how to find
// out how many requests wait to be sent to it and how many are open. counts
// must not block and may be called from any goroutine.
type Watcher interface {
	Meter
	WatchUpstream(upstream string, counts func() (waiting, active int))
}

// NoMeter is a Meter that forgets.
type NoMeter struct{}

var _ Meter = NoMeter{}

// Request implements Meter.
func (NoMeter) Request(string, int, time.Duration, int64, Via) {}

// TierHit implements Meter.
func (NoMeter) TierHit(string) {}

// Fill implements Meter.
func (NoMeter) Fill(int) {}

// Collapsed implements Meter.
func (NoMeter) Collapsed() {}

// Upstream implements Meter.
func (NoMeter) Upstream(string, int, time.Duration) {}

// Event implements Meter.
func (NoMeter) Event(string, string) {}
