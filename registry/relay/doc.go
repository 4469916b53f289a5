// Package relay is the road that decisions travel between nodes: entitlements
// go down, from the node with the metadata database to those in front of it and
// on to those in front of them; up go acknowledgements, when tokens were used,
// and what only the node with the database can decide about accounts.
//
// It is HTTP/1.1 over the connection between nodes. Who may connect is decided
// before a request gets here (package trust).
//
//	GET  /weir/v1/entitlements?database&version&hash  a stream of frames, without end
//	POST /weir/v1/entitlements/seen                   a report: how copies are, which tokens were used
//	POST /weir/v1/account/VERB                        a method of registry.Logins or registry.Tokens
//
// A stream begins with a hello, which says how the copy of the node that serves
// it is. A follower that has a version which can be followed up is sent what has
// changed since, any other a snapshot in pieces. Then a confirmation comes after
// each change, and every 250 ms: which version, by its hash, the node with the
// database has confirmed, and how long ago. So a follower knows a wrong copy, and
// a line that is dead. Streams end after a minute and are asked for again, so that
// whoever decides who may connect is asked too.
//
// A node in the middle follows and serves at once, with one copy: a change is
// passed on as soon as it is in memory. What a slow follower has not been sent is
// not kept for it. It is sent what has changed since when it is ready, several
// changes as one, or a snapshot if those are no longer kept.
//
// Times travel as ages, in microseconds: nodes' clocks need not agree. The time
// on the line does not count, so a copy is as much older than it seems as frames
// were under way.
//
// Passwords and tokens travel on this road. They are in no log and in no error.
package relay

import "time"

const (
	streamPath  = "/weir/v1/entitlements"
	seenPath    = "/weir/v1/entitlements/seen"
	accountPath = "/weir/v1/account/"

	// kindHeader holds the kind of a failure, in an answer of a node.
	kindHeader = "Weir-Error"
	// databaseHeader names the database that a question about an account is for.
	databaseHeader = "Weir-Database"

	// beat is how often a stream says that it lives.
	beat = 250 * time.Millisecond
	// silence is how long a stream, or the way to one, may bring nothing.
	silence = 1500 * time.Millisecond
	// frameTime is how long one frame may take to arrive.
	frameTime = 15 * time.Second
	// streamLife is how long a stream lasts.
	streamLife = time.Minute
	// reportEvery is how often a node reports if nothing changes.
	reportEvery = 2 * time.Second
)

// Limits, in bytes.
const (
	// maxPiece is the most of a snapshot that is in one frame.
	maxPiece = 64 << 10
	// maxState bounds a frame that says how a copy is.
	maxState = 4 << 10
	// maxDeltas bounds a frame of changes. A change that is larger travels as a
	// snapshot.
	maxDeltas = 4 << 20
	// manyDeltas is how much of changes is put into one frame, if there are more.
	manyDeltas = 256 << 10
	// maxReport bounds a report.
	maxReport = 4 << 20
	// maxQuestion bounds a question about an account, maxAnswer its answer.
	maxQuestion = 64 << 10
	maxAnswer   = 8 << 20
	// maxFailure bounds the answer that says why not.
	maxFailure = 4 << 10
	// maxText bounds names of nodes and databases, hashes and token IDs.
	maxText = 256
)

// Limits by number.
const (
	// maxUses is how many uses of tokens are in one report, and maxPending how
	// many are kept until they can be reported.
	maxUses    = 8 << 10
	maxPending = 64 << 10
	// maxVia is how many nodes there may be between two.
	maxVia = 8
)
