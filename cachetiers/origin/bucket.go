package origin

import (
	"context"
	"fmt"
	"io"
)

// A Bucket keeps objects by key, in a place that is far away, large and
// durable: the cloud's, or anything that speaks like it. What is common to all
// such places is in [Store]; a Bucket is as little as can be.
//
// Keys are relative to the bucket's prefix and made of [a-z0-9/] only. All
// methods may be called at once. ctx bounds each call, with all its retries,
// which are the Bucket's own business and few; nobody above repeats a call.
//
// Errors are registry's kinds, as [Trouble] tells them: ErrNotFound only if the
// place itself says that there is a bucket and no such key in it; a bucket that
// is missing, a refusal and a silence are ErrUnavailable; being throttled is
// ErrLimited; a quota that is used up is ErrNoRoom. Their text is for the
// operator's log and says what to do.
type Bucket interface {
	// Get opens a run of length bytes (negative: all) from offset on. It
	// returns when the place has answered; ctx governs the body too. An offset
	// at or behind the end may be ErrInvalid; offset 0 of an empty object with
	// a negative length is not. Nothing is verified but that the run begins
	// where it should: a body that ends early is for the caller to notice.
	Get(ctx context.Context, key string, offset, length int64) (Object, error)
	// Stat is how many bytes the object has.
	Stat(ctx context.Context, key string) (size int64, err error)
	// Put makes the first size bytes of content the object, whole or not at
	// all: whoever Gets meanwhile finds what was there before, or nothing.
	// When it returns nil the object is durable. An object of this size that
	// is there already may be left as it is; one of another size is replaced.
	// After an error the object may be there nevertheless: its answer was lost.
	// content is read by several goroutines, parts of it again after failures,
	// and not any more once Put has returned.
	Put(ctx context.Context, key string, content io.ReaderAt, size int64) error
	// Delete removes the object; that there is none is no error.
	Delete(ctx context.Context, key string) error
	// String is the bucket's address, without secrets: "s3://bucket/prefix".
	fmt.Stringer
}

// An Object is an open run of one object's bytes.
type Object struct {
	// Size is the whole object's.
	Size int64
	// Body gives the run; the caller closes it.
	Body io.ReadCloser
}
