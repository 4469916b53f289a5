package ops

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
)

// AdminHeader must be in every request that makes a node do something. A web
// page in an operator's browser cannot send it to another host unasked.
const AdminHeader = "Weir-Admin"

// Admin is what a running node can be asked beside its metrics. What is nil is
// not served.
type Admin struct {
	// Status is the node's state, as it is to be encoded.
	Status func() any
	// Verify reads all that is kept and repairs it, at most rate bytes a second
	// (0: as fast as it can), and reports lines of progress, the last of which
	// is the result.
	Verify func(ctx context.Context, rate int64, report func(line any) error) error
	// Accounts serves all that is under /admin/v1/: it says itself who may.
	Accounts http.Handler
}

// mount adds what a has to mux:
//
//	GET  /admin/status         JSON
//	POST /admin/verify?rate=N  lines of JSON while it runs
//	     /admin/v1/…           accounts
func (a Admin) mount(mux *http.ServeMux) {
	if a.Status != nil {
		mux.HandleFunc("GET /admin/status", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Cache-Control", "no-store")
			json.NewEncoder(w).Encode(a.Status())
		})
	}
	if a.Verify != nil {
		mux.HandleFunc("POST /admin/verify", a.verify)
	}
	if a.Accounts != nil {
		mux.Handle("/admin/v1/", a.Accounts)
	}
}

func (a Admin) verify(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get(AdminHeader) == "" {
		answer(w, http.StatusForbidden, "the "+AdminHeader+" header is missing")
		return
	}
	rate := int64(0)
	if text := r.URL.Query().Get("rate"); text != "" {
		var err error
		if rate, err = strconv.ParseInt(text, 10, 64); err != nil || rate < 0 {
			answer(w, http.StatusBadRequest, "rate is not a number of bytes")
			return
		}
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Cache-Control", "no-store")
	lines := json.NewEncoder(w)
	report := func(line any) error {
		if err := lines.Encode(line); err != nil {
			return err
		}
		return http.NewResponseController(w).Flush()
	}
	if err := a.Verify(r.Context(), rate, report); err != nil {
		report(map[string]string{"error": err.Error()})
	}
}
