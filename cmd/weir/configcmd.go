package main

import (
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"
)

func configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "config",
		Short:   "Check or show a configuration",
		Example: "  weir config check -c weir.yaml\n  weir config show -c weir.yaml -o json",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(configCheckCommand(), configShowCommand())
	return cmd
}

func configCheckCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:     "check",
		Short:   "Say whether weir would start with a configuration, and if not, why",
		Long:    "check reads a configuration as serve would, environment variables included, and\ntouches neither the network nor the data directory. Its exit code is 0 if all is well.",
		Example: "  weir config check -c weir.yaml",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return usageError{fmt.Errorf("config check: which file? (-c FILE)")}
			}
			c, err := readConfig(file)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: ok (%d OCI and %d npm upstreams)\n", file, len(c.OCI.Upstreams), len(c.NPM.Upstreams))
			return err
		},
	}
	cmd.Flags().StringVarP(&file, "config", "c", "", "configuration file")
	return cmd
}

func configShowCommand() *cobra.Command {
	var file, output string
	cmd := &cobra.Command{
		Use:     "show",
		Short:   "Print the configuration with all defaults filled in and secrets masked",
		Example: "  weir config show\n  weir config show -c weir.yaml -o json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "yaml" && output != "json" {
				return usageError{fmt.Errorf("-o %s: neither yaml nor json", output)}
			}
			c, err := readConfig(file)
			if err != nil {
				return err
			}
			text, err := showConfig(c, output)
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(text)
			return err
		},
	}
	cmd.Flags().StringVarP(&file, "config", "c", "", "configuration file; without, the defaults are shown")
	cmd.Flags().StringVarP(&output, "output", "o", "yaml", "yaml or json")
	return cmd
}

const masked = "********"

// showConfig prints c, whose secrets it masks.
func showConfig(c *Config, format string) ([]byte, error) {
	mask(reflect.ValueOf(c).Elem())
	if format == "yaml" {
		return yaml.MarshalWithOptions(c, yaml.Indent(2), yaml.IndentSequence(true))
	}
	plain, err := plainValue(reflect.ValueOf(c).Elem())
	if err != nil {
		return nil, err
	}
	text, err := json.MarshalIndent(plain, "", "  ")
	return append(text, '\n'), err
}

// plainValue is v with the configuration's keys instead of Go's names.
func plainValue(v reflect.Value) (any, error) {
	if text, ok := v.Interface().(encoding.TextMarshaler); ok {
		b, err := text.MarshalText()
		return string(b), err
	}
	switch v.Kind() {
	case reflect.Pointer:
		return plainValue(v.Elem())
	case reflect.Struct:
		m := map[string]any{}
		for i := range v.NumField() {
			key := v.Type().Field(i).Tag.Get("yaml")
			if key == "" {
				continue
			}
			one, err := plainValue(v.Field(i))
			if err != nil {
				return nil, err
			}
			m[key] = one
		}
		return m, nil
	case reflect.Map:
		m := map[string]any{}
		for _, key := range v.MapKeys() {
			one, err := plainValue(v.MapIndex(key))
			if err != nil {
				return nil, err
			}
			m[key.String()] = one
		}
		return m, nil
	case reflect.Slice:
		list := make([]any, v.Len())
		for i := range list {
			one, err := plainValue(v.Index(i))
			if err != nil {
				return nil, err
			}
			list[i] = one
		}
		return list, nil
	}
	return v.Interface(), nil
}

// mask replaces every field that is tagged as a secret, in place.
func mask(v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Field(i); v.Type().Field(i).Tag.Get("secret") == "true" && f.String() != "" {
				f.SetString(masked)
			} else {
				mask(f)
			}
		}
	case reflect.Map:
		for _, key := range v.MapKeys() {
			one := reflect.New(v.Type().Elem()).Elem()
			one.Set(v.MapIndex(key))
			mask(one)
			v.SetMapIndex(key, one)
		}
	}
}
