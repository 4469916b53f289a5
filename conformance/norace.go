//go:build !race

package conformance

// RaceSlower is 1: there is no race detector here.
const RaceSlower = 1
