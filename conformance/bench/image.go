package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
)

const (
	repository   = "bench/image"
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	smallBlob    = 1 << 20
	largeBlob    = 64 << 20
)

// An image is what the registry has been given: a manifest of about 2 KB, and
// two blobs.
type image struct {
	manifest     []byte
	digest       string // the manifest's
	small, large string // the blobs' digests
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// push makes the image and puts it into the registry at base.
func push(base string) (image, error) {
	rng := rand.NewChaCha8([32]byte{1})
	var m image
	layers := []descriptor{}
	for _, size := range []int{smallBlob, largeBlob} {
		data := make([]byte, size)
		_, _ = rng.Read(data) // it cannot fail
		digest, err := upload(base, data)
		if err != nil {
			return m, err
		}
		layers = append(layers, descriptor{MediaType: "application/vnd.oci.image.layer.v1.tar", Digest: digest, Size: size,
			Annotations: map[string]string{"org.example.note": strings.Repeat("about this layer ", 40)}})
	}
	m.small, m.large = layers[0].Digest, layers[1].Digest
	config := []byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`)
	digest, err := upload(base, config)
	if err != nil {
		return m, err
	}
	m.manifest, err = json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": manifestType,
		"config": descriptor{MediaType: "application/vnd.oci.image.config.v1+json", Digest: digest, Size: len(config)}, "layers": layers})
	if err != nil {
		return m, err
	}
	m.digest = sum(m.manifest)
	return m, send("PUT", base+"/v2/"+repository+"/manifests/latest", manifestType, m.manifest, http.StatusCreated)
}

func sum(data []byte) string {
	s := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(s[:])
}

// upload puts one blob into the registry: a session, and then all of it.
func upload(base string, data []byte) (digest string, err error) {
	resp, err := http.Post(base+"/v2/"+repository+"/blobs/uploads/", "", nil)
	if err != nil {
		return "", err
	}
	resp.Body.Close()
	at, err := url.Parse(resp.Header.Get("Location"))
	if err != nil || resp.StatusCode != http.StatusAccepted {
		return "", fmt.Errorf("upload: %s, Location %q", resp.Status, resp.Header.Get("Location"))
	}
	digest = sum(data)
	q := at.Query()
	q.Set("digest", digest)
	at.RawQuery = q.Encode()
	return digest, send("PUT", at.String(), "application/octet-stream", data, http.StatusCreated)
}

func send(method, to, mediaType string, body []byte, want int) error {
	req, err := http.NewRequest(method, to, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", mediaType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != want {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1000))
		return fmt.Errorf("%s: %s: %s", method, resp.Status, text)
	}
	return nil
}

// questions are what is measured.
func (b *bench) questions() []question {
	m := "/v2/" + repository + "/manifests/"
	blobs := "/v2/" + repository + "/blobs/"
	size := int64(len(b.image.manifest))
	return []question{
		{name: "manifest by digest, 64 connections", path: m + b.image.digest, accept: manifestType, size: size, clients: 64},
		{name: "manifest by tag, 64 connections", path: m + "latest", accept: manifestType, size: size, clients: 64},
		{name: "blob of 1 MiB, 64 connections", path: blobs + b.image.small, size: smallBlob, clients: 64, blob: true},
		{name: "blob of 64 MiB, 8 connections", path: blobs + b.image.large, size: largeBlob, clients: 8, blob: true},
	}
}

// check fetches everything through a cache and looks at every byte.
func (m image) check(base, token string) error {
	for path, want := range map[string]string{
		"manifests/latest": m.digest, "manifests/" + m.digest: m.digest,
		"blobs/" + m.small: m.small, "blobs/" + m.large: m.large,
	} {
		req, err := http.NewRequest("GET", base+"/v2/"+repository+"/"+path, nil)
		if err != nil {
			return err
		}
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		if strings.HasPrefix(path, "manifests/") {
			req.Header.Set("Accept", manifestType)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		h := sha256.New()
		_, err = io.Copy(h, resp.Body)
		resp.Body.Close()
		if err != nil {
			return err
		}
		if got := "sha256:" + hex.EncodeToString(h.Sum(nil)); resp.StatusCode != http.StatusOK || got != want {
			return fmt.Errorf("%s: %s, %s and not %s", path, resp.Status, got, want)
		}
	}
	return nil
}
