package origin_test

import (
	"context"
	"errors"
	"io"
	"testing"

	"github.com/weir-registry/weir/cachetiers/origin"
	"github.com/weir-registry/weir/registry"
)

// named is a source whose failures name it.
type named string

func (s named) Open(context.Context, registry.Want) (registry.Blob, error) {
	return nil, registry.Errorf(registry.ErrDenied, "%s", string(s))
}

func (s named) Resolve(context.Context, registry.Question) (registry.Binding, io.ReadCloser, error) {
	return registry.Binding{}, nil, registry.Errorf(registry.ErrDenied, "%s", string(s))
}

// TestSwitch: a want goes to the source of its name's space and to no other.
func TestSwitch(t *testing.T) {
	s := origin.Switch{"oci": named("images"), "npm": named("packages")}
	for space, want := range map[string]string{"oci": "images", "npm": "packages"} {
		if _, err := s.Open(context.Background(), registry.Want{From: registry.Name{Space: space, Repo: "r"}}); err == nil || err.Error() != want {
			t.Errorf("%s: %v", space, err)
		}
		if _, _, err := s.Resolve(context.Background(), registry.Question{Name: registry.Name{Space: space, Repo: "r"}}); err == nil || err.Error() != want {
			t.Errorf("resolve %s: %v", space, err)
		}
	}
	if _, err := s.Open(context.Background(), registry.Want{From: registry.Name{Space: "pypi", Repo: "r"}}); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("a space nobody serves: %v", err)
	}
	if _, _, err := s.Resolve(context.Background(), registry.Question{Name: registry.Name{Space: "pypi", Repo: "r"}}); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("a name in a space nobody serves: %v", err)
	}
}
