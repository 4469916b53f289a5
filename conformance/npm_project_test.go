package conformance_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/lab"
)

// npmProject is a project of the ordinary kind: a server, a front end, and the
// tools to build and test them. It pulls in more than 400 packages.
const npmProject = `{
  "name": "project",
  "version": "1.0.0",
  "private": true,
  "dependencies": {
    "@babel/core": "7.23.0",
    "express": "4.18.2",
    "lodash": "4.17.21",
    "react": "18.2.0",
    "react-dom": "18.2.0"
  },
  "devDependencies": {
    "eslint": "8.50.0",
    "jest": "29.7.0",
    "typescript": "5.2.2",
    "webpack": "5.88.2"
  }
}
`

// leastPackages is how many the project must have for the test to mean much.
const leastPackages = 300

// An npmClient is one of the programs that install packages.
type npmClient struct {
	name string
	tool string
	args []string
	// prepare writes what the client wants in the project.
	prepare func(h *npmHome)
}

var npmClients = []npmClient{
	{name: "npm", tool: "npm", args: []string{"install", "--ignore-scripts", "--no-audit"}},
	{name: "pnpm", tool: "pnpm", args: []string{"install", "--ignore-scripts"}},
	{name: "yarn1", tool: "yarn", args: []string{"install", "--ignore-scripts", "--non-interactive", "--no-progress"},
		prepare: func(h *npmHome) {
			h.write(".yarnrc", "registry \""+h.base+"\"\ncache-folder \""+h.root+"/.yarn-cache\"\ndisable-self-update-check true\n")
		}},
	{name: "yarn4", tool: "yarn-berry", args: []string{"install"},
		prepare: func(h *npmHome) {
			h.write("yarn.lock", "")
			h.write(".yarnrc.yml", "nodeLinker: node-modules\nnpmRegistryServer: \""+h.base+"\"\nunsafeHttpWhitelist: [127.0.0.1]\n"+
				"enableTelemetry: false\nenableScripts: false\nenableGlobalCache: true\nenableImmutableInstalls: false\nnpmMinimalAgeGate: 0\n")
		}},
	{name: "bun", tool: "bun", args: []string{"install", "--ignore-scripts", "--no-progress"},
		prepare: func(h *npmHome) {
			h.write("bunfig.toml", "[install]\nregistry = \""+h.base+"\"\n")
		}},
}

// install installs the project with empty caches and gives the tree that came
// of it. The home is emptied first, so that the same paths are used each time:
// some clients write them into the tree.
func (c npmClient) install(t *testing.T, h *npmHome) map[string]string {
	t.Helper()
	if err := os.RemoveAll(h.root); err != nil {
		t.Fatal(err)
	}
	h.t = t
	h.write("package.json", npmProject)
	if c.prepare != nil {
		c.prepare(h)
	}
	start := time.Now()
	h.run(c.tool, c.args...)
	took := time.Since(start)
	tree := hashTree(t, filepath.Join(h.dir(), "node_modules"))
	n := countPackages(tree)
	t.Logf("%s: %d packages, %d files in %.1f s", c.name, n, len(tree), took.Seconds())
	if n < leastPackages {
		t.Fatalf("%d packages: at least %d are wanted", n, leastPackages)
	}
	out := lab.Run(t, time.Minute, lab.Command{Path: lab.Tool(t, "node"), Dir: h.dir(), Args: []string{"-e",
		`for (const p of ["@babel/core","express","lodash","react","react-dom","typescript","webpack"]) require(p);
		console.log(require("typescript").version, require("lodash").VERSION, require("express/package.json").version)`}})
	if got := strings.TrimSpace(out.Stdout); got != "5.2.2 4.17.21 4.18.2" {
		t.Fatalf("the tree does not run: %q", got)
	}
	return tree
}

// volatile are files in which clients keep times and their own bookkeeping.
var volatile = regexp.MustCompile(`^(\.modules\.yaml|\.pnpm-workspace-state(-v\d+)?\.json|\.yarn-integrity|\.yarn-state\.yml)$`)

// hashTree gives for every file below dir what it holds: a hash of its bytes,
// whether it is executable, or where a link points.
func hashTree(t *testing.T, dir string) map[string]string {
	t.Helper()
	tree := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil || volatile.MatchString(name) {
			return err
		}
		if e.Type()&fs.ModeSymlink != 0 {
			target, err := os.Readlink(path)
			tree[name] = "-> " + target
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		sum := sha256.New()
		if _, err := io.Copy(sum, f); err != nil {
			return err
		}
		tree[name] = fmt.Sprintf("%v %s", info.Mode()&0o111 != 0, hex.EncodeToString(sum.Sum(nil)))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

var packageFile = regexp.MustCompile(`(^|/node_modules/)(@[^/]+/)?[^/@.][^/]*/package\.json$`)

// countPackages counts the packages that lie in a tree, each once however
// many links lead to it.
func countPackages(tree map[string]string) int {
	n := 0
	for name := range tree {
		if packageFile.MatchString(name) {
			n++
		}
	}
	return n
}

// sameTree fails the test if two trees differ, and says where.
func sameTree(t *testing.T, want, got map[string]string) {
	t.Helper()
	var diff []string
	for name, x := range want {
		if got[name] != x {
			diff = append(diff, fmt.Sprintf("%s: %q, then %q", name, x, got[name]))
		}
	}
	for name, x := range got {
		if _, ok := want[name]; !ok {
			diff = append(diff, fmt.Sprintf("%s: only then: %q", name, x))
		}
	}
	if len(diff) > 0 {
		slices.Sort(diff)
		t.Errorf("%d files differ:\n%s", len(diff), strings.Join(diff[:min(len(diff), 10)], "\n"))
	}
}

// TestNpmProject installs a real project with every client through weir, from
// the machine's own npm registry and empty caches, and again when that
// registry is unreachable: the trees must be the same to the byte.
func TestNpmProject(t *testing.T) {
	gate := newNpmGateway(t)
	// The packuments name the registry's own host for the tarballs. It is not
	// allowed as one, so they come through the gateway too.
	w := lab.StartWeir(t, npmConfig(gate.url, "fresh: 1h"))
	homes, trees := map[string]*npmHome{}, map[string]map[string]string{}
	for _, c := range npmClients {
		homes[c.name] = newNpmHome(t, w.URL+"/npm/")
		t.Run("cold/"+c.name, func(t *testing.T) { trees[c.name] = c.install(t, homes[c.name]) })
	}
	t.Run("ci", func(t *testing.T) { testNpmCi(t, w) })
	t.Run("view", func(t *testing.T) { testNpmView(t, w) })
	t.Run("representations", func(t *testing.T) { testPoorUpstream(t, w) })
	if t.Failed() {
		return
	}
	gate.vanish()
	w.Restart()
	for _, c := range npmClients {
		t.Run("unreachable/"+c.name, func(t *testing.T) { sameTree(t, trees[c.name], c.install(t, homes[c.name])) })
	}
}

// testNpmCi installs from lockfiles that were written without weir: one with
// the registry's own addresses in it, as npm writes it, and one without.
func testNpmCi(t *testing.T, w *lab.Weir) {
	h := newNpmHome(t, machineRegistry(t).String())
	h.write("package.json", npmProject)
	for _, resolved := range []bool{true, false} {
		t.Run(fmt.Sprintf("resolved=%v", resolved), func(t *testing.T) {
			h.t = t
			h.run("npm", "install", "--package-lock-only", "--ignore-scripts", "--no-audit", "--prefer-offline",
				fmt.Sprintf("--omit-lockfile-registry-resolved=%v", !resolved))
			text, err := os.ReadFile(filepath.Join(h.dir(), "package-lock.json"))
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Count(string(text), `"resolved": "`); resolved != (got >= leastPackages) {
				t.Fatalf("the lockfile has %d resolved addresses", got)
			}
			through := newNpmHome(t, w.URL+"/npm/")
			through.write("package.json", npmProject)
			through.write("package-lock.json", string(text))
			before := w.Metric("weir_requests_total")
			through.run("npm", "ci", "--ignore-scripts", "--no-audit", "--replace-registry-host=always")
			if asked := w.Metric("weir_requests_total") - before; asked < leastPackages {
				t.Errorf("weir was asked %v times: npm went somewhere else", asked)
			}
			checkLocked(t, text, through.dir())
		})
	}
}

// checkLocked compares what is installed with what the lockfile says. npm
// itself has compared the bytes with the lockfile's integrity.
func checkLocked(t *testing.T, lockfile []byte, dir string) {
	t.Helper()
	var lock struct {
		Packages map[string]struct {
			Version  string
			Optional bool
		}
	}
	if err := json.Unmarshal(lockfile, &lock); err != nil {
		t.Fatal(err)
	}
	n := 0
	for path, want := range lock.Packages {
		if path == "" {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, path, "package.json"))
		if err != nil && want.Optional {
			continue
		}
		var got struct{ Version string }
		if err == nil {
			err = json.Unmarshal(text, &got)
		}
		if err != nil || got.Version != want.Version {
			t.Errorf("%s: %q is installed, %q is locked: %v", path, got.Version, want.Version, err)
		}
		n++
	}
	if n < leastPackages {
		t.Errorf("%d packages: at least %d are wanted", n, leastPackages)
	}
}

// testNpmView asks what people ask a registry on the command line.
func testNpmView(t *testing.T, w *lab.Weir) {
	h := newNpmHome(t, w.URL+"/npm/")
	if got := strings.TrimSpace(h.run("npm", "view", "lodash@4.17.21", "version").Stdout); got != "4.17.21" {
		t.Errorf("npm view: %q", got)
	}
	if got := h.run("npm", "view", "lodash", "dist.tarball").Stdout; !strings.HasPrefix(got, w.URL+"/npm/lodash/-/lodash-") {
		t.Errorf("npm view dist.tarball: %q", got)
	}
	if got := h.run("npm", "view", "@babel/core", "versions", "--json").Stdout; !strings.Contains(got, `"7.23.0"`) {
		t.Errorf("npm view versions: %q", clipped(got))
	}
	if got := h.run("npm", "dist-tag", "ls", "express").Stdout; !strings.Contains(got, "latest: ") {
		t.Errorf("npm dist-tag ls: %q", got)
	}
	if got := h.run("npm", "dist-tag", "ls", "@babel/core").Stdout; !strings.Contains(got, "latest: ") {
		t.Errorf("npm dist-tag ls of a scope: %q", got)
	}
	if r := h.try("npm", "view", "lodash@999.0.0"); r.Code == 0 || !strings.Contains(r.Stderr, "E404") {
		t.Errorf("npm view of no version: status %d, %q", r.Code, r.Stderr)
	}
	if r := h.try("npm", "ping"); r.Code != 0 {
		t.Errorf("npm ping: status %d, %q", r.Code, r.Stderr)
	}
}

// testPoorUpstream checks that clients get what the machine's registry may
// well lack: both representations, compression, validators.
func testPoorUpstream(t *testing.T, w *lab.Weir) {
	full := ask(t, "GET", w.URL, "/npm/express", "Accept", "application/json", "Accept-Encoding", "gzip")
	corgi := ask(t, "GET", w.URL, "/npm/express", "Accept", corgiAccept, "Accept-Encoding", "gzip")
	checkRepresentations(t, full, corgi)
	if len(corgi.body)*10 > len(full.body)*9 {
		t.Errorf("abbreviated it has %d bytes of %d", len(corgi.body), len(full.body))
	}
	if len(full.raw)*4 > len(full.body) {
		t.Errorf("zipped it has %d bytes of %d", len(full.raw), len(full.body))
	}
	doc := decode[packument](t, corgi)
	if doc.Modified == "" {
		t.Error("abbreviated it says nothing of when it was modified")
	}
	dist := doc.Versions["4.18.2"].Dist
	if want := w.URL + "/npm/express/-/express-4.18.2.tgz"; dist.Tarball != want {
		t.Errorf("tarball %q, not %q", dist.Tarball, want)
	}
	if len(doc.Versions) != len(decode[packument](t, full).Versions) {
		t.Errorf("abbreviated it has %d versions", len(doc.Versions))
	}
}
