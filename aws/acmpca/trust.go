package acmpca

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/acmpca"
	"github.com/aws/aws-sdk-go-v2/service/acmpca/types"

	"countersign.dev/aws/acmpca/internal/answer"
	"countersign.dev/mtls"
	"countersign.dev/rotate"
)

const (
	// fresh is how long what a CA says of itself is believed without asking again: as many services are looked at, one
	// after the other, in that time.
	fresh = time.Minute
	// listTimeout bounds the download of a revocation list.
	listTimeout = 5 * time.Second
)

// known is what a CA has said of itself, and when.
type known struct {
	authority *answer.Authority
	crl       []byte
	listed    bool // crl was asked for
	at        time.Time
}

// Trust implements rotate.Authority: the root that the CA leads to, the CA's own certificate as issuer, and its revocation
// list where it publishes one that can be fetched. A list that cannot be had or read is noted and missing: it would keep
// all others from being renewed, and a list that is missing says nothing to a proxy either. A CA that is disabled can
// still be trusted; one that has no certificate yet is [ErrState].
func (a *Authority) Trust(ctx context.Context) (rotate.Trust, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	k, err := a.known(ctx)
	if err != nil {
		return rotate.Trust{}, err
	}
	if !k.listed {
		if k.crl, err = a.list(ctx, k.authority.Issuer); err != nil {
			a.config.Note(fmt.Sprintf("the revocation list of %s is not looked at: %v", a.config.ARN, err))
		}
		k.listed = true
	}
	bundle := k.authority.Bundle()
	return rotate.Trust{Bundle: bundle, Known: bundle, CRL: k.crl, Issuer: k.authority.Issuer}, nil
}

// authority is the CA's chain.
func (a *Authority) authority(ctx context.Context) (*answer.Authority, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	k, err := a.known(ctx)
	if err != nil {
		return nil, err
	}
	return k.authority, nil
}

// known asks for the CA's certificate, unless that was done a moment ago.
func (a *Authority) known(ctx context.Context) (*known, error) {
	now := a.config.Now()
	if a.trust != nil && now.Sub(a.trust.at).Abs() < fresh {
		return a.trust, nil
	}
	out, err := a.client.GetCertificateAuthorityCertificate(ctx, &acmpca.GetCertificateAuthorityCertificateInput{CertificateAuthorityArn: aws.String(a.config.ARN)})
	if _, not := errors.AsType[*types.InvalidStateException](err); not {
		ca, err2 := a.describe(ctx)
		if err2 != nil {
			return nil, err2
		}
		if err := a.ready(ca); err != nil {
			return nil, err
		}
	}
	if err != nil {
		return nil, missing(a.explain(err, "GetCertificateAuthorityCertificate"), a.config.ARN)
	}
	authority, err := answer.ParseAuthority([]byte(aws.ToString(out.Certificate)), []byte(aws.ToString(out.CertificateChain)))
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrConfig, a.config.ARN, err)
	}
	a.trust = &known{authority: authority, at: now}
	return a.trust, nil
}

// list fetches the CA's revocation list; nil without an error when it publishes none.
func (a *Authority) list(ctx context.Context, issuer *x509.Certificate) ([]byte, error) {
	ca, err := a.describe(ctx)
	if err != nil {
		return nil, err
	}
	url, err := location(ca, a.region())
	if err != nil || url == "" {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	response, err := a.lists.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s; may this network read it?", url, response.Status)
	}
	der, err := io.ReadAll(io.LimitReader(response.Body, mtls.MaxCRLs))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", url, err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
	lists, err := mtls.ParseCRLs(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", url, err)
	}
	// It came in the clear: what the CA has not signed is nobody's.
	if _, _, ours := lists.Covers(issuer); !ours {
		return nil, fmt.Errorf("%s: it is not signed by the CA", url)
	}
	return bytes.TrimSpace(text), nil
}

// location is where a CA publishes its list; empty when it does not.
func location(ca *types.CertificateAuthority, region string) (string, error) {
	if ca.RevocationConfiguration == nil || ca.RevocationConfiguration.CrlConfiguration == nil || !aws.ToBool(ca.RevocationConfiguration.CrlConfiguration.Enabled) {
		return "", nil
	}
	crl := ca.RevocationConfiguration.CrlConfiguration
	if crl.CrlType == types.CrlTypePartitioned {
		return "", errors.New("it is partitioned, and each part holds for some certificates only; only complete lists are read")
	}
	host := aws.ToString(crl.CustomCname)
	if host == "" {
		if aws.ToString(crl.S3BucketName) == "" {
			return "", errors.New("AWS does not say where it is")
		}
		host = aws.ToString(crl.S3BucketName) + ".s3." + region + ".amazonaws.com"
		if strings.HasPrefix(region, "cn-") {
			host += ".cn"
		}
	}
	return "http://" + path.Join(host, aws.ToString(crl.CustomPath), "crl", idOf(aws.ToString(ca.Arn))+".crl"), nil
}

// region is that of the CA.
func (a *Authority) region() string { return arnForm.FindStringSubmatch(a.config.ARN)[2] }

// listClient fetches lists. It follows no redirect: where a list is, the CA says.
func listClient() *http.Client {
	return &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}
