package awstest

import (
	"context"
	"crypto/rand"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"time"

	"countersign.dev/aws/internal/awstest/iam"
)

// Credentials are what a role's session, or the account's root, signs with.
type Credentials struct {
	AccessKeyID     string
	SecretAccessKey string
	SessionToken    string    // "" for root
	Expires         time.Time // zero: never
}

// session is who signs with certain credentials.
type session struct {
	Credentials
	root bool
	role *role
	name string // of the session
}

// arn is the caller as errors and sts:GetCallerIdentity name it.
func (s *session) arn() string {
	if s.root {
		return "arn:aws:iam::" + Account + ":root"
	}
	return "arn:aws:sts::" + Account + ":assumed-role/" + s.role.name + "/" + s.name
}

// roleName is what the log of calls shows.
func (s *session) roleName() string {
	if s.root {
		return "root"
	}
	return s.role.name
}

// role is what the front knows of a role.
type role struct {
	name, arn string
	trust     *iam.Document
	inline    map[string]*iam.Document // policies by name
	attached  map[string]bool          // managed policies by ARN
}

// DefaultTrust is the trust policy of roles that PutRole makes: tasks, functions and schedules of this account.
const DefaultTrust = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"sts:AssumeRole",` +
	`"Principal":{"Service":["ecs-tasks.amazonaws.com","lambda.amazonaws.com","events.amazonaws.com"]}}]}`

// PutRole makes the role with exactly these identity policies, here and in moto's IAM, where programs can read it. A role of
// that name keeps its trust policy and loses its other inline policies.
func (c *Cloud) PutRole(name string, policies ...[]byte) {
	c.t.Helper()
	_ = c.iam("CreateRole", url.Values{"RoleName": {name}, "AssumeRolePolicyDocument": {DefaultTrust}})
	c.mu.Lock()
	var before []string
	if known := c.roles[name]; known != nil {
		for policy := range known.inline {
			before = append(before, policy)
		}
	}
	c.mu.Unlock()
	for _, policy := range before {
		_ = c.iam("DeleteRolePolicy", url.Values{"RoleName": {name}, "PolicyName": {policy}})
	}
	for i, policy := range policies {
		err := c.iam("PutRolePolicy", url.Values{"RoleName": {name}, "PolicyName": {fmt.Sprintf("policy-%d", i+1)}, "PolicyDocument": {string(policy)}})
		if err != nil {
			c.t.Errorf("role %s: %v", name, err)
		}
	}
}

// iam calls an operation of moto's IAM and tells the front's own books.
func (c *Cloud) iam(operation string, form url.Values) error {
	form.Set("Action", operation)
	form.Set("Version", "2010-05-08")
	body := form.Encode()
	r := httptest.NewRequestWithContext(context.Background(), http.MethodPost, "/", strings.NewReader(body))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	q, err := parseRequest(r, "iam", []byte(body))
	if err != nil {
		return err
	}
	if refused := c.checkPolicies(q); refused != nil {
		return errors.New(refused.message)
	}
	status, answer := ask(moto, "iam", r.Header, body)
	c.observe(q, status)
	if status != http.StatusOK {
		return fmt.Errorf("%s: %d %s", operation, status, answer)
	}
	return nil
}

// ask sends a request to a double past the front, for what the front itself has to know. What is asked for is found by the
// scope of the signature, which the doubles do not check.
func ask(p *process, service string, header http.Header, body string) (int, string) {
	r := httptest.NewRequestWithContext(context.Background(), http.MethodPost, "http://"+service+"/", strings.NewReader(body))
	r.Header = header.Clone()
	r.Header.Set("Authorization", fakeAuthorization(service))
	w := httptest.NewRecorder()
	double(p).ServeHTTP(w, r)
	answer, _ := io.ReadAll(w.Body)
	return w.Code, string(answer)
}

// fakeAuthorization is what the doubles find a service by.
func fakeAuthorization(service string) string {
	return scheme + "Credential=FRONT/20260101/" + Region + "/" + service + "/aws4_request, SignedHeaders=host, Signature=0"
}

// observe keeps the front's books of IAM by the operations that succeeded.
func (c *Cloud) observe(q *request, status int) {
	name := q.str("RoleName")
	exists := status == http.StatusConflict // the role is there, from an earlier test of this process
	if status != http.StatusOK && (!exists || q.operation != "CreateRole") {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	known := c.roles[name]
	switch q.operation {
	case "CreateRole":
		if known == nil {
			path := q.str("Path")
			if path == "" {
				path = "/"
			}
			c.roles[name] = &role{
				name: name, arn: "arn:aws:iam::" + Account + ":role" + path + name,
				trust: q.policy, inline: map[string]*iam.Document{}, attached: map[string]bool{},
			}
		}
	case "DeleteRole":
		delete(c.roles, name)
	case "CreatePolicy":
		path := q.str("Path")
		if path == "" {
			path = "/"
		}
		c.managed["arn:aws:iam::"+Account+":policy"+path+q.str("PolicyName")] = q.policy
	case "CreatePolicyVersion":
		if q.str("SetAsDefault") == "true" {
			c.managed[q.str("PolicyArn")] = q.policy
		}
	case "DeletePolicy":
		delete(c.managed, q.str("PolicyArn"))
	}
	if known != nil {
		known.observe(q)
	}
}

// observe changes the role's policies.
func (r *role) observe(q *request) {
	switch q.operation {
	case "PutRolePolicy":
		r.inline[q.str("PolicyName")] = q.policy
	case "DeleteRolePolicy":
		delete(r.inline, q.str("PolicyName"))
	case "AttachRolePolicy":
		r.attached[q.str("PolicyArn")] = true
	case "DetachRolePolicy":
		delete(r.attached, q.str("PolicyArn"))
	case "UpdateAssumeRolePolicy":
		r.trust = q.policy
	}
}

// Assume returns credentials of the role, by its name or ARN, whoever its trust policy allows: what a test's own client
// uses. A role that is not there fails the test.
func (c *Cloud) Assume(role string) Credentials {
	c.t.Helper()
	credentials, err := c.assume(role, "test")
	if err != nil {
		c.t.Error(err)
	}
	return credentials
}

// AssumeAs gives a service such as "ecs-tasks.amazonaws.com" credentials of the role, by its name or ARN, when its trust
// policy lets the service act for this account and the given source: what the double of ECS hands to a task.
func (c *Cloud) AssumeAs(service, role, session, sourceARN string) (Credentials, error) {
	c.mu.Lock()
	known := c.roles[nameOf(role)]
	var trust *iam.Document
	if known != nil {
		trust = known.trust
	}
	c.mu.Unlock()
	if known == nil {
		return c.assume(role, session) // which says that it is not there
	}
	context := map[string][]string{"aws:SourceAccount": {Account}, "aws:SourceArn": optional(sourceARN), "aws:PrincipalIsAWSService": {"true"}, "aws:PrincipalServiceName": {service}}
	if !iam.Trusts(trust, iam.Caller{Service: service}, context) {
		return Credentials{}, fmt.Errorf("the trust policy of %s does not let %s take it", known.arn, service)
	}
	return c.assume(role, session)
}

// nameOf is a role's name from its name or ARN.
func nameOf(role string) string { return role[strings.LastIndexByte(role, '/')+1:] }

// assume lets moto make a session, so that its GetCallerIdentity knows it, and writes it into the books.
func (c *Cloud) assume(roleName, sessionName string) (Credentials, error) {
	c.mu.Lock()
	known := c.roles[nameOf(roleName)]
	c.mu.Unlock()
	if known == nil || strings.Contains(roleName, "/") && known.arn != roleName {
		return Credentials{}, fmt.Errorf("no role %q: PutRole or iam:CreateRole makes it", roleName)
	}
	form := url.Values{"Action": {"AssumeRole"}, "Version": {"2011-06-15"}, "RoleArn": {known.arn}, "RoleSessionName": {sessionName}}
	status, answer := ask(moto, "sts", http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}, form.Encode())
	if status != http.StatusOK {
		return Credentials{}, fmt.Errorf("moto's sts:AssumeRole: %d %s", status, answer)
	}
	return c.book(known, sessionName, answer)
}

// book remembers a session that moto made, from moto's own answer.
func (c *Cloud) book(known *role, sessionName, answer string) (Credentials, error) {
	var made struct {
		Credentials struct {
			AccessKeyID     string    `xml:"AccessKeyId"`
			SecretAccessKey string    `xml:"SecretAccessKey"`
			SessionToken    string    `xml:"SessionToken"`
			Expiration      time.Time `xml:"Expiration"`
		} `xml:"AssumeRoleResult>Credentials"`
	}
	if err := xml.Unmarshal([]byte(answer), &made); err != nil {
		return Credentials{}, fmt.Errorf("reading moto's answer to sts:AssumeRole: %w", err)
	}
	credentials := Credentials{
		AccessKeyID: made.Credentials.AccessKeyID, SecretAccessKey: made.Credentials.SecretAccessKey,
		SessionToken: made.Credentials.SessionToken, Expires: made.Credentials.Expiration,
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.issued[credentials.AccessKeyID] = &session{Credentials: credentials, role: known, name: sessionName}
	return credentials, nil
}

// newCredentials makes credentials that nobody else has.
func newCredentials(prefix, token string) Credentials {
	return Credentials{AccessKeyID: prefix + rand.Text()[:16], SecretAccessKey: rand.Text() + rand.Text(), SessionToken: token}
}
