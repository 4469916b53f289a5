package dynamo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/names"
)

const (
	// attempts is how often the library sends a request in all.
	attempts = 6
	// answerLimit is how long an answer may take until the request is sent again.
	answerLimit = 5 * time.Second
	// tableLimit is how long a table may take to be made.
	tableLimit = 2 * time.Minute
	// format is the number of what the package comment describes.
	format = "1"
	// fallbackRegion is where a server of one's own is said to be.
	fallbackRegion = "us-east-1"
)

// Options say where the table is and how it is used.
type Options struct {
	// Table is its name. It is made if it is missing, billed by request.
	Table string
	// Region and Endpoint may be empty: Amazon's own programs' settings on this
	// machine then say where. Endpoint is the URL of a server other than Amazon's.
	Region, Endpoint string
	// Keep is how many batches of changes, of one change at least, the log of a
	// new table keeps; 0: names.DefaultKeep. A table that is there has its own.
	Keep int
	// Client sends the requests; nil: the library's own, which waits 5 s for
	// an answer.
	Client *http.Client
	// Backoff is the longest pause between the library's attempts; 0: 1 s.
	Backoff time.Duration
	Log     *slog.Logger // nil: slog.Default()
}

// A DB is a metadata database in a table. Any number may have the same table
// open, here and on other nodes. Puts that one DB is asked for at the same time
// are made together, as one batch. Each request is sent six times in all if
// there is no answer or one that says to try again; a Put waits for its turn for
// as long as its context allows.
type DB struct {
	client  *dynamodb.Client
	table   string
	slots   uint64
	backoff time.Duration // between two tries to put a batch
	log     *slog.Logger

	mu       sync.Mutex
	end      position      // the newest batch known, which has been applied; guarded by mu, as all below
	found    bool          // end has been looked for
	doubtful bool          // a batch of ours may be there and not yet applied
	queue    []*put        // those that no batch has taken yet
	flushing bool          // the goroutine that empties the queue runs
	woken    chan struct{} // closed at the next change

	work sync.WaitGroup
}

// A position is a place in the log: a batch, and the Rev of its last change. The
// zero one is before the first.
type position struct{ batch, rev uint64 }

var _ registry.Metadata = (*DB)(nil)

// Open opens a table, which it makes if there is none, and waits until it can be
// used. Credentials, and the region if it is left out, are found as Amazon's own
// programs find them: in the environment, the shared files, the machine's role.
// The caller closes the DB.
func Open(ctx context.Context, o Options) (*DB, error) {
	if o.Keep <= 0 {
		o.Keep = names.DefaultKeep
	}
	if o.Backoff <= 0 {
		o.Backoff = time.Second
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	client, err := connect(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("table %s: %w", o.Table, err)
	}
	m := &DB{client: client, table: o.Table, backoff: o.Backoff, log: o.Log, woken: make(chan struct{})}
	if err := m.makeTable(ctx); err != nil {
		return nil, registry.Wrap(registry.ErrUnavailable, err, "table "+o.Table)
	}
	if err := m.configure(ctx, uint64(o.Keep)+1); err != nil {
		return nil, registry.Wrap(registry.ErrUnavailable, err, "table "+o.Table)
	}
	return m, nil
}

// connect makes a client; it asks for nothing.
func connect(ctx context.Context, o Options) (*dynamodb.Client, error) {
	load := []func(*config.LoadOptions) error{
		config.WithRetryer(func() aws.Retryer {
			return retry.NewStandard(func(r *retry.StandardOptions) { r.MaxAttempts, r.MaxBackoff = attempts, o.Backoff })
		}),
		// The library's own knows AWS_CA_BUNDLE.
		config.WithHTTPClient(awshttp.NewBuildableClient().WithTimeout(answerLimit)),
	}
	if o.Region != "" {
		load = append(load, config.WithRegion(o.Region))
	}
	c, err := config.LoadDefaultConfig(ctx, load...)
	if err != nil {
		return nil, fmt.Errorf("the settings of Amazon's programs on this machine: %w", err)
	}
	if c.Region == "" && o.Endpoint == "" {
		return nil, errors.New("no region; add ?region=… to the address, or set AWS_REGION")
	}
	if c.Region == "" {
		c.Region = fallbackRegion
	}
	return dynamodb.NewFromConfig(c, func(d *dynamodb.Options) {
		if o.Client != nil {
			d.HTTPClient = o.Client
		}
		if o.Endpoint != "" {
			d.BaseEndpoint = aws.String(strings.TrimSuffix(o.Endpoint, "/"))
		}
	}), nil
}

// makeTable makes the table if it is missing and waits until it can be used.
func (m *DB) makeTable(ctx context.Context) error {
	_, err := m.client.DescribeTable(ctx, &dynamodb.DescribeTableInput{TableName: &m.table})
	var missing *types.ResourceNotFoundException
	if errors.As(err, &missing) {
		_, err = m.client.CreateTable(ctx, &dynamodb.CreateTableInput{
			TableName:   &m.table,
			BillingMode: types.BillingModePayPerRequest,
			AttributeDefinitions: []types.AttributeDefinition{
				{AttributeName: aws.String(attrPart), AttributeType: types.ScalarAttributeTypeS},
				{AttributeName: aws.String(attrKey), AttributeType: types.ScalarAttributeTypeB},
			},
			KeySchema: []types.KeySchemaElement{
				{AttributeName: aws.String(attrPart), KeyType: types.KeyTypeHash},
				{AttributeName: aws.String(attrKey), KeyType: types.KeyTypeRange},
			},
		})
		var made *types.ResourceInUseException
		if errors.As(err, &made) {
			err = nil // by another node, or by us and the answer was lost
		}
	}
	if err != nil {
		return err
	}
	waiter := dynamodb.NewTableExistsWaiter(m.client, func(o *dynamodb.TableExistsWaiterOptions) {
		o.MinDelay, o.MaxDelay = 50*time.Millisecond, 2*time.Second
	})
	out, err := waiter.WaitForOutput(ctx, &dynamodb.DescribeTableInput{TableName: &m.table}, tableLimit)
	if err != nil {
		return err
	}
	for _, a := range out.Table.AttributeDefinitions {
		if name := aws.ToString(a.AttributeName); (name == attrKey) != (a.AttributeType == types.ScalarAttributeTypeB) || name != attrKey && name != attrPart {
			return errors.New("it is there, and its keys are not those of a metadata database")
		}
	}
	return nil
}

// configure reads how the table is used, and says so in a new one.
func (m *DB) configure(ctx context.Context, slots uint64) error {
	key := itemKey(partState, []byte("config"))
	item := itemKey(partState, []byte("config"))
	item[attrFormat], item[attrSlots] = text(format), number(slots)
	err := m.putIf(ctx, item, "attribute_not_exists(#p)", map[string]string{"#p": attrPart}, nil)
	if err != nil && !conditionFailed(err) {
		return err
	}
	if item, err = m.getItem(ctx, key); err != nil {
		return err
	}
	if is, _ := item[attrFormat].(*types.AttributeValueMemberS); is == nil || is.Value != format {
		return errors.New("it is of a format that this version of weir does not know")
	}
	if m.slots = toNumber(item[attrSlots]); m.slots < 2 {
		return errors.New("what it says about itself is damaged")
	}
	return nil
}

// Close waits for the Puts that are being made. Nothing may be called after it.
func (m *DB) Close() error {
	m.work.Wait()
	return nil
}

// Woken implements registry.Metadata. It is closed by what this DB puts.
func (m *DB) Woken() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.woken
}

func (m *DB) wake() {
	m.mu.Lock()
	defer m.mu.Unlock()
	close(m.woken)
	m.woken = make(chan struct{})
}
