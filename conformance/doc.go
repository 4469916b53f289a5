// Package conformance holds the suites that say what weir's contracts mean:
// one for each interface of package registry, run by the tests of whatever
// implements it. An implementation is done when it passes.
//
//	func TestStore(t *testing.T) {
//		conformance.TestStore(t, func(t *testing.T) registry.Store { … })
//	}
//
// A suite is a list of small cases, each against an implementation made anew.
// The package also has [Upstream], an authority in memory that counts what it
// is asked and fails as it is told to. It knows package registry only; the
// protocol suites with real clients are in its tests.
package conformance
