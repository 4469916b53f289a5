package registry

import (
	"net/netip"
	"time"
)

// Kinds of Account.
const (
	User  = "user"
	Robot = "robot"
)

// An Account is a person or a machine. Its JSON is stable.
type Account struct {
	// Name is what it logs in with: 1 to 64 of a-z, 0-9, ".", "-" and "_",
	// beginning with a letter or a digit. Users and robots share one set of
	// names; no two of them are called the same.
	Name string `json:"name"`
	// UID is random, and never another account's.
	UID string `json:"uid"`
	// Kind is User or Robot. A robot has no password.
	Kind  string `json:"kind"`
	Email string `json:"email,omitempty"`
	// Teams are the UIDs of the teams it is in.
	Teams []string `json:"teams,omitempty"`
	// Disabled accounts can do nothing, not even what anyone may.
	Disabled bool `json:"disabled,omitempty"`
	// Secret changes whenever the password does, so that what was found out by
	// an old one no longer counts.
	Secret  int64     `json:"secret,omitempty"`
	Created time.Time `json:"created"`
}

// A Team is accounts that are granted the same.
type Team struct {
	Name    string    `json:"name"` // as with accounts; teams have names of their own
	UID     string    `json:"uid"`
	Created time.Time `json:"created"`
}

// A Grant lets an account, a team or everyone do something, or forbids it.
type Grant struct {
	ID string `json:"id"`
	// To says who, for people: "user:alice", "robot:ci", "team:core" or
	// "anonymous". UID is the account's or team's; "" is anonymous.
	To  string `json:"to"`
	UID string `json:"uid,omitempty"`
	// Right is "ACTION PROTOCOL:PATTERN" ("pull oci:docker.io/acme/*") or
	// "ACTION *", which is every repository of every protocol, and for
	// "admin *" weir itself too.
	Right string `json:"right"`
	// Deny makes it a prohibition. It wins over whatever is granted.
	Deny    bool      `json:"deny,omitempty"`
	Expires time.Time `json:"expires,omitzero"`
	Created time.Time `json:"created"`
	By      string    `json:"by,omitempty"` // who made it
}

// A Token is what stands for an account without its password. What a client
// presents is not in it: only its hash is kept.
type Token struct {
	// ID is not secret. It ends with the [TokenMark] of the secret.
	ID string `json:"id"`
	// Hash is the SHA-256 of the secret; nil in lists.
	Hash []byte `json:"hash,omitempty"`
	// Owner and UID are the account's name and UID.
	Owner string `json:"owner"`
	UID   string `json:"uid"`
	// Kind is how it came about: "token" (asked for), "session" (a login),
	// "exchange" (from a JWT).
	Kind string `json:"kind"`
	Note string `json:"note,omitempty"`
	// Via is the node in front on whose word it was made, or the token it was
	// made with. It administers no weir, whatever its owner may: a node in wrong
	// hands can say of anyone that he asks.
	Via string `json:"via,omitempty"`
	// Rights bound what it may do, in the form of Grant.Right; none: all that
	// its owner may.
	Rights []string `json:"rights,omitempty"`
	// From are the networks it may be used from; none: all.
	From    []netip.Prefix `json:"from,omitempty"`
	Expires time.Time      `json:"expires,omitzero"`
	Created time.Time      `json:"created"`
	// Used is when it was last used, to the minute; only in lists.
	Used time.Time `json:"used,omitzero"`
}

// A TokenSpec is a token that is asked for. The zero value is one that may do
// all that its owner may, from everywhere, for ever.
type TokenSpec struct {
	Kind   string         `json:"kind,omitempty"` // "": "token"
	Note   string         `json:"note,omitempty"`
	Rights []string       `json:"rights,omitempty"`
	From   []netip.Prefix `json:"from,omitempty"`
	// Lifetime is from now on; 0: no end.
	Lifetime time.Duration `json:"lifetime,omitempty"`
}

// A NewToken is a token with its secret, which nobody can ever be told again.
type NewToken struct {
	Token
	Secret string `json:"secret"`
	// Version is the version of the entitlements that have it.
	Version uint64 `json:"version"`
}

// A SigningKey is shared by all nodes, so that a short-lived token of one is
// good at another.
type SigningKey struct {
	ID      string    `json:"id"`
	Secret  []byte    `json:"secret"` // 32 bytes
	Created time.Time `json:"created"`
}
