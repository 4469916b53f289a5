package conformance_test

import (
	"fmt"
	"go/ast"
	"go/doc"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/weir-registry/weir"

// rooms says which packages there are and what each may import of ours. It is
// the table of docs/ in a form that fails.
var rooms = map[string][]string{
	"registry":               {},
	"registry/names":         {"registry"},
	"registry/names/dynamo":  {"registry", "registry/names"}, // leaves: for main alone
	"registry/names/spanner": {"registry", "registry/names"},
	"registry/entitle":       {"registry"},
	"registry/account":       {"registry", "registry/entitle"},
	"registry/oidc":          {"registry"},
	"registry/audit":         {"registry"},
	"registry/relay":         {"registry", "registry/outbound"},
	"registry/gate":          {"registry"},
	"registry/listen":        {"registry"},
	"registry/steer":         {},
	"registry/ops":           {"registry"},
	"registry/reply":         {"registry"},
	"registry/outbound":      {"registry"},
	"registry/trust":         {"registry"},
	"npm":                    {"registry", "registry/reply", "registry/outbound"},
	"oci":                    {"registry", "registry/gate", "registry/reply", "registry/outbound"},
	"cachetiers":             {"registry"},
	"cachetiers/peer":        {"registry", "registry/outbound"},
	"cachetiers/origin":      {"registry"},
	"cachetiers/origin/s3":   {"registry", "cachetiers/origin"}, // leaves: for main alone
	"cachetiers/origin/gcs":  {"registry", "cachetiers/origin"},
	"conformance":            {"registry"},
	"conformance/lab":        {},                  // starts real servers and clients for the suites
	"conformance/accountlab": {"registry"},        // accounts in memory
	"conformance/npmlab":     {},                  // a scripted npm registry
	"conformance/wan":        {"conformance/lab"}, // nodes with slow lines between them
	"conformance/bench":      {},                  // weir beside nginx and distribution
	"cmd/weir": {"registry", "registry/names", "registry/names/dynamo", "registry/names/spanner",
		"registry/entitle", "registry/account", "registry/oidc", "registry/audit", "registry/relay", "registry/gate", "registry/listen", "registry/steer",
		"registry/ops", "registry/reply", "registry/outbound", "registry/trust", "npm", "oci",
		"cachetiers", "cachetiers/peer", "cachetiers/origin", "cachetiers/origin/s3", "cachetiers/origin/gcs"},
}

// leaves says which packages alone may import a library: cloud vendors each in
// a leaf of their own, and what one room hides from the others.
var leaves = map[string][]string{
	"github.com/aws/":                     {"registry/names/dynamo", "cachetiers/origin/s3"},
	"cloud.google.com/":                   {"registry/names/spanner", "cachetiers/origin/gcs"},
	"github.com/googleapis/":              {"registry/names/spanner", "cachetiers/origin/gcs"},
	"google.golang.org/api":               {"registry/names/spanner", "cachetiers/origin/gcs"},
	"github.com/Azure/":                   {},
	"go.etcd.io/bbolt":                    {"registry/names"},
	"github.com/tidwall/btree":            {"registry/entitle"},
	"github.com/coreos/go-oidc":           {"registry/oidc"},
	"golang.org/x/crypto":                 {"registry/account"},
	"github.com/failsafe-go/":             {"registry/outbound"},
	"github.com/prometheus/":              {"registry/ops"},
	"github.com/spf13/":                   {"cmd/weir"},
	"github.com/goccy/go-yaml":            {"cmd/weir"},
	"github.com/google/go-containerregis": {"oci", "conformance/lab"},
	"github.com/opencontainers/image-spe": {"oci", "conformance/lab", "conformance/wan"},
	"github.com/distribution/":            {"oci", "conformance/lab"},
	"testing":                             {"conformance", "conformance/lab", "conformance/npmlab", "conformance/wan"},
}

const (
	maxDepth     = 3
	maxFile      = 700 // lines
	maxTestFile  = 1000
	maxInterface = 6 // methods
)

// pkg is one directory's parsed files.
type pkg struct {
	room  string // path below the module
	files map[string]*ast.File
	tests map[string]*ast.File
	fset  *token.FileSet
}

func TestLayers(t *testing.T) {
	pkgs := parseModule(t)
	own := map[string][]string{}
	for _, p := range pkgs {
		imports := checkImports(t, p)
		own[p.room] = imports
		checkForbidden(t, p)
		if p.room != "conformance/lab" { // a test process may build a binary once
			checkVariables(t, p)
		}
		checkSizes(t, p)
		checkDocs(t, p)
	}
	for room := range own {
		if d := depth(room, own, nil); d > maxDepth {
			t.Errorf("%s: own imports are %d deep; %d is the most", room, d, maxDepth)
		}
	}
}

// parseModule parses every package of the module, tests apart.
func parseModule(t *testing.T) []*pkg {
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		t.Fatal(err)
	}
	byRoom := map[string]*pkg{}
	err = filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if file != root && (name == "testdata" || name == "node_modules" || name[0] == '.' || name[0] == '_') {
				return filepath.SkipDir
			}
			return nil
		}
		if filepath.Ext(name) != ".go" {
			return nil
		}
		rel, err := filepath.Rel(root, filepath.Dir(file))
		if err != nil {
			return err
		}
		room := filepath.ToSlash(rel)
		p := byRoom[room]
		if p == nil {
			p = &pkg{room: room, files: map[string]*ast.File{}, tests: map[string]*ast.File{}, fset: token.NewFileSet()}
			byRoom[room] = p
		}
		f, err := parser.ParseFile(p.fset, file, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		if strings.HasSuffix(name, "_test.go") {
			p.tests[file] = f
		} else {
			p.files[file] = f
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var pkgs []*pkg
	for _, p := range byRoom {
		pkgs = append(pkgs, p)
	}
	slices.SortFunc(pkgs, func(a, b *pkg) int { return strings.Compare(a.room, b.room) })
	if len(pkgs) < 3 {
		t.Fatalf("found only %d packages under %s", len(pkgs), root)
	}
	return pkgs
}

// checkImports compares p's imports with its row and returns our own ones.
func checkImports(t *testing.T, p *pkg) []string {
	allowed, ok := rooms[p.room]
	if !ok && len(p.files) > 0 {
		t.Errorf("%s: a package without a row in the table of rooms", p.room)
	}
	seen := map[string]bool{}
	for file, f := range p.files {
		for _, spec := range f.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			at := fmt.Sprintf("%s: %s", p.room, filepath.Base(file))
			if room, ours := strings.CutPrefix(imported, module+"/"); ours {
				seen[room] = true
				if !slices.Contains(allowed, room) {
					t.Errorf("%s imports %s, which %s must not know", at, room, p.room)
				}
			}
			for prefix, rooms := range leaves {
				if strings.HasPrefix(imported, prefix) && !slices.Contains(rooms, p.room) {
					t.Errorf("%s imports %s, which only %v may", at, imported, rooms)
				}
			}
		}
	}
	var own []string
	for room := range seen {
		own = append(own, room)
	}
	return own
}

func depth(room string, own map[string][]string, path []string) int {
	if slices.Contains(path, room) {
		return len(path) // a cycle; the compiler says so too
	}
	deepest := 0
	for _, next := range own[room] {
		deepest = max(deepest, 1+depth(next, own, append(path, room)))
	}
	return deepest
}

// checkForbidden finds init functions and context.WithValue.
func checkForbidden(t *testing.T, p *pkg) {
	for _, f := range p.files {
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if n.Recv == nil && n.Name.Name == "init" {
					t.Errorf("%s: func init()", p.fset.Position(n.Pos()))
				}
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && x.Name == "context" && n.Sel.Name == "WithValue" {
					t.Errorf("%s: context.WithValue; use a parameter", p.fset.Position(n.Pos()))
				}
			case *ast.ImportSpec:
				if n.Name != nil && n.Name.Name == "_" && strings.HasPrefix(n.Path.Value, `"`+module) {
					t.Errorf("%s: imported for its side effect", p.fset.Position(n.Pos()))
				}
			}
			return true
		})
	}
}

// makers are the calls a package variable may begin with: their results do not
// change afterwards.
var makers = []string{"errors.New", "fmt.Errorf", "registry.Errorf", "regexp.MustCompile", "strings.NewReplacer", "strings.Join",
	"netip.MustParsePrefix", "netip.MustParseAddr", "template.Must", "crc32.MakeTable", "crc64.MakeTable", "byte"}

// checkVariables allows package variables that are errors, compiled patterns,
// embedded files and tables that nothing writes.
func checkVariables(t *testing.T, p *pkg) {
	specs := map[*ast.ValueSpec]bool{}
	names := map[string]bool{}
	for _, f := range p.files {
		for _, decl := range f.Decls {
			gen, ok := decl.(*ast.GenDecl)
			if !ok || gen.Tok != token.VAR {
				continue
			}
			for _, s := range gen.Specs {
				spec := s.(*ast.ValueSpec)
				specs[spec] = true
				at := p.fset.Position(spec.Pos())
				for _, n := range spec.Names {
					names[n.Name] = n.Name != "_"
				}
				embedded := gen.Doc != nil && slices.ContainsFunc(gen.Doc.List, func(c *ast.Comment) bool {
					return strings.HasPrefix(c.Text, "//go:embed ")
				})
				if len(spec.Values) == 0 && !embedded {
					t.Errorf("%s: a package variable that begins empty is state; make it a field", at)
				}
				if spec.Names[0].Name == "_" {
					continue
				}
				for _, v := range spec.Values {
					if bad := mutable(v); bad != "" {
						t.Errorf("%s: a package variable made by %s is state; make it a field", at, bad)
					}
				}
			}
		}
	}
	checkUnwritten(t, p, specs, names)
}

// mutable says what about a package variable's value makes it state, or "".
func mutable(v ast.Expr) string {
	bad := ""
	ast.Inspect(v, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncLit:
			return false
		case *ast.CallExpr:
			switch fun := n.Fun.(type) {
			case *ast.ArrayType:
				return true // []byte("…")
			case *ast.Ident, *ast.SelectorExpr:
				if name := expr(fun); !slices.Contains(makers, name) {
					bad = name + "()"
				}
			default:
				bad = "a call"
			}
		case *ast.UnaryExpr:
			if n.Op == token.AND {
				bad = "a pointer"
			}
		case *ast.SelectorExpr:
			if name := expr(n); strings.HasPrefix(name, "sync.") || strings.HasPrefix(name, "atomic.") {
				bad = name
			}
		}
		return bad == ""
	})
	return bad
}

func expr(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return expr(e.X) + "." + e.Sel.Name
	}
	return "?"
}

// checkUnwritten finds assignments to package variables and to their elements.
func checkUnwritten(t *testing.T, p *pkg, specs map[*ast.ValueSpec]bool, names map[string]bool) {
	written := func(e ast.Expr) {
		for {
			switch x := e.(type) {
			case *ast.IndexExpr:
				e = x.X
				continue
			case *ast.ParenExpr:
				e = x.X
				continue
			case *ast.Ident:
				if !names[x.Name] {
					return
				}
				if x.Obj != nil { // resolved within its file: ours only if it is the declaration above
					if spec, ok := x.Obj.Decl.(*ast.ValueSpec); !ok || !specs[spec] {
						return
					}
				}
				t.Errorf("%s: writes the package variable %s", p.fset.Position(x.Pos()), x.Name)
			}
			return
		}
	}
	for _, f := range p.files {
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.AssignStmt:
				if n.Tok != token.DEFINE {
					for _, e := range n.Lhs {
						written(e)
					}
				}
			case *ast.IncDecStmt:
				written(n.X)
			case *ast.CallExpr:
				if f, ok := n.Fun.(*ast.Ident); ok && (f.Name == "delete" || f.Name == "clear") && len(n.Args) > 0 {
					written(n.Args[0])
				}
			}
			return true
		})
	}
}

// checkSizes keeps files and interfaces small enough to be read.
func checkSizes(t *testing.T, p *pkg) {
	for file, f := range p.files {
		if n := p.fset.File(f.FileStart).LineCount(); n > maxFile {
			t.Errorf("%s/%s has %d lines; %d is the most", p.room, filepath.Base(file), n, maxFile)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if i, ok := n.(*ast.InterfaceType); ok && i.Methods.NumFields() > maxInterface {
				t.Errorf("%s: an interface of %d methods; %d is the most", p.fset.Position(i.Pos()), i.Methods.NumFields(), maxInterface)
			}
			return true
		})
	}
	for file, f := range p.tests {
		if n := p.fset.File(f.FileStart).LineCount(); n > maxTestFile {
			t.Errorf("%s/%s has %d lines; %d is the most", p.room, filepath.Base(file), n, maxTestFile)
		}
	}
}

// checkDocs wants a sentence for the package and for every exported name.
func checkDocs(t *testing.T, p *pkg) {
	if len(p.files) == 0 {
		return
	}
	var files []*ast.File
	for _, f := range p.files {
		files = append(files, f)
	}
	d, err := doc.NewFromFiles(p.fset, files, path.Join(module, p.room))
	if err != nil {
		t.Errorf("%s: %v", p.room, err)
		return
	}
	want := func(text, what string) {
		if strings.TrimSpace(text) == "" {
			t.Errorf("%s: %s has no comment", p.room, what)
		}
	}
	want(d.Doc, "the package")
	values := func(vs []*doc.Value) {
		for _, v := range vs {
			if v.Doc != "" {
				continue
			}
			for _, s := range v.Decl.Specs {
				if s := s.(*ast.ValueSpec); s.Names[0].IsExported() {
					want(s.Doc.Text()+s.Comment.Text(), s.Names[0].Name)
				}
			}
		}
	}
	values(d.Consts)
	values(d.Vars)
	for _, f := range d.Funcs {
		want(f.Doc, "func "+f.Name)
	}
	for _, typ := range d.Types {
		want(typ.Doc, "type "+typ.Name)
		values(typ.Consts)
		values(typ.Vars)
		for _, f := range append(typ.Funcs, typ.Methods...) {
			want(f.Doc, "func "+typ.Name+"."+f.Name)
		}
	}
}

// TestLayersCatch shows that the checks above can fail.
func TestLayersCatch(t *testing.T) {
	for src, bad := range map[string]bool{
		`errors.New("x")`:                false,
		`map[string]int{"a": 1}`:         false,
		`[]byte("x")`:                    false,
		`regexp.MustCompile("^x$")`:      false,
		`make(map[string]int)`:           true,
		`&thing{}`:                       true,
		`sync.Mutex{}`:                   true,
		`slog.Default()`:                 true,
		`[]any{errors.New("x"), new(T)}`: true,
	} {
		e, err := parser.ParseExpr(src)
		if err != nil {
			t.Fatal(err)
		}
		if got := mutable(e) != ""; got != bad {
			t.Errorf("mutable(%s) = %v, want %v", src, got, bad)
		}
	}
	own := map[string][]string{"a": {"b"}, "b": {"c"}, "c": {"d"}, "d": {"e"}}
	if d := depth("a", own, nil); d != 4 {
		t.Errorf("depth = %d, want 4", d)
	}
}
