// Package cachetiers keeps blobs near: in memory, on disk, and in tiers that
// put a near store in front of a far source.
//
// A [Tier] is the one mechanism. On a miss the far side is read once, however
// many readers wait (a flight): bytes are staged in the near store, hashed as
// they arrive, and every reader is fed from the stage at its own offset and
// speed. A flight belongs to no reader. The last bytes of a blob are given to
// nobody before its digest has been checked, so no reader ever holds a whole
// blob that is wrong.
//
// [Memory] keeps small blobs, [Disk] large ones, [Disks] is several of them, any
// of which may fail. None knows a protocol, or who asks.
package cachetiers
