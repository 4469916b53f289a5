// Package oci is the OCI distribution protocol, towards clients and towards
// upstreams: a pull-through edge for container images and artifacts.
//
// Towards clients it is [New], an http.Handler for what lies under /v2/. Every
// pull goes through registry.Service, so neither admission nor verification
// can be skipped. Manifests and blobs are answered byte for byte as the
// upstream has them, whatever a client's Accept says. Nothing can be pushed:
// the methods that would are answered 405 UNSUPPORTED.
//
// Towards upstreams it is [Upstreams]: several registries, each with its own
// credentials, which go to that registry and to token servers that belong to
// it and nowhere else. A client's credentials never go upstream.
//
// # Names
//
// A registry.Name's Repo begins with the upstream's name:
// "docker.io/library/alpine". Which upstream a request means is said, in this
// order, by ?ns= (containerd), by the first part of the path
// (/v2/ghcr.io/owner/app/…), by the configured default. A Ref is one of
//
//	3.20                a tag
//	sha256:…            a manifest by its digest
//	blobs/sha256:…      a blob that the repository holds
//	tags/list           the list of tags, as a document that weir composes
//	referrers/sha256:…  the index of what refers to a manifest, composed too
//
// Manifests and blobs are kept apart because they are apart upstream: bytes
// that were uploaded as a blob must not be served as a manifest.
//
// # Status codes
//
// The table is in errors.go. An upstream's failure never becomes 404. Two
// choices want a reason. A 401 carries no WWW-Authenticate: there are no
// accounts to log in to, and dockerd answers any mirror's challenge with the
// user's Docker Hub password. A document over weir's size limit is 502 and not
// 413, because it is the upstream's answer that is too large and not the
// request.
//
// The error codes and their JSON form are distribution's (package errcode).
package oci
