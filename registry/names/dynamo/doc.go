// Package dynamo is a metadata database in a table of DynamoDB, or of a server
// that speaks like it. It wants nothing of it but conditional writes of one item
// and consistent reads: neither transactions nor streams.
//
// # What is in the table
//
// The partition key is "p", a text; the sort key is "k", bytes.
//
//	p="log"     k=slot, 8 bytes   n=number of the batch, w=its writer, c=its changes
//	p="record"  k=the record's key  n=its Rev, i=incarnation, v=its value
//	p="state"   k="config"        format, slots
//	p="state"   k="hint"          n=number of a batch that is there
//
// The log is the truth, and the records follow from it. A batch is one item of
// the log, with one or more changes of different keys; batches are numbered from
// 1 on without gaps. The Rev of a batch's change is the batch's number times
// 1024, plus the change's place in it.
//
// The log is a ring: batch n is in slot n modulo the number of slots. It is put
// there on the condition that the slot is empty, if it is the first for that
// slot, or else that the batch of one round before is in it.
//
// A record's item is made before the record is: without a value, Rev 0, and with
// a random incarnation. All changes of that record are then for that
// incarnation, up to the removal, which deletes the item. A change is applied to
// the item on the condition that this is of the change's incarnation and has a
// lower Rev.
//
// # How a change is made
//
// A writer
//
//  1. knows that the log ends with batch n, and that n has been applied;
//  2. reads the items of the records, consistently; finds conflicts; makes the
//     items that are not there;
//  3. puts batch n+1. If another was faster it reads on from n+1 and applies the
//     last batch it finds, and begins again;
//  4. applies the changes, in their order, and answers.
//
// # Why that is right
//
// One order. Slots are never emptied, so the condition of putting batch n+1 can
// hold once only, however late the request arrives or how often: afterwards the
// slot has n+1 or one of later rounds. So there is one batch of each number, and
// none before its predecessor is there, as its writer has seen that.
//
// Whose was it? A batch has a random writer: a put whose answer was lost, or that
// failed because an earlier try of it had succeeded, is looked for in its slot.
//
// Only the last batch may be not yet applied. Whoever puts n+1 has applied n, or
// seen that it was; and n's writer the same of n-1. So one who finds the end of
// the log applies one batch, and knows that all are.
//
// The comparison holds. The items were read when all batches up to n had been
// applied to them. What changes an item's record is a batch; if n+1 can be put,
// there was none meanwhile.
//
// No old change comes back. One that is applied late meets an item with a
// higher Rev, one of another incarnation, or none: its condition fails. As a
// condition can only fail because the change, or a later one of the same record,
// has been applied, a failure counts as done. The item cannot be missing because
// it has not been made yet: it was there before the batch was.
//
// An incarnation does not come back either. The request that makes an item is
// sent once, and if its answer is lost another incarnation is tried. This is the
// one request that nobody on the way to the table may repeat; all others may
// arrive as late and as often as they like. An item without a value that nobody
// needed stays behind, counts as nothing, and is used by whoever makes the record
// next.
//
// What has returned is seen: the change has been applied to the one item that Get
// reads, consistently. What Head and Changes give has been applied too: they
// apply the last batch themselves, should its writer have died. So the moment
// when a change is applied is when it happens, and these moments are in the order
// of the numbers: within a batch because they are applied one after the other.
//
// A reader of the log that meets a slot of an earlier round is at its end. Slots
// are read in their order, so that it never sees a batch and misses one before
// it; one of a later round says that what was asked for is no longer kept.
package dynamo
