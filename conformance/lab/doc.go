// Package lab is the bench that the conformance tests work on: it starts and
// stops real processes (weir itself, a real registry, the daemons of real
// clients), each with ports and directories of its own; it puts a proxy that
// counts and breaks things between weir and what is behind it; and it makes
// images whose files are known.
//
// Everything here belongs to a test: what a function starts, the end of the
// test stops; what goes wrong in it fails the test; and when the test has
// failed, the logs of its processes are printed. Nothing sleeps: [Eventually]
// waits for a condition.
package lab
