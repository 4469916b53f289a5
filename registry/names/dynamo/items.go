package dynamo

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/weir-registry/weir/registry"
)

// The attributes, as the package comment has them.
const (
	attrPart        = "p"
	attrKey         = "k"
	attrNumber      = "n"
	attrWriter      = "w"
	attrChanges     = "c"
	attrIncarnation = "i"
	attrValue       = "v"
	attrFormat      = "format"
	attrSlots       = "slots"

	partLog    = "log"
	partRecord = "record"
	partState  = "state"
)

// placeBits is how many bits of a Rev are the place within the batch.
const placeBits = 10

// errItem is an item that this package cannot have written.
var errItem = errors.New("an item of the table is damaged")

type item = map[string]types.AttributeValue

func itemKey(part string, key []byte) item {
	return item{attrPart: text(part), attrKey: blob(key)}
}

func text(s string) types.AttributeValue { return &types.AttributeValueMemberS{Value: s} }
func blob(b []byte) types.AttributeValue { return &types.AttributeValueMemberB{Value: b} }
func number(n uint64) types.AttributeValue {
	return &types.AttributeValueMemberN{Value: strconv.FormatUint(n, 10)}
}

// toNumber is 0 for what is none.
func toNumber(v types.AttributeValue) uint64 {
	if v, ok := v.(*types.AttributeValueMemberN); ok {
		n, err := strconv.ParseUint(v.Value, 10, 64)
		if err == nil {
			return n
		}
	}
	return 0
}

// toBytes is nil for what are none.
func toBytes(v types.AttributeValue) []byte {
	if v, ok := v.(*types.AttributeValueMemberB); ok {
		return v.Value
	}
	return nil
}

// A change is one change of a batch; a nil value removes.
type change struct {
	key         string
	incarnation []byte
	value       []byte
}

// A batch is one item of the log.
type batch struct {
	n       uint64
	writer  []byte
	changes []change
}

// rev is that of the batch's change at a place.
func (b batch) rev(place int) uint64 { return b.n<<placeBits | uint64(place) }

// at is the position of the batch.
func (b batch) at() position { return position{b.n, b.rev(len(b.changes) - 1)} }

// record is the change at a place as the feed gives it.
func (b batch) record(place int) registry.Record {
	c := b.changes[place]
	return registry.Record{Key: c.key, Value: c.value, Rev: b.rev(place)}
}

// slotKey is the sort key of batch n.
func (m *DB) slotKey(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n%m.slots) }

func (m *DB) encodeBatch(b batch) item {
	it := itemKey(partLog, m.slotKey(b.n))
	it[attrNumber], it[attrWriter] = number(b.n), blob(b.writer)
	changes := make([]types.AttributeValue, len(b.changes))
	for i, c := range b.changes {
		one := item{attrKey: text(c.key), attrIncarnation: blob(c.incarnation)}
		if c.value != nil {
			one[attrValue] = blob(c.value)
		}
		changes[i] = &types.AttributeValueMemberM{Value: one}
	}
	it[attrChanges] = &types.AttributeValueMemberL{Value: changes}
	return it
}

func decodeBatch(it item) (batch, error) {
	b := batch{n: toNumber(it[attrNumber]), writer: toBytes(it[attrWriter])}
	list, ok := it[attrChanges].(*types.AttributeValueMemberL)
	if b.n == 0 || b.n >= 1<<(64-placeBits) || !ok || len(list.Value) == 0 || len(list.Value) > 1<<placeBits {
		return batch{}, fmt.Errorf("batch %d of the log: %w", b.n, errItem)
	}
	for _, v := range list.Value {
		one, ok := v.(*types.AttributeValueMemberM)
		if !ok {
			return batch{}, fmt.Errorf("batch %d of the log: %w", b.n, errItem)
		}
		key, ok := one.Value[attrKey].(*types.AttributeValueMemberS)
		c := change{incarnation: toBytes(one.Value[attrIncarnation]), value: toBytes(one.Value[attrValue])}
		if !ok || registry.CheckPut(key.Value, c.value) != nil || len(c.incarnation) == 0 {
			return batch{}, fmt.Errorf("batch %d of the log: %w", b.n, errItem)
		}
		c.key = key.Value
		b.changes = append(b.changes, c)
	}
	return b, nil
}

// A kept is the item of a record: rev is 0 if there is only its place, and
// incarnation nil if there is no item.
type kept struct {
	registry.Record
	incarnation []byte
}

func decodeKept(it item) (kept, error) {
	if it == nil {
		return kept{}, nil
	}
	k := kept{incarnation: toBytes(it[attrIncarnation])}
	k.Key, k.Value, k.Rev = string(toBytes(it[attrKey])), toBytes(it[attrValue]), toNumber(it[attrNumber])
	if len(k.incarnation) == 0 || registry.CheckKey(k.Key) != nil || (k.Rev == 0) != (k.Value == nil) {
		return kept{}, fmt.Errorf("the record %.100q: %w", k.Key, errItem)
	}
	return k, nil
}

// kept reads the item of a record.
func (m *DB) kept(ctx context.Context, key string) (kept, error) {
	it, err := m.getItem(ctx, itemKey(partRecord, []byte(key)))
	if err != nil {
		return kept{}, err
	}
	return decodeKept(it)
}

// getItem reads an item consistently; nil if there is none.
func (m *DB) getItem(ctx context.Context, key item) (item, error) {
	out, err := m.client.GetItem(ctx, &dynamodb.GetItemInput{TableName: &m.table, Key: key, ConsistentRead: aws.Bool(true)})
	if err != nil {
		return nil, err
	}
	return out.Item, nil
}

// putIf puts an item on a condition.
func (m *DB) putIf(ctx context.Context, it item, condition string, names map[string]string, values item, how ...func(*dynamodb.Options)) error {
	_, err := m.client.PutItem(ctx, &dynamodb.PutItemInput{TableName: &m.table, Item: it, ConditionExpression: &condition,
		ExpressionAttributeNames: names, ExpressionAttributeValues: values}, how...)
	return err
}

func conditionFailed(err error) bool {
	var failed *types.ConditionalCheckFailedException
	return errors.As(err, &failed)
}
