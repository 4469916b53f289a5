package registry

import (
	"errors"
	"fmt"
	"time"
)

// The kinds of failure. Every error that crosses a room's border wraps exactly
// one of them; an error that wraps none counts as ErrUnavailable. Only npm and
// oci turn them into status codes, in one table each.
var (
	ErrInvalid         = errors.New("invalid request")             // the request itself is malformed
	ErrNotFound        = errors.New("not found")                   // the authority says there is no such thing
	ErrConflict        = errors.New("conflict")                    // compare-and-swap lost
	ErrGone            = errors.New("no longer kept")              // it was there, and is too old to be had
	ErrCorrupt         = errors.New("content failed verification") // bytes do not match their digest
	ErrUnauthenticated = errors.New("authentication required")     // nobody, or not who they say
	ErrDenied          = errors.New("access denied")               // somebody, but not entitled
	ErrLimited         = errors.New("rate limited")                // asked too often, here or upstream
	ErrTooLarge        = errors.New("too large")                   // over a configured limit
	ErrUnavailable     = errors.New("temporarily unavailable")     // what is behind does not answer, or answers nonsense
	ErrNoRoom          = errors.New("no room to store it")         // a store is full or cannot be written
)

// ErrScope is no kind: it marks an ErrDenied that is not about what the principal
// is granted but about its token, which is for less.
var ErrScope = errors.New("not within what the token is for")

// An Error is a failure with a kind, and with two texts: what the log says
// (Error) and what a client may read (Public).
type Error struct {
	Kind   error         // one of the kinds above
	Text   string        // what was being done and what went wrong, for the log
	Public string        // for the client; empty: the kind's own text
	After  time.Duration // when to try again; zero: not known
	Err    error         // the cause, if there is one
}

// Error is for the log.
func (e *Error) Error() string {
	switch {
	case e.Err != nil && e.Text != "":
		return e.Text + ": " + e.Err.Error()
	case e.Err != nil:
		return e.Err.Error()
	case e.Text != "":
		return e.Text
	}
	return e.Kind.Error()
}

// Unwrap makes errors.Is find both the kind and the cause.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Err}
}

// Errorf makes an error of a kind whose text both the log and the client read;
// a cause may be given with %w and is then for the log only if the caller
// sets Public.
func Errorf(kind error, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Kind: kind, Text: err.Error(), Public: err.Error(), Err: nil}
}

// Wrap says what was being done when err happened. A kind that err has already
// stays; otherwise it gets kind. The client reads err's public text if it has
// one, never the cause.
func Wrap(kind, err error, doing string) error {
	if err == nil {
		return nil
	}
	e := &Error{Kind: kind, Text: doing, Err: err}
	if k := KindOf(err); k != nil {
		e.Kind = k
	}
	var inner *Error
	if errors.As(err, &inner) {
		e.Public, e.After = inner.Public, inner.After
	}
	return e
}

// KindOf is the kind that err wraps, or nil.
func KindOf(err error) error {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	for _, k := range []error{ErrInvalid, ErrNotFound, ErrConflict, ErrGone, ErrCorrupt, ErrUnauthenticated,
		ErrDenied, ErrLimited, ErrTooLarge, ErrNoRoom, ErrUnavailable} {
		if errors.Is(err, k) {
			return k
		}
	}
	return nil
}

// Public is what a client may read of err.
func Public(err error) string {
	var e *Error
	if errors.As(err, &e) {
		if e.Public != "" {
			return e.Public
		}
		return e.Kind.Error()
	}
	if k := KindOf(err); k != nil {
		return k.Error()
	}
	return ErrUnavailable.Error()
}

// RetryAfter is when err's cause said to try again; zero if it did not.
func RetryAfter(err error) time.Duration {
	var e *Error
	if errors.As(err, &e) {
		return e.After
	}
	return 0
}
