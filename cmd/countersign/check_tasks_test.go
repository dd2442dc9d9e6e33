package main

import (
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign.dev/expiry"
	"countersign.dev/id"
	"countersign.dev/mtls"
	"countersign.dev/rotate"
)

const tasksSpec = `mesh: m
revocation: none
certificates: {ttl: 168h, renewAfter: 120h, authority: pca}
stores:
  main: {type: file, dir: store, identityFile: id.age}
authorities:
  pca: {type: acmpca, arn: "arn:aws:acm-pca:eu-central-1:123456789012:certificate-authority/11111111-2222-3333-4444-555555555555", budget: {store: main}}
services:
  api:
    ports: [{port: PORT, app: 9080, protocol: http}]
    proxy: {engine: nginx}
    delivery: {type: store, store: main, secret: "{mesh}/{service}"}
    deploy: {type: ecs, cluster: shop}
`

// tasksOther is a service of which nobody says where its instances are.
const tasksOther = `  other:
    ports: [{port: 9444, app: 9080, protocol: http}]
    proxy: {engine: nginx}
    delivery: {type: store, store: main, secret: "{mesh}/{service}"}
`

// ecsAnswers speaks as much of the API of ECS as a look at one task takes. Nobody asks while a test changes it.
type ecsAnswers struct {
	address string // of the task; none runs when it is empty
	created time.Time
	refused bool
}

func (e *ecsAnswers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	_, action, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
	const arn = "arn:aws:ecs:eu-central-1:123456789012:task/shop/0a1b"
	var answer any
	switch {
	case e.refused:
		w.WriteHeader(http.StatusBadRequest)
		answer = map[string]any{"__type": "AccessDeniedException", "message": "not authorized"}
	case action == "ListTasks" && e.address == "":
		answer = map[string]any{"taskArns": []string{}}
	case action == "ListTasks":
		answer = map[string]any{"taskArns": []string{arn}}
	case action == "DescribeServices":
		answer = map[string]any{"services": []any{map[string]any{"serviceName": "api", "status": "ACTIVE", "desiredCount": 0}}}
	default:
		answer = map[string]any{"tasks": []any{map[string]any{
			"taskArn": arn, "lastStatus": "RUNNING", "desiredStatus": "RUNNING", "createdAt": e.created.Unix(),
			"attachments": []any{map[string]any{"type": "ElasticNetworkInterface", "details": []any{map[string]any{"name": "privateIPv4Address", "value": e.address}}}},
		}}}
	}
	_ = json.NewEncoder(w).Encode(answer) // the client has gone
}

// labOnECS is a lab whose service api runs on ECS, without a server, and its task serves that certificate.
func labOnECS(t *testing.T) (*checkLab, *ecsAnswers) {
	t.Helper()
	l := newCheckLab(t)
	api1 := l.leaf(t, id.Service, "api", 24*time.Hour)
	l.put(t, "m/api", "v2", l.object(t, api1, l.keys[api1], l.root))
	_, port, err := net.SplitHostPort(l.serve(t, api1))
	if err != nil {
		t.Fatal(err)
	}
	l.write(t, "mesh.yaml", strings.ReplaceAll(tasksSpec, "PORT", port))
	answers := &ecsAnswers{address: "127.0.0.1", created: time.Now().Add(time.Minute)}
	server := httptest.NewServer(answers)
	t.Cleanup(server.Close)
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": "AKIATEST", "AWS_SECRET_ACCESS_KEY": "test", "AWS_SESSION_TOKEN": "", "AWS_PROFILE": "", "AWS_CONFIG_FILE": "/nonexistent",
		"AWS_SHARED_CREDENTIALS_FILE": "/nonexistent", "AWS_EC2_METADATA_DISABLED": "true", "AWS_ENDPOINT_URL": server.URL, "AWS_REGION": "eu-central-1",
	} {
		t.Setenv(name, value)
	}
	return l, answers
}

// found are the codes of the findings.
func found(checked checkedExpiry) string {
	var codes []string
	for _, f := range checked.Findings {
		codes = append(codes, string(f.Severity)+" "+string(f.Code))
	}
	return strings.Join(codes, ", ")
}

// TestCheckTasks compares what the tasks of a service of Amazon ECS serve with what the store holds.
func TestCheckTasks(t *testing.T) {
	l, answers := labOnECS(t)
	status, checked := l.check(t, l.spec)
	if status != exitOK || found(checked) != "" || checked.EndpointsSeen != 1 || len(checked.Items) != 3 {
		t.Errorf("all is well: status %d, %q, %d seen, %+v", status, found(checked), checked.EndpointsSeen, checked.Items)
	}
	if status, stdout, stderr := command(t, "check", "expiry", l.spec, "--settle", "0s"); status != exitOK || !strings.Contains(stdout, "All is well with 3 things that can end; looked at 1 endpoint.") {
		t.Errorf("status %d\n%s\n%s", status, stdout, stderr)
	}
	served := slices.IndexFunc(checked.Items, func(i expiry.Item) bool { return i.Kind == expiry.KindServed })
	if served < 0 || checked.Items[served].Instance != "0a1b" {
		t.Fatalf("the task is not there: %+v", checked.Items)
	}

	newer := l.leaf(t, id.Service, "api", 0)
	l.put(t, "m/api", "v3", l.object(t, newer, l.keys[newer], l.root))
	status, checked = l.check(t, l.spec)
	if status != exitFailure || found(checked) != "critical store_ahead_of_endpoint" {
		t.Fatalf("the store was updated: status %d, %q", status, found(checked))
	}
	if f := checked.Findings[0]; f.Instance != "0a1b" || !strings.Contains(f.Action, "`aws ecs update-service --cluster shop --service api --force-new-deployment`") || !strings.Contains(f.Message, mtls.Serial(newer)) {
		t.Errorf("%+v", f)
	}

	answers.address = "127.0.0.2" // nobody listens there
	if _, checked = l.check(t, l.spec); found(checked) != "critical endpoint_unreachable" || checked.EndpointsSeen != 0 {
		t.Errorf("a task that cannot be reached: %q", found(checked))
	}
	answers.created = l.now.Add(-time.Hour)
	if _, checked = l.check(t, l.spec); found(checked) != "critical endpoint_unreachable, critical store_ahead_of_endpoint" {
		t.Errorf("the same, started before the store was updated: %q", found(checked))
	}
	answers.address = ""
	if _, checked = l.check(t, l.spec); found(checked) != "warning no_instance" {
		t.Errorf("no task: %q", found(checked))
	}
	answers.refused = true
	_, checked = l.check(t, l.spec)
	if found(checked) != "critical tasks_unknown" || !strings.Contains(checked.Findings[0].Message, "not checked: what the tasks of api serve") || checked.Findings[0].Place != "ecs:shop" {
		t.Errorf("ECS says nothing: %+v", checked.Findings)
	}
}

// TestCheckNotLookedAt asserts that it is said when nobody could say where instances are, so that none was looked at.
func TestCheckNotLookedAt(t *testing.T) {
	l := newCheckLab(t)
	api1, other := l.leaf(t, id.Service, "api", 24*time.Hour), l.leaf(t, id.Service, "other", 24*time.Hour)
	l.put(t, "m/api", "v2", l.object(t, api1, l.keys[api1], l.root))
	l.put(t, "m/other", "v1", l.object(t, other, l.keys[other], l.root))
	spec := strings.Replace(strings.Replace(tasksSpec, "PORT", "9443", 1), "    deploy: {type: ecs, cluster: shop}\n", "", 1)
	l.write(t, "mesh.yaml", spec+tasksOther)
	status, checked := l.check(t, l.spec)
	if status != exitFailure || found(checked) != "warning not_looked_at, warning not_looked_at" || checked.EndpointsSeen != 0 {
		t.Errorf("status %d, %q", status, found(checked))
	}
	if status, _ = l.check(t, l.spec, "--fail-on", "critical"); status != exitOK {
		t.Errorf("status %d when only what is critical counts", status)
	}
}

// TestCheckDue asserts that the check and `rotate status` have one answer to when a secret is due.
func TestCheckDue(t *testing.T) {
	l := newCheckLab(t)
	api1 := l.leaf(t, id.Service, "api", 24*time.Hour)
	l.put(t, "m/api", "v2", l.object(t, api1, l.keys[api1], l.root))
	want := rotate.DueAt(api1, 120*time.Hour, "api").UTC()
	if early := api1.NotBefore.Add(5*time.Minute + 120*time.Hour).Sub(want); early <= 0 || early > 12*time.Hour {
		t.Fatalf("the rotation comes %s before renewAfter", early)
	}
	_, checked := l.check(t, l.spec, "--socket", l.socket)
	stored := slices.IndexFunc(checked.Items, func(i expiry.Item) bool { return i.Kind == expiry.KindStored })
	if stored < 0 || !checked.Items[stored].Due.Equal(want) {
		t.Errorf("due at %v, want %s", checked.Items, want)
	}
}
