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

	Nonce string
	After time.Duration
	Err   error // for the log
}

// pageText is the whole page: no scripts, nothing from elsewhere.
const pageText = `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<title>{{.Title}} - weir</title>
<style nonce="{{.Nonce}}">
:root { color-scheme: light dark; --line: #8886; --soft: #8882; --good: #1a7f37; --bad: #c62828; --do: #1f5fbf; }
* { box-sizing: border-box; }
body { margin: 0; font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 26rem; margin: 12vh auto 2rem; padding: 0 1.25rem; }
h1 { font-size: 1.5rem; margin: 0 0 1rem; }
h1.done { color: var(--good); }
dl { margin: 0 0 1rem; padding: .75rem 1rem; background: var(--soft); border-radius: .5rem; display: grid; grid-template-columns: auto 1fr; gap: .15rem 1rem; }
dt { opacity: .75; } dd { margin: 0; overflow-wrap: anywhere; }
label { display: block; margin: .75rem 0 .25rem; font-weight: 600; }
input { width: 100%; font: inherit; padding: .5rem .65rem; border: 1px solid var(--line); border-radius: .4rem; background: transparent; color: inherit; }
button { width: 100%; margin-top: 1.25rem; font: inherit; font-weight: 600; padding: .6rem; border: 0; border-radius: .4rem; background: var(--do); color: #fff; cursor: pointer; }
.error { border-left: .25rem solid var(--bad); padding: .5rem .75rem; background: var(--soft); }
.small { font-size: .875rem; opacity: .8; }
</style>
</head>
<body>
<main>
<h1{{if .Done}} class="done"{{end}}>{{.Title}}</h1>
{{with .Text}}<p>{{.}}</p>{{end}}
{{with .Error}}<p class="error" role="alert">{{.}}</p>{{end}}
{{if .Login}}
<p>A program asks to be logged in to this package registry as you. It will be able to do all that you may do here.</p>
<dl>
<dt>Program</dt><dd>{{or .Agent "not said"}}</dd>
<dt>Address</dt><dd>{{.From}}{{if .Elsewhere}} <strong>(not this browser's)</strong>{{end}}</dd>
<dt>Asked</dt><dd>{{.Ago}}</dd>
</dl>
<p class="small">If you did not just run <code>npm login</code> there, close this page: somebody else would be logged in as you.</p>
<form method="post" autocomplete="on">
<input type="hidden" name="login" value="{{.Login}}">
<label for="name">Name</label>
<input id="name" name="name" value="{{.Name}}" autocomplete="username" autocapitalize="none" spellcheck="false" maxlength="64" required{{if not .Name}} autofocus{{end}}>
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" maxlength="1024" required{{if .Name}} autofocus{{end}}>
<button>Log in and approve</button>
</form>
{{end}}
</main>
</body>
</html>
`

// parsePage is pageText as a template.
func parsePage() *template.Template { return template.Must(template.New("page").Parse(pageText)) }

// showPage answers with p.
func (h *handler) showPage(w http.ResponseWriter, r *http.Request, p page) error {
	p.Nonce = rand.Text()
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
