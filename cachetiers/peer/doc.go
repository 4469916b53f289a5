// Package peer is the road between nodes: a node as the Source and the Upstream
// of the nodes in front of it.
//
// It is HTTP/1.1 over mutual TLS, so that several streams are several
// connections. Who may connect is decided before a request gets here (package
// trust); what a client of the node in front may read, that node has decided.
//
//	GET  /weir/v1/ping                   204
//	GET  /weir/v1/blob/DIGEST?name&want  a run of a blob, by Range; HEAD: its descriptor
//	GET  /weir/v1/name?name&have         what a name stands for, and its document
//
// As long as an answer has not begun its server says after 50 ms, and then every
// 300 ms, that it is at work, with 102 Processing (RFC 2518 section 10.1), so that a node which
// is dead or cut off is told apart, within a second, from one that waits for
// something slow behind it.
//
// Times travel as ages: nodes' clocks need not agree. Failures travel with
// their kind, so that a 404 of anything else in between is never taken for the
// authority's.
package peer

import "time"

const (
	pingPath = "/weir/v1/ping"
	blobPath = "/weir/v1/blob/"
	namePath = "/weir/v1/name"

	// kindHeader holds the kind of a failure, in an answer of a node.
	kindHeader = "Weir-Error"
	// viaHeader says how the node came by an answer: how it forwarded, and
	// where the bytes were.
	viaHeader = "Weir-Via"
	// bindingHeader is a binding, as url.Values.
	bindingHeader = "Weir-Binding"
	// runHeader says which run of how large a blob an answer is.
	runHeader = "Weir-Run"

	// workFirst is when a server says for the first time that it is at work,
	// and workEvery how often after that.
	workFirst = 50 * time.Millisecond
	workEvery = 300 * time.Millisecond
	// maxText bounds what is read of a failure's text.
	maxText = 1 << 10
)
