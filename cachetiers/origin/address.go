package origin

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
)

// An Address says where a bucket is: "s3://bucket/prefix?region=eu-west-1".
type Address struct {
	// Scheme is what comes before "://".
	Scheme string
	// Bucket is its name, as the place knows it.
	Bucket string
	// Prefix is what all keys begin with: "" or "a/b/", never with a slash in
	// front.
	Prefix string
	// Settings are what comes behind "?", each key once.
	Settings map[string]string
}

// ParseAddress parses an address of a scheme, whose settings may have the keys
// that are known. Its errors are for the one who wrote the configuration.
func ParseAddress(text, scheme string, known ...string) (Address, error) {
	u, err := url.Parse(text)
	if at := strings.LastIndex(text, "@"); at >= 0 {
		text = "…" + text[at:] // errors are logged, and what is before may be a secret
	}
	if err != nil {
		return Address{}, fmt.Errorf("%q is not an address: %w", text, cause(err))
	}
	form := scheme + "://bucket/prefix"
	switch {
	case u.Scheme != scheme:
		return Address{}, fmt.Errorf("%q does not begin with %s://", text, scheme)
	case u.User != nil:
		return Address{}, fmt.Errorf("an address with credentials in it; leave them to the environment, shared files or the machine's role: %s", form)
	case u.Host == "" || u.Opaque != "":
		return Address{}, fmt.Errorf("%q names no bucket: %s", text, form)
	case u.Fragment != "":
		return Address{}, fmt.Errorf("%q has a fragment (#)", text)
	}
	a := Address{Scheme: scheme, Bucket: u.Host, Settings: map[string]string{}}
	if !bucketName(a.Bucket) {
		return Address{}, fmt.Errorf("%q cannot be a bucket's name: 3 to 222 of a-z, 0-9, dot, dash and underscore", a.Bucket)
	}
	if a.Prefix, err = prefix(u.Path); err != nil {
		return Address{}, fmt.Errorf("%q: %w", text, err)
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return Address{}, fmt.Errorf("%q: what comes behind the question mark cannot be read: %w", text, err)
	}
	for _, key := range slices.Sorted(maps.Keys(query)) {
		if !slices.Contains(known, key) {
			return Address{}, fmt.Errorf("%q: unknown setting %q; there are %s", text, key, strings.Join(known, ", "))
		}
		if len(query[key]) > 1 {
			return Address{}, fmt.Errorf("%q: %q is given twice", text, key)
		}
		a.Settings[key] = query.Get(key)
	}
	return a, nil
}

// cause leaves out of a url.Error what is said already.
func cause(err error) error {
	if u, ok := err.(*url.Error); ok {
		return u.Err
	}
	return err
}

// String is the address without its settings.
func (a Address) String() string {
	return a.Scheme + "://" + a.Bucket + strings.TrimSuffix("/"+a.Prefix, "/")
}

// Endpoint is the setting "endpoint", which must be an address of http or
// https without credentials or a query; "" if there is none.
func (a Address) Endpoint() (string, error) {
	text, ok := a.Settings["endpoint"]
	if !ok {
		return "", nil
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", fmt.Errorf(`%s: endpoint %q is not an address such as "http://127.0.0.1:7070"`, a, text)
	}
	return text, nil
}

// Switch is the setting key, which must be "true" or "false".
func (a Address) Switch(key string, otherwise bool) (bool, error) {
	switch text, ok := a.Settings[key]; {
	case !ok:
		return otherwise, nil
	case text == "true":
		return true, nil
	case text == "false":
		return false, nil
	default:
		return false, fmt.Errorf("%s: %s is %q, neither true nor false", a, key, text)
	}
}

// bucketName reports whether s can be a bucket's name anywhere; the place may
// be stricter.
func bucketName(s string) bool {
	if len(s) < 3 || len(s) > 222 || strings.Contains(s, "..") || s[0] == '.' || s[0] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '.' && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

// prefix is a path as the beginning of keys.
func prefix(path string) (string, error) {
	path = strings.Trim(path, "/")
	if path == "" {
		return "", nil
	}
	if len(path) > 512 {
		return "", fmt.Errorf("a prefix of %d bytes; 512 are the most", len(path))
	}
	for part := range strings.SplitSeq(path, "/") {
		if part == "" || part == "." || part == ".." {
			return "", fmt.Errorf("a prefix with an empty part, or with dots alone")
		}
		for i := range len(part) {
			c := part[i]
			if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("._-=", rune(c)) {
				return "", fmt.Errorf("a prefix with the byte %q in it; letters, digits and ._-= may be", c)
			}
		}
	}
	return path + "/", nil
}
