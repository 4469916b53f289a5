package npmlab

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
)

// An Advisory is a known weakness of some versions of a package.
type Advisory struct {
	ID       int
	Name     string
	Title    string
	Severity string   // low, moderate, high, critical
	Affected []string // versions
	Range    string   // the same as a semver range, for the clients
}

// Advise publishes an advisory.
func (r *Registry) Advise(a Advisory) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.advisories = append(r.advisories, a)
}

const (
	typeFull  = "application/json"
	typeCorgi = "application/vnd.npm.install-v1+json"
)

// sidePath is what paths on the second host begin with.
const sidePath = "/files/"

func (r *Registry) serveSide(w http.ResponseWriter, q *http.Request) int {
	rest, ok := strings.CutPrefix(q.URL.Path, sidePath)
	if i := strings.LastIndexByte(rest, '/'); ok && i > 0 {
		return r.tarball(w, q, rest[:i], rest[i+1:], true)
	}
	return r.refuse(w, http.StatusNotFound, `{"error":"Not found"}`)
}

func (r *Registry) serve(w http.ResponseWriter, q *http.Request) int {
	path := strings.TrimPrefix(q.URL.Path, "/")
	if rest, ok := strings.CutPrefix(path, "-/"); ok {
		return r.service(w, q, rest)
	}
	if q.Method != http.MethodGet && q.Method != http.MethodHead {
		return r.refuse(w, http.StatusMethodNotAllowed,
			fmt.Sprintf(`{"code":"MethodNotAllowedError","message":"%s is not allowed"}`, q.Method))
	}
	if name, file, ok := strings.Cut(path, "/-/"); ok {
		return r.tarball(w, q, name, file, false)
	}
	name, version, _ := strings.Cut(path, "/")
	if strings.HasPrefix(path, "@") && version != "" {
		scoped, rest, _ := strings.Cut(version, "/")
		name, version = name+"/"+scoped, rest
	}
	if version != "" {
		return r.manifest(w, q, name, version)
	}
	return r.packument(w, q, name)
}

func (r *Registry) packument(w http.ResponseWriter, q *http.Request, name string) int {
	corgi := strings.HasPrefix(q.Header.Get("Accept"), typeCorgi)
	r.mu.Lock()
	p := r.packages[name]
	var doc []byte
	if p != nil {
		corgi = corgi && p.raw == nil
		doc = p.document(name, corgi)
	}
	r.mu.Unlock()
	if p == nil {
		return r.refuse(w, http.StatusNotFound, `{"error":"Not found"}`)
	}
	if corgi {
		return r.send(w, q, typeCorgi, doc)
	}
	return r.send(w, q, typeFull, doc)
}

func (r *Registry) manifest(w http.ResponseWriter, q *http.Request, name, version string) int {
	r.mu.Lock()
	var doc []byte
	if p := r.packages[name]; p != nil {
		if v, ok := p.tags[version]; ok {
			version = v
		}
		for _, rel := range p.versions {
			if rel.manifest["version"] == version {
				doc, _ = json.Marshal(rel.manifest)
			}
		}
	}
	r.mu.Unlock()
	if doc == nil {
		return r.refuse(w, http.StatusNotFound, fmt.Sprintf("%q", "version not found: "+version))
	}
	return r.send(w, q, typeFull, doc)
}

func (r *Registry) tarball(w http.ResponseWriter, q *http.Request, name, file string, side bool) int {
	r.mu.Lock()
	var data []byte
	if p := r.packages[name]; p != nil {
		for _, rel := range p.versions {
			if (rel.file == file || p.raw != nil) && rel.side == side {
				data = rel.tarball
			}
		}
	}
	r.mu.Unlock()
	if data == nil {
		return r.refuse(w, http.StatusNotFound, `{"error":"Not found"}`)
	}
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Length", fmt.Sprint(len(data)))
	h.Set("Cache-Control", "public, immutable, max-age=31557600")
	h.Set("Accept-Ranges", "bytes")
	w.WriteHeader(http.StatusOK)
	if q.Method != http.MethodHead {
		w.Write(data)
	}
	return http.StatusOK
}

// service answers what is below /-/.
func (r *Registry) service(w http.ResponseWriter, q *http.Request, path string) int {
	switch {
	case path == "ping":
		return r.refuse(w, http.StatusOK, "{}")
	case path == "whoami":
		return r.refuse(w, http.StatusUnauthorized, `{"error":"You must be logged in"}`)
	case path == "npm/v1/keys":
		doc, _ := json.Marshal(map[string]any{"keys": []any{map[string]any{"expires": nil, "keyid": r.KeyID(),
			"keytype": "ecdsa-sha2-nistp256", "scheme": "ecdsa-sha2-nistp256", "key": r.publicKey()}}})
		return r.refuse(w, http.StatusOK, string(doc))
	case strings.HasPrefix(path, "npm/v1/attestations/"):
		return r.attestations(w, strings.TrimPrefix(path, "npm/v1/attestations/"))
	case path == "v1/search":
		return r.search(w, q)
	case strings.HasPrefix(path, "package/") && strings.HasSuffix(path, "/dist-tags"):
		return r.distTags(w, q, strings.TrimSuffix(strings.TrimPrefix(path, "package/"), "/dist-tags"))
	case path == "npm/v1/security/advisories/bulk" && q.Method == http.MethodPost:
		return r.bulk(w, q)
	case strings.HasPrefix(path, "npm/v1/security/audits") && q.Method == http.MethodPost:
		return r.audits(w, q)
	}
	return r.refuse(w, http.StatusNotFound, `{"error":"Not found"}`)
}

func (r *Registry) attestations(w http.ResponseWriter, id string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.packages {
		for _, rel := range p.versions {
			if rel.attested && rel.manifest["_id"] == id {
				payload := base64.StdEncoding.EncodeToString([]byte(`{"subject":"` + id + `"}`))
				return r.refuse(w, http.StatusOK, `{"attestations":[{"predicateType":"https://slsa.dev/provenance/v1",`+
					`"bundle":{"dsseEnvelope":{"payload":"`+payload+`","signatures":[{"keyid":"","sig":"AA=="}]}}}]}`)
			}
		}
	}
	return r.refuse(w, http.StatusNotFound, `{"error":"Attestations not found"}`)
}

func (r *Registry) search(w http.ResponseWriter, q *http.Request) int {
	text := q.URL.Query().Get("text")
	if text == "" {
		return r.refuse(w, http.StatusBadRequest, `{"error":"'text' query parameter is required"}`)
	}
	r.mu.Lock()
	objects := []any{}
	for name, p := range r.packages {
		if p.raw != nil || !strings.Contains(name, text) {
			continue
		}
		last := p.versions[len(p.versions)-1].manifest
		objects = append(objects, map[string]any{
			"package": map[string]any{"name": name, "version": last["version"], "description": last["description"],
				"keywords": []string{"lab"}, "date": stamp(p.modified), "links": map[string]string{},
				"publisher":   map[string]string{"username": "lab", "email": "lab@example.com"},
				"maintainers": []any{map[string]string{"username": "lab", "email": "lab@example.com"}}},
			"score":       map[string]any{"final": 0.5, "detail": map[string]float64{"quality": 0.5, "popularity": 0.5, "maintenance": 0.5}},
			"searchScore": 1.0, "flags": map[string]int{"unstable": 0},
		})
	}
	r.mu.Unlock()
	doc, _ := json.Marshal(map[string]any{"objects": objects, "total": len(objects), "time": "Sun Nov 22 2026 20:00:00 GMT+0000"})
	return r.refuse(w, http.StatusOK, string(doc))
}

func (r *Registry) distTags(w http.ResponseWriter, q *http.Request, name string) int {
	r.mu.Lock()
	var doc []byte
	if p := r.packages[name]; p != nil {
		doc, _ = json.Marshal(p.tags)
	}
	r.mu.Unlock()
	if doc == nil {
		return r.refuse(w, http.StatusNotFound, `{"error":"Not found"}`)
	}
	return r.send(w, q, typeFull, doc)
}

// body is what q posted, unzipped if it says that it is.
func body(q *http.Request) []byte {
	data, _ := io.ReadAll(q.Body)
	if q.Header.Get("Content-Encoding") != "gzip" {
		return data
	}
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil
	}
	data, _ = io.ReadAll(z)
	return data
}

func (r *Registry) bulk(w http.ResponseWriter, q *http.Request) int {
	var asked map[string][]string
	if err := json.Unmarshal(body(q), &asked); err != nil {
		return r.refuse(w, http.StatusBadRequest, `{"error":"Invalid body"}`)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	found := map[string][]any{}
	for _, a := range r.advisories {
		if slices.ContainsFunc(asked[a.Name], func(v string) bool { return slices.Contains(a.Affected, v) }) {
			found[a.Name] = append(found[a.Name], map[string]any{"id": a.ID, "url": fmt.Sprint("https://example.com/advisories/", a.ID),
				"title": a.Title, "severity": a.Severity, "vulnerable_versions": a.Range, "cwe": []string{"CWE-1"},
				"cvss": map[string]any{"score": 7.5, "vectorString": nil}})
		}
	}
	doc, _ := json.Marshal(found)
	return r.refuse(w, http.StatusOK, string(doc))
}

// A tree is a lockfile as the audits of older clients post it.
type tree struct {
	Version      string          `json:"version"`
	Dependencies map[string]tree `json:"dependencies"`
}

func (t tree) walk(visit func(name, version string)) {
	for name, d := range t.Dependencies {
		visit(name, d.Version)
		d.walk(visit)
	}
}

func (r *Registry) audits(w http.ResponseWriter, q *http.Request) int {
	var asked tree
	if err := json.Unmarshal(body(q), &asked); err != nil {
		return r.refuse(w, http.StatusBadRequest, `{"error":"Invalid body"}`)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	found, total, actions := map[string]any{}, 0, []any{}
	counts := map[string]int{"info": 0, "low": 0, "moderate": 0, "high": 0, "critical": 0}
	asked.walk(func(name, version string) {
		total++
		for _, a := range r.advisories {
			if a.Name != name || !slices.Contains(a.Affected, version) {
				continue
			}
			counts[a.Severity]++
			actions = append(actions, map[string]any{"action": "review", "module": name,
				"resolves": []any{map[string]any{"id": a.ID, "path": name, "dev": false, "optional": false, "bundled": false}}})
			found[fmt.Sprint(a.ID)] = map[string]any{"id": a.ID, "module_name": name, "title": a.Title, "severity": a.Severity,
				"vulnerable_versions": a.Range, "patched_versions": "<0.0.0", "url": fmt.Sprint("https://example.com/advisories/", a.ID),
				"findings": []any{map[string]any{"version": version, "paths": []string{name}}}, "cves": []string{}, "overview": a.Title}
		}
	})
	doc, _ := json.Marshal(map[string]any{"actions": actions, "advisories": found, "muted": []any{},
		"metadata": map[string]any{"vulnerabilities": counts, "dependencies": total, "devDependencies": 0,
			"optionalDependencies": 0, "totalDependencies": total}})
	return r.refuse(w, http.StatusOK, string(doc))
}
