package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// commandLimit is how long one of weir's commands may take.
const commandLimit = 30 * time.Second

// Command runs one of weir's commands on w's configuration, which it names by
// -c, and returns what it writes to its standard output. stdin may be "".
func (w *Weir) Command(stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, w.bin, append(args, "-c", w.Config)...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("weir %s: %w\n%s%s", strings.Join(args, " "), err, out.String(), errs.String())
	}
	return out.String(), nil
}

// MustCommand is Command for what a test needs before it begins.
func (w *Weir) MustCommand(stdin string, args ...string) string {
	w.t.Helper()
	out, err := w.Command(stdin, args...)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

// AdminToken is the token that w made at its first start.
func (w *Weir) AdminToken() string {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(w.Data, "admin-token"))
	if err != nil {
		w.t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// Admin makes one request to w's admin API, with a JSON body unless it is nil,
// and reads the JSON answer into the given value unless that is nil.
func (w *Weir) Admin(token, method, path string, body, into any) error {
	var in io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		in = bytes.NewReader(b)
	}
	req, err := http.NewRequest(method, "http://"+w.Ops+path, in)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Weir-Admin", "1")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, b)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(b, into)
}
