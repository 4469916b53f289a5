package cachetiers_test

import (
	"os"
	"strconv"
	"testing"
)

// rounds is how often a test over random seeds runs: n times, or as often as
// WEIR_SOAK says.
func rounds(t *testing.T, n int) int {
	t.Helper()
	text := os.Getenv("WEIR_SOAK")
	if text == "" {
		return n
	}
	soak, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("WEIR_SOAK is %q, not a number", text)
	}
	return max(soak, n)
}
