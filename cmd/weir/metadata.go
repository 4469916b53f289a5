package main

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/names"
	"github.com/weir-registry/weir/registry/names/dynamo"
	"github.com/weir-registry/weir/registry/names/spanner"
)

// Kinds of metadata database on other machines.
const (
	dynamoScheme  = "dynamodb"
	spannerScheme = "spanner"
)

// metadataAddress is what origin.metadata says, or its default.
func (c *Config) metadataAddress(data *dataDir) (names.Address, error) {
	if c.Origin.Metadata == "" {
		return names.Address{Scheme: fileScheme, Name: data.file("metadata.db")}, nil
	}
	if schemeOf(c.Origin.Metadata) == spannerScheme {
		if _, err := spanner.Parse(c.Origin.Metadata); err != nil {
			return names.Address{}, fmt.Errorf("origin.metadata: %w", err)
		}
		return names.Address{Scheme: spannerScheme}, nil
	}
	a, err := names.ParseAddress(c.Origin.Metadata)
	if err != nil {
		return a, fmt.Errorf("origin.metadata: %w", err)
	}
	return a, nil
}

// checkMetadata checks origin.metadata without touching anything.
func (c *Config) checkMetadata() error {
	if c.Origin.Metadata == "" {
		return nil
	}
	if len(c.Next) > 0 {
		return fmt.Errorf("origin.metadata: this node has others behind it (next), and it is the last of those that has the database")
	}
	_, err := c.metadataAddress(nil)
	return err
}

// metadataFile reports whether the metadata database is a file of this node.
func (c *Config) metadataFile() bool {
	return c.Origin.Metadata == "" || schemeOf(c.Origin.Metadata) == "" || schemeOf(c.Origin.Metadata) == fileScheme
}

// openMetadata opens the metadata database. closing is to be called once.
func openMetadata(ctx context.Context, c *Config, data *dataDir, log *slog.Logger) (md registry.Metadata, closing func() error, err error) {
	a, err := c.metadataAddress(data)
	if err != nil {
		return nil, nil, err
	}
	switch a.Scheme {
	case dynamoScheme:
		db, err := dynamo.Open(ctx, dynamo.Options{Table: a.Name, Region: a.Settings["region"], Endpoint: a.Settings["endpoint"], Log: log})
		if err != nil {
			return nil, nil, fmt.Errorf("origin.metadata: %w", err)
		}
		return db, db.Close, nil
	case spannerScheme:
		o, err := spanner.Parse(c.Origin.Metadata)
		if err != nil {
			return nil, nil, fmt.Errorf("origin.metadata: %w", err)
		}
		db, err := spanner.Open(ctx, o)
		if err != nil {
			return nil, nil, fmt.Errorf("origin.metadata: %w", err)
		}
		return db, db.Close, nil
	case fileScheme:
		db, err := names.OpenMetadata(a.Name, names.MetadataOptions{Log: log})
		if err != nil {
			return nil, nil, fmt.Errorf("origin.metadata: %w", err)
		}
		return db, db.Close, nil
	}
	return nil, nil, fmt.Errorf("origin.metadata: nothing opens an address of the kind %q", a.Scheme)
}
