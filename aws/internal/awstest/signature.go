package awstest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// scheme is what Authorization begins with.
const scheme = "AWS4-HMAC-SHA256 "

// maxSkew is how far a request's time may be from ours.
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
const maxSkew = 15 * time.Minute

// authorization is what a signed request says about itself.
type authorization struct {
	accessKey, region, service string
	headers                    []string // that are signed, in lower case
}

// parseAuthorization reads the header Authorization of Signature Version 4.
func parseAuthorization(header string) (authorization, error) {
	rest, ok := strings.CutPrefix(header, scheme)
	if !ok {
		return authorization{}, fmt.Errorf("the request is not signed with Signature Version 4")
	}
	fields := map[string]string{}
	for field := range strings.SplitSeq(rest, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(field), "=")
		fields[name] = value
	}
	scope := strings.Split(fields["Credential"], "/")
	if len(scope) != 5 || scope[4] != "aws4_request" || fields["Signature"] == "" || fields["SignedHeaders"] == "" {
		return authorization{}, fmt.Errorf("the header Authorization lacks a part of Credential=KEY/DATE/REGION/SERVICE/aws4_request, SignedHeaders, Signature")
	}
	return authorization{
		accessKey: scope[0], region: scope[2], service: scope[3],
		headers: strings.Split(fields["SignedHeaders"], ";"),
	}, nil
}

// verify signs the request once more with the secret that the access key stands for, and compares. Each header that is
// signed counts with the value that arrived; the body counts always.
func (s *session) verify(ctx context.Context, r *http.Request, a authorization, body []byte, now time.Time) *refusal {
	if s.SessionToken != r.Header.Get("X-Amz-Security-Token") {
		return &refusal{kind: badToken, message: "The security token included in the request is invalid."}
	}
	if !s.Expires.IsZero() && !now.Before(s.Expires) {
		return &refusal{kind: expiredToken, message: "The security token included in the request is expired"}
	}
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if err != nil || at.Sub(now).Abs() > maxSkew {
		return &refusal{kind: badSignature, message: fmt.Sprintf("Signature expired: %s is not within 15 minutes of %s",
			r.Header.Get("X-Amz-Date"), now.UTC().Format("20060102T150405Z"))}
	}
	again, err := http.NewRequestWithContext(ctx, r.Method, "http://"+r.Host+r.URL.RequestURI(), io.NopCloser(bytes.NewReader(body))) //nolint:gosec // is signed, not sent
	if err != nil {
		return &refusal{kind: badSignature, message: err.Error()}
	}
	for _, name := range a.headers {
		if values := r.Header.Values(name); len(values) > 0 {
			again.Header[http.CanonicalHeaderKey(name)] = values
		}
	}
	if slices.Contains(a.headers, "content-length") {
		again.Header.Del("Content-Length")
		again.ContentLength, _ = strconv.ParseInt(r.Header.Get("Content-Length"), 10, 64)
		if again.ContentLength == 0 {
			again.ContentLength = int64(len(body))
		}
	}
	sum := sha256.Sum256(body)
	credentials := aws.Credentials{AccessKeyID: s.AccessKeyID, SecretAccessKey: s.SecretAccessKey, SessionToken: s.SessionToken}
	if err := v4.NewSigner().SignHTTP(ctx, credentials, again, hex.EncodeToString(sum[:]), a.service, a.region, at); err != nil {
		return &refusal{kind: badSignature, message: err.Error()}
	}
	if subtle.ConstantTimeCompare([]byte(normal(again.Header.Get("Authorization"))), []byte(normal(r.Header.Get("Authorization")))) != 1 {
		return &refusal{kind: badSignature, message: "The request signature we calculated does not match the signature you provided. " +
			"Check your AWS Secret Access Key and signing method. Consult the service documentation for details."}
	}
	return nil
}

// normal leaves out the blanks that signers set differently.
func normal(header string) string { return strings.ReplaceAll(header, " ", "") }
