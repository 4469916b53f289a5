package peer

import (
	"errors"
	"testing"

	"github.com/weir-registry/weir/registry"
)

// TestSlowIsNoDeath: a node that was at work all the time and has no answer is
// not passed over for those who ask something else.
func TestSlowIsNoDeath(t *testing.T) {
	c := &client{host: "shield"}
	if err := c.dead(t.Context(), errSlow); errors.Is(err, errDead) || registry.KindOf(err) != registry.ErrUnavailable || registry.RetryAfter(err) == 0 {
		t.Errorf("%v", err)
	}
	if err := c.dead(t.Context(), errSilent); !errors.Is(err, errDead) {
		t.Errorf("a node without a sign of life: %v", err)
	}
}
