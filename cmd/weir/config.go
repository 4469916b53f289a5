package main

import (
	"fmt"
	"os"
	"time"
)

// Config is the configuration file, a YAML document. Everything in it may be
// left out. Any value may contain ${NAME}, which stands for an environment
// variable that must be set; "$${" is a plain "${". Sizes have units ("256MiB",
// "20GB"), and so do durations ("90s", "720h").
type Config struct {
	// Listen is the address clients connect to: OCI under /v2/, npm under
	// /npm/. Default: 127.0.0.1:5000.
	Listen string `yaml:"listen"`
	// PublicURL is what clients call this node, when that differs from the
	// Host they send: "https://packages.example.com". Default: what they send.
	PublicURL string `yaml:"public_url"`
	// Data is the directory of everything weir keeps. Default: ./weir-data.
	Data string `yaml:"data"`
	// Ops is the address of metrics and health, for operators; "off": none.
	// Default: 127.0.0.1:5002.
	Ops string `yaml:"ops"`
	// Next is the nodes behind this one, by their tiers addresses:
	// "https://shield.example.com:5001", one or a list. Each blob and each name
	// belongs to one of them, and another takes over when that is dead.
	// Default: none; this node asks the upstreams itself.
	Next Addresses `yaml:"next"`
	// Bypass is what happens when no node behind this one answers: "upstream",
	// this node asks the upstreams itself, or "none". Default: upstream.
	Bypass string `yaml:"bypass"`
	// Tiers is the address that nodes in front of this one connect to, with
	// mutual TLS: "0.0.0.0:5001". Default: none can.
	Tiers  string       `yaml:"tiers"`
	TLS    TLSConfig    `yaml:"tls"`
	Peers  PeersConfig  `yaml:"peers"`
	Cache  CacheConfig  `yaml:"cache"`
	Origin OriginConfig `yaml:"origin"`
	OCI    OCIConfig    `yaml:"oci"`
	NPM    NPMConfig    `yaml:"npm"`
	Access AccessConfig `yaml:"access"`
	Audit  AuditConfig  `yaml:"audit"`
	Limits LimitsConfig `yaml:"limits"`
	Log    LogConfig    `yaml:"log"`

	npmDefault bool // npm.upstreams was left out
}

// CacheConfig says how much is kept.
type CacheConfig struct {
	// Memory is for small blobs that are asked for often. Default: 256MiB.
	Memory Size `yaml:"memory"`
	// Disk is for all blobs, under data; fills in flight come on top.
	// Default: 20GiB.
	Disk Size `yaml:"disk"`
	// Disks are several disks instead of that one. When one fails its share
	// goes to the others. Default: none.
	Disks []DiskConfig `yaml:"disks"`
	// Scrub is how often all that is on disk is read, slowly, to find what has
	// been damaged; 0s: never. Default: 168h.
	Scrub *Duration `yaml:"scrub"`
}

// OCIConfig is about container images and other OCI artifacts.
type OCIConfig struct {
	// Default is the upstream that a request means which names none: docker's
	// mirror protocol never does; "" refuses such requests. Default: docker.io,
	// if it is among the upstreams.
	Default *string `yaml:"default"`
	// Upstreams are the registries behind this node, by the name clients know
	// them by. What is not listed is never asked. Default: docker.io, gcr.io,
	// ghcr.io, mcr.microsoft.com, public.ecr.aws, quay.io and registry.k8s.io.
	Upstreams map[string]OCIUpstream `yaml:"upstreams"`
}

// OCIUpstream is one OCI registry.
type OCIUpstream struct {
	// URL is where it is, without /v2/. Default: https:// and its name.
	URL string `yaml:"url"`
	// Username and Password are sent to it, and to token servers that belong
	// to it. Default: anonymous.
	Username string `yaml:"username"`
	Password string `yaml:"password" secret:"true"`
	// Fresh is for how long a tag counts without asking again. Default: 1m.
	Fresh *Duration `yaml:"fresh"`
	// Stale is for how long after that the old answer is given when there is
	// no new one to be had. Default: 720h.
	Stale *Duration `yaml:"stale"`
	// Redirects are hosts it may redirect to although they resolve to private
	// or loopback addresses: "blobs.example.com", "127.0.0.2:*".
	Redirects []string `yaml:"redirects"`
	// Realms are hosts of token servers that get the credentials although
	// they do not belong to the registry's own site.
	Realms []string `yaml:"realms"`
	// Keep says whether its blobs are written to origin.blobs: "yes" or "no".
	// Default: yes.
	Keep Toggle `yaml:"keep"`
	// Connections is how many requests may be open at it at once; more wait,
	// small answers first. Default: 64.
	Connections int `yaml:"connections"`
}

// NPMConfig is about npm packages.
type NPMConfig struct {
	// Upstreams are the registries behind this node, by a name that errors and
	// metrics call them by. Default: one, "public", for all packages.
	Upstreams map[string]NPMUpstream `yaml:"upstreams"`
}

// NPMUpstream is one npm registry.
type NPMUpstream struct {
	// URL is where it is. Default: what "npm config get registry" says on this
	// machine, or --registry.
	URL string `yaml:"url"`
	// Packages are the names it is asked for: "*" (all), "@acme/*" (a scope),
	// "left-*" (a beginning), "lodash" (one). The longest pattern that matches
	// decides. Default: ["*"].
	Packages []string `yaml:"packages"`
	// Fresh is for how long a packument counts without asking again.
	// Default: 5m.
	Fresh *Duration `yaml:"fresh"`
	// Stale is for how long after that the old one is given when there is no
	// new one to be had. Default: 720h.
	Stale *Duration `yaml:"stale"`
	// Token is sent as a bearer token, or Username and Password as Basic, to
	// the registry's own host only.
	Token    string `yaml:"token" secret:"true"`
	Username string `yaml:"username"`
	Password string `yaml:"password" secret:"true"`
	// Tarballs are hosts that tarballs may come from beside the registry's.
	Tarballs []string `yaml:"tarballs"`
	// Redirects are hosts it may redirect to although they resolve to private
	// or loopback addresses.
	Redirects []string `yaml:"redirects"`
	// Keep and Connections are as with OCI upstreams.
	Keep        Toggle `yaml:"keep"`
	Connections int    `yaml:"connections"`
}

// LimitsConfig bounds what clients can make weir spend.
type LimitsConfig struct {
	// Connections is how many clients may be connected at once; more wait.
	// Default: 8192.
	Connections int `yaml:"connections"`
	// Headers is how large a request's header may be. Default: 32KiB.
	Headers Size `yaml:"headers"`
	// Idle is for how long a connection may stay open unused. Default: 3m.
	Idle *Duration `yaml:"idle"`
	// Stop is for how long running requests may go on when weir is told to
	// stop. Default: 30s.
	Stop *Duration `yaml:"stop"`
}

// LogConfig is about the log on stderr.
type LogConfig struct {
	// Level is the least that is logged: debug, info, warn, error.
	// Default: info.
	Level string `yaml:"level"`
	// Format is text or json. Default: text on a terminal, else json.
	Format string `yaml:"format"`
}

// later are keys that the design has and this version has not: their error
// says so, and not that they were misspelt.
var later = map[string]string{
	"oci.hosted": "pushing",
	"npm.hosted": "publishing",
}

// knownRegistries is where public registries are whose address is not simply
// their name, and which names mean something without configuration.
var knownRegistries = map[string]string{
	"docker.io":         "https://registry-1.docker.io",
	"gcr.io":            "https://gcr.io",
	"ghcr.io":           "https://ghcr.io",
	"mcr.microsoft.com": "https://mcr.microsoft.com",
	"public.ecr.aws":    "https://public.ecr.aws",
	"quay.io":           "https://quay.io",
	"registry.k8s.io":   "https://registry.k8s.io",
}

const maxConfigFile = 1 << 20

// readConfig reads a file, or for "" takes the defaults, and checks it.
func readConfig(file string) (*Config, error) {
	c := &Config{}
	if file != "" {
		f, err := os.Open(file)
		if err != nil {
			return nil, fmt.Errorf("configuration: %w", err)
		}
		defer f.Close()
		if c, err = decodeConfig(file, f, os.LookupEnv); err != nil {
			return nil, err
		}
	} else {
		c.setDefaults()
	}
	if err := c.check(); err != nil {
		if file != "" {
			err = fmt.Errorf("%s: %w", file, err)
		}
		return nil, err
	}
	return c, nil
}

// setDefaults fills in what the file leaves out.
func (c *Config) setDefaults() {
	if c.OCI.Upstreams == nil {
		c.OCI.Upstreams = map[string]OCIUpstream{}
		for name := range knownRegistries {
			c.OCI.Upstreams[name] = OCIUpstream{}
		}
	}
	if c.OCI.Default == nil {
		name := "docker.io"
		if _, ok := c.OCI.Upstreams[name]; !ok {
			name = ""
		}
		c.OCI.Default = &name
	}
	setDefault(&c.Ops, "127.0.0.1:5002")
	setDefault(&c.Listen, "127.0.0.1:5000")
	setDefault(&c.Data, "./weir-data")
	setDefault(&c.Bypass, bypassUpstream)
	setDefault(&c.Cache.Memory, 256<<20)
	setDefault(&c.Cache.Disk, 20<<30)
	setDuration(&c.Cache.Scrub, 168*time.Hour)
	for name, u := range c.OCI.Upstreams {
		known, ok := knownRegistries[name]
		if !ok {
			known = "https://" + name
		}
		setDefault(&u.URL, known)
		setDefault(&u.Keep, "yes")
		setDefault(&u.Connections, 64)
		setDuration(&u.Fresh, time.Minute)
		setDuration(&u.Stale, 720*time.Hour)
		c.OCI.Upstreams[name] = u
	}
	if c.NPM.Upstreams == nil {
		c.NPM.Upstreams = map[string]NPMUpstream{"public": {}}
		c.npmDefault = true
	}
	for name, u := range c.NPM.Upstreams {
		if u.Packages == nil {
			u.Packages = []string{"*"}
		}
		setDefault(&u.Keep, "yes")
		setDefault(&u.Connections, 64)
		setDuration(&u.Fresh, 5*time.Minute)
		setDuration(&u.Stale, 720*time.Hour)
		c.NPM.Upstreams[name] = u
	}
	c.setAccessDefaults()
	setDefault(&c.Limits.Connections, 8192)
	setDefault(&c.Limits.Headers, 32<<10)
	setDuration(&c.Limits.Idle, 3*time.Minute)
	setDuration(&c.Limits.Stop, 30*time.Second)
	setDefault(&c.Log.Level, "info")
}

// needsRegistry reports whether an npm upstream is without a url.
func (c *Config) needsRegistry() bool {
	for _, u := range c.NPM.Upstreams {
		if u.URL == "" {
			return true
		}
	}
	return false
}

// npmExplicit reports whether the file asks for npm, so that it is an error if
// it cannot be served.
func (c *Config) npmExplicit() bool { return !c.npmDefault }

// longestStale is the longest time for which any old answer is given.
func (c *Config) longestStale() time.Duration {
	longest := time.Hour
	for _, u := range c.OCI.Upstreams {
		longest = max(longest, time.Duration(*u.Stale))
	}
	for _, u := range c.NPM.Upstreams {
		longest = max(longest, time.Duration(*u.Stale))
	}
	return longest
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

func setDuration(v **Duration, d time.Duration) {
	if *v == nil {
		value := Duration(d)
		*v = &value
	}
}
