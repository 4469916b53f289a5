// Package registry is the vocabulary of weir: names, digests, bindings, calls,
// the kinds of failure, the contracts between the rooms, and [Service], the one
// path of a call.
//
// Two ideas carry everything.
//
// Bytes never change; names do. A layer, a config, a manifest, a tarball and a
// packument are blobs, found by digest. "alpine:3", "lodash" and "repository R
// holds sha256:…" are bindings from a [Name] to a [Descriptor]: one small
// consistent table, [Names]. A call goes from name to binding to blob.
//
// Everything that gives bytes is a [Source], and a tier made of a near store
// and a far source is a Source too, so memory, disk, a peer, a bucket and an
// upstream registry nest by one constructor.
//
// The package knows nothing of HTTP, npm or OCI, and imports nothing of weir's.
package registry
