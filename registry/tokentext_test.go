package registry_test

import (
	"strings"
	"testing"

	"github.com/weir-registry/weir/registry"
)

func TestTokenText(t *testing.T) {
	token := registry.NewTokenText()
	if !registry.CheckTokenText(token) || token == registry.NewTokenText() {
		t.Fatalf("%q is not a good token, or not random", token)
	}
	const alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	for i := range token { // every character, changed into every other one
		for _, c := range alphabet + " -_\x00" {
			if flipped := token[:i] + string(c) + token[i+1:]; flipped != token && registry.CheckTokenText(flipped) {
				t.Errorf("%q with %q at %d is taken for a token", token, c, i)
			}
		}
	}
	for _, bad := range []string{"", "weir_", token[:len(token)-1], token + "0", strings.ToUpper(token), "x" + token[1:]} {
		if registry.CheckTokenText(bad) {
			t.Errorf("%q is taken for a token", bad)
		}
	}
}

// TestTokenMark: a token is recognised by its beginning, which is its ID's end.
func TestTokenMark(t *testing.T) {
	secret := registry.NewTokenText()
	mark := registry.TokenMark(secret)
	tok := registry.Token{ID: "0123456789t" + mark}
	if len(mark) != 8 || tok.Mark() != mark || tok.Begins() != "weir_"+mark || !strings.HasPrefix(secret, tok.Begins()) {
		t.Errorf("%s: %s, %s, %s", secret, mark, tok.Mark(), tok.Begins())
	}
	if mark := registry.TokenMark(secret[1:]); mark != "" {
		t.Error(mark)
	}
	if short := (&registry.Token{ID: "abc"}); short.Mark() != "abc" {
		t.Error(short.Mark())
	}
}

func FuzzTokenText(f *testing.F) {
	f.Add(registry.NewTokenText())
	f.Add("weir_")
	f.Fuzz(func(t *testing.T, text string) {
		if registry.CheckTokenText(text) && !registry.LooksLikeToken(text) {
			t.Error("a token that does not look like one")
		}
	})
}
