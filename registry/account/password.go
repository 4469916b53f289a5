package account

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/crypto/argon2"

	"github.com/weir-registry/weir/registry"
)

// The parameters of Argon2id, which every hash is kept with: OWASP's Password
// Storage Cheat Sheet (2024), "Argon2id: m=19456 (19 MiB), t=2, p=1", one of its
// settings of equal strength. More memory would let fewer log in at once.
const (
	argonMemory  = 19 * 1024 // KiB
	argonTime    = 2
	argonThreads = 1
	argonSalt    = 16 // bytes
	argonKey     = 32 // bytes
)

const (
	minPassword = 8   // bytes
	maxPassword = 256 // bytes
	// atOnce is how many hashes are computed at a time: they take a processor
	// and argonMemory each.
	atOnce = 2
	// maxQueue is how many more wait, for about a second.
	maxQueue = 64
)

// A password is what is kept of one. It never leaves the database.
type password struct {
	UID  string    `json:"uid"`  // the account's, so that it opens no later one of that name
	Hash string    `json:"hash"` // in PHC string format
	Set  time.Time `json:"set"`
}

func checkPassword(text string) error {
	switch {
	case len(text) < minPassword || len(text) > maxPassword:
		return registry.Errorf(registry.ErrInvalid, "a password has %d to %d bytes, not %d", minPassword, maxPassword, len(text))
	case !utf8.ValidString(text):
		return registry.Errorf(registry.ErrInvalid, "the password is not UTF-8")
	case registry.LooksLikeToken(text):
		return registry.Errorf(registry.ErrInvalid, "a password cannot begin as tokens do")
	}
	return nil
}

// SetPassword sets a user's password and ends his sessions. His tokens stay.
// Errors: ErrNotFound, ErrInvalid (for robots too), ErrLimited.
func (a *Authority) SetPassword(ctx context.Context, by Actor, name, text string) (uint64, error) {
	acc, err := a.ShowAccount(ctx, "", name)
	if err == nil && acc.Kind != registry.User {
		err = registry.Errorf(registry.ErrInvalid, "%q is a robot: it has tokens and no password", name)
	}
	if err == nil {
		err = checkPassword(text)
	}
	if err == nil {
		err = a.writePassword(ctx, acc, text)
	}
	if err != nil {
		a.audit(event(by, "user password", "user:"+name), err)
		return 0, err
	}
	// The password first: what was found out by the old one counts until the
	// account says otherwise, but nobody is left without any.
	secret := randomNumber()
	_, version, err := a.edit(ctx, by, "password", name, "", func(now *registry.Account) error {
		if now.UID != acc.UID {
			return noAccount(registry.User, name)
		}
		now.Secret = secret
		return nil
	})
	if err != nil {
		return version, registry.Wrap(registry.ErrUnavailable, err, "the password is set, but what was found out by the old one counts on; set it again")
	}
	a.guesses.forgive(name)
	if err := a.removeAll(ctx, tokenPrefix+acc.UID+kindLetter(session)); err != nil {
		return version, registry.Wrap(registry.ErrUnavailable, err, "the password is set, but not all sessions are ended; set it again")
	}
	return version, nil
}

// writePassword keeps the hash of a password.
func (a *Authority) writePassword(ctx context.Context, acc registry.Account, text string) error {
	hash, err := a.hasher.hash(ctx, text)
	if err != nil {
		return err
	}
	fresh, err := encode(password{UID: acc.UID, Hash: hash, Set: a.now()})
	if err == nil {
		_, err = a.store.change(ctx, passwordPrefix+acc.Name, func([]byte) ([]byte, error) { return fresh, nil })
	}
	return err
}

// A hasher computes hashes of passwords, a few at a time.
type hasher struct {
	queue chan struct{} // one for each that computes or waits
	slots chan struct{} // one for each that computes
	dummy hashed        // of no password; compared with when there is none
}

func newHasher() *hasher {
	h := &hasher{queue: make(chan struct{}, atOnce+maxQueue), slots: make(chan struct{}, atOnce)}
	h.dummy = hashed{memory: argonMemory, time: argonTime, threads: argonThreads, salt: make([]byte, argonSalt), key: make([]byte, argonKey)}
	_, _ = rand.Read(h.dummy.salt) // crypto/rand.Read never fails
	_, _ = rand.Read(h.dummy.key)
	return h
}

// enter waits for a slot. ErrLimited if too many wait already.
func (h *hasher) enter(ctx context.Context) (leave func(), err error) {
	select {
	case h.queue <- struct{}{}:
	default:
		return nil, &registry.Error{Kind: registry.ErrLimited, After: time.Second,
			Text: "too many passwords are being checked", Public: "too many log in at once; try again in a second"}
	}
	select {
	case h.slots <- struct{}{}:
		return func() { <-h.slots; <-h.queue }, nil
	case <-ctx.Done():
		<-h.queue
		return nil, registry.Wrap(registry.ErrUnavailable, ctx.Err(), "wait for a password to be checked")
	}
}

// hash is the text that is kept of a password.
func (h *hasher) hash(ctx context.Context, text string) (string, error) {
	leave, err := h.enter(ctx)
	if err != nil {
		return "", err
	}
	defer leave()
	p := hashed{memory: argonMemory, time: argonTime, threads: argonThreads, salt: make([]byte, argonSalt)}
	_, _ = rand.Read(p.salt)
	p.key = p.compute(text, argonKey)
	return p.String(), nil
}

// matches reports whether a password is the one that was hashed. kept nil is
// nobody's: it costs the same, and nothing is right.
func (h *hasher) matches(ctx context.Context, kept *hashed, text string) (bool, error) {
	leave, err := h.enter(ctx)
	if err != nil {
		return false, err
	}
	defer leave()
	against := kept
	if against == nil {
		against = &h.dummy
	}
	same := subtle.ConstantTimeCompare(against.compute(text, uint32(len(against.key))), against.key) == 1
	return same && kept != nil, nil
}

// A hashed password, with how it was.
type hashed struct {
	memory, time uint32
	threads      uint8
	salt, key    []byte
}

func (p hashed) compute(text string, size uint32) []byte {
	return argon2.IDKey([]byte(text), p.salt, p.time, p.memory, p.threads, size)
}

// String is the PHC string format: "$argon2id$v=19$m=…,t=…,p=…$SALT$KEY".
func (p hashed) String() string {
	b := base64.RawStdEncoding.Strict()
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, p.memory, p.time, p.threads, b.EncodeToString(p.salt), b.EncodeToString(p.key))
}

var errHash = errors.New("not an Argon2id hash that can be computed here")

// parseHashed reads what String has written. What would take more than 256 MiB,
// or a minute, is refused: it is not ours.
func parseHashed(text string) (hashed, error) {
	parts := strings.Split(text, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return hashed{}, errHash
	}
	var p hashed
	if n, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &p.memory, &p.time, &p.threads); err != nil || n != 3 {
		return hashed{}, errHash
	}
	b := base64.RawStdEncoding.Strict()
	var errs [2]error
	p.salt, errs[0] = b.DecodeString(parts[4])
	p.key, errs[1] = b.DecodeString(parts[5])
	switch {
	case errs[0] != nil || errs[1] != nil,
		p.memory < 8 || p.memory > 256<<10, p.time < 1 || p.time > 16, p.threads < 1 || p.threads > 16,
		len(p.salt) < 8 || len(p.salt) > 64, len(p.key) < 16 || len(p.key) > 64,
		p.String() != text:
		return hashed{}, errHash
	}
	return p, nil
}
