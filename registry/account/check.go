package account

import (
	"net/mail"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/weir-registry/weir/registry"
)

// Limits of what accounts are made of.
const (
	maxName   = 64  // bytes of a name
	maxNote   = 256 // bytes of a token's note
	maxEmail  = 254 // bytes
	maxRight  = 512 // bytes of one right
	maxRights = 64  // rights of one token
	maxFrom   = 64  // networks of one token
	maxTeams  = 256 // teams of one account
	maxID     = 64  // bytes of an ID
)

// validName reports whether a text can be the name of an account or a team.
func validName(name string) bool {
	if len(name) == 0 || len(name) > maxName {
		return false
	}
	for i := range len(name) {
		switch c := name[i]; {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
		case i > 0 && (c == '.' || c == '-' || c == '_'):
		default:
			return false
		}
	}
	return true
}

func checkName(what, name string) error {
	if validName(name) {
		return nil
	}
	return registry.Errorf(registry.ErrInvalid, "%.100q cannot be the name of a %s: 1 to %d of a-z, 0-9, \".\", \"-\" and \"_\", beginning with a letter or a digit",
		name, what, maxName)
}

// reserved are names that stand for something else where names are written.
var reserved = []string{"anonymous", "token", "_token"}

// validID reports whether a text can be the ID of a token, a grant or a login,
// so that it may be looked for.
func validID(id string) bool {
	if id == "" || len(id) > maxID {
		return false
	}
	for i := range len(id) {
		if c := id[i]; !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9') {
			return false
		}
	}
	return true
}

// checkText refuses what would not be one readable line.
func checkText(what, text string, most int) error {
	switch {
	case len(text) > most:
		return registry.Errorf(registry.ErrInvalid, "the %s is longer than %d bytes", what, most)
	case !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }):
		return registry.Errorf(registry.ErrInvalid, "the %s has characters in it that cannot be printed", what)
	}
	return nil
}

func checkEmail(text string) error {
	if text == "" {
		return nil
	}
	if a, err := mail.ParseAddress(text); err != nil || a.Address != text || len(text) > maxEmail {
		return registry.Errorf(registry.ErrInvalid, "%.100q is not an e-mail address", text)
	}
	return nil
}
