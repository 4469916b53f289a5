package relay_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/relay"
)

// TestWhoANodeSaysItIs: what asks about accounts is told on whose word it is, and
// no node makes its word another's, or none.
func TestWhoANodeSaysItIs(t *testing.T) {
	p := newPKI(t)
	var who accounts
	origin := start(t, p, "origin", setup{database: "db", config: who.configure})
	for verb, at := range map[string]int{"approve": 1, "create-token": 0, "revoke-token": 0, "list-tokens": 0} {
		for _, via := range []string{"", "origin", "shield"} {
			post(t, p.client("edge"), origin.url()+"/weir/v1/account/"+verb, `{"id":"x","by":{"Name":"root","UID":"u-root","Via":"`+via+`"}}`)
			if by := who.last()[at]; !reflect.DeepEqual(by, registry.Principal{Name: "root", UID: "u-root", Via: "edge"}) {
				t.Errorf("%s, Via %q: asked by %+v", verb, via, by)
			}
		}
	}
}

// TestANodeThatIsSlowToAskHoldsUpNoOther: questions that do not arrive take no
// place of those that do.
func TestANodeThatIsSlowToAskHoldsUpNoOther(t *testing.T) {
	var who accounts
	c := relay.Config{Source: newReplica("db"), Board: relay.NewBoard(nil), Node: func(r *http.Request) string { return r.Header.Get("Node") }}
	who.configure(&c)
	h := relay.New(c)
	ask := func(node string, body io.Reader) *httptest.ResponseRecorder {
		r := httptest.NewRequest("POST", "/weir/v1/account/begin", body)
		r.Header.Set("Node", node)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w
	}
	const many = 300 // more than may be open at once
	reading, end := make(chan struct{}, many), make(chan struct{})
	done := make(chan struct{}, many)
	for range many {
		go func() {
			ask("slow", &endless{reading: reading, end: end})
			done <- struct{}{}
		}()
	}
	for range many {
		select {
		case <-reading:
		case <-done: // refused
			done <- struct{}{}
		}
	}
	if w := ask("edge", strings.NewReader("{}")); w.Code != http.StatusOK {
		t.Errorf("another node is answered %d %s", w.Code, w.Body)
	}
	close(end)
	for range many {
		<-done
	}
}

// endless is a body that does not come.
type endless struct {
	reading chan<- struct{}
	end     <-chan struct{}
}

func (e *endless) Read([]byte) (int, error) {
	e.reading <- struct{}{}
	<-e.end
	return 0, io.ErrUnexpectedEOF
}
