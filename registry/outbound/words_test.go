package outbound_test

import (
	"errors"
	"net/http"
	"testing"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/outbound"
)

// TestWordsOfKinds: every kind there is arrives as itself, and none as another.
func TestWordsOfKinds(t *testing.T) {
	seen := map[string]error{}
	for _, kind := range []error{registry.ErrInvalid, registry.ErrNotFound, registry.ErrConflict, registry.ErrGone, registry.ErrCorrupt,
		registry.ErrUnauthenticated, registry.ErrDenied, registry.ErrLimited, registry.ErrTooLarge, registry.ErrNoRoom, registry.ErrUnavailable} {
		word, status := outbound.WordOf(kind)
		if other, ok := seen[word]; ok || word == "" || status < 400 || outbound.KindOf(word) != kind {
			t.Errorf("%v is told as %q, %d, which means %v (and %v)", kind, word, status, outbound.KindOf(word), other)
		}
		seen[word] = kind
	}
	if word, status := outbound.WordOf(errors.New("no kind")); word != "unavailable" || status != http.StatusServiceUnavailable {
		t.Errorf("no kind is told as %q, %d", word, status)
	}
	if kind := outbound.KindOf("nonsense"); kind != nil {
		t.Errorf("nonsense means %v", kind)
	}
}
