package ecs

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"countersign.dev/id"
	"countersign.dev/mesh"
	"countersign.dev/rotate"
)

// object is a JSON object of the API.
type object = map[string]any

// fake speaks the part of the API of ECS that is used, as documents: tests say what stands in them.
type fake struct {
	t *testing.T

	mu      sync.Mutex
	service object
	tasks   []object
	stopped []object
	// answer takes the place of an answer: nothing when code is 0.
	answer func(action string, in object) (code int, out object)
	// change is done before each DescribeServices.
	change func(looks int)
	looks  int
	calls  []string
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, action, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
	var in object
	if err := json.NewDecoder(r.Body).Decode(&in); errors.Is(err, io.ErrUnexpectedEOF) {
		return // the client has gone
	} else if err != nil {
		f.t.Errorf("%s: %v", action, err)
	}
	f.calls = append(f.calls, action)
	code, out := http.StatusOK, object(nil)
	if f.answer != nil {
		code, out = f.answer(action, in)
	}
	if code == 0 || out == nil && code == http.StatusOK {
		code, out = http.StatusOK, f.do(action, in)
	}
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(out) // the client has gone
}

func (f *fake) do(action string, in object) object {
	if in["cluster"] != "payments" {
		f.t.Errorf("%s asks for the cluster %v", action, in["cluster"])
	}
	switch action {
	case "DescribeServices":
		f.looks++
		if f.change != nil {
			f.change(f.looks)
		}
		if f.service == nil {
			return object{"services": []object{}, "failures": []object{{"arn": "arn:aws:ecs:eu-central-1:123456789012:service/checkout", "reason": "MISSING"}}}
		}
		return object{"services": []object{f.service}, "failures": []object{}}
	case "UpdateService":
		if in["forceNewDeployment"] != true || in["service"] != "checkout" || in["desiredCount"] != nil || in["taskDefinition"] != nil {
			f.t.Errorf("UpdateService %v", in)
		}
		return object{"service": f.service}
	case "ListTasks":
		if in["serviceName"] != "checkout" {
			f.t.Errorf("ListTasks %v", in)
		}
		return f.list(in)
	case "DescribeTasks":
		var found []object
		for _, task := range slices.Concat(f.tasks, f.stopped) {
			if slices.Contains(in["tasks"].([]any), task["taskArn"]) {
				found = append(found, task)
			}
		}
		return object{"tasks": found, "failures": []object{}}
	default:
		f.t.Errorf("the call %s", action)
		return object{}
	}
}

// list gives two ARNs a page.
func (f *fake) list(in object) object {
	tasks := f.tasks
	if in["desiredStatus"] == "STOPPED" {
		tasks = f.stopped
	}
	from := 0
	if next, ok := in["nextToken"].(string); ok {
		_, _ = fmt.Sscanf(next, "from %d", &from)
	}
	out := object{}
	arns := []any{}
	for i := from; i < len(tasks); i++ {
		if len(arns) == 2 {
			out["nextToken"] = fmt.Sprintf("from %d", i)
			break
		}
		arns = append(arns, tasks[i]["taskArn"])
	}
	out["taskArns"] = arns
	return out
}

// set changes the fake while somebody may still be asking it.
func (f *fake) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// called counts calls.
func (f *fake) called(action string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, call := range f.calls {
		if call == action {
			n++
		}
	}
	return n
}

// epoch is when the first deployment of a test was made.
var epoch = time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC)

// at is a time of the API: seconds, with milliseconds behind the point.
func at(seconds float64) float64 { return float64(epoch.Unix()) + seconds }

// deployed is a deployment: its number is its id, and how many minutes after the epoch it was made.
func deployed(n int, status, rollout string, desired, running int) object {
	return object{
		"id": fmt.Sprintf("ecs-svc/%d", n), "status": status, "rolloutState": rollout, "desiredCount": desired, "runningCount": running,
		"createdAt": at(float64(n)*60 + 0.125), "taskDefinition": "arn:aws:ecs:eu-central-1:123456789012:task-definition/checkout:3",
	}
}

func serviceOf(desired int, deployments ...object) object {
	running := 0
	for _, d := range deployments {
		running += d["runningCount"].(int)
	}
	return object{
		"serviceName": "checkout", "status": "ACTIVE", "desiredCount": desired, "runningCount": running, "pendingCount": 0,
		"deploymentController": object{"type": "ECS"}, "deployments": deployments,
		"deploymentConfiguration": object{"deploymentCircuitBreaker": object{"enable": true, "rollback": true}},
	}
}

// taskOf is a task of a deployment that runs at an address.
func taskOf(name string, deployment int, address string) object {
	task := object{
		"taskArn":    "arn:aws:ecs:eu-central-1:123456789012:task/payments/" + name,
		"lastStatus": "RUNNING", "desiredStatus": "RUNNING", "healthStatus": "HEALTHY",
		"startedBy": fmt.Sprintf("ecs-svc/%d", deployment), "createdAt": at(float64(deployment)*60 + 3), "startedAt": at(float64(deployment)*60 + 20),
	}
	if address != "" {
		task["attachments"] = []object{{
			"type": "ElasticNetworkInterface", "status": "ATTACHED", "details": []object{{"name": "subnetId", "value": "subnet-1"}, {"name": "privateIPv4Address", "value": address}},
		}}
	}
	return task
}

// open opens the service on the fake.
func open(t *testing.T, f *fake) *Service {
	t.Helper()
	f.t = t
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": "AKIATEST", "AWS_SECRET_ACCESS_KEY": "test", "AWS_SESSION_TOKEN": "", "AWS_PROFILE": "", "AWS_CONFIG_FILE": "/nonexistent",
		"AWS_SHARED_CREDENTIALS_FILE": "/nonexistent", "AWS_EC2_METADATA_DISABLED": "true", "AWS_ENDPOINT_URL": "",
	} {
		t.Setenv(name, value)
	}
	s, err := Open(t.Context(), Config{Region: "eu-central-1", Endpoint: server.URL, Cluster: "payments", Service: "checkout"})
	if err != nil {
		t.Fatal(err)
	}
	s.first, s.last, s.settle = time.Millisecond, 4*time.Millisecond, 30*time.Millisecond
	return s
}

// wait waits for a roll-out, and gives what was said meanwhile.
func wait(ctx context.Context, s *Service, id string) (string, error) {
	var said strings.Builder
	err := s.Wait(ctx, rotate.Target{}, id, func(text string) { said.WriteString(text + "\n") })
	return said.String(), err
}

// says expects a text to hold others.
func says(t *testing.T, text string, wanted ...string) {
	t.Helper()
	for _, want := range wanted {
		if !strings.Contains(text, want) {
			t.Errorf("%q does not say %q", text, want)
		}
	}
}

// testCA issues certificates.
type testCA struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newCA(t *testing.T) *testCA {
	t.Helper()
	ca := &testCA{t: t}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test root"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	ca.key = newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, template, template, ca.key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	if ca.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	ca.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return ca
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// leaf is a certificate with a serial for an identity or, when that has no name, for a DNS name.
func (ca *testCA) leaf(serial int64, identity, dns string) tls.Certificate {
	ca.t.Helper()
	key := newKey(ca.t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: dns}, DNSNames: []string{dns}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
	}
	if identity != "" {
		uri, err := url.Parse(identity)
		if err != nil {
			ca.t.Fatal(err)
		}
		template.URIs = []*url.URL{uri}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		ca.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// serve serves a certificate at an address, and gives the port: that of before when it is not 0.
func serve(t *testing.T, address string, port int, leaf tls.Certificate) int {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", net.JoinHostPort(address, fmt.Sprint(port)))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			raw, err := listener.Accept()
			if err != nil {
				return
			}
			conn := tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{leaf}, ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS12})
			_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
			_, _ = io.Copy(io.Discard, conn) // it has no client certificate
			conn.Close()
		}
	}()
	t.Cleanup(func() { listener.Close(); <-done })
	return listener.Addr().(*net.TCPAddr).Port
}

// targetOf is a workload with a listener at a port.
func targetOf(t *testing.T, ca *testCA, port int) rotate.Target {
	t.Helper()
	who, err := id.New("payments.internal", id.Service, "checkout")
	if err != nil {
		t.Fatal(err)
	}
	target := rotate.Target{
		Workload: mesh.Workload{Name: "checkout", Kind: id.Service, Identity: who}, Certificate: mesh.CertificatePlan{Identity: who},
		Inbound: []mesh.Inbound{
			{Name: "0.0.0.0_9443", Port: port, Protocol: mesh.HTTP, TLS: mesh.Strict},
			{Name: "0.0.0.0_9080", Port: 9080, Protocol: mesh.HTTP, TLS: mesh.Off},
		},
	}
	if ca != nil {
		target.Now.Roots = ca.pem
	}
	return target
}
