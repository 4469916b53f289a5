package outbound

import (
	"net/http"

	"github.com/weir-registry/weir/registry"
)

type kindWord struct {
	kind   error
	word   string
	status int
}

func kindWords() []kindWord {
	return []kindWord{
		{registry.ErrInvalid, "invalid", http.StatusBadRequest},
		{registry.ErrNotFound, "notfound", http.StatusNotFound},
		{registry.ErrConflict, "conflict", http.StatusConflict},
		{registry.ErrGone, "gone", http.StatusGone},
		{registry.ErrCorrupt, "corrupt", http.StatusBadGateway},
		{registry.ErrUnauthenticated, "unauthenticated", http.StatusUnauthorized},
		{registry.ErrDenied, "denied", http.StatusForbidden},
		{registry.ErrLimited, "limited", http.StatusTooManyRequests},
		{registry.ErrTooLarge, "toolarge", http.StatusRequestEntityTooLarge},
		{registry.ErrNoRoom, "noroom", http.StatusInsufficientStorage},
		{registry.ErrUnavailable, "unavailable", http.StatusServiceUnavailable},
	}
}

// WordOf is how a node tells another which kind of failure it met: a word, which
// is what counts, and a status for those who read along. What has no kind is told
// as registry.ErrUnavailable.
func WordOf(kind error) (word string, status int) {
	all := kindWords()
	for _, k := range all {
		if k.kind == kind {
			return k.word, k.status
		}
	}
	last := all[len(all)-1]
	return last.word, last.status
}

// KindOf is the kind of failure that a node's word stands for, or nil.
func KindOf(word string) error {
	for _, k := range kindWords() {
		if k.word == word {
			return k.kind
		}
	}
	return nil
}
