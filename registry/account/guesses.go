package account

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/weir-registry/weir/registry"
)

// How many wrong passwords there may be: at once, and then one in how long.
const (
	addressBurst = 20
	addressEvery = 6 * time.Second
	accountBurst = 10
	accountEvery = 30 * time.Second
	// An account from an address that it has come from lately.
	knownBurst = 5
	knownEvery = time.Minute
	knownFor   = 30 * 24 * time.Hour
	// maxBudgets bounds each of the tables.
	maxBudgets = 16 << 10
)

// A budget is what may still go wrong, less what is being tried.
type budget struct {
	limit  *rate.Limiter
	trying int
	last   time.Time // when it was last taken from or given to
}

// wait is how long until one more may be tried; 0: now.
func (b *budget) wait(now time.Time) time.Duration {
	short := float64(b.trying+1) - b.limit.TokensAt(now)
	if short <= 0 {
		return 0
	}
	return max(time.Millisecond, time.Duration(short/float64(b.limit.Limit())*float64(time.Second)))
}

// budgets are a bounded table of them. The caller locks.
type budgets[K comparable] struct {
	all   map[K]*budget
	burst int
	every time.Duration
}

func newBudgets[K comparable](burst int, every time.Duration) budgets[K] {
	return budgets[K]{all: map[K]*budget{}, burst: burst, every: every}
}

// of is the budget of a key.
func (t *budgets[K]) of(key K, now time.Time) *budget {
	b := t.all[key]
	if b == nil {
		if len(t.all) >= maxBudgets {
			t.shrink(now)
		}
		b = &budget{limit: rate.NewLimiter(rate.Every(t.every), t.burst), last: now}
		t.all[key] = b
	}
	return b
}

// shrink drops the budgets that are whole, which is as if they had never been,
// and if there are none any one that is not in use.
func (t *budgets[K]) shrink(now time.Time) {
	before := len(t.all)
	for key, b := range t.all {
		if b.trying == 0 && b.limit.TokensAt(now) >= float64(t.burst) {
			delete(t.all, key)
		}
	}
	for key, b := range t.all {
		if len(t.all) < before || len(t.all) < maxBudgets {
			return
		}
		if b.trying == 0 {
			delete(t.all, key)
		}
	}
}

// A place is an account at an address.
type place struct {
	name string
	net  netip.Prefix
}

// guesses count wrong passwords.
type guesses struct {
	mu        sync.Mutex
	addresses budgets[netip.Prefix] // guarded by mu, as are all
	accounts  budgets[string]
	known     budgets[place] // only of places that the right password has come from
}

func newGuesses() *guesses {
	return &guesses{addresses: newBudgets[netip.Prefix](addressBurst, addressEvery),
		accounts: newBudgets[string](accountBurst, accountEvery), known: newBudgets[place](knownBurst, knownEvery)}
}

// A guess is one that is being tried, and the budgets it would be taken from.
type guess struct {
	at   place
	from []*budget
}

// begin takes a try from a known place's own budget, or else from those of the
// address and of the account, which may be "" for none. ErrLimited if they are
// used up.
func (g *guesses) begin(name string, addr netip.Addr, now time.Time) (guess, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	try := guess{at: place{name, registry.Network(addr)}}
	if b := g.known.all[try.at]; b != nil && now.Sub(b.last) < knownFor && b.wait(now) == 0 {
		try.from = []*budget{b}
	} else {
		try.from = []*budget{g.addresses.of(try.at.net, now)}
		if name != "" {
			try.from = append(try.from, g.accounts.of(name, now))
		}
	}
	for _, b := range try.from {
		if wait := b.wait(now); wait > 0 {
			return guess{}, &registry.Error{Kind: registry.ErrLimited, After: wait.Truncate(time.Second) + time.Second,
				Text: "too many wrong passwords", Public: "too many failed logins; wait a while and try again"}
		}
	}
	for _, b := range try.from {
		b.trying++
	}
	return try, nil
}

// end says how a try ended. One that was neither right nor wrong, because it
// could not be decided, costs nothing; one that was right makes its place known.
func (g *guesses) end(try guess, right, wrong bool, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, b := range try.from {
		b.trying--
		if wrong {
			b.limit.AllowN(now, 1)
		}
	}
	if right && try.at.name != "" {
		g.known.of(try.at, now).last = now
	}
}

// forgive makes an account's budget whole.
func (g *guesses) forgive(name string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if b := g.accounts.all[name]; b != nil && b.trying == 0 {
		delete(g.accounts.all, name)
	}
}

// How many logins in a browser may begin: from one address, and in all.
const (
	beginBurst = 10
	beginEvery = 6 * time.Second
	allBegins  = 20 // a second
)

// begins count logins that begin, each of which is written into the database.
type begins struct {
	mu        sync.Mutex
	addresses budgets[netip.Prefix] // guarded by mu
	all       *rate.Limiter
}

func newBegins() *begins {
	return &begins{addresses: newBudgets[netip.Prefix](beginBurst, beginEvery), all: rate.NewLimiter(allBegins, 5*allBegins)}
}

func (b *begins) allow(addr netip.Addr, now time.Time) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	mine := b.addresses.of(registry.Network(addr), now)
	if wait := mine.wait(now); wait > 0 || !b.all.AllowN(now, 1) {
		return &registry.Error{Kind: registry.ErrLimited, After: wait.Truncate(time.Second) + time.Second,
			Text: "too many logins begin", Public: "too many logins have begun; wait a while and try again"}
	}
	mine.limit.AllowN(now, 1)
	return nil
}
