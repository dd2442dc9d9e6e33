package acmpca

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	"countersign.dev/aws/internal/awstest/iam"
	"countersign.dev/aws/internal/awstest/pcafake"
	"countersign.dev/aws/session"
	"countersign.dev/mesh"
)

// page is what docs/private-ca.md says.
func page(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/private-ca.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// block is a code block of the page.
func block(t *testing.T, language string) string {
	t.Helper()
	_, rest, found := strings.Cut(page(t), "```"+language+"\n")
	text, _, ended := strings.Cut(rest, "```")
	if !found || !ended {
		t.Fatalf("the page has no block of %s", language)
	}
	return text
}

// TestPage reads the page's specification, and finds the prices there that the program reckons with.
func TestPage(t *testing.T) {
	spec, err := mesh.ParseDocuments([]mesh.Document{{Name: "private-ca.md", Directory: "/", Content: "mesh: payments\ntrustDomain: payments.internal\n" + block(t, "yaml")}})
	if err != nil {
		t.Fatal(err)
	}
	if name, authority := spec.AuthorityOf("checkout"); name != "pca" || authority.Template != DefaultTemplate || authority.Budget.Certificates != 500 {
		t.Errorf("the authority is %+v", authority)
	}
	for _, mode := range []string{mesh.ModeShortLived, mesh.ModeGeneralPurpose} {
		ca, one := Price(mode)
		for _, price := range []string{strings.TrimSuffix(ca, " a month"), strings.Fields(one)[0], PricesOf} {
			if !strings.Contains(page(t), price) {
				t.Errorf("the page does not say %s", price)
			}
		}
	}
	if short, general := Cost(mesh.ModeShortLived, 0, 60), Cost(mesh.ModeGeneralPurpose, 0, 60); short != 3.48 || general != 45 {
		t.Errorf("sixty certificates cost %v and %v", short, general)
	}
}

// policed lets the service answer what a policy allows, and refuse the rest as AWS does.
func (w *world) policed(policy *iam.Document) func(http.ResponseWriter, *http.Request) bool {
	return func(rw http.ResponseWriter, r *http.Request) bool {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			w.t.Error(err)
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		var call struct{ CertificateAuthorityArn, TemplateArn string }
		if err := json.Unmarshal(body, &call); err != nil {
			w.t.Error(err)
		}
		_, operation, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
		request := iam.Request{
			Caller: iam.Caller{Account: "123456789012", Role: "arn:aws:iam::123456789012:role/rotation", Session: "arn:aws:sts::123456789012:assumed-role/rotation/x"},
			Action: "acm-pca:" + operation, Resource: call.CertificateAuthorityArn,
		}
		if call.TemplateArn != "" {
			request.Context = map[string][]string{"acm-pca:TemplateArn": {call.TemplateArn}}
		}
		decision := iam.Decide(request, iam.Policies{Identity: []*iam.Document{policy}})
		if decision.Allowed {
			return false
		}
		return refuse(operation, 400, "AccessDeniedException", "User: "+request.Caller.Session+" is not authorized to perform: "+request.Action+" on resource: "+request.Resource+" "+decision.Why)(rw, r)
	}
}

// TestPolicy proves that the page's policy is enough, that each of its actions is needed, and that it allows nothing else.
func TestPolicy(t *testing.T) {
	w := newWorld(t, pcafake.Options{PendingPolls: 1}, pcafake.CA{CRL: "self"})
	text := strings.ReplaceAll(block(t, "json"), "CA-ARN", w.arn)
	parse := func(statements string) *iam.Document {
		t.Helper()
		policy, err := iam.Parse(iam.Identity, []byte(`{"Version":"2012-10-17","Statement":`+statements+`}`))
		if err != nil {
			t.Fatal(err)
		}
		return policy
	}
	issue := func(policy *iam.Document, template string) error {
		t.Helper()
		w.spoil = nil
		spoil := w.policed(policy)
		w.spoil = func(rw http.ResponseWriter, r *http.Request) bool { return r.Method == http.MethodPost && spoil(rw, r) }
		a := w.open(func(c *Config) { c.Template = template })
		if _, err := a.Trust(t.Context()); err != nil {
			return err
		}
		_, err := a.Issue(t.Context(), w.request("20261120T120000Z-0123456789abcdef"))
		return err
	}
	if err := issue(parse(text), ""); err != nil || len(w.notes) > 0 {
		t.Errorf("the page's policy is not enough: %v, %q", err, w.notes)
	}
	for _, action := range []string{"DescribeCertificateAuthority", "GetCertificate", "GetCertificateAuthorityCertificate", "IssueCertificate"} {
		if !strings.Contains(text, `"acm-pca:`+action+`"`) {
			t.Errorf("the page does not name %s", action)
		}
		w.now = w.now.Add(remembers * 2) // another certificate
		err := issue(parse(strings.Replace(text, `"acm-pca:`+action+`"`, `"acm-pca:ListTags"`, 1)), "")
		says(t, err, session.ErrDenied, `{"Effect":"Allow","Action":"acm-pca:`+action+`","Resource":"`+w.arn+`"}`)
	}
	says(t, issue(parse(text), "arn:aws:acm-pca:::template/EndEntityCertificate_CSRPassthrough/V1"), session.ErrDenied, "acm-pca:IssueCertificate")
	w.arn = w.add(pcafake.CA{})
	says(t, issue(parse(text), ""), session.ErrDenied, "acm-pca:GetCertificateAuthorityCertificate")
}
