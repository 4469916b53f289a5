package conformance_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/lab"
)

// jobAudience is what weir is called to issuers of JWTs.
const jobAudience = "https://weir.test"

// exchangeLimit is how long an exchange may take that cannot be made because the
// issuer is silent.
const exchangeLimit = 5 * time.Second

// jobs is a chain of two nodes, of which the one behind knows an issuer of JWTs
// and turns those of acme's jobs into tokens of the robot "ci" for acme/app.
type jobs struct {
	*lab.Issuer
	origin *ociAccounts
	doors  map[string]*lab.Weir
}

func startJobs(t *testing.T) *jobs {
	t.Helper()
	hub := startHub(t)
	issuer := lab.StartIssuer(t)
	tiers := lab.FreeAddr(t)
	rule := `{claims: {repository: "acme/*", ref: refs/heads/main}, robot: ci, rights: ["pull oci:docker.io/acme/app"], lifetime: 10m}`
	origin := startAccounts(t, hub, fmt.Sprintf("  oidc:\n    - {issuer: %q, audience: %q, rules: [%s]}\n", issuer.URL, jobAudience, rule)+"tiers: "+tiers+"\n")
	origin.MustCommand("", "robot", "add", "ci")
	origin.MustCommand("", "grant", "add", "robot:ci", "pull oci:docker.io/acme/*")
	edge := lab.NewWeir(t, t.TempDir(), privateConfig(hub.URL, "")+"next: https://"+tiers+"\n")
	chainJoin(t, origin.Weir, edge, "edge")
	edge.Start()
	return &jobs{Issuer: issuer, origin: origin, doors: map[string]*lab.Weir{"origin": origin.Weir, "edge": edge}}
}

// A jobToken is what a JWT is exchanged for.
type jobToken struct {
	status int
	body   []byte
	after  string // Retry-After
	took   time.Duration

	Access  string  `json:"access_token"`
	Issued  string  `json:"issued_token_type"`
	Type    string  `json:"token_type"`
	Expires float64 `json:"expires_in"`
}

// exchange asks /token by RFC 8693.
func exchange(t *testing.T, w *lab.Weir, jwt string, more ...string) jobToken {
	t.Helper()
	form := url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "subject_token": {jwt},
		"subject_token_type": {"urn:ietf:params:oauth:token-type:jwt"}}
	for i := 0; i < len(more); i += 2 {
		form.Add(more[i], more[i+1])
	}
	begun := time.Now()
	a := askBody(t, "POST", w.URL, "/token", []byte(form.Encode()), "Content-Type", "application/x-www-form-urlencoded")
	got := jobToken{status: a.StatusCode, body: a.body, after: a.Header.Get("Retry-After"), took: time.Since(begun)}
	if got.status == http.StatusOK {
		if err := json.Unmarshal(a.body, &got); err != nil {
			t.Fatalf("/token: %v: %s", err, a.body)
		}
	}
	return got
}

// TestOCIExchange has a CI job pull without a secret: the JWT of a real issuer is
// exchanged for a token, at the node that knows the issuer and at one in front of
// it, and crane and podman pull with that.
func TestOCIExchange(t *testing.T) {
	t.Parallel()
	j := startJobs(t)
	for door, w := range j.doors {
		got := exchange(t, w, j.Token(jobAudience))
		if got.status != 200 || !strings.HasPrefix(got.Access, "weir_") || got.Type != "Bearer" ||
			got.Issued != "urn:ietf:params:oauth:token-type:access_token" || got.Expires < 500 || got.Expires > 600 {
			t.Fatalf("%s: %d %s", door, got.status, got.body)
		}
		crane := craneLogin(t, w.Addr)
		a := &attempter{t, &ociAccounts{t: t, Weir: w}, crane}
		a.as(door+": crane", "token", got.Access, "acme/app:1", saying{})
		a.as(door+": crane, by the robot's name", "ci", got.Access, "acme/app:1", saying{})
		a.as(door+": crane, what the rule is not for", "token", got.Access, "acme/secret:1", saying{403, "the token is for less"})
		a.as(door+": crane, what the robot may not", "token", got.Access, "bob/app:1", saying{403, "ci may not pull docker.io/bob/app"})
		a.ociLoginClient = podmanLogin(t, w.Addr)
		a.as(door+": podman", "token", got.Access, "acme/app:1", saying{})
		scoped := exchange(t, w, j.Token(jobAudience), "scope", "repository:acme/app:pull")
		if scoped.status != 200 || strings.HasPrefix(scoped.Access, "weir_") {
			t.Fatalf("%s, with a scope: %d %s", door, scoped.status, scoped.body)
		}
		for repo, want := range map[string]int{"acme/app": 200, "acme/secret": 403} {
			got, err := ociAsk(http.DefaultClient, "GET", w.URL+"/v2/"+repo+"/manifests/1", "Authorization", "Bearer "+scoped.Access)
			if err != nil || got.status != want {
				t.Errorf("%s, %s with a scope: %v, %d %s", door, repo, err, got.status, got.body)
			}
		}
	}
	tokens := j.origin.tokens("ci")
	for _, made := range tokens {
		if made.Kind != "exchange" || time.Until(made.Expires) > 10*time.Minute {
			t.Errorf("a token of ci's: %+v", made)
		}
	}
	if len(tokens) != 2*len(j.doors) {
		t.Errorf("ci has %d tokens", len(tokens))
	}
}

// TestOCIExchangeRefused exchanges what it must not get anything for, at both
// nodes.
func TestOCIExchangeRefused(t *testing.T) {
	t.Parallel()
	j := startJobs(t)
	good := j.Token(jobAudience)
	head, rest, _ := strings.Cut(good, ".")
	body, mac, _ := strings.Cut(rest, ".")
	enc := base64.RawURLEncoding.EncodeToString
	other, _, _ := strings.Cut(strings.SplitN(j.Token(jobAudience, "other"), ".", 2)[1], ".")
	none := enc([]byte(`{"alg":"none","typ":"JWT"}`))
	// A node takes 20 wrong ones at once from one address.
	both, edge := []string{"origin", "edge"}, []string{"edge"}
	for what, c := range map[string]struct {
		jwt, want string
		doors     []string
	}{
		"for others":               {j.Token("https://other.test"), `it has to be for \"` + jobAudience, both},
		"no algorithm":             {none + "." + body + ".", "sign", both},
		"no algorithm, but a MAC":  {none + "." + body + "." + mac, "sign", edge},
		"another's claims":         {head + "." + other + "." + mac, "sign", edge},
		"no signature":             {head + "." + body + ".", "sign", edge},
		"not yet":                  {j.Token(jobAudience, "later"), "good only from 20", both},
		"of a job that no rule is": {j.Token(jobAudience, "other"), "rule", both},
		"of an unknown issuer":     {head + "." + enc([]byte(`{"iss":"https://nobody.test","aud":"https://weir.test"}`)) + "." + mac, "issuer", edge},
		"none":                     {"", "", edge},
		"no JWT":                   {"x.y.z", "", edge},
		"an opaque token":          {j.origin.token("alice").Secret, "", edge},
	} {
		for _, door := range c.doors {
			got := exchange(t, j.doors[door], c.jwt)
			if got.status != http.StatusUnauthorized || !strings.Contains(string(got.body), c.want) || !strings.Contains(string(got.body), "UNAUTHORIZED") {
				t.Errorf("%s, %s: %d %s, want %q", door, what, got.status, got.body, c.want)
			} else {
				t.Logf("%s, %s: %s", door, what, got.body)
			}
		}
	}
	if tokens := j.origin.tokens("ci"); len(tokens) != 0 {
		t.Errorf("something was given: %+v", tokens)
	}
	j.origin.MustCommand("", "robot", "remove", "ci")
	for door, w := range j.doors {
		if got := exchange(t, w, good); got.status != http.StatusUnauthorized || !strings.Contains(string(got.body), "weir robot add") {
			t.Errorf("%s, no robot: %d %s", door, got.status, got.body)
		}
	}
}

// TestOCIExchangeSilence has an issuer that hears and does not answer, and then
// one that is not there: a job is told so in time, at both nodes, and what was
// exchanged before goes on to work.
func TestOCIExchangeSilence(t *testing.T) {
	t.Parallel()
	j := startJobs(t)
	jwt, before := j.Token(jobAudience), exchange(t, j.doors["edge"], j.Token(jobAudience))
	fails := func(what string) {
		t.Helper()
		for door, w := range j.doors {
			got := exchange(t, w, jwt)
			if got.status != http.StatusServiceUnavailable || got.after == "" || got.took > exchangeLimit ||
				!strings.Contains(string(got.body), "the issuer "+j.URL+" does not answer") {
				t.Errorf("%s, %s: %d after %v, Retry-After %q: %s", door, what, got.status, got.took, got.after, got.body)
			}
			crane := craneLogin(t, w.Addr)
			if r := crane.login(t, "token", before.Access); r.Code != 0 {
				t.Fatal(r)
			}
			if r := crane.pull(t, "acme/app:1", "", ""); r.Code != 0 {
				t.Errorf("%s, %s, with a token that was made before: %s", door, what, r.Stderr)
			}
		}
	}
	j.Freeze()
	j.origin.Restart() // so that it does not know the issuer's keys
	fails("an issuer that is silent")
	j.Thaw()
	for door, w := range j.doors {
		lab.Eventually(t, 30*time.Second, door+" to exchange again", func() error {
			if got := exchange(t, w, jwt); got.status != http.StatusOK {
				return fmt.Errorf("%d %s", got.status, got.body)
			}
			return nil
		})
	}
	j.Stop()
	j.origin.Restart()
	fails("an issuer that is not there")
	if file := filepath.Join(j.origin.Data, "audit.log"); !strings.Contains(ociRead(t, file), "exchange") {
		t.Errorf("%s has nothing of exchanges", file)
	}
}
