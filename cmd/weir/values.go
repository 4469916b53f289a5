package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// A Size is a number of bytes, written with a unit: "512B", "32KiB", "1.5GiB"
// (powers of 1024) or "20GB" (of 1000).
type Size int64

// units from the largest of each kind down.
var units = []struct {
	name  string
	bytes int64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"KB", 1e3}, {"B", 1},
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Size) UnmarshalText(text []byte) error {
	word := string(text)
	for _, u := range units {
		number, ok := strings.CutSuffix(word, u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
		if err != nil || !(n >= 0) || strings.ContainsAny(number, "eExXpPnN_+") {
			break
		}
		if n *= float64(u.bytes); n >= math.MaxInt64 {
			return fmt.Errorf("the size %q is too large", word)
		}
		*s = Size(n)
		return nil
	}
	return fmt.Errorf(`%q is not a size such as "256MiB" or "20GB"`, word)
}

// String is the size in the largest unit that divides it.
func (s Size) String() string {
	for _, u := range units {
		if s != 0 && int64(s)%u.bytes == 0 {
			return strconv.FormatInt(int64(s)/u.bytes, 10) + u.name
		}
	}
	return "0B"
}

// MarshalText implements encoding.TextMarshaler.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// A Duration is a time span, written with units: "90s", "1h30m", "720h".
type Duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil || v < 0 {
		return fmt.Errorf(`%q is not a duration such as "90s" or "720h"`, text)
	}
	*d = Duration(v)
	return nil
}

// String is without the zeros that time.Duration ends with: "720h".
func (d Duration) String() string {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// A Toggle is "yes" or "no".
type Toggle string

// UnmarshalText implements encoding.TextUnmarshaler; "true" and "false" are
// what YAML's writers often mean.
func (t *Toggle) UnmarshalText(text []byte) error {
	switch string(text) {
	case "yes", "true":
		*t = "yes"
	case "no", "false":
		*t = "no"
	default:
		return fmt.Errorf("%q is neither yes nor no", text)
	}
	return nil
}

// On reports whether it is "yes".
func (t Toggle) On() bool { return t == "yes" }
