package account

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/weir-registry/weir/registry"
)

const (
	loginPrefix = "s/login/"
	// loginTime is how long a login in a browser lasts.
	loginTime = 10 * time.Minute
	// loginLetters are an ID's: 200 random bits.
	loginLetters = 40
	// sessionLife is how long a session lasts that began with one.
	sessionLife = 90 * 24 * time.Hour
	// exchangeLife is how long a token lasts whose rule does not say.
	exchangeLife = 15 * time.Minute
	// maxJWT bounds what is looked at at all, in bytes.
	maxJWT = 16 << 10
)

// wrongLogin is the one answer to all that can be wrong about a login.
func wrongLogin(why string) error {
	return &registry.Error{Kind: registry.ErrUnauthenticated, Text: "login refused: " + why, Public: "wrong name or password"}
}

// tokenNames are names that say that the password is a token, whoever's.
var tokenNames = []string{"token", "_token"}

// Password implements registry.Logins. A token does for the password, if the
// name is its owner's or one of "token" and "_token"; it is not counted as a
// guess. The error's log text says what was wrong, its public text never.
func (a *Authority) Password(ctx context.Context, name, text string, from netip.Addr) (registry.Principal, error) {
	if registry.LooksLikeToken(text) {
		p, err := a.o.Replica.Token(text, from)
		if err == nil && p.Name != name && !slices.Contains(tokenNames, name) {
			p, err = registry.Principal{}, registry.Errorf(registry.ErrUnauthenticated, "the token is not of the account it is used with")
		}
		return p, err
	}
	counted := name
	if !validName(name) {
		counted = ""
	}
	now := a.o.Now()
	try, err := a.guesses.begin(counted, from, now)
	if err != nil {
		a.refused(counted, from, err)
		return registry.Principal{}, err
	}
	p, err := a.password(ctx, name, text)
	wrong := errors.Is(err, registry.ErrUnauthenticated)
	a.guesses.end(try, err == nil, wrong, a.o.Now())
	if wrong {
		a.refused(counted, from, err)
	}
	return p, err
}

func (a *Authority) refused(name string, from netip.Addr, err error) {
	a.o.Meter.Event("login refused", kindName(err))
	a.audit(event(Actor{Addr: from}, "login", "account:"+name), err)
}

// kindName is what metrics call a refusal.
func kindName(err error) string {
	if errors.Is(err, registry.ErrLimited) {
		return "limited"
	}
	return "wrong"
}

// password compares a password with what is kept of one. Whatever is wrong, the
// same is read and the same is computed before it is said. The account is read
// first, and a new password is written before the account: so its Secret is
// never a newer one than the password's.
func (a *Authority) password(ctx context.Context, name, text string) (registry.Principal, error) {
	key := name
	if !validName(name) || len(text) > maxPassword {
		key, text = "-", "" // nobody is called that
	}
	acc, _, exists, err := read[registry.Account](ctx, a.store, accountPrefix+key)
	if err != nil {
		return registry.Principal{}, err
	}
	kept, _, has, err := read[password](ctx, a.store, passwordPrefix+key)
	if err != nil {
		return registry.Principal{}, err
	}
	var against *hashed
	if h, herr := parseHashed(kept.Hash); has && herr == nil {
		against = &h
	} else if has {
		a.o.Log.Error("the metadata database has nonsense for a password's hash", "account", key)
	}
	same, err := a.hasher.matches(ctx, against, text)
	switch {
	case err != nil:
		return registry.Principal{}, err
	case !exists:
		return registry.Principal{}, wrongLogin("no such account")
	case acc.Kind != registry.User:
		return registry.Principal{}, wrongLogin("robots have no password")
	case !has || kept.UID != acc.UID:
		return registry.Principal{}, wrongLogin("no password is set")
	case !same:
		return registry.Principal{}, wrongLogin("wrong password")
	case acc.Disabled:
		return registry.Principal{}, wrongLogin("the account is disabled")
	}
	return registry.Principal{Name: acc.Name, UID: acc.UID, Secret: acc.Secret}, nil
}

// Exchange implements registry.Logins. JWTs that are refused are not limited: a
// signature cannot be guessed, and one job with a wrong one must not keep all others
// behind its address out.
func (a *Authority) Exchange(ctx context.Context, jwt string, from netip.Addr) (registry.NewToken, error) {
	if a.o.Exchange == nil {
		return registry.NewToken{}, registry.Errorf(registry.ErrUnauthenticated, "no issuer of JWTs is configured here")
	}
	if len(jwt) > maxJWT {
		return registry.NewToken{}, registry.Errorf(registry.ErrUnauthenticated, "the JWT is longer than %d bytes", maxJWT)
	}
	match, acc, err := a.match(ctx, jwt)
	if err != nil {
		if errors.Is(err, registry.ErrUnauthenticated) {
			a.audit(event(Actor{Addr: from}, "exchange", "robot:"+match.Robot), err)
		}
		return registry.NewToken{}, err
	}
	life := match.Lifetime
	if life <= 0 {
		life = exchangeLife
	}
	note := match.Note
	if checkText("note", note, maxNote) != nil {
		note = ""
	}
	by := Actor{Who: registry.Principal{Name: acc.Name, UID: acc.UID}, Addr: from}
	return a.newToken(ctx, by, acc, registry.TokenSpec{Kind: exchange, Note: note, Rights: match.Rights, Lifetime: life})
}

// match is what a JWT stands for, and the robot's account.
func (a *Authority) match(ctx context.Context, jwt string) (Match, registry.Account, error) {
	m, err := a.o.Exchange.Check(ctx, jwt)
	if err != nil {
		return m, registry.Account{}, err
	}
	acc, err := a.ShowAccount(ctx, registry.Robot, m.Robot)
	switch {
	case errors.Is(err, registry.ErrNotFound):
		err = registry.Errorf(registry.ErrUnauthenticated, "the rule for this JWT names a robot that there is not, %.100q; an administrator can add it (weir robot add)", m.Robot)
	case err == nil && acc.Disabled:
		err = registry.Errorf(registry.ErrUnauthenticated, "the robot of the rule for this JWT, %q, is disabled", m.Robot)
	}
	return m, acc, err
}

// A login in a browser.
type login struct {
	From    netip.Addr `json:"from"`
	Expires time.Time  `json:"expires"`
	// By has approved it.
	By      registry.Principal `json:"by,omitzero"`
	Claimed string             `json:"claimed,omitempty"` // random, of the one who got it
}

// Begin implements registry.Logins. ErrLimited if too many have begun.
func (a *Authority) Begin(ctx context.Context, from netip.Addr) (string, error) {
	if err := a.begins.allow(from, a.o.Now()); err != nil {
		return "", err
	}
	id := randomID(loginLetters)
	_, err := create(ctx, a.store, loginPrefix+id, login{From: from, Expires: a.now().Add(loginTime)})
	return id, err
}

// Approve implements registry.Logins. Who has shown a token and no password
// approves nothing: ErrDenied. ErrConflict if somebody else has
// approved it.
func (a *Authority) Approve(ctx context.Context, id string, p registry.Principal) error {
	acc, err := a.self(ctx, p)
	if err != nil {
		return err
	}
	if err := a.checkNarrow(ctx, p, registry.TokenSpec{Kind: session, Lifetime: sessionLife}); err != nil {
		return err
	}
	err = a.changeLogin(ctx, id, func(l *login) error {
		if l.By.UID != "" && l.By.UID != acc.UID {
			return registry.Errorf(registry.ErrConflict, "somebody else has approved this login")
		}
		l.By = p
		return nil
	})
	a.audit(event(Actor{Who: p}, "login approve", acc.Kind+":"+acc.Name), err)
	return err
}

// Claim implements registry.Logins. The token is a session's, of ninety days.
// The password that approved the login must still be the account's:
// ErrUnauthenticated if it is not, and there will be no token.
func (a *Authority) Claim(ctx context.Context, id string, from netip.Addr) (registry.NewToken, error) {
	var got login
	mine := randomID(uidLength)
	err := a.changeLogin(ctx, id, func(l *login) error {
		if l.By.UID == "" {
			return registry.Errorf(registry.ErrConflict, "the login has not been approved yet")
		}
		l.Claimed = mine
		got = *l
		return nil
	})
	if err != nil {
		return registry.NewToken{}, err
	}
	// Once it is claimed nobody else gets it; what is left of it the sweep
	// removes if this does not.
	defer a.store.remove(context.WithoutCancel(ctx), loginPrefix+id)
	spec := registry.TokenSpec{Kind: session, Note: "login in a browser", Lifetime: sessionLife}
	acc, err := a.self(ctx, got.By)
	if err != nil {
		return registry.NewToken{}, err
	}
	return a.ownToken(ctx, Actor{Who: got.By, Addr: from}, acc, spec)
}

// changeLogin changes a login that is still open. ErrNotFound if there is none.
func (a *Authority) changeLogin(ctx context.Context, id string, edit func(*login) error) error {
	gone := registry.Errorf(registry.ErrNotFound, "there is no such login, or no longer; begin again")
	if !validID(id) {
		return gone
	}
	_, _, err := update(ctx, a.store, loginPrefix+id, func(l *login) error {
		if l.Claimed != "" || !a.o.Now().Before(l.Expires) {
			return gone
		}
		return edit(l)
	})
	if errors.Is(err, errAbsent) {
		return gone
	}
	return err
}
