package npm

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"html/template"
	"net/http"
	"strconv"
	"time"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/reply"
)

// page is what a person in a browser is shown.
type page struct {
	Status int
	Title  string
	Text   string
	Error  string // above the form
	Done   bool

	// With a form:
	Login     string // sealed; "": no form
	Name      string
	From      string
	Agent     string
	Ago       string
	Elsewhere bool // the login was begun at another address than the browser's

	Where string // the address of this registry
	Nonce string
	After time.Duration
	Err   error // for the log
}

// pageText is the whole page: no scripts, nothing from elsewhere. All text has a
// contrast of at least 4.5 to what it is on, and the edges of fields of 3, light
// and dark.
const pageText = `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<title>{{with .Error}}Not logged in: {{end}}{{.Title}} - weir</title>
<style nonce="{{.Nonce}}">
:root { color-scheme: light dark; --ground: #f2f4f7; --card: #fff; --text: #16191d; --soft: #555c66; --line: #d5dae1; --edge: #7b8491; --fill: #f6f7f9;
  --do: #1c5bb8; --over: #164a97; --on: #fff; --bad: #b3261e; --badfill: #fdeceb; --care: #7a4d00; --carefill: #fff4dc; --good: #1a7037; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #101317; --card: #1a1e24; --text: #e8eaed; --soft: #a6adb8; --line: #343a43; --edge: #7b8491; --fill: #12161b;
    --do: #7db1ff; --over: #a6caff; --on: #0b1a30; --bad: #ff9d94; --badfill: #3a1c1a; --care: #f3c261; --carefill: #33270f; --good: #6fd18b; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 28rem; margin: clamp(0rem, 9vh, 6rem) auto; padding: 2rem; background: var(--card); border: 1px solid var(--line); border-radius: .75rem; }
@media (max-width: 32rem) { body { background: var(--card); } main { margin: 0; padding: 1.5rem 1.25rem; border: 0; border-radius: 0; } }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0; }
h1.done { color: var(--good); }
.where { margin: .25rem 0 1.25rem; color: var(--soft); overflow-wrap: anywhere; }
p { margin: 0 0 1rem; }
main > :last-child { margin-bottom: 0; }
dl { margin: 0 0 1rem; padding: .75rem 1rem; background: var(--fill); border: 1px solid var(--line); border-radius: .5rem; display: grid; grid-template-columns: auto 1fr; gap: .15rem 1rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
code { font: .95em ui-monospace, monospace; white-space: nowrap; }
.note { margin: 0 0 1rem; padding: .75rem 1rem; border-left: .25rem solid; border-radius: .25rem; color: var(--text); }
.care { border-color: var(--care); background: var(--carefill); }
.error { border-color: var(--bad); background: var(--badfill); }
label { display: block; margin: 1rem 0 .25rem; font-weight: 600; }
input { width: 100%; font: inherit; padding: .6rem .75rem; border: 1px solid var(--edge); border-radius: .4rem; background: var(--card); color: inherit; }
input[aria-invalid] { border-color: var(--bad); }
button { width: 100%; margin-top: 1.5rem; font: inherit; font-weight: 600; padding: .75rem; border: 0; border-radius: .4rem; background: var(--do); color: var(--on); cursor: pointer; }
button:hover { background: var(--over); }
input:focus-visible, button:focus-visible { outline: 3px solid var(--do); outline-offset: 2px; }
</style>
</head>
<body>
<main>
<h1{{if .Done}} class="done"{{end}}>{{if .Done}}<span aria-hidden="true">✓ </span>{{end}}{{.Title}}</h1>
<p class="where">{{.Where}}</p>
{{with .Text}}<p role="status">{{.}}</p>{{end}}
{{if .Login}}
<p>A program asks to be logged in as you. It will be able to do all that you may do here.</p>
<dl>
<dt>Program</dt><dd>{{or .Agent "not said"}}</dd>
<dt>Runs at</dt><dd>{{.From}}{{if not .Elsewhere}}, like this browser{{end}}</dd>
<dt>Asked</dt><dd>{{.Ago}}</dd>
</dl>
<p class="note care">{{if .Elsewhere}}<strong>It runs at another address than this browser.</strong> {{end}}If you did not just run <code>npm login</code> there, close this page: somebody else would be logged in as you.</p>
{{with .Error}}<p class="note error" role="alert" id="error">{{.}}</p>{{end}}
<form method="post" autocomplete="on">
<input type="hidden" name="login" value="{{.Login}}">
<label for="name">Name</label>
<input id="name" name="name" value="{{.Name}}" autocomplete="username" autocapitalize="none" autocorrect="off" spellcheck="false" maxlength="64" required{{if .Error}} aria-invalid="true" aria-describedby="error"{{end}}{{if not .Name}} autofocus{{end}}>
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" maxlength="1024" required{{if .Error}} aria-invalid="true" aria-describedby="error"{{end}}{{if .Name}} autofocus{{end}}>
<button>Log in and approve</button>
</form>
{{else}}{{with .Error}}<p class="note error" role="alert">{{.}}</p>{{end}}{{end}}
</main>
</body>
</html>
`

// parsePage is pageText as a template.
func parsePage() *template.Template { return template.Must(template.New("page").Parse(pageText)) }

// showPage answers with p.
func (h *handler) showPage(w http.ResponseWriter, r *http.Request, p page) error {
	p.Nonce = rand.Text()
	if base, err := h.base(r); err == nil {
		p.Where = base + "/"
	}
	var body bytes.Buffer
	if err := h.page.Execute(&body, p); err != nil {
		return registry.Wrap(registry.ErrUnavailable, err, "write the page of a login")
	}
	head := w.Header()
	head.Set("Content-Type", "text/html; charset=utf-8")
	head.Set("Content-Length", strconv.Itoa(body.Len()))
	head.Set("Cache-Control", "no-store")
	head.Set("Content-Security-Policy", "default-src 'none'; style-src 'nonce-"+p.Nonce+"'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'")
	head.Set("X-Frame-Options", "DENY")
	head.Set("X-Content-Type-Options", "nosniff")
	// Not no-referrer: with that, browsers that send no Sec-Fetch-Site (over plain
	// HTTP none do) send "Origin: null" with the form.
	head.Set("Referrer-Policy", "same-origin")
	if p.After > 0 {
		head.Set("Retry-After", strconv.Itoa(int((p.After+time.Second-1)/time.Second)))
	}
	reply.Record(w, registry.Via{Fwd: "bypass"})
	if p.Err != nil {
		reply.Failed(w, p.Err)
	}
	w.WriteHeader(p.Status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body.Bytes()) // the browser may be gone
	}
	return nil
}

// ago says how long ago something was.
func ago(d time.Duration) string {
	if d < time.Minute {
		return "less than a minute ago"
	}
	return spoken(d) + " ago"
}

// spoken is a duration as people say it, rounded up.
func spoken(d time.Duration) string {
	n, unit := int((d+time.Second-1)/time.Second), "second"
	if d >= time.Minute {
		n, unit = int((d+time.Minute-1)/time.Minute), "minute"
	}
	if n != 1 {
		unit += "s"
	}
	return fmt.Sprintf("%d %s", n, unit)
}
