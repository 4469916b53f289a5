package cachetiers

// sieve is the order in which a disk's blobs go: SIEVE (Zhang et al., NSDI
// 2024). New blobs enter at the head; a hand walks from the tail to the head,
// passes over what has been used since it last came by, and evicts the first
// that has not. A hit only sets a bit. It is guarded by its owner's lock.
type sieve struct {
	head, tail *entry // newest, oldest
	hand       *entry // nil: at the tail
}

func (s *sieve) push(e *entry) {
	e.newer, e.older = nil, s.head
	if s.head != nil {
		s.head.newer = e
	}
	s.head = e
	if s.tail == nil {
		s.tail = e
	}
}

// pushOld puts e behind all others.
func (s *sieve) pushOld(e *entry) {
	e.older, e.newer = nil, s.tail
	if s.tail != nil {
		s.tail.older = e
	}
	s.tail = e
	if s.head == nil {
		s.head = e
	}
}

func (s *sieve) remove(e *entry) {
	if s.hand == e {
		s.hand = e.newer
	}
	if e.newer != nil {
		e.newer.older = e.older
	} else {
		s.head = e.older
	}
	if e.older != nil {
		e.older.newer = e.newer
	} else {
		s.tail = e.newer
	}
	e.newer, e.older = nil, nil
}

// victim is the blob to evict next; nil if there is none.
func (s *sieve) victim() *entry {
	e := s.hand
	for {
		if e == nil {
			if e = s.tail; e == nil {
				return nil
			}
		}
		if !e.used {
			s.hand = e.newer
			return e
		}
		e.used = false
		e = e.newer
	}
}
