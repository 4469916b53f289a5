package spanner

import (
	"context"
	"fmt"
	"time"

	"cloud.google.com/go/spanner"
	database "cloud.google.com/go/spanner/admin/database/apiv1"
	"cloud.google.com/go/spanner/admin/database/apiv1/databasepb"

	"github.com/weir-registry/weir/registry"
)

// tables are the DDL of what there must be.
func tables() []string {
	return []string{
		`CREATE TABLE IF NOT EXISTS weir_head (
			id INT64 NOT NULL,
			seq INT64 NOT NULL,
			trimmed INT64 NOT NULL,
		) PRIMARY KEY (id)`,
		fmt.Sprintf(`CREATE TABLE IF NOT EXISTS weir_records (
			key STRING(%d) NOT NULL,
			value BYTES(%d) NOT NULL,
			seq INT64 NOT NULL,
		) PRIMARY KEY (key)`, registry.MaxKey, registry.MaxValue),
		fmt.Sprintf(`CREATE TABLE IF NOT EXISTS weir_changes (
			seq INT64 NOT NULL,
			key STRING(%d) NOT NULL,
			value BYTES(%d),
			writer STRING(36) NOT NULL,
		) PRIMARY KEY (seq)`, registry.MaxKey, registry.MaxValue),
	}
}

// prepare makes the tables, unless they are there: then nothing of the schema has
// to be allowed. It goes on in the background when ctx ends, because making
// tables takes Spanner longer than anybody waits.
func (m *Metadata) prepare(ctx context.Context, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	select {
	case m.preparing <- struct{}{}:
	case <-ctx.Done():
		return registry.Wrap(registry.ErrUnavailable, ctx.Err(), "wait for the tables of "+m.o.Database)
	}
	if m.prepared.Load() {
		<-m.preparing
		return nil
	}
	done := make(chan error, 1)
	go func() {
		defer func() { <-m.preparing }()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), prepareLimit)
		defer cancel()
		err := m.makeTables(ctx)
		if err == nil {
			m.prepared.Store(true)
		}
		done <- err
	}()
	select {
	case err := <-done:
		return registry.Wrap(registry.ErrUnavailable, err, "make the tables of "+m.o.Database)
	case <-ctx.Done():
		return registry.Wrap(registry.ErrUnavailable, ctx.Err(), "make the tables of "+m.o.Database)
	}
}

func (m *Metadata) makeTables(ctx context.Context) error {
	if there, err := m.tablesThere(ctx); err != nil || there {
		return err
	}
	admin, err := database.NewDatabaseAdminClient(ctx, m.o.clientOptions()...)
	if err != nil {
		return err
	}
	defer admin.Close()
	op, err := admin.UpdateDatabaseDdl(ctx, &databasepb.UpdateDatabaseDdlRequest{Database: m.o.Database, Statements: tables()})
	if err == nil {
		err = op.Wait(ctx)
	}
	if err == nil {
		return nil
	}
	// Another node may have been faster.
	if there, again := m.tablesThere(ctx); again == nil && there {
		return nil
	}
	return err
}

func (m *Metadata) tablesThere(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var count int64
	st := spanner.NewStatement(`SELECT COUNT(*) FROM INFORMATION_SCHEMA.TABLES
		WHERE TABLE_SCHEMA = '' AND TABLE_NAME IN ('weir_head', 'weir_records', 'weir_changes')`)
	err := m.client.Single().Query(ctx, st).Do(func(row *spanner.Row) error { return row.Columns(&count) })
	if err != nil {
		return false, err
	}
	return count == int64(len(tables())), nil
}
