package cachetiers_test

import (
	"context"
	"testing"

	"github.com/weir-registry/weir/cachetiers"
	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/registry"
)

// BenchmarkMemoryOpen opens what is in memory, from as many goroutines as there
// are processors (-cpu 1,2).
func BenchmarkMemoryOpen(b *testing.B) {
	m := new(cachetiers.Memory)
	wants := make([]registry.Want, 1024)
	for i := range wants {
		data := conformance.Bytes(uint64(i), 2000)
		wants[i] = want(data, 0, -1)
		stage, err := m.Stage(context.Background(), wants[i].Descriptor)
		if err != nil {
			b.Fatal(err)
		}
		_, _ = stage.Write(data)
		if _, err := stage.Commit(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			blob, err := m.Open(context.Background(), wants[i%len(wants)])
			if err != nil {
				b.Error(err)
				return
			}
			blob.Close()
		}
	})
}
