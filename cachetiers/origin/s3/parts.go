package s3

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"golang.org/x/sync/errgroup"
)

const (
	// maxParts is how many parts S3 takes.
	maxParts = 10_000
	// abortLimit is how long giving up may take.
	abortLimit = 10 * time.Second
)

// putParts puts an object in parts of equal size. What fails is aborted, so
// that no parts lie about and cost money; the library's own uploader aborts
// with the context that may be why it failed.
func (b *Bucket) putParts(ctx context.Context, key string, content io.ReaderAt, size int64) error {
	part := b.o.Part
	if least := (size + maxParts - 1) / maxParts; part < least {
		part = (least + 1<<20 - 1) &^ (1<<20 - 1)
	}
	begun, err := b.client.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: &b.addr.Bucket, Key: b.key(key),
		ContentType: aws.String("application/octet-stream")})
	if err != nil {
		return b.trouble(ctx, err, "begin to put "+key)
	}
	parts, err := b.sendParts(ctx, key, begun.UploadId, content, size, part)
	if err == nil {
		_, err = b.client.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{Bucket: &b.addr.Bucket, Key: b.key(key),
			UploadId: begun.UploadId, MultipartUpload: &types.CompletedMultipartUpload{Parts: parts}})
		err = b.trouble(ctx, err, "put the parts of "+key+" together")
	}
	if err != nil {
		// If it was put together after all, there is nothing to abort any more.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortLimit)
		defer cancel()
		b.client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &b.addr.Bucket, Key: b.key(key), UploadId: begun.UploadId})
	}
	return err
}

// sendParts sends the parts, some at once.
func (b *Bucket) sendParts(ctx context.Context, key string, upload *string, content io.ReaderAt, size, part int64) ([]types.CompletedPart, error) {
	parts := make([]types.CompletedPart, (size+part-1)/part)
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(b.o.Streams)
	for i := range parts {
		if groupCtx.Err() != nil {
			break
		}
		group.Go(func() error {
			at := int64(i) * part
			n := min(part, size-at)
			number := int32(i + 1)
			out, err := b.client.UploadPart(groupCtx, &s3.UploadPartInput{Bucket: &b.addr.Bucket, Key: b.key(key), UploadId: upload,
				PartNumber: &number, Body: io.NewSectionReader(content, at, n), ContentLength: &n})
			if err != nil {
				return b.trouble(groupCtx, err, fmt.Sprintf("put part %d of %d of %s", number, len(parts), key))
			}
			parts[i] = types.CompletedPart{ETag: out.ETag, PartNumber: &number}
			return nil
		})
	}
	return parts, group.Wait()
}
