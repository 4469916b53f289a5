package main

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestDocumentedConfigurations: what the documents show can be pasted into a
// file.
func TestDocumentedConfigurations(t *testing.T) {
	t.Setenv("HUB_TOKEN", "secret")
	block := regexp.MustCompile("(?s)```yaml\n(.*?)```")
	found := 0
	for _, file := range []string{"../../README.md", "../../docs/operations.md", "../../docs/nodes.md"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range block.FindAllStringSubmatch(string(text), -1) {
			found++
			c, err := decodeConfig(file, strings.NewReader(b[1]), os.LookupEnv)
			if err == nil {
				err = c.check()
			}
			if err != nil {
				t.Errorf("%s: %v\n%s", file, err, b[1])
			}
		}
	}
	if found < 8 {
		t.Errorf("only %d configurations found", found)
	}
}
