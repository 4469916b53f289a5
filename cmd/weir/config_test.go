package main

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func env(name string) (string, bool) {
	switch name {
	case "HUB_TOKEN":
		return "s3cret: \"}${HOME}\n#", true
	case "SIZE":
		return "64MiB", true
	case "EMPTY":
		return "", true
	}
	return "", false
}

func decode(text string) (*Config, error) {
	c, err := decodeConfig("weir.yaml", strings.NewReader(text), env)
	if err == nil {
		err = c.check()
	}
	return c, err
}

func TestConfigDefaults(t *testing.T) {
	for _, text := range []string{"", "\n", "# nothing\n", "---\n", "cache:\n", "oci: {}\nnpm: {}\n", "null"} {
		c, err := decode(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if c.Listen != "127.0.0.1:5000" || c.Ops != "127.0.0.1:5002" || c.Cache.Memory != 256<<20 || c.Cache.Disk != 20<<30 ||
			*c.OCI.Default != "docker.io" || c.OCI.Upstreams["docker.io"].URL != "https://registry-1.docker.io" ||
			len(c.NPM.Upstreams) != 1 || c.npmExplicit() || len(c.Access.Anonymous) != 2 {
			t.Errorf("%q: %+v", text, c)
		}
	}
}

func TestConfigEverything(t *testing.T) {
	c, err := decode(`
listen: 0.0.0.0:80
public_url: https://packages.example.com/x
data: /var/lib/weir
ops: off
cache: {memory: "${SIZE}", disk: 1.5TiB}
oci:
  default: ghcr.io
  upstreams:
    ghcr.io: {url: "http://127.0.0.1:5001/base", username: me, password: "pre-${HUB_TOKEN}-post", fresh: 0s, stale: 1h30m, connections: 7}
    docker.io:
      redirects: ["127.0.0.2:*"]
      realms:
        - auth.example.com
npm:
  upstreams:
    public: {url: http://127.0.0.1:4873, packages: ["*"]}
    acme:
      url: http://127.0.0.1:4874/npm/
      packages: ["@acme/*"]
      token: |-
        $${not expanded}
      tarballs: [files.example.com]
      connections: 8
access:
  anonymous: ["pull oci:ghcr.io/*"]
limits: {connections: 10, headers: 16KiB, idle: 1m, stop: 5s}
log: {level: debug, format: json}
`)
	if err != nil {
		t.Fatal(err)
	}
	ghcr := c.OCI.Upstreams["ghcr.io"]
	secret, _ := env("HUB_TOKEN")
	if ghcr.Password != "pre-"+secret+"-post" || ghcr.URL != "http://127.0.0.1:5001/base" || time.Duration(*ghcr.Stale) != 90*time.Minute {
		t.Errorf("ghcr.io: %+v", ghcr)
	}
	if got := c.ociRegistries()[1]; got.Name != "ghcr.io" || got.Fresh != 1 {
		t.Errorf("fresh 0s, which is to ask every time, became %v", got.Fresh)
	}
	if images, packages := c.ociRegistries(), c.npmRegistries(""); images[0].Connections != 64 || images[1].Connections != 7 || packages[0].Connections != 8 {
		t.Errorf("connections: %+v, %+v", images, packages)
	}
	if c.Cache.Memory != 64<<20 || c.Cache.Disk != 3<<39 {
		t.Errorf("cache: %+v", c.Cache)
	}
	if c.NPM.Upstreams["acme"].Token != "${not expanded}" || !c.npmExplicit() || c.needsRegistry() {
		t.Errorf("npm: %+v", c.NPM)
	}
	if c.Limits.Connections != 10 || c.Limits.Headers != 16<<10 || time.Duration(*c.Limits.Stop) != 5*time.Second {
		t.Errorf("limits: %+v", c.Limits)
	}
	if u := c.OCI.Upstreams["docker.io"]; u.URL != knownRegistries["docker.io"] || !reflect.DeepEqual(u.Redirects, []string{"127.0.0.2:*"}) {
		t.Errorf("docker.io: %+v", u)
	}
}

// TestConfigMistakes has what people get wrong, and what they are told.
func TestConfigMistakes(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"listn: 127.0.0.1:5000", `weir.yaml:1:1: listn: unknown key; did you mean "listen"?`},
		{"cache:\n  memory: 1GiB\n  disc: 1GiB", `weir.yaml:3:3: cache.disc: unknown key; did you mean "disk"?`},
		{"oci:\n  upstreams:\n    ghcr.io: {usrname: x}", `weir.yaml:3:15: oci.upstreams.ghcr.io.usrname: unknown key; did you mean "username"?`},
		{"telemetry: yes", "weir.yaml:1:1: telemetry: unknown key; there are listen, "},
		{"npmDefault: true", "unknown key"},
		{"oci:\n  hosted: [\"acme/*\"]", "weir.yaml:2:3: oci.hosted: not supported by this version of weir"},
		{"access: {past: {pull: maybe}}", `access.past.pull: "maybe" is neither serve nor deny`},
		{"access: {max_staleness: 1s}", "access.max_staleness: 1s is less than 5s"},
		{"access: {bearer: 1s}", "access.bearer: 1s is not between"},
		{"access: {oidc: [{issuer: \"https://ci.example.com\"}]}", "access.oidc[0]: no audience"},
		{"access: {oidc: [{issuer: \"https://ci.example.com\", audience: weir}]}", "access.oidc[0]: no rules"},
		{"access: {oidc: [{issuer: \"https://ci.example.com\", audience: weir, rules: [{robot: ci}]}]}", "access.oidc[0].rules[0]: no claims"},
		{"access: {oidc: [{issuer: ci, audience: weir}]}", "access.oidc[0].issuer:"},
		{"audit: {size: 1KiB}", "audit.size: 1KiB is less than"},
		{"audit: {keep: 1001}", "audit.keep: 1001 is not between"},
		{"origin: {blobs: var/lib}", "origin.blobs: an address that begins with none of "},
		{"origin: {blobs: \"az://bucket\"}", "origin.blobs: an address that begins with none of "},
		{"origin: {blobs: \"s3://B\"}", `origin.blobs: "B" cannot be a bucket's name`},
		{"origin: {blobs: \"s3://bucket?regoin=a\"}", `origin.blobs: "s3://bucket?regoin=a": unknown setting "regoin"; there are endpoint, path_style, region`},
		{"origin: {blobs: \"gs://bucket?region=a\"}", `unknown setting "region"; there are endpoint`},
		{"origin: {blobs: \"s3://key:secret@bucket\"}", "origin.blobs: an address with credentials in it"},
		{"next: http://shield:5001", `next[0]: "http://shield:5001" is not the address of a node`},
		{"next: [https://a:1, https://b]", `next[1]: "https://b" has no port`},
		{"next: https://a:1/weir", "next[0]: \"https://a:1/weir\" has a path"},
		{"next: [https://a:1, https://a:1]", "next: an address is there twice"},
		{"next: [https://a:1, https://a:1/]", "next: an address is there twice"},
		{"next: https://127.0.0.1:9/\ntiers: 127.0.0.1:9", "next: https://127.0.0.1:9 is this node itself"},
		{"next: https://a:1\ntiers: 127.0.0.1:9\npeers: {self: https://a:1, nodes: [\"https://b:1\"]}", "next: https://a:1 is this node itself"},
		{"tiers: 127.0.0.1:9\npeers: {self: https://a:1, nodes: [\"https://b:1\", \"https://b:1/\"]}", "peers.nodes: an address is there twice"},
		{"next: {a: b}", "next: expected a list, not keys and values"},
		{"bypass: maybe", `bypass: "maybe" is neither upstream nor none`},
		{"tiers: 5001", `tiers: "5001" is not an address`},
		{"tiers: 127.0.0.1:5000", "tiers: the same address as listen or ops"},
		{"tls: {cert: a.pem}", "tls: cert, key and ca belong together"},
		{"peers: {nodes: [\"https://a:1\"]}", "peers: self and nodes belong together"},
		{"peers: {self: https://a:1, nodes: [\"https://b:1\"]}", "peers: the others reach this node at its tiers address"},
		{"next: https://b:1\ntiers: 127.0.0.1:9\npeers: {self: https://a:1, nodes: [\"https://b:1/\"]}", "peers.nodes[0]: https://b:1/ is in next too"},
		{"cache: {disks: [{size: 1GiB}]}", "cache.disks[0]: no path"},
		{"cache: {disks: [{path: /a, size: 1KiB}]}", "cache.disks[0]: 1KiB is less than 1MiB"},
		{"cache: {disks: [{path: /a, size: 1GiB}, {path: /a/, size: 1GiB}]}", "cache.disks[1]: /a/ is there twice"},
		{"cache: {disks: [/a]}", "cache.disks[0]: expected keys and values"},
		{"oci: {upstreams: {ghcr.io: {keep: maybe}}}", `oci.upstreams.ghcr.io.keep: "maybe" is neither yes nor no`},
		{"oci: {upstreams: {ghcr.io: {connections: 0}}}", `"0" is not a whole number above zero`},
		{"oci:\n  hosted: [\"acme/*\"]", "weir.yaml:2:3: oci.hosted: not supported by this version of weir (pushing)"},
		{"npm: {hosted: [\"@acme/*\"]}", "npm.hosted: not supported by this version of weir (publishing)"},
		{"listen: a:1\nlisten: b:1", "weir.yaml:2:1: "},
		{"cache: {memory: 1GiB, memory: 2GiB}", "weir.yaml:1:23: "},
		{"cache:\n  memory: 1 gigabyte", `weir.yaml:2:11: cache.memory: "1 gigabyte" is not a size such as`},
		{"cache:\n  memory: 1024", `cache.memory: "1024" is not a size`},
		{"cache:\n  memory: -1GiB", `is not a size`},
		{"cache:\n  memory: 99999999TiB", `too large`},
		{"cache: {memory: 1KiB}", "each must be 1MiB or more"},
		{"cache: 1GiB", "weir.yaml:1:8: cache: expected keys and values, not this"},
		{"oci: {upstreams: {ghcr.io: {fresh: 5}}}", `oci.upstreams.ghcr.io.fresh: "5" is not a duration such as`},
		{"oci: {upstreams: {ghcr.io: {fresh: -5m}}}", `is not a duration`},
		{"oci:\n  upstreams:\n    ghcr.io:\n      password: ${NOT_SET}", "weir.yaml:4:17: oci.upstreams.ghcr.io.password: the environment variable NOT_SET is not set"},
		{"data: ${", `weir.yaml:1:7: data: "${" is not followed by`},
		{"data: \"${A-B}\"", `is not followed by`},
		{"data: [a, b]", "data: expected a single value, not a list"},
		{"access: {anonymous: pull everything}", "access.anonymous: expected a list"},
		{"access: {anonymous: [[a]]}", "access.anonymous[0]: expected a single value, not a list"},
		{"access: {anonymous: [\"push oci:*\"]}", `access.anonymous: grant "push oci:*": "push" cannot be granted here, only ["pull"]`},
		{"access: {anonymous: [\"pull ocl:*\"]}", `there is no protocol "ocl"`},
		{"access: {anonymous: [\"pull oci:dockr.io/*\"]}\noci: {upstreams: {docker.io: {}, ghcr.io: {}}}", `access.anonymous: "pull oci:dockr.io/*" matches nothing that is configured: repositories begin with docker.io/, ghcr.io/`},
		{"access: {anonymous: [\"pull oci:*\", \"pull oci:library/*\"]}", `"pull oci:library/*" matches nothing`},
		{"access: {anonymous: [\"pull oci:docker.io/alpine\"]}", `"pull oci:docker.io/alpine" matches nothing`},
		{"access: {anonymous: [\"pull oci:docker.io\"]}", `"pull oci:docker.io" matches nothing`},
		{"access: {anonymous: [\"pull oci:docker.io/\"]}", `"pull oci:docker.io/" matches nothing`},
		{"access: {anonymous: [\"pull oci:Docker.io/*\"]}", `"pull oci:Docker.io/*" matches nothing`},
		{"access: {anonymous: [\"pull oci:ghcr.io/*\"]}\noci: {upstreams: {}}", `"pull oci:ghcr.io/*" matches nothing that is configured: repositories begin with an upstream's name, and oci.upstreams has none`},
		{"listen: 5000", `listen: "5000" is not an address such as`},
		{"listen: 127.0.0.1:99999", `has no port between`},
		{"ops: 127.0.0.1:5000", "ops: the same address as listen"},
		{"public_url: packages.example.com", "public_url: \"packages.example.com\" is not an http or https address"},
		{"oci: {default: quay.io, upstreams: {ghcr.io: {}}}", `oci.default: "quay.io" is not among oci.upstreams`},
		{"oci: {upstreams: {ghcr.io: {url: \"https://me:pw@ghcr.io\"}}}", "an address with a user in it"},
		{"oci: {upstreams: {ghcr.io: {url: \"ftp://ghcr.io\"}}}", "is not an http or https address"},
		{"oci: {upstreams: {}}\nnpm: {upstreams: {}}", "nothing to serve"},
		{"npm: {upstreams: {a: {}, b: {packages: [\"@b/*\"]}}}", "only one can be without a url"},
		{"limits: {connections: 0}", `limits.connections: "0" is not a whole number above zero`},
		{"limits: {connections: many}", `limits.connections: "many" is not a whole number`},
		{"limits: {headers: 1B}", "limits.headers: 1B is not between"},
		{"log: {level: loud}", `log.level: "loud" is none of`},
		{"log: {format: xml}", `log.format: "xml" is neither`},
		{"a: &x 1\nb: *x", "weir.yaml:1:1: a: unknown key"},
		{"data: &x /tmp", "data: expected a single value, not an anchor or alias"},
		{"data: !!str x", "data: expected a single value, not a tag"},
		{"oci:\n  <<: {default: a}", "cannot be a key"},
		{"listen: \"127.0.0.1:5000", "weir.yaml:1:"},
		{"listen: [", "weir.yaml:1:"},
		{"\tlisten: x", "weir.yaml:1:"},
		{"- listen", "weir.yaml:1:1: expected keys and values, not a list"},
		{"just words", "weir.yaml:1:1: expected keys and values"},
		{"data: a\n---\ndata: b", "a second document"},
	} {
		_, err := decode(c.text)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q:\n got %v\nwant %s", c.text, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: more than a line: %v", c.text, err)
		}
	}
}

// TestGrantsThatMatch: these are no mistakes.
func TestGrantsThatMatch(t *testing.T) {
	for _, grant := range []string{"oci:*", "oci:*/alpine", "oci:d*", "oci:docker.io*", "oci:docker.io/*", "oci:docker.io/library/al*ne", "oci:docker.io/library/alpine", "npm:dockr.io/*"} {
		if _, err := decode("access: {anonymous: [\"pull " + grant + "\"]}"); err != nil {
			t.Errorf("%s: %v", grant, err)
		}
	}
	if _, err := decode("oci: {upstreams: {}}"); err != nil {
		t.Errorf("npm alone, and access as it is by default: %v", err)
	}
}

func TestConfigFile(t *testing.T) {
	if _, err := readConfig(filepath.Join(t.TempDir(), "none.yaml")); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("no file: %v", err)
	}
	if _, err := readConfig(t.TempDir()); err == nil {
		t.Error("a directory was read")
	}
	large := filepath.Join(t.TempDir(), "large.yaml")
	if err := os.WriteFile(large, []byte("#"+strings.Repeat("x", maxConfigFile)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readConfig(large); err == nil || !strings.Contains(err.Error(), "larger than a configuration can be") {
		t.Errorf("a large file: %v", err)
	}
}

// TestConfigShowReads: what show prints is a configuration that means the same.
func TestConfigShowReads(t *testing.T) {
	c, err := decode("oci: {upstreams: {docker.io: {password: p, username: u}}}\nnpm: {upstreams: {public: {token: t}}}")
	if err != nil {
		t.Fatal(err)
	}
	text, err := showConfig(c, "yaml")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), masked); n != 2 {
		t.Errorf("%d secrets are masked, want 2:\n%s", n, text)
	}
	again, err := decode(string(text))
	if err != nil {
		t.Fatalf("%v:\n%s", err, text)
	}
	text2, err := showConfig(again, "yaml")
	if err != nil || string(text2) != string(text) {
		t.Errorf("shown again (%v):\n%s\nwas:\n%s", err, text2, text)
	}
}

// TestConfigDocumented: every field has its key, and the reference says what
// it is; a secret is tagged.
func TestConfigDocumented(t *testing.T) {
	var walk func(typ reflect.Type, path string)
	walk = func(typ reflect.Type, path string) {
		switch typ.Kind() {
		case reflect.Map, reflect.Slice, reflect.Pointer:
			walk(typ.Elem(), path)
		case reflect.Struct:
			for i := range typ.NumField() {
				f := typ.Field(i)
				if !f.IsExported() {
					continue
				}
				key := f.Tag.Get("yaml")
				if key == "" || strings.ToLower(key) != key {
					t.Errorf("%s.%s has the key %q", path, f.Name, key)
				}
				if secret := strings.Contains(key, "password") || strings.Contains(key, "token"); secret != (f.Tag.Get("secret") == "true") {
					t.Errorf("%s.%s: is it a secret?", path, key)
				}
				walk(f.Type, path+"."+key)
			}
		}
	}
	walk(reflect.TypeFor[Config](), "")
}

func TestSize(t *testing.T) {
	for text, want := range map[string]Size{"0B": 0, "1B": 1, "1KiB": 1024, "20GB": 2e10, "1.5GiB": 3 << 29, "256MiB": 256 << 20, "1 MiB": 1 << 20, "3kB": 3000} {
		var s Size
		if err := s.UnmarshalText([]byte(text)); err != nil || s != want {
			t.Errorf("%q = %d, %v; want %d", text, s, err, want)
		}
		var again Size
		if err := again.UnmarshalText([]byte(s.String())); err != nil || again != s {
			t.Errorf("%v is shown as %q", int64(s), s)
		}
	}
	for _, text := range []string{"", "B", "1", "GiB", "1 G", "-1B", "1e3B", "0x1B", "NaNB", "InfB", "1_0B", "9999999TiB", "1GiB2"} {
		var s Size
		if err := s.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is the size %v", text, s)
		}
	}
}

func FuzzConfig(f *testing.F) {
	for _, s := range []string{"", "listen: a:1", "oci: {upstreams: {a.b: {url: 'http://x', fresh: 1m}}}", "cache: {memory: 1GiB}",
		"a: &a [*a]", "? x\n: y", "data: ${SIZE}$${X}", "- - - -", "{{{{", "data: |\n  x", "npm: {upstreams: {p: {packages: [a, \"*\"]}}}", "\x00", "a: !!binary x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 1<<12 {
			return
		}
		slow := time.AfterFunc(5*time.Second, func() { panic(fmt.Sprintf("no end of %q", text)) })
		defer slow.Stop()
		c, err := decode(text)
		if err != nil {
			if s := oneLine(err); strings.TrimSpace(s) == "" {
				t.Errorf("an empty error for %q", text)
			}
			return
		}
		if _, err := showConfig(c, "json"); err != nil {
			t.Errorf("%q cannot be shown: %v", text, err)
		}
	})
}
