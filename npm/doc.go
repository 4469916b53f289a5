// Package npm is the npm registry protocol: towards clients a Handler, towards
// registries Upstreams.
//
// A package's document, the packument, is a blob like any other. What clients
// read are views of it, derived once for each document and kept: the full and
// the abbreviated form, plain and gzipped, with every tarball's address moved
// under the address the client itself used. A third view, the index, says for
// each version where in the document it is and which bytes its tarball must
// have; so a tarball, a single version and the dist-tags are answered without
// reading the document again, and what an upstream has taken back is gone with
// the next document although its bytes are still cached.
//
// Documents are scanned as a stream, one version at a time. No more than one
// version, or one other member of the document, is in memory per derivation.
package npm

// space is what names of this protocol are called.
const space = "npm"

// The media types of a packument.
const (
	mediaJSON  = "application/json"
	mediaCorgi = "application/vnd.npm.install-v1+json"
	mediaBytes = "application/octet-stream"
)
