//go:build race

package conformance

// RaceSlower is how many times as long, and as much memory, something may take in
// tests with the race detector, which slow it down by that much or less.
const RaceSlower = 20
