package dynamo

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/weir-registry/weir/conformance/lab"
	"github.com/weir-registry/weir/registry"
)

// FuzzItems gives the decoders items of any content: they must not panic, and
// what they take is what was encoded.
func FuzzItems(f *testing.F) {
	f.Add("7", "k", []byte("incarnation"), []byte("value"), byte(0))
	f.Add("0", "", []byte{}, []byte{}, byte(1))
	f.Add("18446744073709551616", "\xff", []byte("i"), []byte(nil), byte(2))
	f.Add("18014398509481984", "k", []byte("i"), []byte("v"), byte(0)) // 1<<54
	m := &DB{slots: 5}
	f.Fuzz(func(t *testing.T, n, key string, incarnation, value []byte, odd byte) {
		one := item{attrKey: text(key), attrIncarnation: blob(incarnation)}
		if len(value) > 0 {
			one[attrValue] = blob(value)
		}
		var list types.AttributeValue = &types.AttributeValueMemberL{Value: []types.AttributeValue{&types.AttributeValueMemberM{Value: one}}}
		switch odd {
		case 1:
			list = text(key)
		case 2:
			list = &types.AttributeValueMemberL{Value: []types.AttributeValue{text(key)}}
		case 3:
			one[attrKey] = blob([]byte(key))
		}
		it := item{attrNumber: &types.AttributeValueMemberN{Value: n}, attrWriter: blob([]byte("w")), attrChanges: list}
		if b, err := decodeBatch(it); err == nil {
			again, err := decodeBatch(m.encodeBatch(b))
			if err != nil || again.n != b.n || again.record(0).Key != key || !bytes.Equal(again.record(0).Value, value) || b.rev(0)>>placeBits != b.n {
				t.Errorf("%+v came back as %+v, %v", b, again, err)
			}
		}
		rec := item{attrKey: blob([]byte(key)), attrNumber: it[attrNumber], attrIncarnation: blob(incarnation), attrValue: blob(value)}
		if k, err := decodeKept(rec); err == nil && (registry.CheckKey(k.Key) != nil || k.incarnation == nil) {
			t.Errorf("%+v is taken for a record", k)
		}
	})
}

// FuzzBounds: what List is to give is between the bounds, and these are such as
// the table takes.
func FuzzBounds(f *testing.F) {
	f.Add("", "", "a")
	f.Add("e/", "e/a", "e/a\x01")
	f.Add("e/", "f", "e/z")
	f.Add(strings.Repeat("k", registry.MaxKey), "", strings.Repeat("k", registry.MaxKey))
	f.Add("k", strings.Repeat("k", registry.MaxKey+5), "kl")
	f.Fuzz(func(t *testing.T, prefix, after, key string) {
		from, to, some := bounds(prefix, after)
		if some && (len(from) == 0 || len(to) == 0 || len(from) > registry.MaxKey || len(to) > registry.MaxKey || bytes.Compare(from, to) > 0) {
			t.Errorf("%q after %q is from %q to %q", prefix, after, from, to)
		}
		wanted := registry.CheckKey(key) == nil && strings.HasPrefix(key, prefix) && key > after
		if wanted && (!some || key < string(from) || key > string(to)) {
			t.Errorf("%q after %q is from %q to %q, which leaves %q out", prefix, after, from, to, key)
		}
	})
}

// TestOthersTables opens tables that are of something else.
func TestOthersTables(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "test")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "test")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	_, addr := lab.StartDynalite(t)
	ctx := context.Background()
	o := Options{Table: "others", Region: "eu-west-1", Endpoint: "http://" + addr}
	m, err := Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	for what, spoil := range map[string]item{
		"format":  {attrFormat: text("2"), attrSlots: number(100)},
		"damaged": {attrFormat: text(format), attrSlots: text("many")},
	} {
		for k, v := range itemKey(partState, []byte("config")) {
			spoil[k] = v
		}
		if _, err := m.client.PutItem(ctx, &dynamodb.PutItemInput{TableName: &o.Table, Item: spoil}); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(ctx, o); err == nil || !strings.Contains(err.Error(), what) || !strings.Contains(err.Error(), o.Table) {
			t.Errorf("%s: %v", what, err)
		}
	}
	o.Table = "keys"
	_, err = m.client.CreateTable(ctx, &dynamodb.CreateTableInput{TableName: &o.Table, BillingMode: types.BillingModePayPerRequest,
		AttributeDefinitions: []types.AttributeDefinition{{AttributeName: aws.String("id"), AttributeType: types.ScalarAttributeTypeS}},
		KeySchema:            []types.KeySchemaElement{{AttributeName: aws.String("id"), KeyType: types.KeyTypeHash}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(ctx, o); err == nil || !strings.Contains(err.Error(), "its keys are not those") {
		t.Errorf("a table with other keys: %v", err)
	}
}
