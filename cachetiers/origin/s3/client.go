package s3

import (
	"fmt"
	"net/http"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"

	"github.com/weir-registry/weir/cachetiers/origin"
)

// clients sends reads and writes by a client each, as origin.Shape has them.
type clients struct {
	read, write *http.Client
}

var _ aws.HTTPClient = (*clients)(nil)

// newClients shapes what the library was configured with.
func newClients(from aws.HTTPClient) (*clients, error) {
	basis, ok := from.(*awshttp.BuildableClient)
	if !ok {
		return nil, fmt.Errorf("the library has made an HTTP client of type %T", from)
	}
	shaped := func(writes bool) *http.Client {
		t := basis.GetTransport() // a copy
		origin.Shape(t, writes)
		return &http.Client{Transport: t,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	}
	return &clients{shaped(false), shaped(true)}, nil
}

// Do implements aws.HTTPClient.
func (c *clients) Do(r *http.Request) (*http.Response, error) {
	if origin.ForWriting(r) {
		return c.write.Do(r)
	}
	return c.read.Do(r)
}

func (c *clients) closeIdle() {
	c.read.CloseIdleConnections()
	c.write.CloseIdleConnections()
}
