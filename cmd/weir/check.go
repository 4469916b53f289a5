package main

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weir-registry/weir/npm"
	"github.com/weir-registry/weir/oci"
	"github.com/weir-registry/weir/registry/entitle"
)

// opsOff is the ops address that there is none.
const opsOff = "off"

// check finds what is wrong with a configuration beyond its form, without
// touching the network or the disk.
func (c *Config) check() error {
	if err := checkAddr("listen", c.Listen); err != nil {
		return err
	}
	if c.Ops != opsOff {
		if err := checkAddr("ops", c.Ops); err != nil {
			return err
		}
		if _, port, _ := net.SplitHostPort(c.Ops); c.Ops == c.Listen && port != "0" {
			return fmt.Errorf("ops: the same address as listen, %s", c.Ops)
		}
	}
	if c.PublicURL != "" {
		if err := checkURL("public_url", c.PublicURL); err != nil {
			return err
		}
	}
	if c.Cache.Memory < 1<<20 || c.Cache.Disk < 1<<20 {
		return fmt.Errorf("cache: memory is %v and disk %v; each must be 1MiB or more", c.Cache.Memory, c.Cache.Disk)
	}
	if c.Limits.Headers < 4<<10 || c.Limits.Headers > 1<<20 {
		return fmt.Errorf("limits.headers: %v is not between 4KiB and 1MiB", c.Limits.Headers)
	}
	if err := c.checkChain(); err != nil {
		return err
	}
	if err := c.checkOrigin(); err != nil {
		return err
	}
	if err := c.checkMetadata(); err != nil {
		return err
	}
	if err := c.checkLog(); err != nil {
		return err
	}
	if err := c.checkUpstreams(); err != nil {
		return err
	}
	return c.checkAccess()
}

func checkAddr(key, addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf(`%s: %q is not an address such as "127.0.0.1:5000" or ":5000"`, key, addr)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || strings.ContainsAny(host, "/ ") {
		return fmt.Errorf("%s: %q has no port between 0 and 65535 (%d)", key, addr, n)
	}
	return nil
}

func checkURL(key, text string) error {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		return fmt.Errorf("%s: %q is not an http or https address", key, text)
	case u.User != nil:
		return fmt.Errorf("%s: an address with a user in it; there are keys of their own for credentials", key)
	case u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf("%s: %q has a query or a fragment", key, text)
	}
	return nil
}

func (c *Config) checkLog() error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Log.Level)); err != nil {
		return fmt.Errorf("log.level: %q is none of debug, info, warn, error", c.Log.Level)
	}
	if f := c.Log.Format; f != "" && f != "text" && f != "json" {
		return fmt.Errorf("log.format: %q is neither text nor json", f)
	}
	return nil
}

func (c *Config) checkUpstreams() error {
	if len(c.OCI.Upstreams) == 0 && len(c.NPM.Upstreams) == 0 {
		return errors.New("nothing to serve: neither oci.upstreams nor npm.upstreams has an entry")
	}
	if name := *c.OCI.Default; name != "" {
		if _, ok := c.OCI.Upstreams[name]; !ok {
			return fmt.Errorf("oci.default: %q is not among oci.upstreams", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.OCI.Upstreams)) {
		if err := checkURL("oci.upstreams."+name+".url", c.OCI.Upstreams[name].URL); err != nil {
			return err
		}
	}
	if _, err := oci.NewUpstreams(c.ociRegistries(), oci.Options{Default: *c.OCI.Default}); err != nil {
		return fmt.Errorf("oci: %w", err)
	}
	unsaid := 0
	for _, name := range slices.Sorted(maps.Keys(c.NPM.Upstreams)) {
		u := c.NPM.Upstreams[name]
		if u.URL == "" {
			unsaid++
			continue
		}
		if err := checkURL("npm.upstreams."+name+".url", u.URL); err != nil {
			return err
		}
	}
	if unsaid > 1 {
		return errors.New("npm.upstreams: only one can be without a url")
	}
	// The address that is not known before npm has been asked is not looked
	// at here; any will do.
	if _, err := npm.NewUpstreams(c.npmRegistries("http://127.0.0.1:1/"), npm.Options{}); err != nil {
		return fmt.Errorf("npm: %w", err)
	}
	return nil
}

// guard is access as Service wants it.
func (c *Config) guard() (*entitle.Grants, error) {
	grants, err := entitle.Parse(c.Access.Anonymous)
	if err != nil {
		return nil, fmt.Errorf("access.anonymous: %w", err)
	}
	for _, space := range grants.Spaces() {
		if space != oci.Space && space != npmSpace {
			return nil, fmt.Errorf("access.anonymous: there is no protocol %q, only %s and %s", space, oci.Space, npmSpace)
		}
	}
	upstreams := slices.Sorted(maps.Keys(c.OCI.Upstreams))
	for _, text := range c.Access.Anonymous {
		_, pattern, ok := strings.Cut(text, " "+oci.Space+":")
		if ok && !canMatch(pattern, upstreams) {
			return nil, fmt.Errorf("access.anonymous: %q matches nothing that is configured: repositories begin with %s",
				text, orNone(upstreams))
		}
	}
	return grants, nil
}

// canMatch reports whether a grant's pattern matches a repository of any of the
// upstreams, whose repositories are called "docker.io/library/alpine". It looks
// at the beginning alone, where names are misspelt.
func canMatch(pattern string, upstreams []string) bool {
	start, _, open := strings.Cut(pattern, "*")
	if open && start == "" {
		return true // "*" with no upstream is what a file for npm alone has by default
	}
	if shortOnHub(pattern) {
		return false
	}
	return slices.ContainsFunc(upstreams, func(name string) bool {
		rest, ok := strings.CutPrefix(start, name+"/")
		return ok && (open || rest != "") || open && strings.HasPrefix(name+"/", start)
	})
}

// shortOnHub reports whether a pattern is the name of a repository on Docker Hub
// as people say it and not as it is called: "docker.io/alpine".
func shortOnHub(pattern string) bool {
	rest, ok := strings.CutPrefix(pattern, "docker.io/")
	return ok && !strings.ContainsAny(rest, "/*")
}

// orNone lists the beginnings of repositories' names.
func orNone(upstreams []string) string {
	if len(upstreams) == 0 {
		return "an upstream's name, and oci.upstreams has none"
	}
	return strings.Join(upstreams, "/, ") + "/"
}

// ociRegistries is oci.upstreams as package oci wants it, in a fixed order.
func (c *Config) ociRegistries() []oci.Registry {
	var list []oci.Registry
	for _, name := range slices.Sorted(maps.Keys(c.OCI.Upstreams)) {
		u := c.OCI.Upstreams[name]
		list = append(list, oci.Registry{Name: name, URL: u.URL, Username: u.Username, Password: u.Password,
			Fresh: u.Fresh.orShortest(), Stale: u.Stale.orShortest(), Redirects: u.Redirects, Realms: u.Realms,
			Connections: u.Connections})
	}
	return list
}

// npmRegistries is npm.upstreams as package npm wants it; unsaid is the
// address of the one that is configured without.
func (c *Config) npmRegistries(unsaid string) []npm.Registry {
	var list []npm.Registry
	for _, name := range slices.Sorted(maps.Keys(c.NPM.Upstreams)) {
		u := c.NPM.Upstreams[name]
		setDefault(&u.URL, unsaid)
		list = append(list, npm.Registry{Name: name, URL: u.URL, Packages: u.Packages,
			Token: u.Token, Username: u.Username, Password: u.Password,
			Fresh: u.Fresh.orShortest(), Stale: u.Stale.orShortest(), Tarballs: u.Tarballs, Redirects: u.Redirects,
			Connections: u.Connections})
	}
	return list
}

// orShortest is d where zero would mean a default: "0s" in a configuration
// means to ask every time.
func (d *Duration) orShortest() time.Duration { return max(time.Duration(*d), 1) }
