package spanner

import "google.golang.org/api/option"

// WithClientOptions gives the library more options.
func WithClientOptions(o Options, extra ...option.ClientOption) Options {
	o.extra = extra
	return o
}

// ClientOptions are those for clients of the library.
func ClientOptions(o Options) []option.ClientOption { return o.clientOptions() }

// Valid is valid.
func Valid(s string) string { return valid(s) }
