// Command weir is a caching registry edge: container images and npm packages,
// kept near those who install them. This package is the commands and the
// wiring; it is the only one that knows all the others.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
)

// version is set by the linker: -X main.version=v1.2.3.
var version = "devel"

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// A usageError is a command line that makes no sense: exit code 2.
type usageError struct{ error }

// rootCommand is all the commands there are.
func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "weir",
		Short:         "A caching registry edge for container images and npm packages",
		Long:          "weir keeps container images and npm packages near those who install them. docker,\ncontainerd, podman and npm speak their own protocols to it; it answers from memory\nand disk, asks the registries behind it at most once for each thing, and keeps\nworking when they do not.",
		Example:       "  weir serve\n  weir serve -c weir.yaml --listen 0.0.0.0:5000\n  weir config check -c weir.yaml\n  weir user add alice -c weir.yaml",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          noArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		Version:       versionText(),
	}
	root.SetVersionTemplate("weir {{.Version}}\n")
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(flagError)
	for _, group := range []struct {
		title    string
		commands []*cobra.Command
	}{
		{"A node", []*cobra.Command{serveCommand(), configCommand(), statusCommand(), verifyCommand()}},
		{"Who may do what", []*cobra.Command{userCommand(), robotCommand(), teamCommand(), grantCommand(), tokenCommand()}},
		{"Several nodes", []*cobra.Command{tiersCommand()}},
	} {
		root.AddGroup(&cobra.Group{ID: group.title, Title: group.title + ":"})
		for _, cmd := range group.commands {
			cmd.GroupID = group.title
			root.AddCommand(cmd)
		}
	}
	root.AddCommand(versionCommand())
	return root
}

// run runs one command line and returns its exit code.
func run(args []string, stdout, stderr io.Writer) int {
	root := rootCommand()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteC()
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "weir: %s (see %s --help)\n", oneLine(err), cmd.CommandPath())
		return 2
	case errors.Is(err, errSaidNo):
		return 1
	}
	fmt.Fprintf(stderr, "weir: %s\n", oneLine(err))
	return 1
}

func oneLine(err error) string {
	return strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' }), " ")
}

// errSaidNo is the failure of a command that has printed all there is to say.
var errSaidNo = errors.New("no")

// flagError is about a flag that there is not; but where a command was misspelt
// before it, about that.
func flagError(cmd *cobra.Command, err error) error {
	if args := cmd.Flags().Args(); cmd.HasSubCommands() && len(args) > 0 {
		return noArgs(cmd, args)
	}
	return usageError{err}
}

// noArgs refuses arguments, which are misspelt commands.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	cmd.SuggestionsMinimumDistance = 2
	if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
		return usageError{fmt.Errorf("there is no command %q; did you mean %q?", args[0], s[0])}
	}
	if cmd.HasSubCommands() {
		return usageError{fmt.Errorf("there is no command %q in %q", args[0], cmd.CommandPath())}
	}
	return usageError{fmt.Errorf("%q takes no arguments, not %q", cmd.CommandPath(), args[0])}
}

// versionInfo is what "weir version -o json" prints.
type versionInfo struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// versionText is what "weir --version" and "weir version" print after "weir".
func versionText() string {
	return fmt.Sprintf("%s (%s, %s/%s)", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

func versionCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print which weir this is",
		Example: "  weir version\n  weir version -o json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := versionInfo{Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
			if info, ok := debug.ReadBuildInfo(); ok {
				for _, s := range info.Settings {
					if s.Key == "vcs.revision" {
						v.Revision = s.Value
					}
				}
			}
			switch output {
			case "json":
				return json.NewEncoder(cmd.OutOrStdout()).Encode(v)
			case "text":
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "weir %s\n", versionText())
				return err
			}
			return usageError{fmt.Errorf("-o %s: neither text nor json", output)}
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}
