package main

import (
	"context"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/account"
	"github.com/weir-registry/weir/registry/ops"
)

const (
	// firstTry is how long a start waits for a database on another machine, and
	// copyTry if there is a copy to go by; after that it is asked in the background,
	// every tryAgain.
	firstTry = 5 * time.Second
	copyTry  = time.Second
	tryAgain = time.Second
	// sayAgain is how often it is said that it cannot be.
	sayAgain = time.Minute
	// usesEvery is how often it is noted which tokens were used at this node.
	usesEvery = 2 * time.Second
)

// openAuthority opens the database, has the copy follow it and makes what a new
// one needs. That a file cannot be opened is an error. A database on another
// machine may be away: the node starts, goes by its copy, and tries again.
func (e *entitled) openAuthority(ctx context.Context, c *Config, data *dataDir, metrics *ops.Metrics) error {
	e.authority = &authority{}
	e.logins, e.tokens = e.authority, e.authority
	exchange, err := c.exchange(e.log, metrics)
	if err != nil {
		return err
	}
	o := account.Options{Replica: e.replica, Exchange: exchange, Audit: e.audited, Meter: metrics, Log: e.log}
	if c.metadataFile() {
		if o.Metadata, err = e.follow(ctx, c, data); err != nil {
			return err
		}
		return e.decide(ctx, o, data)
	}
	tried := make(chan struct{})
	e.work.Go(func() {
		defer close(tried)
		for o.Metadata == nil && ctx.Err() == nil {
			if o.Metadata, err = e.follow(ctx, c, data); err != nil {
				e.again(ctx, err)
			}
		}
		for e.authority.opened.Load() == nil && ctx.Err() == nil {
			if err := e.decide(ctx, o, data); err != nil {
				e.again(ctx, err)
			}
		}
	})
	limit := firstTry
	if e.replica.State().Whole() {
		limit = copyTry
	}
	wait := time.NewTimer(limit)
	defer wait.Stop()
	select {
	case <-tried:
	case <-wait.C:
		if e.authority.failure.Load() == nil { // else that has been said
			e.log.Warn("the metadata database has not answered yet: this node starts without it, and tries on", "waited", limit.String())
		}
	}
	return nil
}

// again notes a failure and waits until it is time to try again. It is logged
// now and then, and not each time.
func (e *entitled) again(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return // for no other reason
	}
	text := err.Error()
	e.authority.failure.Store(&text)
	if now := time.Now(); now.Sub(e.authority.said) >= sayAgain {
		e.authority.said = now
		counts := "nobody is admitted, as there is no copy of it here yet"
		if s := e.replica.State(); s.Whole() {
			counts = "the copy that is here counts"
		}
		e.log.Error("the metadata database cannot be asked: accounts cannot be changed; it is tried every few seconds", "until then", counts, "err", err)
	}
	wait := time.NewTimer(tryAgain)
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-ctx.Done():
	}
}

// follow opens the database and has the copy follow it.
func (e *entitled) follow(ctx context.Context, c *Config, data *dataDir) (registry.Metadata, error) {
	md, closing, err := openMetadata(ctx, c, data, e.log)
	if err != nil {
		return nil, err
	}
	if closing != nil {
		e.closers = append(e.closers, closing)
	}
	// Its error is ctx's; it tries again by itself.
	e.work.Go(func() { _ = e.replica.Follow(ctx, md) })
	return md, nil
}

// decide opens the accounts of a database.
func (e *entitled) decide(ctx context.Context, o account.Options, data *dataDir) error {
	a, err := account.Open(ctx, o)
	if err != nil {
		return err
	}
	if err := a.EnsureAdmin(ctx, data.path); registry.KindOf(err) == registry.ErrConflict {
		e.log.Warn("there is no administrator's token in the data directory", "err", err)
	} else if err != nil {
		return err
	}
	e.work.Go(func() { a.Run(ctx) })
	e.work.Go(func() { e.noteUses(ctx, a) })
	e.authority.opened.Store(a)
	if e.authority.failure.Swap(nil) != nil {
		e.log.Info("the metadata database is there: accounts can be changed")
	}
	return nil
}

// noteUses tells the accounts when tokens were used at this node.
func (e *entitled) noteUses(ctx context.Context, a *account.Authority) {
	tick := time.NewTicker(usesEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			a.Used(e.replica.Uses())
		case <-ctx.Done():
			return
		}
	}
}

// An authority is account.Authority, as soon as its database has been reached.
type authority struct {
	opened  atomic.Pointer[account.Authority]
	failure atomic.Pointer[string] // why it has not been reached; nil: it has, or it is too early to tell
	said    time.Time              // when that was logged; by the one goroutine that tries
}

var (
	_ registry.Logins = (*authority)(nil)
	_ registry.Tokens = (*authority)(nil)
)

func (a *authority) get() (*account.Authority, error) {
	if opened := a.opened.Load(); opened != nil {
		return opened, nil
	}
	return nil, &registry.Error{Kind: registry.ErrUnavailable, Text: a.trouble(),
		Public: "accounts cannot be asked about right now", After: tryAgain}
}

// trouble is why the accounts are not there, for operators; "" if they are.
func (a *authority) trouble() string {
	if a.opened.Load() != nil {
		return ""
	}
	text := "the metadata database has not been reached since this node was started"
	if why := a.failure.Load(); why != nil {
		return text + ": " + *why
	}
	return text + ": it has not answered yet"
}

// asked is what an authority that is there answers.
func asked[T any](a *authority, do func(*account.Authority) (T, error)) (T, error) {
	opened, err := a.get()
	if err != nil {
		var none T
		return none, err
	}
	return do(opened)
}

// Password implements registry.Logins.
func (a *authority) Password(ctx context.Context, name, password string, from netip.Addr) (registry.Principal, error) {
	return asked(a, func(o *account.Authority) (registry.Principal, error) { return o.Password(ctx, name, password, from) })
}

// Exchange implements registry.Logins.
func (a *authority) Exchange(ctx context.Context, jwt string, from netip.Addr) (registry.NewToken, error) {
	return asked(a, func(o *account.Authority) (registry.NewToken, error) { return o.Exchange(ctx, jwt, from) })
}

// Begin implements registry.Logins.
func (a *authority) Begin(ctx context.Context, from netip.Addr) (string, error) {
	return asked(a, func(o *account.Authority) (string, error) { return o.Begin(ctx, from) })
}

// Approve implements registry.Logins.
func (a *authority) Approve(ctx context.Context, id string, p registry.Principal) error {
	_, err := asked(a, func(o *account.Authority) (struct{}, error) { return struct{}{}, o.Approve(ctx, id, p) })
	return err
}

// Claim implements registry.Logins.
func (a *authority) Claim(ctx context.Context, id string, from netip.Addr) (registry.NewToken, error) {
	return asked(a, func(o *account.Authority) (registry.NewToken, error) { return o.Claim(ctx, id, from) })
}

// CreateToken implements registry.Tokens.
func (a *authority) CreateToken(ctx context.Context, by registry.Principal, spec registry.TokenSpec) (registry.NewToken, error) {
	return asked(a, func(o *account.Authority) (registry.NewToken, error) { return o.CreateToken(ctx, by, spec) })
}

// RevokeToken implements registry.Tokens.
func (a *authority) RevokeToken(ctx context.Context, by registry.Principal, id string) error {
	_, err := asked(a, func(o *account.Authority) (struct{}, error) { return struct{}{}, o.RevokeToken(ctx, by, id) })
	return err
}

// ListTokens implements registry.Tokens.
func (a *authority) ListTokens(ctx context.Context, by registry.Principal) ([]registry.Token, error) {
	return asked(a, func(o *account.Authority) ([]registry.Token, error) { return o.ListTokens(ctx, by) })
}

// used notes when tokens were used; it does not wait.
func (a *authority) used(tokens map[string]time.Time) {
	if opened := a.opened.Load(); opened != nil {
		opened.Used(tokens)
	}
}
