// Package s3 is a bucket of S3, or of a server that speaks like it.
package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"

	"github.com/weir-registry/weir/cachetiers/origin"
	"github.com/weir-registry/weir/registry"
)

const (
	// Scheme is what addresses of such buckets begin with, before "://".
	Scheme = "s3"
	// attempts is how often the library asks in all.
	attempts = 3
	// region is where a server of one's own is said to be.
	region = "us-east-1"
)

// Options are a Bucket's settings; the zero value is right.
type Options struct {
	// Part is how large the parts are in which a large object is put; 0: 16
	// MiB, or what it takes for 10,000 of them to be enough. S3 wants 5 MiB.
	Part int64
	// Streams is how many parts of an object are put at once; 0: 4.
	Streams int
	// Backoff is the longest pause between the library's attempts; 0: 2 s.
	Backoff time.Duration
}

// A Bucket is an origin.Bucket in S3. A Get is one request on a connection of
// its own while it runs. The library asks three times in all if it gets no
// answer, or one that says to try again.
type Bucket struct {
	client  *s3.Client
	http    *clients
	addr    origin.Address
	o       Options
	present origin.Presence
}

var _ origin.Bucket = (*Bucket)(nil)

// settings is an address, taken apart.
type settings struct {
	origin.Address
	endpoint, region string
	pathStyle        bool
}

// parse is Check's work.
func parse(text string) (settings, error) {
	a, err := origin.ParseAddress(text, Scheme, "endpoint", "path_style", "region")
	if err != nil {
		return settings{}, err
	}
	s := settings{Address: a, region: a.Settings["region"]}
	if s.endpoint, err = a.Endpoint(); err != nil {
		return settings{}, err
	}
	if s.pathStyle, err = a.Switch("path_style", s.endpoint != ""); err != nil {
		return settings{}, err
	}
	if strings.ContainsFunc(s.region, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' }) {
		return settings{}, fmt.Errorf(`%s: region %q is none such as "eu-west-1"`, a, s.region)
	}
	return s, nil
}

// Check finds what is wrong with an address, without touching anything.
func Check(text string) error {
	_, err := parse(text)
	return err
}

// Open is the bucket at an address:
//
//	s3://bucket/prefix?region=eu-west-1&endpoint=http://127.0.0.1:7070&path_style=true
//
// All settings may be left out. endpoint is a server other than Amazon's, and
// path_style, true if there is one, puts the bucket's name into the path
// instead of the host. Credentials, and the region if it is left out, are
// found as Amazon's own programs find them: in the environment, the shared
// files, the machine's role. The bucket itself is not asked for anything. The
// caller closes the Bucket.
func Open(ctx context.Context, address string, o Options) (*Bucket, error) {
	where, err := parse(address)
	if err != nil {
		return nil, err
	}
	if o.Part <= 0 {
		o.Part = 16 << 20
	}
	if o.Streams <= 0 {
		o.Streams = 4
	}
	if o.Backoff <= 0 {
		o.Backoff = 2 * time.Second
	}
	b := &Bucket{addr: where.Address, o: o}
	load := []func(*config.LoadOptions) error{
		// The library's own, which knows AWS_CA_BUNDLE.
		config.WithHTTPClient(awshttp.NewBuildableClient()),
		// Compatible servers do not know the checksums that S3 got in 2024.
		config.WithRequestChecksumCalculation(aws.RequestChecksumCalculationWhenRequired),
		config.WithResponseChecksumValidation(aws.ResponseChecksumValidationWhenRequired),
		config.WithRetryer(func() aws.Retryer {
			return retry.NewStandard(func(r *retry.StandardOptions) { r.MaxAttempts, r.MaxBackoff = attempts, o.Backoff })
		}),
	}
	if where.region != "" {
		load = append(load, config.WithRegion(where.region))
	}
	c, err := config.LoadDefaultConfig(ctx, load...)
	if err != nil {
		return nil, fmt.Errorf("%s: the settings of Amazon's programs on this machine: %w", b, err)
	}
	if c.Region == "" && where.endpoint == "" {
		return nil, fmt.Errorf("%s: no region; add ?region=… to the address, or set AWS_REGION", b)
	}
	if c.Region == "" {
		c.Region = region
	}
	if b.http, err = newClients(c.HTTPClient); err != nil {
		return nil, fmt.Errorf("%s: %w", b, err)
	}
	b.client = s3.NewFromConfig(c, func(o *s3.Options) {
		o.HTTPClient = b.http
		o.UsePathStyle = where.pathStyle
		o.DisableLogOutputChecksumValidationSkipped = true
		if where.endpoint != "" {
			o.BaseEndpoint = aws.String(strings.TrimSuffix(where.endpoint, "/"))
		}
	})
	return b, nil
}

// String implements origin.Bucket.
func (b *Bucket) String() string { return b.addr.String() }

// Close closes the connections that nobody uses.
func (b *Bucket) Close() error {
	b.http.closeIdle()
	return nil
}

func (b *Bucket) key(key string) *string { return aws.String(b.addr.Prefix + key) }

// Get implements origin.Bucket.
func (b *Bucket) Get(ctx context.Context, key string, offset, length int64) (origin.Object, error) {
	in := &s3.GetObjectInput{Bucket: &b.addr.Bucket, Key: b.key(key)}
	ranged := offset > 0 || length >= 0
	if ranged {
		in.Range = aws.String(fmt.Sprintf("bytes=%d-", offset))
		if length >= 0 && length < 1<<62-offset {
			in.Range = aws.String(fmt.Sprintf("bytes=%d-%d", offset, offset+length-1))
		}
	}
	out, err := b.client.GetObject(ctx, in)
	if err != nil {
		return origin.Object{}, b.trouble(ctx, err, "get "+key)
	}
	size := aws.ToInt64(out.ContentLength)
	if ranged && out.ContentRange != nil {
		first, whole, ok := contentRange(*out.ContentRange)
		if !ok || first != offset {
			out.Body.Close()
			return origin.Object{}, b.fault("get %s: the server answers bytes=%d- with %q", key, offset, *out.ContentRange)
		}
		size = whole
	} else if out.ContentLength == nil || offset > 0 {
		out.Body.Close()
		return origin.Object{}, b.fault("get %s: the server does not do ranges, or says no length; it cannot be used", key)
	}
	return origin.Object{Size: size, Body: out.Body}, nil
}

// fault is an answer that no server should give.
func (b *Bucket) fault(format string, args ...any) error {
	return &registry.Error{Kind: registry.ErrUnavailable, Text: fmt.Sprintf(format, args...)}
}

// contentRange takes "bytes 0-9/100" apart.
func contentRange(s string) (first, whole int64, ok bool) {
	run, total, ok := strings.Cut(strings.TrimPrefix(s, "bytes "), "/")
	begin, _, dash := strings.Cut(run, "-")
	first, err1 := strconv.ParseInt(begin, 10, 64)
	whole, err2 := strconv.ParseInt(total, 10, 64)
	return first, whole, ok && dash && err1 == nil && err2 == nil && first >= 0 && whole > first
}

// Stat implements origin.Bucket.
func (b *Bucket) Stat(ctx context.Context, key string) (int64, error) {
	out, err := b.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &b.addr.Bucket, Key: b.key(key)})
	if err != nil {
		return 0, b.trouble(ctx, err, "look at "+key)
	}
	if out.ContentLength == nil {
		return 0, b.fault("look at %s: the server says no length; it cannot be used", key)
	}
	return *out.ContentLength, nil
}

// Delete implements origin.Bucket.
func (b *Bucket) Delete(ctx context.Context, key string) error {
	_, err := b.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &b.addr.Bucket, Key: b.key(key)})
	if err = b.trouble(ctx, err, "delete "+key); registry.KindOf(err) == registry.ErrNotFound {
		return nil
	}
	return err
}

// Put implements origin.Bucket: in one request, or in several parts at once.
// The library signs a hash of what it sends, so that the server takes nothing
// that was damaged on the way.
func (b *Bucket) Put(ctx context.Context, key string, content io.ReaderAt, size int64) error {
	if size > b.o.Part {
		return b.putParts(ctx, key, content, size)
	}
	_, err := b.client.PutObject(ctx, &s3.PutObjectInput{Bucket: &b.addr.Bucket, Key: b.key(key),
		Body: io.NewSectionReader(content, 0, size), ContentLength: &size, ContentType: aws.String("application/octet-stream")})
	return b.trouble(ctx, err, "put "+key)
}

// trouble is err as a failure of one of registry's kinds.
func (b *Bucket) trouble(ctx context.Context, err error, doing string) error {
	if err == nil {
		return nil
	}
	t := origin.Trouble{Err: err}
	var api smithy.APIError
	if errors.As(err, &api) {
		t.Code = api.ErrorCode()
	}
	var answer *awshttp.ResponseError
	if errors.As(err, &answer) {
		t.Status = answer.HTTPStatusCode()
		if answer.Response != nil && answer.Response.Response != nil {
			t.Header = answer.Response.Header
		}
	}
	// The answer to a HEAD has no body that could say what is missing; the
	// library calls it "NotFound".
	if t.Status == http.StatusNotFound && t.Code != "NoSuchKey" && t.Code != "NoSuchBucket" && t.Code != "NoSuchUpload" {
		absent := &registry.Error{Kind: registry.ErrNotFound, Text: doing, Err: err}
		return b.present.Missing(ctx, absent, b.look)
	}
	return t.Error(doing)
}

// look reports whether the bucket is there, by nil.
func (b *Bucket) look(ctx context.Context) error {
	_, err := b.client.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: &b.addr.Bucket})
	var answer *awshttp.ResponseError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &answer) && answer.HTTPStatusCode() == http.StatusNotFound:
		return origin.Trouble{Status: http.StatusNotFound, Code: "NoSuchBucket", Err: err}.Error("look for " + b.String())
	case errors.As(err, &answer) && answer.HTTPStatusCode() == http.StatusForbidden:
		return nil // it is there, and may not be looked at
	}
	return b.unanswered(err)
}

// unanswered is the error of a look at the bucket that gave nothing.
func (b *Bucket) unanswered(err error) error {
	t := origin.Trouble{Err: err}
	var answer *awshttp.ResponseError
	if errors.As(err, &answer) {
		t.Status = answer.HTTPStatusCode()
	}
	return t.Error("look for " + b.String())
}
