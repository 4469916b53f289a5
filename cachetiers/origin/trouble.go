package origin

import (
	"context"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/weir-registry/weir/registry"
)

// A Trouble is a refusal of a bucket, as its answer tells it.
type Trouble struct {
	// Status is the answer's; 0: there was none.
	Status int
	// Code is the place's own word for it: "SlowDown", "NoSuchBucket"; may be "".
	Code string
	// Header is the answer's; may be nil.
	Header http.Header
	// Err is what the place's library made of it.
	Err error
}

// Error is the trouble as a failure of one of registry's kinds, with a text
// that tells an operator what to do. Only what is certainly a missing key is
// ErrNotFound: a 404 without a code that says so is for the caller to decide.
func (t Trouble) Error(doing string) error {
	advice, kind := t.judge()
	text := doing
	if advice != "" {
		text += ": " + advice
	}
	return &registry.Error{Kind: kind, Text: text, After: retryAfter(t.Header), Err: t.Err}
}

// judge finds what to do about it, and the kind. Codes come first: they say
// more than the status, which compatible servers do not agree on.
func (t Trouble) judge() (advice string, kind error) {
	switch t.Code {
	case "NoSuchKey":
		return "", registry.ErrNotFound
	case "NoSuchBucket":
		return "the bucket does not exist; make it, or correct origin.blobs", registry.ErrUnavailable
	case "SlowDown", "RequestLimitExceeded", "TooManyRequests", "Throttling", "ThrottlingException", "rateLimitExceeded", "userRateLimitExceeded":
		return "the bucket is asked too often; ask its provider for a higher rate, or use another prefix", registry.ErrLimited
	case "QuotaExceeded", "quotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "InsufficientStorage":
		return "the bucket's quota is used up; raise it, or delete from the bucket", registry.ErrNoRoom
	case "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired":
		return "the credentials are wrong or have expired; correct them in the environment or the shared files", registry.ErrUnavailable
	case "RequestTimeTooSkewed":
		return "this machine's clock is wrong", registry.ErrUnavailable
	case "PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException":
		return "the bucket is in another region; correct region in origin.blobs", registry.ErrUnavailable
	}
	switch t.Status {
	case http.StatusMovedPermanently, http.StatusTemporaryRedirect:
		return "the bucket is elsewhere; correct region and endpoint in origin.blobs", registry.ErrUnavailable
	case http.StatusUnauthorized, http.StatusForbidden:
		return "the credentials may not do this; they need to read, write, delete and list objects under the prefix " +
			"(without the right to list, a bucket refuses to say that a key is not there)", registry.ErrUnavailable
	case http.StatusTooManyRequests:
		return "the bucket is asked too often; ask its provider for a higher rate", registry.ErrLimited
	case http.StatusRequestedRangeNotSatisfiable:
		return "", registry.ErrInvalid
	case http.StatusRequestEntityTooLarge:
		return "the bucket takes no objects of this size", registry.ErrTooLarge
	case http.StatusInsufficientStorage:
		return "the bucket has no room; add some, or delete from the bucket", registry.ErrNoRoom
	case 0:
		return "no answer", registry.ErrUnavailable
	}
	return "the bucket answered with status " + strconv.Itoa(t.Status), registry.ErrUnavailable
}

// retryAfter is what a header asks for, in whole seconds, at most an hour.
func retryAfter(h http.Header) time.Duration {
	seconds, err := strconv.Atoi(h.Get("Retry-After"))
	if err != nil || seconds < 0 {
		return 0
	}
	return min(time.Duration(seconds)*time.Second, time.Hour)
}

// presentFor is for how long a bucket that was there counts as being there.
const presentFor = time.Minute

// A Presence tells a missing key from a missing bucket, where the answer to a
// look at a key is 404 in both cases. Its zero value knows nothing yet.
type Presence struct {
	mu   sync.Mutex
	seen time.Time // guarded by mu; when the bucket was there
}

// Missing is the error for a 404: err, which is ErrNotFound, if the bucket is
// there, and what look says if not. It looks once a minute at most while the
// bucket is there.
func (p *Presence) Missing(ctx context.Context, err error, look func(context.Context) error) error {
	p.mu.Lock()
	recent := time.Since(p.seen) < presentFor
	p.mu.Unlock()
	if recent {
		return err
	}
	if gone := look(ctx); gone != nil {
		return gone
	}
	p.mu.Lock()
	p.seen = time.Now()
	p.mu.Unlock()
	return err
}
