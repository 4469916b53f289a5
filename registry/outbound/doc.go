// Package outbound is HTTP towards upstream registries: what the npm and the
// OCI side share. It knows neither protocol.
//
// It holds four promises that net/http's Client does not make.
//
// Credentials stay home: Authorization and Cookie are dropped as soon as a
// redirect leaves the scheme, host or port they were meant for, and they do
// not come back when a later redirect returns.
//
// Only what is configured is dialled: the base address, and public addresses
// that the upstream redirects to. Whether an address is public is asked of the
// address that the kernel is about to connect to, after name resolution, so
// that a name which resolves differently the second time gains nothing.
// Private, loopback and link-local targets must be listed ([Options.Redirects])
// or be the base's own host and port. The environment's HTTP proxies are not
// used: a proxy would resolve names where they cannot be checked.
//
// Nothing hangs: there is a limit on the time until the header of the last
// answer, and a limit on the silence between two reads of a body. A reader
// that is slow itself is not the upstream's fault and is not timed.
//
// Failures have a kind: everything that is not an answer is
// registry.ErrUnavailable, and a short body is never a complete one.
package outbound
