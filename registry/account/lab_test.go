package account

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/names"
)

// A copyless is a Replica that looks into the database each time, and so is
// never behind.
type copyless struct {
	db registry.Metadata
	// behind makes Wait fail.
	behind bool
	// read is closed when Wait need wait no more; nil: it need not at all.
	read chan struct{}
}

func (c *copyless) Token(secret string, _ netip.Addr) (registry.Principal, error) {
	none := registry.Errorf(registry.ErrUnauthenticated, "the token is not known")
	if !registry.CheckTokenText(secret) {
		return registry.Principal{}, none
	}
	hash := registry.HashToken(secret)
	all, err := list[registry.Token](context.Background(), store{c.db}, tokenPrefix)
	if err != nil {
		return registry.Principal{}, err
	}
	for _, t := range all {
		acc, ok := c.Account(t.Owner)
		if slices.Equal(t.Hash, hash[:]) && ok && acc.UID == t.UID && !acc.Disabled {
			return registry.Principal{Name: t.Owner, UID: t.UID, Token: t.ID}, nil
		}
	}
	return registry.Principal{}, none
}

func (c *copyless) Current(registry.Principal, netip.Addr) error { return nil }

func (c *copyless) Account(name string) (registry.Account, bool) {
	acc, _, ok, _ := read[registry.Account](context.Background(), store{c.db}, accountPrefix+name)
	return acc, ok
}

func (c *copyless) Keys() []registry.SigningKey {
	keys, _ := list[registry.SigningKey](context.Background(), store{c.db}, keyPrefix)
	slices.Reverse(keys)
	return keys
}

func (c *copyless) Wait(ctx context.Context, version uint64) error {
	if c.read != nil {
		select {
		case <-c.read:
		case <-ctx.Done():
			return registry.Wrap(registry.ErrUnavailable, ctx.Err(), "wait")
		}
	}
	head, err := c.db.Head(ctx)
	if err == nil && (head < version || c.behind) {
		err = registry.Errorf(registry.ErrUnavailable, "not at %d", version)
	}
	return err
}

// A lab is an authority over a database in memory, with a clock of its own.
type lab struct {
	*Authority
	t       *testing.T
	db      *names.MemoryMetadata
	replica *copyless

	mu     sync.Mutex
	events []Event // guarded by mu
	clock  time.Time
}

var testTime = time.Date(2031, 5, 6, 7, 8, 9, 123456789, time.UTC)

func newLab(t *testing.T, change ...func(*Options)) *lab {
	l := &lab{t: t, db: &names.MemoryMetadata{}, clock: testTime}
	l.replica = &copyless{db: l.db}
	o := Options{Metadata: l.db, Replica: l.replica, Now: l.now, Log: slog.New(slog.DiscardHandler), Audit: func(e Event) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.events = append(l.events, e)
	}}
	for _, c := range change {
		c(&o)
	}
	var err error
	if l.Authority, err = Open(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *lab) now() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.clock
}

func (l *lab) pass(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clock = l.clock.Add(d)
}

// audited is the last event.
func (l *lab) audited() Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.events) == 0 {
		return Event{}
	}
	return l.events[len(l.events)-1]
}

var (
	root  = Actor{Who: registry.Principal{Name: "root", UID: "0"}, Addr: netip.MustParseAddr("192.0.2.7")}
	here  = netip.MustParseAddr("198.51.100.1")
	there = netip.MustParseAddr("203.0.113.9")
)

const secretPassword = "correct horse battery"

func (l *lab) user(name string) registry.Account {
	l.t.Helper()
	acc, _, err := l.AddUser(l.t.Context(), root, name, "", secretPassword)
	l.must(err)
	return acc
}

func (l *lab) robot(name string) registry.Account {
	l.t.Helper()
	acc, _, err := l.AddRobot(l.t.Context(), root, name)
	l.must(err)
	return acc
}

func (l *lab) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

// fails wants an error of a kind.
func (l *lab) fails(err, kind error) {
	l.t.Helper()
	if !errors.Is(err, kind) {
		l.t.Errorf("got %v, want %v", err, kind)
	}
}

// keys are those in the database under a prefix.
func (l *lab) keys(prefix string) []string {
	var keys []string
	for rec, err := range l.db.List(l.t.Context(), prefix, "") {
		l.must(err)
		keys = append(keys, rec.Key)
	}
	return keys
}

func principal(acc registry.Account) registry.Principal {
	return registry.Principal{Name: acc.Name, UID: acc.UID, Secret: acc.Secret}
}
