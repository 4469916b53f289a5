// Package trust decides which nodes may talk to each other.
//
// A node that others connect to has a certificate authority of its own, made
// when it is first needed. It invites a node by a code that can be used once;
// the node that joins makes a key, which never leaves its machine, and gets a
// certificate of 30 days, which it renews by itself. Nodes that are invited as
// equals are given the authority itself, key included: they then admit each
// other's nodes, and tell each other who has been revoked.
//
// Between nodes there is TLS 1.3 with certificates on both sides, and HTTP/1.1
// in it, so that several streams are several TCP connections. Which names a
// certificate has is decided by who issues it and never by who asks for it.
// Every request is looked at anew, so that a revocation or an expiry counts on
// open connections too.
//
// Everything is kept in files of one directory, and commands work on those
// files whether or not a node runs; a running node sees their changes:
//
//	ca.json      the authority, its key, and this node's name in its group
//	nodes.json   who was invited, who has joined, who has been revoked
//	joined.json  which nodes this one has joined, and its certificates there
//	seen.json    when nodes were last seen; of no consequence
//	lock         held for moments, while one of these is being changed
//
// A file that is damaged is an error at the start; a running node goes on with
// what it read last. Neither lets anyone in.
//
// Certificates may also come from elsewhere ([Files]); then none of this is
// used but the rules for connections.
package trust
