package oidc

import (
	"context"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"

	"github.com/weir-registry/weir/registry"
)

const (
	// fetchLimit is for a discovery document and the keys together.
	fetchLimit = 4 * time.Second
	// maxDocument bounds each of the two, in bytes.
	maxDocument = 256 << 10
	// maxKeys is how many keys of an issuer are looked at. GitHub has five.
	maxKeys = 64
	// minRSA is the least length of an RSA key, in bits.
	minRSA = 2048
	// refetch is the time between two questions to one issuer, however many
	// tokens come that are signed with keys unknown.
	refetch = time.Second
	// fresh is for how long keys are used without asking whether they are still
	// the issuer's.
	fresh = 15 * time.Minute
	// retry is when an issuer that did not answer is asked again by those who
	// have keys to go on with.
	retry = 15 * time.Second
)

// algorithms are those that need a public key alone: with them a key that is
// published is no secret to sign with.
func algorithms() []jose.SignatureAlgorithm {
	return []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512,
		jose.ES256, jose.ES384, jose.ES512, jose.EdDSA}
}

func algorithmNames() []string {
	var names []string
	for _, a := range algorithms() {
		names = append(names, string(a))
	}
	return names
}

// keys are an issuer's, as last known. go-oidc's own take any number of bytes, ask
// again for each unknown key, and keep for ever what the issuer has withdrawn.
type keys struct {
	issuer, jwks string
	client       *http.Client
	log          *slog.Logger
	meter        registry.Meter
	now          func() time.Time
	pause        time.Duration // refetch, but in tests

	mu     sync.Mutex
	set    []jose.JSONWebKey // guarded by mu, as all below
	got    time.Time         // when set was asked for
	asked  time.Time         // when the issuer was last asked
	failed error             // what came of it
	flight *flight           // being asked; nil: not
}

// flight is one question to the issuer, for all who wait for it.
type flight struct {
	done chan struct{}
	err  error // written before done is closed
}

// hearing asks the keys on behalf of one call, and remembers that the issuer did
// not answer.
type hearing struct {
	keys *keys
	down error
}

// VerifySignature implements oidc.KeySet.
func (h *hearing) VerifySignature(ctx context.Context, jwt string) ([]byte, error) {
	payload, err := h.keys.verify(ctx, jwt)
	if errors.Is(err, registry.ErrUnavailable) {
		h.down = err
	}
	return payload, err
}

// verify checks the signature of a JWT and returns its payload. ErrUnavailable if
// the issuer had to be asked and did not answer.
func (k *keys) verify(ctx context.Context, jwt string) ([]byte, error) {
	jws, err := jose.ParseSignedCompact(jwt, algorithms())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, refetch+fetchLimit)
	defer cancel()
	set, err := k.current(ctx)
	if err != nil {
		return nil, err
	}
	if payload, ok := try(jws, set); ok {
		return payload, nil
	}
	// Perhaps the issuer has a new key.
	if set, err = k.newer(ctx); err != nil {
		return nil, err
	}
	if payload, ok := try(jws, set); ok {
		return payload, nil
	}
	return nil, errors.New("signed with none of the issuer's keys")
}

// try tries the keys that a token may be signed with.
func try(jws *jose.JSONWebSignature, set []jose.JSONWebKey) ([]byte, bool) {
	header := jws.Signatures[0].Header
	for _, key := range set {
		if header.KeyID != "" && key.KeyID != header.KeyID || key.Algorithm != "" && key.Algorithm != header.Algorithm {
			continue
		}
		if payload, err := jws.Verify(key.Key); err == nil {
			return payload, true
		}
	}
	return nil, false
}

// current are the keys to try first. If the issuer does not answer, old ones are
// better than none: it is signatures that they check, and not whether a job may
// still do what it could a minute ago.
func (k *keys) current(ctx context.Context) ([]jose.JSONWebKey, error) {
	k.mu.Lock()
	set, now := k.set, k.now()
	old := now.Sub(k.got) > fresh
	if set != nil && (!old || k.failed != nil && now.Sub(k.asked) < retry) {
		k.mu.Unlock()
		return set, nil
	}
	f := k.askLocked()
	k.mu.Unlock()
	err := k.wait(ctx, f)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.set != nil {
		return k.set, nil
	}
	return nil, err
}

// newer are keys that were asked for after it was called, or at most the pause
// before, when all who ask wait together for the pause to end.
func (k *keys) newer(ctx context.Context) ([]jose.JSONWebKey, error) {
	k.mu.Lock()
	f := k.askLocked()
	k.mu.Unlock()
	if err := k.wait(ctx, f); err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.set, nil
}

// askLocked joins the question that waits to be asked or is being asked, or
// begins one. One that has failed just now is answered for by that.
func (k *keys) askLocked() *flight {
	if k.flight != nil {
		return k.flight
	}
	wait := k.pause - k.now().Sub(k.asked)
	f := &flight{done: make(chan struct{})}
	if k.failed != nil && wait > 0 {
		f.err = k.failed
		close(f.done)
		return f
	}
	k.flight = f
	go k.ask(f, max(min(wait, k.pause), 0))
	return f
}

// ask asks the issuer after a pause. It belongs to nobody's request: whoever
// leaves disturbs no other.
func (k *keys) ask(f *flight, pause time.Duration) {
	if pause > 0 {
		<-time.After(pause)
	}
	ctx, cancel := context.WithTimeout(context.Background(), fetchLimit)
	defer cancel()
	asked := k.now()
	set, err := k.fetch(ctx)
	if err != nil {
		err = k.down(err)
		k.log.Warn("an issuer of JWTs does not give its keys", "issuer", k.issuer, "err", err)
		if k.meter != nil {
			k.meter.Event("issuer unreachable", k.issuer)
		}
	}
	k.mu.Lock()
	if err == nil {
		k.set, k.got = set, asked
	}
	k.asked, k.failed, k.flight = asked, err, nil
	f.err = err
	k.mu.Unlock()
	close(f.done)
}

// wait waits for the answer.
func (k *keys) wait(ctx context.Context, f *flight) error {
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return k.down(ctx.Err())
	}
}

// down is that the issuer did not answer.
func (k *keys) down(err error) error {
	return &registry.Error{Kind: registry.ErrUnavailable, Text: "ask " + k.issuer + " for its keys", Err: err, After: 5 * time.Second,
		Public: "the issuer " + k.issuer + " does not answer with its keys"}
}

// fetch asks for the keys, and first for where they are if that is not said.
func (k *keys) fetch(ctx context.Context) ([]jose.JSONWebKey, error) {
	where := k.jwks
	if where == "" {
		provider, err := oidc.NewProvider(oidc.ClientContext(ctx, k.client), k.issuer)
		if err != nil {
			return nil, err
		}
		var found struct {
			JWKS string `json:"jwks_uri"`
		}
		if err := provider.Claims(&found); err != nil {
			return nil, err
		}
		where = found.JWKS
		if err := k.checkKeysAddress(where); err != nil {
			return nil, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, where, nil)
	if err != nil {
		return nil, err
	}
	resp, err := k.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s", where, resp.Status)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	return parseKeys(body)
}

// checkKeysAddress lets an issuer elsewhere not send us to this machine.
func (k *keys) checkKeysAddress(where string) error {
	if err := checkAddress(where); err != nil {
		return fmt.Errorf("its keys: %w", err)
	}
	u, _ := url.Parse(where)
	own, _ := url.Parse(k.issuer)
	if loopback(u.Hostname()) && !loopback(own.Hostname()) {
		return fmt.Errorf("its keys are said to be at %s, which is this machine", where)
	}
	return nil
}

// parseKeys reads a JWKS. Keys that cannot be used are left out, for an issuer may
// have some for other purposes; but one that has none for us does not answer.
func parseKeys(body []byte) ([]jose.JSONWebKey, error) {
	var found struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(body, &found); err != nil {
		return nil, fmt.Errorf("its keys: %w", err)
	}
	var set []jose.JSONWebKey
	for _, raw := range found.Keys {
		var key jose.JSONWebKey
		if len(set) == maxKeys || json.Unmarshal(raw, &key) != nil || !usable(key) {
			continue
		}
		set = append(set, key)
	}
	if len(set) == 0 {
		return nil, errors.New("it has no key that can be used")
	}
	return set, nil
}

func usable(key jose.JSONWebKey) bool {
	if !key.Valid() || !key.IsPublic() || key.Use != "" && key.Use != "sig" {
		return false
	}
	public, ok := key.Key.(*rsa.PublicKey)
	return !ok || public.N.BitLen() >= minRSA
}

// newClient dials issuers. It follows no redirect: the keys are where they are
// said to be, or not at all.
func newClient(ca string) (*http.Client, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, err
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s has no certificate in it", ca)
		}
	}
	dialer := &net.Dialer{Timeout: fetchLimit}
	return &http.Client{
		Transport: limited{&http.Transport{
			DialContext:            dialer.DialContext,
			TLSClientConfig:        conf,
			ForceAttemptHTTP2:      true,
			DisableCompression:     true, // what is counted is what is read
			MaxResponseHeaderBytes: 64 << 10,
			MaxIdleConnsPerHost:    1,
			IdleConnTimeout:        10 * time.Second,
		}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// limited gives answers of at most maxDocument bytes; longer ones fail.
type limited struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (l limited) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := l.next.RoundTrip(req)
	if err == nil {
		resp.Body = http.MaxBytesReader(nil, resp.Body, maxDocument)
	}
	return resp, err
}
