package session

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"

	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// ErrNoRegion says that nobody has said which region is asked. It is an [ErrConfig]; where else than in the environment a
// region can be named, only the caller knows.
var ErrNoRegion = fmt.Errorf("%w: no region is named; set AWS_REGION to one such as eu-central-1", ErrConfig)

// endpointVariables are those that the SDK takes endpoints from for what this program asks. The first one is for all services.
var endpointVariables = []string{
	endpointVariable, endpointVariable + "_SECRETS_MANAGER", endpointVariable + "_STS", endpointVariable + "_KMS", endpointVariable + "_ACM_PCA",
	endpointVariable + "_ACM", endpointVariable + "_ECS", endpointVariable + "_IAM", endpointVariable + "_CLOUDWATCH", endpointVariable + "_CLOUDTRAIL",
	endpointVariable + "_EVENTBRIDGE", endpointVariable + "_ELASTIC_LOAD_BALANCING_V2", endpointVariable + "_SSO", endpointVariable + "_SSO_OIDC",
}

// checkEndpoints checks the endpoints of the environment: what is no URL at all, the SDK finds with the first call, and says
// neither the variable nor the value.
func checkEndpoints() error {
	if strings.EqualFold(os.Getenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"), "true") {
		return nil
	}
	for _, name := range endpointVariables {
		if value := os.Getenv(name); value != "" {
			if err := checkURL(name, value); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkURL checks a URL that something of that name holds. A path may be there, which some stand-ins for AWS have.
func checkURL(name, value string) error {
	u, err := url.Parse(value)
	fault := ""
	switch {
	case !strings.Contains(value, "://"), err == nil && u.Scheme != "http" && u.Scheme != "https":
		fault = "it begins with neither https:// nor http://"
	case err != nil:
		fault = "it cannot be read"
	case u.Hostname() == "":
		fault = "it names no host"
	default:
		return nil
	}
	return fmt.Errorf("%w: %s is %s, which is no URL of a service: %s; write one such as http://127.0.0.1:5000, or leave it out for AWS itself", ErrConfig, name, ShowURL(value), fault)
}

// ShowURL is what people are shown of something that should be a URL of a service: the text in quotes, unless a password
// may be in it.
func ShowURL(text string) string {
	if strings.ContainsAny(text, "@?#") {
		return "a text that is not shown, because it may hold a password"
	}
	return fmt.Sprintf("%.200q", text)
}

// unloaded says what is wrong with the environment and the shared files when the SDK can make nothing of them. It asks
// nobody for that, so that it is always what somebody has written.
func unloaded(err error) error {
	if missing, ok := errors.AsType[config.SharedConfigProfileNotExistError](err); ok {
		return fmt.Errorf("%w: AWS_PROFILE is %.80q, and no shared configuration file has a profile of that name; `aws configure list-profiles` shows which there are: name one of them, or leave the variable out",
			ErrConfig, missing.Profile)
	}
	return fmt.Errorf("%w: reading the environment and the shared configuration files: %w; correct the file or variable that it names, or leave it out", ErrConfig, err)
}

// asked is the URL that a failed call went to, without its path; nil when that is not known.
func asked(err error) *url.URL {
	u := new(url.URL)
	if answer, ok := errors.AsType[*smithyhttp.ResponseError](err); ok && answer.Response != nil && answer.Response.Response != nil && answer.Response.Request != nil && answer.Response.Request.URL != nil {
		u = answer.Response.Request.URL
	} else if way, ok := errors.AsType[*url.Error](err); ok {
		if parsed, err := url.Parse(way.URL); err == nil {
			u = parsed
		}
	}
	return origin(u)
}

// origin is a URL without its path; nil when it names no host.
func origin(u *url.URL) *url.URL {
	if u == nil || u.Host == "" {
		return nil
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host}
}

// standIn says which endpoint was asked in place of AWS's own, and who names it; empty when it was AWS's, or is not known.
func standIn(err error) string { return inPlace(asked(err)) }

func inPlace(u *url.URL) string {
	if u == nil || slices.ContainsFunc([]string{".amazonaws.com", ".amazonaws.com.cn", ".api.aws"}, func(end string) bool { return strings.HasSuffix(u.Hostname(), end) }) {
		return ""
	}
	for _, name := range slices.Backward(endpointVariables) {
		if named, err := url.Parse(os.Getenv(name)); err == nil && named.Host == u.Host {
			return u.String() + ", which " + name + " names"
		}
	}
	return u.String() + ", which was named in place of AWS's own endpoint"
}

// stranger tells whether what has answered is none of AWS: each service of AWS gives an error a name.
func stranger(err error) bool {
	code := Code(err)
	return code == unknownError || (code == "" && (status(err) >= http.StatusMultipleChoices || unreadable(err)))
}

// unknownError is the SDK's name for an error without one.
const unknownError = "UnknownError"

// Strange is the error of a call that was answered without what the service puts into every answer to it: a page that
// everything is sent to answers like that, or an endpoint of something else. service is what people call it, lacks what the answer
// does not have, and answer the metadata of it. It is [ErrUnavailable].
func Strange(service, lacks, action, resource string, answer middleware.Metadata) error {
	var u *url.URL
	if raw, ok := awsmiddleware.GetRawResponse(answer).(*smithyhttp.Response); ok && raw.Response != nil && raw.Request != nil {
		u = origin(raw.Request.URL)
	}
	where, advice := "", "see whether a proxy (HTTPS_PROXY) or a gateway answers in its place"
	if u != nil {
		where = " at " + u.String()
	}
	if place := inPlace(u); place != "" {
		advice = "correct this endpoint" + strings.TrimPrefix(place, u.String()) + ", or leave it out for AWS itself"
	}
	return &Error{
		Action: action, Resource: resource, kind: ErrUnavailable, advice: advice,
		err: fmt.Errorf("what answered%s is not %s: the answer has no %s", where, service, lacks),
	}
}
