package cachetiers

// links are what an order of eviction needs of each of its elements.
type links[E any] struct {
	newer, older *E
	size         int64  // bytes it takes
	stamp        uint32 // when it came, or when a hand last passed over it
	uses         uint8  // the owner's: what spend counts down
	queue        uint8  // the owner's: which of its orders it is in
	kind         uint8  // the owner's
	pending      bool   // the owner's
}

func (l *links[E]) at() *links[E] { return l }

// node is a pointer to an element with links.
type node[E any] interface {
	*E
	at() *links[E]
	// spend reports whether the element was used since the last time it was
	// asked, and takes one use away.
	spend() bool
}

// sieve is an order of eviction: SIEVE (Zhang et al., NSDI 2024). New elements
// enter at the head; a hand walks from the tail to the head, passes over what
// has been used since it last came by, and stops at the first that has not.
// With more than one use to spend an element is passed over as often. A hit
// moves nothing. It is guarded by its owner's lock.
type sieve[E any, P node[E]] struct {
	head, tail *E // newest, oldest
	hand       *E // nil: at the tail
	len        int
	bytes      int64
}

func (s *sieve[E, P]) push(e *E) {
	l := P(e).at()
	l.newer, l.older = nil, s.head
	if s.head != nil {
		P(s.head).at().newer = e
	}
	s.head = e
	if s.tail == nil {
		s.tail = e
	}
	s.len++
	s.bytes += l.size
}

// pushOld puts e behind all others.
func (s *sieve[E, P]) pushOld(e *E) {
	l := P(e).at()
	l.older, l.newer = nil, s.tail
	if s.tail != nil {
		P(s.tail).at().older = e
	}
	s.tail = e
	if s.head == nil {
		s.head = e
	}
	s.len++
	s.bytes += l.size
}

func (s *sieve[E, P]) remove(e *E) {
	l := P(e).at()
	if s.hand == e {
		s.hand = l.newer
	}
	if l.newer != nil {
		P(l.newer).at().older = l.older
	} else {
		s.head = l.older
	}
	if l.older != nil {
		P(l.older).at().newer = l.newer
	} else {
		s.tail = l.newer
	}
	l.newer, l.older = nil, nil
	s.len--
	s.bytes -= l.size
}

// candidate moves the hand to what is to go next and returns it; nil if there
// is nothing. The hand stays there, so that asking again costs nothing. It
// takes at most *steps steps, and then whatever it has come to.
func (s *sieve[E, P]) candidate(now uint32, steps *int) *E {
	e := s.hand
	for {
		if e == nil {
			if e = s.tail; e == nil {
				return nil
			}
		}
		if *steps <= 0 || !P(e).spend() {
			s.hand = e
			return e
		}
		*steps--
		l := P(e).at()
		l.stamp = now
		e = l.newer
	}
}
