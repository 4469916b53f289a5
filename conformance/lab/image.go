package lab

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Files are the regular files of an image: contents by path, without a slash
// at the front.
type Files map[string]string

// A Kind says in which of its two dialects an image is written.
type Kind struct {
	Manifest, Config, Layer, Index types.MediaType
}

// OCI and Docker give the media types of the two dialects.
func OCI() Kind {
	return Kind{types.OCIManifestSchema1, types.OCIConfigJSON, types.OCILayer, types.OCIImageIndex}
}

// Docker is described at [OCI].
func Docker() Kind {
	return Kind{types.DockerManifestSchema2, types.DockerConfigJSON, types.DockerLayer, types.DockerManifestList}
}

// MakeIndex makes an image for linux/amd64 and linux/arm64, each of three
// layers of which the first is common to both and the last replaces a file of
// the second. seed makes its contents differ from other images'; size is that
// of its largest file, in bytes. It returns the files of each architecture.
func MakeIndex(t testing.TB, kind Kind, seed string, size int) (v1.ImageIndex, map[string]Files) {
	t.Helper()
	index := mutate.IndexMediaType(empty.Index, kind.Index)
	files := map[string]Files{}
	for _, arch := range []string{"amd64", "arm64"} {
		img, has := MakeImage(t, kind, seed, arch, size)
		files[arch] = has
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}},
		})
	}
	return index, files
}

// MakeImage makes one of the images of [MakeIndex].
func MakeImage(t testing.TB, kind Kind, seed, arch string, size int) (v1.Image, Files) {
	t.Helper()
	stack := []Files{
		{"etc/weir/base": "the base of " + seed, "bin/true": string(Noise(seed, 4096))},
		{"etc/weir/arch": "to be replaced", "opt/weir/large": string(Noise(seed+arch, size))},
		{"etc/weir/arch": arch + " of " + seed, "etc/weir/empty": ""},
	}
	img := mutate.MediaType(mutate.ConfigMediaType(empty.Image, kind.Config), kind.Manifest)
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", arch
	config.Config.Cmd = []string{"/bin/true"}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	all := Files{}
	for _, files := range stack {
		maps.Copy(all, files)
		if img, err = mutate.Append(img, mutate.Addendum{Layer: layer(t, kind, files), MediaType: kind.Layer}); err != nil {
			t.Fatal(err)
		}
	}
	return img, all
}

// layer is a gzipped tar of files and the directories they need.
func layer(t testing.TB, kind Kind, files Files) v1.Layer {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	made := map[string]bool{}
	var mkdir func(dir string)
	put := func(h *tar.Header, body string) {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, body); err != nil {
			t.Fatal(err)
		}
	}
	mkdir = func(dir string) {
		if dir == "." || made[dir] {
			return
		}
		mkdir(path.Dir(dir))
		made[dir] = true
		put(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}, "")
	}
	for _, p := range slices.Sorted(maps.Keys(files)) {
		mkdir(path.Dir(p))
		put(&tar.Header{Typeflag: tar.TypeReg, Name: p, Mode: 0o644, Size: int64(len(files[p]))}, files[p])
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(buf.Bytes())), nil
	}, tarball.WithMediaType(kind.Layer), tarball.WithCompressionLevel(gzip.BestSpeed))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// MakeBlobs makes an image whose layers are the given bytes as they are, which
// need not be tar archives.
func MakeBlobs(t testing.TB, blobs ...[]byte) v1.Image {
	t.Helper()
	img := mutate.MediaType(mutate.ConfigMediaType(empty.Image, types.OCIConfigJSON), types.OCIManifestSchema1)
	layers := make([]v1.Layer, len(blobs))
	for i, b := range blobs {
		layers[i] = static.NewLayer(b, types.OCIUncompressedLayer)
	}
	img, err := mutate.AppendLayers(img, layers...)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// Push writes an image or an index to the registry at addr, straight and not
// through weir, and returns its digest.
func Push(t testing.TB, addr, ref string, what remote.Taggable) v1.Hash {
	t.Helper()
	r, err := name.ParseReference(addr+"/"+ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	switch what := what.(type) {
	case v1.ImageIndex:
		err = remote.WriteIndex(r, what)
	case v1.Image:
		err = remote.Write(r, what)
	default:
		err = fmt.Errorf("cannot push a %T", what)
	}
	if err != nil {
		t.Fatalf("push %s: %v", ref, err)
	}
	raw, err := what.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	d, _, err := v1.SHA256(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// Noise is size bytes that do not compress, the same for the same seed.
func Noise(seed string, size int) []byte {
	b := make([]byte, size)
	rand.NewChaCha8(sha256.Sum256([]byte(seed))).Read(b)
	return b
}
