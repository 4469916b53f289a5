package dynamo

import (
	"context"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"

	"github.com/weir-registry/weir/registry"
)

const (
	// A reader of the log asks for few batches first: one that is at its end
	// else reads what is of the round before.
	firstBatches = 2
	mostBatches  = 128
	// hintEvery is after how many batches the hint is put anew.
	hintEvery = 16
)

// known is the end of the log as far as this DB knows.
func (m *DB) known() (end position, found bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.end, m.found
}

// learn notes that the log is there up to a position, and has been applied.
func (m *DB) learn(p position) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p.batch >= m.end.batch {
		m.end, m.found = p, true
	}
}

// current finds the end of the log as it is now, and applies what is not yet.
func (m *DB) current(ctx context.Context) (position, error) {
	end, found := m.known()
	for {
		if !found {
			n, err := m.locate(ctx)
			if err != nil {
				return position{}, err
			}
			end = position{batch: max(n, 1) - 1} // n is read below
		}
		last, err := m.follow(ctx, end)
		if errors.Is(err, registry.ErrGone) {
			found = false // a round behind
			continue
		}
		if err != nil {
			return position{}, err
		}
		m.learn(last)
		return last, nil
	}
}

// follow reads on from a position to the end of the log.
func (m *DB) follow(ctx context.Context, end position) (position, error) {
	for limit := firstBatches - 1; ; limit = min(4*limit, mostBatches) {
		page, more, err := m.readLog(ctx, end.batch+1, limit)
		if err != nil {
			return position{}, err
		}
		if len(page) > 0 {
			if err := m.settle(ctx, page); err != nil {
				return position{}, err
			}
			end = page[len(page)-1].at()
		}
		if !more {
			return end, nil
		}
	}
}

// readLog reads batches from a number on, at most limit; more reports that there
// may be more. ErrGone if the first is no longer kept.
func (m *DB) readLog(ctx context.Context, from uint64, limit int) (page []batch, more bool, err error) {
	out, err := m.client.Query(ctx, &dynamodb.QueryInput{
		TableName:              &m.table,
		ConsistentRead:         aws.Bool(true),
		KeyConditionExpression: aws.String("#p = :log AND #k >= :slot"),
		FilterExpression:       aws.String("#n >= :n"), // those of the round before are not sent
		ExpressionAttributeNames: map[string]string{
			"#p": attrPart, "#k": attrKey, "#n": attrNumber},
		ExpressionAttributeValues: item{
			":log": text(partLog), ":slot": blob(m.slotKey(from)), ":n": number(from)},
		Limit: aws.Int32(int32(limit)),
	})
	if err != nil {
		return nil, false, err
	}
	for _, it := range out.Items {
		b, err := decodeBatch(it)
		if err != nil {
			return nil, false, err
		}
		want := from + uint64(len(page))
		if b.n > want && len(page) == 0 && b.n%m.slots == want%m.slots {
			return nil, false, registry.Errorf(registry.ErrGone, "batch %d of the log is no longer kept", want)
		}
		if b.n != want {
			// One that was put while the slots before it were being read, or
			// one of the next round, which the next page finds.
			return page, len(page) > 0, nil
		}
		page = append(page, b)
	}
	if len(page) == 0 || int(out.ScannedCount) > len(page) {
		return page, false, nil
	}
	end := (from + uint64(len(page)) - 1) % m.slots
	return page, out.LastEvaluatedKey != nil || end == m.slots-1, nil
}

// slot is the number and the writer of what is in batch n's slot, zero if that
// is empty.
func (m *DB) slot(ctx context.Context, n uint64) (is uint64, writer []byte, err error) {
	out, err := m.client.GetItem(ctx, &dynamodb.GetItemInput{TableName: &m.table, Key: itemKey(partLog, m.slotKey(n)),
		ConsistentRead: aws.Bool(true), ProjectionExpression: aws.String("#n, #w"),
		ExpressionAttributeNames: map[string]string{"#n": attrNumber, "#w": attrWriter}})
	if err != nil {
		return 0, nil, err
	}
	return toNumber(out.Item[attrNumber]), toBytes(out.Item[attrWriter]), nil
}

// locate finds the last batch by bisection: batch n is there, or was, exactly if
// its slot has n or a later one. 0: there is none yet.
func (m *DB) locate(ctx context.Context) (uint64, error) {
	hint, err := m.getItem(ctx, itemKey(partState, []byte("hint")))
	if err != nil {
		return 0, err
	}
	there, missing := toNumber(hint[attrNumber]), uint64(0)
	for step := uint64(1); missing == 0 || missing-there > 1; {
		try := there + step
		if missing != 0 {
			try = there + (missing-there)/2
		}
		is, _, err := m.slot(ctx, try)
		switch {
		case err != nil:
			return 0, err
		case is >= try:
			there, step = is, 2*step
			if missing != 0 && there >= missing {
				missing, step = 0, 1 // the log has grown meanwhile
			}
		default:
			missing = try
		}
	}
	return there, nil
}

// putHint says in the table how far the log is there at least. It may fail.
func (m *DB) putHint(ctx context.Context, n uint64) {
	it := itemKey(partState, []byte("hint"))
	it[attrNumber] = number(n)
	_, err := m.client.PutItem(ctx, &dynamodb.PutItemInput{TableName: &m.table, Item: it})
	if err != nil && ctx.Err() == nil {
		m.log.Warn("the hint of the metadata database was not put", "table", m.table, "err", err)
	}
}

// settle sees to it that batches that follow on one another have been applied:
// only the last may not be yet.
func (m *DB) settle(ctx context.Context, page []batch) error {
	last := page[len(page)-1]
	if err := m.apply(ctx, last); err != nil {
		return err
	}
	m.learn(last.at())
	return nil
}

// apply applies a batch to the records, if this DB does not know that it has
// been: one change after the other, in their order.
func (m *DB) apply(ctx context.Context, b batch) error {
	if end, found := m.known(); found && b.n <= end.batch {
		return nil
	}
	for place := range b.changes {
		if err := m.applyChange(ctx, b, place); err != nil {
			return fmt.Errorf("apply batch %d of the log: %w", b.n, err)
		}
	}
	return nil
}

func (m *DB) applyChange(ctx context.Context, b batch, place int) error {
	const condition = "#i = :i AND #n < :n"
	names := map[string]string{"#i": attrIncarnation, "#n": attrNumber}
	c, rev := b.changes[place], number(b.rev(place))
	values := item{":i": blob(c.incarnation), ":n": rev}
	it := itemKey(partRecord, []byte(c.key))
	var err error
	if c.value == nil {
		_, err = m.client.DeleteItem(ctx, &dynamodb.DeleteItemInput{TableName: &m.table, Key: it, ConditionExpression: aws.String(condition),
			ExpressionAttributeNames: names, ExpressionAttributeValues: values})
	} else {
		it[attrNumber], it[attrIncarnation], it[attrValue] = rev, blob(c.incarnation), blob(c.value)
		err = m.putIf(ctx, it, condition, names, values)
	}
	if conditionFailed(err) {
		return nil // it, or a later one, has been applied
	}
	return err
}
