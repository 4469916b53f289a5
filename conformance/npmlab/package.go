package npmlab

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"
)

// A Version is one published version of a package.
type Version struct {
	Name, Version string
	// Manifest is what its package.json says beside name and version.
	Manifest map[string]any
	// Files are in its tarball beside package.json, by path.
	Files map[string]string
	// Tag is the dist-tag that is moved to it; "": latest.
	Tag string
	// Side puts its tarball on the second host, at a path of that host's own,
	// and there alone.
	Side bool
	// Attested gives it an attestation.
	Attested bool
	// Forged signs something else than what is published.
	Forged bool
	// Old leaves out integrity and signatures, as packages published before
	// 2017 have them: a shasum is all there is.
	Old bool
}

// A pack is a package as the registry keeps it.
type pack struct {
	versions []*release // in the order they were published
	tags     map[string]string
	times    map[string]time.Time // those taken down stay in it
	modified time.Time
	rev      int
	raw      []byte // given instead of a made document, if not nil
	full     []byte // made documents of this rev, nil: not made yet
	corgi    []byte
}

// A release is a version with what follows from it.
type release struct {
	manifest map[string]any // dist included
	file     string         // the tarball's name
	tarball  []byte
	attested bool
	side     bool // its tarball is on the second host
}

// Publish publishes a version and gives the bytes of its tarball.
func (r *Registry) Publish(v Version) []byte {
	rel := r.release(v)
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.packages[v.Name]
	if p == nil {
		p = &pack{tags: map[string]string{}, times: map[string]time.Time{}}
		r.packages[v.Name] = p
	}
	p.versions = append(p.versions, rel)
	tag := v.Tag
	if tag == "" {
		tag = "latest"
	}
	p.tags[tag] = v.Version
	// A month ago: clients may hold back what was published just now.
	p.times[v.Version] = time.Now().Add(-30 * 24 * time.Hour).Truncate(time.Millisecond)
	r.changed(p)
	return rel.tarball
}

func (r *Registry) changed(p *pack) {
	r.rev++
	p.rev, p.modified = r.rev, time.Now()
	p.full, p.corgi = nil, nil
}

// PublishRaw makes doc the packument of a package, whatever it says, with
// tarball for each of its versions.
func (r *Registry) PublishRaw(name string, doc, tarball []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.packages[name] = &pack{raw: doc, versions: []*release{{tarball: tarball}}}
}

// Deprecate sets the message that clients show when they install a version.
func (r *Registry) Deprecate(name, version, message string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.packages[name]
	for _, rel := range p.versions {
		if rel.manifest["version"] == version {
			rel.manifest["deprecated"] = message
		}
	}
	r.changed(p)
}

// TakeDown removes a version as unpublishing does: its entry in time stays,
// latest moves to the newest that is left.
func (r *Registry) TakeDown(name, version string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.packages[name]
	p.versions = slices.DeleteFunc(p.versions, func(rel *release) bool { return rel.manifest["version"] == version })
	for tag, v := range p.tags {
		if v == version {
			p.tags[tag] = p.versions[len(p.versions)-1].manifest["version"].(string)
		}
	}
	r.changed(p)
}

func (r *Registry) release(v Version) *release {
	m := map[string]any{"name": v.Name, "version": v.Version, "_id": v.Name + "@" + v.Version}
	for k, x := range v.Manifest {
		m[k] = x
	}
	files := map[string]string{}
	for k, x := range v.Files {
		files[k] = x
	}
	// encoding/json sorts the keys of maps, so the same version is the same bytes.
	pkg, _ := json.MarshalIndent(m, "", "  ")
	files["package.json"] = string(pkg)
	if _, ok := files["index.js"]; !ok {
		files["index.js"] = fmt.Sprintf("module.exports = %q\n", v.Name+"@"+v.Version)
	}
	rel := &release{manifest: m, tarball: Tarball(files), attested: v.Attested, side: v.Side}
	rel.file = path.Base(v.Name) + "-" + v.Version + ".tgz"
	at := r.URL + "/" + v.Name + "/-/" + rel.file
	if v.Side {
		at = r.SideURL + sidePath + v.Name + "/" + rel.file
	}
	sum1, sum512 := sha1.Sum(rel.tarball), sha512.Sum512(rel.tarball)
	integrity := "sha512-" + base64.StdEncoding.EncodeToString(sum512[:])
	dist := map[string]any{
		"shasum":    hex.EncodeToString(sum1[:]),
		"tarball":   at,
		"fileCount": len(files), "unpackedSize": len(pkg),
	}
	if !v.Old {
		dist["integrity"] = integrity
		signed := v.Name + "@" + v.Version + ":" + integrity
		if v.Forged {
			signed += "?"
		}
		dist["signatures"] = []any{map[string]any{"keyid": r.KeyID(), "sig": r.sign(signed)}}
	}
	if v.Attested {
		dist["attestations"] = map[string]any{
			"url":        r.URL + "/-/npm/v1/attestations/" + v.Name + "@" + v.Version,
			"provenance": map[string]any{"predicateType": "https://slsa.dev/provenance/v1"},
		}
	}
	m["dist"] = dist
	return rel
}

// Tarball is a gzipped tar of files as npm packs them: below package/, with a
// fixed time, in the order of their paths.
func Tarball(files map[string]string) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	t := tar.NewWriter(z)
	var names []string
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		t.WriteHeader(&tar.Header{Name: "package/" + name, Mode: 0o644, Size: int64(len(files[name])),
			ModTime: time.Date(1985, 10, 26, 8, 15, 0, 0, time.UTC), Format: tar.FormatUSTAR})
		t.Write([]byte(files[name]))
	}
	t.Close()
	z.Close()
	return b.Bytes()
}

func (r *Registry) publicKey() string {
	der, _ := x509.MarshalPKIXPublicKey(&r.key.PublicKey)
	return base64.StdEncoding.EncodeToString(der)
}

// KeyID names the key that signs what is published.
func (r *Registry) KeyID() string {
	sum := sha256.Sum256([]byte(r.publicKey()))
	return "SHA256:" + base64.RawStdEncoding.EncodeToString(sum[:])
}

func (r *Registry) sign(text string) string {
	sum := sha256.Sum256([]byte(text))
	sig, err := ecdsa.SignASN1(rand.Reader, r.key, sum[:])
	if err != nil {
		panic(err) // only if the system has no randomness
	}
	return base64.StdEncoding.EncodeToString(sig)
}

// document makes the packument, or its abbreviated form, with versions in the
// order they were published.
func (p *pack) document(name string, corgi bool) []byte {
	if p.raw != nil {
		return p.raw
	}
	kept := &p.full
	if corgi {
		kept = &p.corgi
	}
	if *kept != nil {
		return *kept
	}
	var b bytes.Buffer
	field := func(key string, v any) {
		if b.Len() > 1 {
			b.WriteByte(',')
		}
		k, _ := json.Marshal(key)
		x, _ := json.Marshal(v)
		b.Write(k)
		b.WriteByte(':')
		b.Write(x)
	}
	b.WriteByte('{')
	if !corgi {
		field("_id", name)
		field("_rev", fmt.Sprintf("%d-%x", p.rev, p.modified.UnixNano()))
	}
	field("name", name)
	field("dist-tags", p.tags)
	b.WriteString(`,"versions":{`)
	for i, rel := range p.versions {
		if i > 0 {
			b.WriteByte(',')
		}
		m := rel.manifest
		if corgi {
			m = abbreviated(m)
		}
		k, _ := json.Marshal(m["version"])
		x, _ := json.Marshal(m)
		b.Write(k)
		b.WriteByte(':')
		b.Write(x)
	}
	b.WriteByte('}')
	if corgi {
		field("modified", stamp(p.modified))
	} else {
		times := map[string]string{"created": stamp(p.modified.Add(-40 * 24 * time.Hour)), "modified": stamp(p.modified)}
		for v, t := range p.times {
			times[v] = stamp(t)
		}
		field("time", times)
		field("maintainers", []any{map[string]string{"name": "lab", "email": "lab@example.com"}})
		field("readme", "# "+name+"\n\n"+strings.Repeat("What it does, at some length. ", 20))
	}
	b.WriteByte('}')
	*kept = b.Bytes()
	return *kept
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

// abbreviated keeps of a manifest what an installer needs.
func abbreviated(m map[string]any) map[string]any {
	keep := map[string]any{}
	for _, k := range []string{"name", "version", "dependencies", "optionalDependencies", "devDependencies",
		"bundleDependencies", "peerDependencies", "peerDependenciesMeta", "bin", "directories", "dist",
		"engines", "deprecated", "funding", "os", "cpu"} {
		if x, ok := m[k]; ok {
			keep[k] = x
		}
	}
	if s, ok := m["scripts"].(map[string]any); ok {
		for _, k := range []string{"preinstall", "install", "postinstall"} {
			if s[k] != nil {
				keep["hasInstallScript"] = true
			}
		}
	}
	return keep
}
