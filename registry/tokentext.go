package registry

import (
	"crypto/rand"
	"crypto/sha256"
	"hash/crc32"
	"strings"
)

// The text of an opaque token: tokenPrefix, by which people and scanners for
// leaked secrets know one, tokenRandom characters of base 62 (178 bits), and
// tokenCheck characters that are the CRC-32 of all before them, so that one
// that was copied wrongly is refused before anything is looked up. The first
// tokenMark of the random ones are its mark, which is no secret: 130 bits are left
// that are.
const (
	tokenPrefix = "weir_"
	tokenRandom = 30
	tokenCheck  = 6
	tokenLength = len(tokenPrefix) + tokenRandom + tokenCheck
	tokenMark   = 8
	base62      = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)

// NewTokenText makes the secret of a new opaque token.
func NewTokenText() string {
	text := make([]byte, 0, tokenLength)
	text = append(text, tokenPrefix...)
	var random [64]byte
	for len(text) < tokenLength-tokenCheck {
		_, _ = rand.Read(random[:]) // crypto/rand.Read never fails
		for _, b := range random {
			// 248 is four times 62: what is above would make some characters
			// likelier than others.
			if b < 248 && len(text) < tokenLength-tokenCheck {
				text = append(text, base62[b%62])
			}
		}
	}
	return string(appendCheck(text))
}

// appendCheck appends the checksum of text.
func appendCheck(text []byte) []byte {
	sum := crc32.ChecksumIEEE(text)
	for range tokenCheck {
		text = append(text, base62[sum%62])
		sum /= 62
	}
	return text
}

// TokenMark is the part of a token's secret by which people tell one from
// another, in a file and in a list: the first random characters. It is no secret,
// and ends the token's ID. "" for what cannot be a token.
func TokenMark(secret string) string {
	if !CheckTokenText(secret) {
		return ""
	}
	return secret[len(tokenPrefix) : len(tokenPrefix)+tokenMark]
}

// Mark is the TokenMark of t's secret.
func (t *Token) Mark() string { return t.ID[max(0, len(t.ID)-tokenMark):] }

// Begins is what t's secret begins with.
func (t *Token) Begins() string { return tokenPrefix + t.Mark() }

// LooksLikeToken reports whether a text is meant to be an opaque token.
func LooksLikeToken(text string) bool { return strings.HasPrefix(text, tokenPrefix) }

// CheckTokenText reports whether a text can be an opaque token: whether its
// form and its checksum are right.
func CheckTokenText(text string) bool {
	if len(text) != tokenLength || !LooksLikeToken(text) {
		return false
	}
	var buf [tokenLength]byte
	want := appendCheck(append(buf[:0], text[:tokenLength-tokenCheck]...))
	return string(want) == text
}

// HashToken is what is kept of an opaque token. Its secret has 178 random bits,
// so a plain hash is enough.
func HashToken(text string) [sha256.Size]byte { return sha256.Sum256([]byte(text)) }
