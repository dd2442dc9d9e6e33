package awstest

import (
	"context"
	"strings"
)

// certificateNeeds are what a call to ACM touches. Certificates have no names that a policy could be written for before
// they exist: their tags, and what is asked for, are what policies tell them apart by.
func (c *Cloud) certificateNeeds(ctx context.Context, q *request) ([]need, *refusal) {
	n := need{action: q.action(), resource: "*", context: map[string][]string{}}
	if arn := q.str("CertificateArn"); arn != "" {
		n.resource = arn
		answer, err := c.inside(ctx, "acm", "CertificateManager.ListTagsForCertificate", map[string]any{"CertificateArn": arn})
		if err != nil {
			return nil, &refusal{kind: unavailable, message: err.Error()}
		}
		tagged(n.context, "aws:ResourceTag/", answer["Tags"])
	}
	tagged(n.context, "aws:RequestTag/", q.params["Tags"])
	if q.operation != "RequestCertificate" {
		return []need{n}, nil
	}
	n.resource = arnOf("acm", "certificate/*")
	n.context["acm:CertificateAuthority"] = optional(q.str("CertificateAuthorityArn"))
	n.context["acm:KeyAlgorithm"] = optional(q.str("KeyAlgorithm"))
	n.context["acm:DomainNames"] = append(optional(strings.ToLower(q.str("DomainName"))), q.list("SubjectAlternativeNames")...)
	needs := []need{n}
	if tags, _ := q.params["Tags"].([]any); len(tags) > 0 {
		needs = append(needs, need{action: "acm:AddTagsToCertificate", resource: n.resource, context: n.context})
	}
	if ca := q.str("CertificateAuthorityArn"); ca != "" {
		needs = append(needs, need{action: "acm-pca:IssueCertificate", resource: ca, context: map[string][]string{
			"acm-pca:TemplateArn": {defaultTemplate}, "aws:ViaAWSService": {"true"}, "aws:CalledVia": {"acm.amazonaws.com"},
		}})
	}
	return needs, nil
}

// tagged puts a list of tags into the context of a decision.
func tagged(context map[string][]string, prefix string, tags any) {
	all, _ := tags.([]any)
	for _, one := range all {
		if tag, ok := one.(map[string]any); ok {
			context[prefix+text(tag, "Key")] = []string{text(tag, "Value")}
		}
	}
}
