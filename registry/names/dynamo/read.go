package dynamo

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"

	"github.com/weir-registry/weir/registry"
)

// Get implements registry.Metadata.
func (m *DB) Get(ctx context.Context, key string) (registry.Record, error) {
	if err := registry.CheckKey(key); err != nil {
		return registry.Record{}, err
	}
	if err := m.dispel(ctx); err != nil {
		return registry.Record{}, registry.Wrap(registry.ErrUnavailable, err, "get "+key)
	}
	k, err := m.kept(ctx, key)
	switch {
	case err != nil:
		return registry.Record{}, registry.Wrap(registry.ErrUnavailable, err, "get "+key)
	case k.Rev == 0:
		return registry.Record{}, &registry.Error{Kind: registry.ErrNotFound, Text: fmt.Sprintf("there is nothing under %q", key)}
	}
	return k.Record, nil
}

// dispel looks for a batch of ours whose put was not answered, so that who looks
// after that sees whether it has happened.
func (m *DB) dispel(ctx context.Context) error {
	m.mu.Lock()
	doubtful := m.doubtful
	m.doubtful = false
	m.mu.Unlock()
	if !doubtful {
		return nil
	}
	_, err := m.current(ctx)
	if err != nil {
		m.doubt()
	}
	return err
}

func (m *DB) doubt() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.doubtful = true
}

// Head implements registry.Metadata.
func (m *DB) Head(ctx context.Context) (uint64, error) {
	end, err := m.current(ctx)
	return end.rev, registry.Wrap(registry.ErrUnavailable, err, "find the newest change")
}

// Changes implements registry.Metadata.
func (m *DB) Changes(ctx context.Context, after uint64) iter.Seq2[registry.Record, error] {
	return func(yield func(registry.Record, error) bool) {
		// The batch of that change is read too: there may be more in it.
		from := max(after>>placeBits, 1)
		for limit := firstBatches; ; limit = min(4*limit, mostBatches) {
			page, more, err := m.readLog(ctx, from, limit)
			if err == nil && len(page) > 0 {
				err = m.settle(ctx, page)
			}
			switch {
			case errors.Is(err, registry.ErrGone):
				yield(registry.Record{}, fmt.Errorf("the changes after %d: %w", after, err))
				return
			case err != nil:
				yield(registry.Record{}, registry.Wrap(registry.ErrUnavailable, err, "read the changes"))
				return
			}
			for _, b := range page {
				for place := range b.changes {
					if r := b.record(place); r.Rev > after && !yield(r, nil) {
						return
					}
				}
			}
			if from += uint64(len(page)); !more {
				return
			}
		}
	}
}

// List implements registry.Metadata.
func (m *DB) List(ctx context.Context, prefix, after string) iter.Seq2[registry.Record, error] {
	return func(yield func(registry.Record, error) bool) {
		fail := func(err error) {
			yield(registry.Record{}, registry.Wrap(registry.ErrUnavailable, err, "list "+prefix))
		}
		if err := ctx.Err(); err != nil {
			fail(err)
			return
		}
		from, to, some := bounds(prefix, after)
		if !some {
			return
		}
		if err := m.dispel(ctx); err != nil {
			fail(err)
			return
		}
		var start item
		for first := true; first || start != nil; first = false {
			out, err := m.client.Query(ctx, &dynamodb.QueryInput{
				TableName:                 &m.table,
				ConsistentRead:            aws.Bool(true),
				KeyConditionExpression:    aws.String("#p = :record AND #k BETWEEN :from AND :to"),
				FilterExpression:          aws.String("attribute_exists(#v)"),
				ExpressionAttributeNames:  map[string]string{"#p": attrPart, "#k": attrKey, "#v": attrValue},
				ExpressionAttributeValues: item{":record": text(partRecord), ":from": blob(from), ":to": blob(to)},
				ExclusiveStartKey:         start,
			})
			if err != nil {
				fail(err)
				return
			}
			for _, it := range out.Items {
				k, err := decodeKept(it)
				if err != nil {
					fail(err)
					return
				}
				if strings.HasPrefix(k.Key, prefix) && k.Key > after && !yield(k.Record, nil) {
					return
				}
			}
			start = out.LastEvaluatedKey
		}
	}
}

// bounds are the first and the last key to ask for, of at most MaxKey bytes and
// not empty; there may be some that are not wanted between them.
func bounds(prefix, after string) (from, to []byte, some bool) {
	if len(prefix) > registry.MaxKey {
		return nil, nil, false
	}
	first := prefix
	if after >= prefix {
		first = after
	}
	if first == "" {
		first = "\x01"
	}
	last := prefix
	if len(last) < registry.MaxKey {
		last += "\xff" // no text has such a byte
	}
	if first = first[:min(len(first), registry.MaxKey)]; first > last {
		return nil, nil, false
	}
	return []byte(first), []byte(last), true
}
