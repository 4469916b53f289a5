// Package gate finds out who makes an HTTP request, from its Authorization.
//
// What it takes:
//
//   - no Authorization: the anonymous principal;
//   - Basic with an account's name and password;
//   - Basic with an opaque token as the password, and as the user the token's
//     owner or one of "token", "_token" and "weir", which mean whoever owns it;
//   - Bearer with an opaque token;
//   - Bearer with a short-lived token that some node made by [Gate.Issue].
//
// Credentials that are wrong are an error even where an anonymous client might
// do what is asked: a client must learn that its token has ended, and not find
// out by what is missing from the answer.
//
// # What is remembered
//
// Tokens of both kinds are known from memory. A password is checked by the node
// with the database, at the price of an Argon2id, and the answer is remembered
// for [rememberFor] if it was right, so that clients that send it with every
// request cost that once. What it is remembered by is an HMAC, under a key that
// this process made, of the name, the password and the account's UID and Secret
// number: a new password, an account made anew under an old name and a disabled
// account count at once, for those change what is looked up, and
// registry.Identities is asked about the account every time besides.
//
// # Guessing
//
// Wrong passwords are counted by address (of IPv6, by /64) and by account name;
// attempts that are running count as wrong ones until they have ended, so that
// many at once are no way around it. Beyond the limits a password is refused with
// ErrLimited before anything is asked. It is never refused when it is
// remembered, and neither is a token: those are looked up first, in memory, so
// whoever shares an address with someone who guesses goes on working. What
// they cannot do meanwhile is log in anew with a password. From where an account
// has logged in before it has a budget of its own: it is not kept out by those
// who guess its password elsewhere.
//
// A wrong token is not limited: it cannot be guessed (178 bits) and costs nothing
// but the lookup, and a machine with an old token in its configuration must be
// told that it has ended, however often it asks.
//
// The client's address is that of its connection. X-Forwarded-For and the like
// are anybody's to write and are not read.
package gate
