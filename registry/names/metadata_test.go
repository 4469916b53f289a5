package names_test

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/names"
)

func TestMemoryMetadata(t *testing.T) {
	conformance.TestMetadata(t, func(*testing.T) registry.Metadata { return new(names.MemoryMetadata) })
	conformance.TestMetadataTrimmed(t, &names.MemoryMetadata{Keep: 10}, 10)
}

func TestAlternating(t *testing.T) {
	conformance.TestMetadata(t, func(*testing.T) registry.Metadata {
		m := new(names.MemoryMetadata)
		return conformance.Alternating(m, &conformance.FaultyMetadata{Metadata: m}, m)
	})
}

// TestFaultyMetadata shows that each fault is what it says.
func TestFaultyMetadata(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var next conformance.MetadataFault
		under := new(names.MemoryMetadata)
		m := &conformance.FaultyMetadata{Metadata: under, Choose: func(string, string) conformance.MetadataFault { return next }}
		for i, c := range []struct {
			fault             conformance.MetadataFault
			fails, now, later bool
		}{
			{conformance.Sound, false, true, true}, {conformance.Refused, true, false, false}, {conformance.Lost, true, true, true},
			{conformance.Late, false, true, true}, {conformance.Afterwards, true, false, true},
		} {
			next = c.fault
			key := fmt.Sprint(i)
			start := time.Now()
			_, err := m.Put(t.Context(), key, 0, []byte("v"))
			if c.fails != errors.Is(err, registry.ErrUnavailable) || (time.Since(start) > 0) != (c.fault == conformance.Late) {
				t.Errorf("fault %d: %v after %v", c.fault, err, time.Since(start))
			}
			if _, err := under.Get(t.Context(), key); c.now != (err == nil) {
				t.Errorf("fault %d: it has happened: %v", c.fault, err == nil)
			}
			if m.Wait(); c.later != (func() bool { _, err := under.Get(t.Context(), key); return err == nil }()) {
				t.Errorf("fault %d: it has happened later: %v", c.fault, !c.later)
			}
			if _, err := m.Get(t.Context(), "0"); c.fails != errors.Is(err, registry.ErrUnavailable) {
				t.Errorf("fault %d: get: %v", c.fault, err)
			}
			failed := 0
			for _, err := range m.List(t.Context(), "", "") {
				if err != nil {
					failed++
				}
			}
			if c.fails != (failed == 1) {
				t.Errorf("fault %d: list failed %d times", c.fault, failed)
			}
		}
	})
}
