// Package account is the authority over accounts: it alone writes who there is
// and who is granted what into the metadata database, and it turns passwords,
// logins and JWTs into tokens.
//
// What it writes under "e/" is replicated to every node and decides there who
// may do what (package entitle). What it writes under "s/" (hashes of
// passwords, logins in a browser, when tokens were used) stays where the
// database is. Several nodes may have the database at once: every write is
// compare-and-swap, and none of them holds anything that the others would have
// to know.
//
// The IDs of tokens and of grants begin with the UID of whom they are for, so
// that what belongs to an account is found without reading what belongs to
// others.
//
// # Order
//
// An account is removed before its tokens and grants. They name it by its UID,
// which no later account has, so they are void from that moment on and are
// removed at leisure, in the end by the sweep that [Authority.Run] makes.
//
// # Guessing passwords
//
// Whatever is wrong about a name and a password has one answer, after the same
// work. Wrong ones are counted by address (IPv6: by its /64) and by account.
// Nobody can lock a user out for good by guessing: budgets refill by
// themselves, an address from which the right password has come lately has a
// budget of its own for that account, which guesses from elsewhere do not use,
// tokens are not counted at all, and a new password makes the account's budget
// whole.
package account
