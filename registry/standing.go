package registry

import "time"

// A Delta is a step from one version of the entitlements to a later one. The
// versions are sequence numbers of [Metadata].
type Delta struct {
	// Prev is the version it applies to; no other.
	Prev uint64 `json:"prev"`
	// Version is what results.
	Version uint64 `json:"version"`
	// Records are what has changed; a nil Value removes.
	Records []Record `json:"records"`
}

// A Standing is how a node's copy of the entitlements is.
type Standing struct {
	// Database names the metadata database that the copy is of; "": there is no
	// copy yet.
	Database string `json:"database"`
	Version  uint64 `json:"version"`
	// Hash is of all records, in hex: two copies of the same version have the
	// same.
	Hash    string `json:"hash"`
	Records int    `json:"records"`
	// Confirmed is when the node with the database last said that there is
	// nothing newer, by this node's clock.
	Confirmed time.Time `json:"confirmed"`
}

// Whole reports whether there is a copy.
func (s Standing) Whole() bool { return s.Database != "" }

// A NodeStanding is the Standing of a node, as it has told.
type NodeStanding struct {
	Node string `json:"node"`
	// Via is the nodes between that one and this, the nearest to this one first.
	Via []string `json:"via,omitempty"`
	Standing
	// Heard is when it told, by this node's clock.
	Heard time.Time `json:"heard"`
}
