package account

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/weir-registry/weir/registry"
)

// A Replica is this node's own copy of the entitlements.
type Replica interface {
	registry.Identities
	// Wait returns when the copy is at the version, or a later one.
	Wait(ctx context.Context, version uint64) error
}

// An Exchange says what a JWT stands for by the rules that are configured.
type Exchange interface {
	// Check verifies a JWT. Errors: ErrUnauthenticated, whose public text a
	// person can act upon; ErrUnavailable if the issuer's keys cannot be had.
	Check(ctx context.Context, jwt string) (Match, error)
}

// A Match is what a JWT stands for.
type Match struct {
	// Robot is the name of the robot whose token it is exchanged for.
	Robot string
	// Rights bound that token, as in registry.Token; none: all of the robot's.
	Rights []string
	// Lifetime is the longest that the token may live; 0: exchangeLife.
	Lifetime time.Duration
	// Note says for people where it came from: the issuer, the subject.
	Note string
}

// An Event is a change of accounts, or a login that was refused, for the audit
// log.
type Event struct {
	Time    time.Time
	Who     registry.Principal // who did it; anonymous: nobody known; with Via: if that node is to be believed
	Addr    netip.Addr         // from where; not valid: this node itself
	What    string             // "user add", "token revoke", "login"
	Subject string             // what it was done to: "user:alice", a token's ID
	Detail  string             // more about it; never a secret
	Version uint64             // of the entitlements that have it; 0: they have not changed
	Err     error              // why it was refused; nil: it was done
}

// An Actor is who changes something, and from where. The zero value is the node
// itself.
type Actor struct {
	Who  registry.Principal
	Addr netip.Addr
}

// Options are for Open. Metadata and Replica are needed.
type Options struct {
	Metadata registry.Metadata
	Replica  Replica
	// Exchange is nil if no issuer is configured.
	Exchange Exchange
	// Audit is told of each change. It is called from the goroutine that made
	// it and must not take long; nil: nobody is told.
	Audit func(Event)
	Log   *slog.Logger     // nil: slog.Default
	Meter registry.Meter   // nil: NoMeter
	Now   func() time.Time // nil: time.Now
}

// An Authority is the one over a database's accounts. All its methods may be
// called at once. Changes return the version of the entitlements that have
// them, and before that they have reached this node's own copy.
type Authority struct {
	o        Options
	store    store
	database string
	hasher   *hasher
	guesses  *guesses
	begins   *begins
	used     uses

	mu        sync.Mutex
	exchanges map[string]int // live tokens from exchanges, by UID; guarded by mu
}

var (
	_ registry.Logins = (*Authority)(nil)
	_ registry.Tokens = (*Authority)(nil)
)

const (
	// replicaTime is how long a change waits for this node's own copy.
	replicaTime = 5 * time.Second
	databaseKey = "e/database"
)

// Open makes what a database must have, if it is not there yet: its name and
// the keys for short-lived tokens. It fails with ErrUnavailable if the database
// cannot be asked. Nothing runs in the background until Run is called.
func Open(ctx context.Context, o Options) (*Authority, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Meter == nil {
		o.Meter = registry.NoMeter{}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	a := &Authority{o: o, store: store{o.Metadata}, hasher: newHasher(), guesses: newGuesses(), begins: newBegins(), exchanges: map[string]int{}}
	if err := a.nameDatabase(ctx); err != nil {
		return nil, err
	}
	if err := a.rotateKeys(ctx); err != nil {
		return nil, err
	}
	return a, nil
}

// Database is the name of the database, which is made at random once.
func (a *Authority) Database() string { return a.database }

// nameDatabase gives the database its name, or reads the one it has.
func (a *Authority) nameDatabase(ctx context.Context) error {
	fresh, err := json.Marshal(randomID(26))
	if err != nil {
		return err
	}
	rec, err := a.store.change(ctx, databaseKey, func(old []byte) ([]byte, error) {
		if old != nil {
			return old, nil
		}
		return fresh, nil
	})
	if err == nil {
		if err = json.Unmarshal(rec.Value, &a.database); err == nil && a.database == "" {
			err = errors.New("it is empty")
		}
	}
	return registry.Wrap(registry.ErrUnavailable, err, "name of the metadata database")
}

// settled waits until this node's own copy has a change. One that takes too
// long has been made all the same, and the error says so.
func (a *Authority) settled(ctx context.Context, version uint64) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), replicaTime)
	defer cancel()
	if err := a.o.Replica.Wait(ctx, version); err != nil {
		return &registry.Error{Kind: registry.ErrUnavailable, After: time.Second, Err: err,
			Text:   "a change of accounts is durable but has not reached this node's own copy",
			Public: "the change is made, but does not count on this node yet"}
	}
	return nil
}

// done audits a change that was tried, and waits for it to count here.
func (a *Authority) done(ctx context.Context, e Event, err error) error {
	if err == nil && e.Version != 0 {
		err = a.settled(ctx, e.Version)
	}
	a.audit(e, err)
	return err
}

func (a *Authority) audit(e Event, err error) {
	if a.o.Audit == nil {
		return
	}
	e.Time, e.Err = a.o.Now(), err
	a.o.Audit(e)
}

// event begins the Event of a change.
func event(by Actor, what, subject string) Event {
	return Event{Who: by.Who, Addr: by.Addr, What: what, Subject: subject}
}

// now is the time as it is written into records: to the second, so that it is
// the same when it has been read.
func (a *Authority) now() time.Time { return a.o.Now().UTC().Truncate(time.Second) }
