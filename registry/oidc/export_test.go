package oidc

import "time"

// SetPause sets the time between two questions to each issuer.
func (e *Exchange) SetPause(d time.Duration) {
	for _, list := range e.issuers {
		for _, one := range list {
			one.keys.pause = d
		}
	}
}

// Glob is glob.
func Glob(pattern, s string) bool { return glob(pattern, s) }
