package cachetiers

const (
	// probation is the part of an order that what nobody has asked for twice
	// may have while the rest waits: one in so many bytes.
	probation = 10
	// maxSteps is how far hands walk for one victim. Without it a cache in which
	// everything has been used would stand still for a moment.
	maxSteps = 20_000
)

// probed is an order of eviction: S3-FIFO's (Yang et al., SOSP 2023) with SIEVE
// for its main queue. What is new enters a short queue, first in, first out:
// its probation. What has been used by its end comes into the main order, the
// rest goes. So a scan of things that are read once passes through a tenth of
// the cache. It is guarded by its owner's lock.
type probed[E any, P node[E]] struct {
	trial, main sieve[E, P]
}

// The queues of an element.
const (
	inTrial uint8 = iota
	inMain
)

func (o *probed[E, P]) bytes() int64 { return o.trial.bytes + o.main.bytes }

func (o *probed[E, P]) queue(e *E) *sieve[E, P] {
	if P(e).at().queue == inMain {
		return &o.main
	}
	return &o.trial
}

// push takes in e, on probation unless its queue is set.
func (o *probed[E, P]) push(e *E) { o.queue(e).push(e) }

// pushOld puts e behind all others in its queue.
func (o *probed[E, P]) pushOld(e *E) { o.queue(e).pushOld(e) }

func (o *probed[E, P]) remove(e *E) { o.queue(e).remove(e) }

// candidate is what is to go next; nil if there is nothing. It takes at most
// *steps steps.
func (o *probed[E, P]) candidate(now uint32, steps *int) *E {
	for o.trial.len > 0 && (o.trial.bytes > o.bytes()/probation || o.main.len == 0) {
		e := o.trial.tail
		if *steps <= 0 || !P(e).spend() {
			return e
		}
		*steps--
		o.trial.remove(e)
		l := P(e).at()
		l.queue, l.stamp = inMain, now
		o.main.push(e)
	}
	return o.main.candidate(now, steps)
}
