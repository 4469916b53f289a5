// Package reply is HTTP towards clients as far as npm and OCI agree on it:
// answering with a blob (validators, ranges, sendfile, cutting the connection
// when the bytes turn out wrong), saying how an answer came about, and the
// log line and metrics of a request.
//
// It knows neither protocol's errors: what fails before the status line is out
// is returned to the protocol, which answers in its own form. What fails after
// it ends the connection, the only honest failure left (RFC 9112 section 8: a
// recipient must treat a message cut short as incomplete).
package reply
