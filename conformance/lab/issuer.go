package lab

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// An Issuer is a real issuer of JWTs (oidc-provider) for CI jobs. It has an RSA
// key and, for audiences that end in "/ec", one on a curve; both are new with
// each start.
type Issuer struct {
	*Process
	// URL is what its tokens have as "iss".
	URL string
}

// StartIssuer starts an issuer and waits until it answers.
func StartIssuer(t testing.TB) *Issuer {
	t.Helper()
	addr := FreeAddr(t)
	_, port, _ := strings.Cut(addr, ":")
	root := Root(t)
	i := &Issuer{URL: "http://" + addr, Process: Start(t, Command{Path: Tool(t, "node"),
		Args: []string{filepath.Join(root, "conformance", "lab", "issuer.mjs"), filepath.Join(root, ".tools", "oidc"), port}})}
	i.ready(30*time.Second, "answer on "+addr+" (conformance/setup.sh installs it)", func() error {
		resp, err := http.Get(i.URL + "/jwks")
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
	return i
}

// Token is a JWT of a job of the repository acme/app, good for five minutes, for
// one audience. With the scope "other" the job is evil/app's, and with "later" the
// token is not valid before an hour from now.
func (i *Issuer) Token(audience string, scopes ...string) string {
	i.t.Helper()
	form := url.Values{"grant_type": {"client_credentials"}, "resource": {audience}}
	if len(scopes) > 0 {
		form.Set("scope", strings.Join(scopes, " "))
	}
	req, err := http.NewRequest(http.MethodPost, i.URL+"/token", strings.NewReader(form.Encode()))
	if err != nil {
		i.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth("ci", "secret")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		i.t.Fatal(err)
	}
	defer resp.Body.Close()
	var answer struct {
		Token string `json:"access_token"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || answer.Token == "" {
		i.t.Fatal(fmt.Errorf("no token for %s: %s, %w", audience, resp.Status, err))
	}
	return answer.Token
}
