package names

import (
	"fmt"
	"maps"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
)

// An Address says where a metadata database is.
type Address struct {
	// Scheme is "file", "dynamodb" or whatever comes before "://".
	Scheme string
	// Name is the file's path, the table's name, or what comes between "://" and
	// "?" otherwise.
	Name string
	// Settings are what comes behind "?", each key once.
	Settings map[string]string
}

// ParseAddress parses what origin.metadata can be:
//
//	/var/lib/weir/metadata.db, or file:///var/lib/weir/metadata.db
//	dynamodb://table?region=eu-west-1&endpoint=http://127.0.0.1:4567
//
// Settings may be left out. It touches nothing. Its errors are for the one who
// wrote the configuration.
func ParseAddress(text string) (Address, error) {
	scheme, rest, ok := strings.Cut(text, "://")
	switch {
	case text == "" || strings.IndexByte(text, 0) >= 0:
		return Address{}, fmt.Errorf("%q is no address of a metadata database", text)
	case !ok:
		return Address{Scheme: "file", Name: filepath.Clean(text)}, nil
	case scheme == "file":
		return parseFile(text)
	case scheme == "dynamodb":
		a, err := parseSettings(scheme, rest, "region", "endpoint")
		if err == nil && !tableName(a.Name) {
			err = fmt.Errorf("%q cannot be the name of a table: 3 to 255 letters, digits, dots, dashes and underscores", a.Name)
		}
		if err == nil {
			err = a.checkDynamo()
		}
		if err != nil {
			return Address{}, err
		}
		return a, nil
	}
	return Address{}, fmt.Errorf("%s:// is no kind of metadata database; there are the path of a file, file://, dynamodb:// and spanner://", scheme)
}

func parseFile(text string) (Address, error) {
	u, err := url.Parse(text)
	if err != nil || u.Host != "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || !strings.HasPrefix(u.Path, "/") || strings.IndexByte(u.Path, 0) >= 0 {
		return Address{}, fmt.Errorf("%q is no address of a file, such as file:///var/lib/weir/metadata.db", text)
	}
	return Address{Scheme: "file", Name: filepath.Clean(u.Path)}, nil
}

// parseSettings parses a name with settings behind it, of which some are known.
func parseSettings(scheme, rest string, known ...string) (Address, error) {
	name, query, _ := strings.Cut(rest, "?")
	a := Address{Scheme: scheme, Name: strings.TrimSuffix(name, "/"), Settings: map[string]string{}}
	if strings.ContainsAny(name, "@#") || strings.Contains(query, "#") {
		return Address{}, fmt.Errorf("%s://…: neither credentials nor a fragment can be in it; credentials are left to the environment, shared files or the machine's role", scheme)
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		return Address{}, fmt.Errorf("%s: what comes behind the question mark cannot be read: %w", a, err)
	}
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if !slices.Contains(known, key) {
			return Address{}, fmt.Errorf("%s: unknown setting %q; there are %s", a, key, strings.Join(known, ", "))
		}
		if len(values[key]) > 1 {
			return Address{}, fmt.Errorf("%s: %q is given twice", a, key)
		}
		a.Settings[key] = values.Get(key)
	}
	return a, nil
}

// String is the address without its settings.
func (a Address) String() string {
	if a.Scheme == "file" {
		return a.Name
	}
	return a.Scheme + "://" + a.Name
}

func (a Address) checkDynamo() error {
	region := a.Settings["region"]
	if strings.ContainsFunc(region, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' }) {
		return fmt.Errorf(`%s: region %q is none such as "eu-west-1"`, a, region)
	}
	endpoint, ok := a.Settings["endpoint"]
	if !ok {
		return nil
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf(`%s: endpoint %q is not an address such as "http://127.0.0.1:4567"`, a, endpoint)
	}
	return nil
}

// tableName reports whether s can be the name of a table of DynamoDB.
func tableName(s string) bool {
	if len(s) < 3 || len(s) > 255 {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '.' && r != '-' && r != '_'
	})
}
