package main

import (
	"bytes"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/weir-registry/weir/registry"
)

// TestStopSaysWhatWasOpen: a request that uses up the limit is cut off, and
// nothing is said of questions to upstreams, for there are none.
func TestStopSaysWhatWasOpen(t *testing.T) {
	var text bytes.Buffer
	limit := Duration(20 * time.Millisecond)
	s := &server{c: &Config{Limits: LimitsConfig{Stop: &limit}}, node: &node{service: &registry.Service{}},
		log: slog.New(slog.NewTextHandler(&text, nil))}
	arrived := make(chan struct{})
	front := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-r.Context().Done()
	})}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go front.Serve(l)
	ended := make(chan error, 1)
	go func() {
		resp, err := http.Get("http://" + l.Addr().String())
		if err == nil {
			resp.Body.Close()
		}
		ended <- err
	}()
	<-arrived
	s.stop([]*http.Server{front})
	if err := <-ended; err == nil {
		t.Error("the request was not cut off")
	}
	if log := text.String(); !strings.Contains(log, "requests were still running") || strings.Contains(log, "questions") {
		t.Errorf("it says:\n%s", log)
	}
}
