module github.com/weir-registry/weir

go 1.26.0

require (
	github.com/opencontainers/go-digest v1.0.0
	golang.org/x/sync v0.24.0
)
