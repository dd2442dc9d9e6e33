package review

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudtrail"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatch"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"countersign.dev/aws/session"
	"countersign.dev/mesh"
)

// place is a region, and where its Secrets Manager is asked.
type place struct {
	region, endpoint string // the region as the store says it
	config           aws.Config

	secrets   *secretsmanager.Client
	kms       *kms.Client
	ecs       *ecs.Client
	balancers *elb.Client
	events    *eventbridge.Client
	alarms    *cloudwatch.Client
	trail     *cloudtrail.Client
}

// at is the place of a store.
func (r *reviewer) at(ctx context.Context, store mesh.Store) (*place, error) {
	region, endpoint := cmp.Or(store.Region, r.Region), cmp.Or(r.Endpoint, store.Endpoint)
	for _, p := range r.places {
		if p.region == region && p.endpoint == endpoint {
			return p, nil
		}
	}
	config, err := session.Load(ctx, session.Config{Region: region, Endpoint: r.Endpoint})
	if err != nil {
		return nil, err
	}
	ofStore := config // a store's endpoint is Secrets Manager's alone
	if endpoint != r.Endpoint {
		if ofStore, err = session.Load(ctx, session.Config{Region: region, Endpoint: endpoint}); err != nil {
			return nil, err
		}
	}
	p := &place{
		region: region, endpoint: endpoint, config: config, secrets: secretsmanager.NewFromConfig(ofStore), kms: kms.NewFromConfig(config),
		ecs: ecs.NewFromConfig(config), balancers: elb.NewFromConfig(config), events: eventbridge.NewFromConfig(config),
		alarms: cloudwatch.NewFromConfig(config), trail: cloudtrail.NewFromConfig(config),
	}
	r.places = append(r.places, p)
	if !slices.Contains(r.report.Regions, config.Region) {
		r.report.Regions = append(r.report.Regions, config.Region)
	}
	return p, nil
}

// name is the last part of an ARN with slashes, or the name itself.
func name(arn string) string { return arn[strings.LastIndexByte(arn, '/')+1:] }

// arn is an ARN in the place; the account may be unknown, and is * then.
func (r *reviewer) arn(p *place, service, resource string) string {
	return "arn:" + r.partition + ":" + service + ":" + p.config.Region + ":" + cmp.Or(r.account, "*") + ":" + resource
}

// Bounds of the first question.
const (
	firstTime  = 20 * time.Second // a way to credentials over the network is in it
	firstTries = 3
)

// whoAmI finds the account out. When nobody can be asked for it, all else would fail alike, and it tells so.
func (r *reviewer) whoAmI(ctx context.Context) (known bool) {
	const action = "sts:GetCallerIdentity"
	r.partition = "aws"
	within, cancel := context.WithTimeout(ctx, firstTime)
	defer cancel()
	out, err := sts.NewFromConfig(r.places[0].config).GetCallerIdentity(within, &sts.GetCallerIdentityInput{}, func(o *sts.Options) {
		o.RetryMaxAttempts = min(o.Retryer.MaxAttempts(), firstTries)
	})
	if err != nil {
		err = session.Explain(err, action, "*")
		if ctx.Err() == nil && session.Everywhere(err) {
			r.unread(fmt.Errorf("%w (nothing else was asked)", err), action, "*", "account")
			return false
		}
		if ctx.Err() != nil {
			r.left = append(r.left, "the account, and all that is in it")
			return false
		}
		r.unread(err, action, "*", "account")
		return true
	}
	r.account = aws.ToString(out.Account)
	r.report.Account = r.account
	if parts := strings.SplitN(aws.ToString(out.Arn), ":", 3); len(parts) == 3 {
		r.partition = parts[1]
	}
	return true
}

// ofAccount is the client of IAM, which has no regions.
func (r *reviewer) ofAccount() *iam.Client { return iam.NewFromConfig(r.places[0].config) }
