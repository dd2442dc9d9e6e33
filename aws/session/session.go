// Package session knows how the program becomes a client of AWS: where its credentials come from, how often a call is
// tried, which endpoints are fit to be asked, and what an error of AWS means for people and how they mend it.
package session

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/smithy-go/logging"

	"countersign.dev/mesh"
)

// Bounds of one call.
const (
	maxTries   = 5                // of one call, the first among them, where nobody says otherwise
	mostTries  = 20               // somebody may say so
	maxBackoff = 4 * time.Second  // between two tries; the pause is by chance up to 1 s, 2 s, 4 s ...
	tryTimeout = 10 * time.Second // of one try, with its connection
)

// endpointVariable is where AWS's own tools and SDKs take an endpoint for all services from.
const endpointVariable = "AWS_ENDPOINT_URL"

// application is what CloudTrail shows behind app/ in the user agent of each call.
const application = "countersign"

// ErrConfig says that a region, a profile, an endpoint or something else that somebody has written cannot be used.
var ErrConfig = errors.New("the configuration for AWS cannot be used")

// Config says where AWS is asked. The zero value is right on AWS.
type Config struct {
	// Region is such as eu-central-1; empty is that of the environment (AWS_REGION) or of the shared configuration file.
	Region string
	// Endpoint is a URL that takes the place of the service's own; empty is AWS's, or that of AWS_ENDPOINT_URL. It
	// is https, unless it is on this machine or the one of AWS_ENDPOINT_URL.
	Endpoint string
}

// Load gives the configuration that clients of the SDK are made with. Credentials come from the default chain:
// the environment, the shared files, the container (the task role on ECS, by AWS_CONTAINER_CREDENTIALS_RELATIVE_URI or _FULL_URI) and the
// instance; they are asked for with the first call, and renewed before they end. A call is tried up to five times when
// AWS throttles it or fails for a moment, with pauses by chance, the SDK's token bucket for retries and its
// adaptive rate; one try takes at most ten seconds. AWS_MAX_ATTEMPTS and AWS_RETRY_MODE, or max_attempts and retry_mode of the
// shared configuration, say otherwise, and AWS_USE_FIPS_ENDPOINT is obeyed. The error is always [ErrConfig]: nobody is
// asked yet, so that it is about what somebody has written. The SDK logs nothing.
func Load(ctx context.Context, c Config) (aws.Config, error) {
	if err := c.check(); err != nil {
		return aws.Config{}, fmt.Errorf("making a client of AWS: %w", err)
	}
	if err := checkEndpoints(); err != nil {
		return aws.Config{}, fmt.Errorf("making a client of AWS: %w", err)
	}
	options := []func(*config.LoadOptions) error{
		config.WithHTTPClient(awshttp.NewBuildableClient().WithTimeout(tryTimeout)),
		config.WithLogger(logging.Nop{}), // its warnings are about the way to credentials: what comes of it is in the error
	}
	if os.Getenv("AWS_SDK_UA_APP_ID") == "" {
		options = append(options, config.WithAppID(application))
	}
	if c.Region != "" {
		options = append(options, config.WithRegion(c.Region))
	}
	if err := checkRetries(os.Getenv("AWS_MAX_ATTEMPTS"), os.Getenv("AWS_RETRY_MODE")); err != nil {
		return aws.Config{}, fmt.Errorf("making a client of AWS: %w", err)
	}
	loaded, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return aws.Config{}, fmt.Errorf("making a client of AWS: %w", unloaded(err))
	}
	if err := retries(&loaded); err != nil {
		return aws.Config{}, fmt.Errorf("making a client of AWS: %w", err)
	}
	if loaded.Region == "" {
		return aws.Config{}, fmt.Errorf("making a client of AWS: %w", ErrNoRegion)
	}
	if err := checkRegion(loaded.Region); err != nil {
		return aws.Config{}, fmt.Errorf("making a client of AWS: %w", err)
	}
	if loaded.BaseEndpoint != nil && *loaded.BaseEndpoint != os.Getenv(endpointVariable) {
		if err := checkURL("endpoint_url of the shared configuration", *loaded.BaseEndpoint); err != nil {
			return aws.Config{}, fmt.Errorf("making a client of AWS: %w", err)
		}
	}
	if c.Endpoint != "" {
		// Not before: the chain has clients of its own, of other services.
		loaded.BaseEndpoint = aws.String(c.Endpoint)
	}
	return loaded, nil
}

// checkRetries checks what the environment says about retries before the SDK does, which says less of it.
func checkRetries(attempts, mode string) error {
	if attempts != "" {
		if n, err := strconv.Atoi(attempts); err != nil || n < 0 || n > mostTries {
			return fmt.Errorf("%w: AWS_MAX_ATTEMPTS is %.20q; write a number from 1 to %d, or leave it out for %d", ErrConfig, attempts, mostTries, maxTries)
		}
	}
	if _, err := aws.ParseRetryMode(mode); mode != "" && err != nil {
		return fmt.Errorf("%w: AWS_RETRY_MODE is %.20q; write %s or %s, or leave it out for %[4]s", ErrConfig, mode, aws.RetryModeStandard, aws.RetryModeAdaptive)
	}
	return nil
}

// retries makes of what was said about retries who decides about them. The SDK takes 0, and an empty mode, for nothing said.
func retries(loaded *aws.Config) error {
	if tries := loaded.RetryMaxAttempts; tries < 0 || tries > mostTries {
		return fmt.Errorf("%w: max_attempts of the shared configuration is %d; write a number from 1 to %d, or leave it out for %d", ErrConfig, tries, mostTries, maxTries)
	}
	tries, mode := cmp.Or(loaded.RetryMaxAttempts, maxTries), loaded.RetryMode
	standard := func(o *retry.StandardOptions) { o.MaxAttempts, o.MaxBackoff = tries, maxBackoff }
	loaded.Retryer = func() aws.Retryer {
		if mode == aws.RetryModeStandard {
			return retry.NewStandard(standard)
		}
		return retry.NewAdaptiveMode(func(o *retry.AdaptiveModeOptions) { o.StandardOptions = append(o.StandardOptions, standard) })
	}
	return nil
}

var region = regexp.MustCompile(`^[a-z][a-z0-9]*(-[a-z0-9]+){1,5}$`)

// checkRegion keeps what is no region out of names of hosts.
func checkRegion(name string) error {
	if len(name) > 40 || !region.MatchString(name) {
		return fmt.Errorf("%w: %.60q is no region; write one such as eu-central-1", ErrConfig, name)
	}
	return nil
}

func (c Config) check() error {
	if c.Region != "" {
		if err := checkRegion(c.Region); err != nil {
			return err
		}
	}
	if c.Endpoint == "" {
		return nil
	}
	if err := mesh.CheckEndpoint(c.Endpoint); err != nil {
		return fmt.Errorf("%w: the endpoint is %s, which is no URL of a service: %w", ErrConfig, ShowURL(c.Endpoint), err)
	}
	endpoint, err := url.Parse(c.Endpoint)
	switch {
	case err != nil: // it was read before
		return fmt.Errorf("%w: the endpoint is no URL", ErrConfig)
	case endpoint.Scheme == "https":
	case !loopback(endpoint.Hostname()) && strings.TrimSuffix(c.Endpoint, "/") != strings.TrimSuffix(os.Getenv(endpointVariable), "/"):
		return fmt.Errorf("%w: the endpoint %.200s is on another machine and not https, so that secrets would cross the network in the clear; write https, or set %s to it where that is meant", ErrConfig, c.Endpoint, endpointVariable)
	}
	return nil
}

// loopback tells whether a host is this machine. Names are not resolved, but localhost, which RFC 6761 keeps for that.
func loopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	address, err := netip.ParseAddr(host)
	return err == nil && address.Unmap().IsLoopback()
}
