// Package entitle decides who may do what, from memory.
//
// A [Replica] is a node's copy of the entitlements: the accounts, teams, tokens,
// grants and signing keys that the metadata database has under "e/". On the node
// with the database [Replica.Follow] keeps it up with the feed of changes; on
// the others it is filled by snapshots and deltas that another package carries.
// Its versions are sequence numbers of the database.
//
// A check ([Replica.Admit]) takes the newest version by one atomic load, and
// nothing in a version ever changes: records are in a B-tree, and what a check
// looks at (accounts by name, tokens by ID, grants by whom they are for and how
// their patterns begin) in tables by hash; all of these share with the version
// before what is the same. So a change costs what it changes, however many others
// there are, and no check waits for one. What a check does wait for is memory that
// is in no cache, so it looks at few places, and at few lines in each.
//
// The rules:
//
//   - A right is "ACTION PROTOCOL:PATTERN" or "ACTION *" ([ParseRight]). A "*"
//     in a pattern is any run of bytes, slashes included and perhaps empty; every
//     other byte is itself, upper and lower case apart. The pattern is compared
//     with a name's whole repository.
//   - Who may push may pull, who may administer may do both. Who is denied
//     pulling is denied all three, who is denied pushing may not administer.
//   - A principal may do what a grant to its account, to one of its teams or to
//     anonymous lets it, unless a denial for the account or one of its teams
//     says otherwise. A denial for anonymous bounds what anonymous clients are
//     granted, and nothing else. What nothing grants is refused.
//   - An expired grant or denial, and one to a team that is gone, is none.
//   - A token may be for less than its owner, and so may a single call.
//
// A node that has heard from the database's node for the last time longer than
// [Options.MaxStaleness] ago goes on or refuses, as [Options.Past] says.
//
// The package knows principals and patterns, and neither protocols nor digests
// nor status codes.
package entitle
