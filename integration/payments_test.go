package integration

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"countersign.dev/mesh"
)

// paymentsSpec writes the example's specification where its store may be made, and gives its path.
func paymentsSpec(t *testing.T) string {
	t.Helper()
	for _, program := range []string{"nginx", "haproxy"} {
		if _, err := os.Stat(filepath.Join("/usr/sbin", program)); err != nil {
			peer(t, program)
		}
	}
	dir := shortDir(t)
	if got := countersign(t, "example", "payments", dir); got.status != 0 {
		t.Fatalf("writing the example: %d\n%s", got.status, got.stderr)
	}
	return filepath.Join(dir, "mesh.yaml")
}

// The subjects by which the sidecars of the example know one another.
const (
	paygateDN  = "CN=paygate,OU=gateway,O=payments.internal"
	checkoutDN = "CN=checkout,OU=service,O=payments.internal"
)

// The example runs as it says: on real NGINX and HAProxy, over HTTP, gRPC and TCP through the gateway. Who has no
// business in it is refused, what is forged is taken away, and the caller that was proved arrives.
func TestPayments(t *testing.T) {
	t.Parallel() // it waits for a mesh of its own
	m := start(t, paymentsSpec(t))
	t.Run("the engines are real", func(t *testing.T) { enginesOf(t, m) })
	t.Run("HTTP", func(t *testing.T) { paymentsHTTP(t, m) })
	t.Run("gRPC", func(t *testing.T) { paymentsGRPC(t, m) })
	t.Run("TCP", func(t *testing.T) { paymentsTCP(t, m) })
	t.Run("who is refused", func(t *testing.T) { paymentsRefused(t, m) })
	t.Run("verify", func(t *testing.T) {
		if out := m.admin(t, "verify"); !strings.Contains(out, "endpoints: as declared") {
			t.Errorf("verify says\n%s", out)
		}
	})
}

// enginesOf sees that the document names the processes that serve, and that these are the real programs.
func enginesOf(t *testing.T, m *running) {
	t.Helper()
	for name, want := range map[string]struct {
		engine   mesh.Engine
		delivery mesh.DeliveryType
	}{
		"checkout": {mesh.EngineNGINX, mesh.DeliverStore}, "ledger": {mesh.EngineHAProxy, mesh.DeliverAgent},
		"terminal": {mesh.EngineBuiltin, mesh.DeliverAgent}, "paygate": {mesh.EngineBuiltin, mesh.DeliverAgent},
	} {
		w := m.instance(t, name)
		if w.Engine != want.engine || w.Delivery != want.delivery {
			t.Errorf("%s runs on %s with its certificate from %s, want %s and %s", name, w.Engine, w.Delivery, want.engine, want.delivery)
		}
		if want.engine == mesh.EngineBuiltin {
			continue
		}
		program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", w.EnginePID))
		if err != nil || filepath.Base(program) != string(want.engine) {
			t.Errorf("enginePid %d of %s is %q (%v), want %s", w.EnginePID, name, program, err, want.engine)
		}
	}
}

func paymentsHTTP(t *testing.T, m *running) {
	t.Helper()
	curl := peer(t, "curl")
	url := "http://" + m.inbound(t, "paygate", 8080) + "/payments"
	ask := func(args ...string) string {
		t.Helper()
		got := execute(t, nil, curl, append([]string{"-sS", "--fail-with-body", "--max-time", "60"}, args...)...)
		if got.status != 0 {
			t.Fatalf("curl %v: status %d\n%s%s", args, got.status, got.stdout, got.stderr)
		}
		return got.stdout
	}
	var entry map[string]any
	if err := json.Unmarshal([]byte(ask("-d", `{"card": "4111111111111111", "amount": 12.50}`, url)), &entry); err != nil {
		t.Fatal(err)
	}
	if entry["caller"] != checkoutDN || entry["card"] != "************1111" {
		t.Errorf("the entry is %v, want the ledger to know %s", entry, checkoutDN)
	}
	var saw struct{ Caller, Certificate, For []string }
	forgeries := []string{}
	for _, name := range []string{"X-Client-Cert", "x_client_cert", "X-CLIENT-CERT", "X-Forwarded-Client-Cert", "x_forwarded_client_cert"} {
		forgeries = append(forgeries, "-H", name+": "+forged)
	}
	if err := json.Unmarshal([]byte(ask(append(forgeries, url+"/caller")...)), &saw); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(saw.Caller, []string{paygateDN}) || len(saw.Certificate) != 1 || !strings.Contains(saw.Certificate[0], paygateDN) || strings.Contains(saw.Certificate[0], forged) {
		t.Errorf("the application was told %+v, want the caller %s alone", saw, paygateDN)
	}
	for path, want := range map[string]string{"/payments": "405", "/elsewhere": "404"} {
		got := execute(t, nil, curl, "-sS", "-o", filepath.Join(t.TempDir(), "body"), "-w", "%{http_code}", "-X", "GET", strings.TrimSuffix(url, "/payments")+path)
		// GET /payments is not among what the gateway may ask for; NGINX says so before the application can.
		if path == "/payments" {
			want = "403"
		}
		if got.stdout != want {
			t.Errorf("GET %s is answered %s, want %s", path, got.stdout, want)
		}
	}
}

// The methods of the example's ledger.
const (
	ledgerPost    = "/payments.Ledger/Post"
	ledgerBalance = "/payments.Ledger/Balance"
)

func paymentsGRPC(t *testing.T, m *running) {
	t.Helper()
	client, err := grpc.NewClient("passthrough:///"+m.inbound(t, "paygate", 8090), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "x-client-cert", forged, "x_client_cert", forged)
	books := new(structpb.Struct)
	if err := client.Invoke(ctx, ledgerBalance, new(emptypb.Empty), books); err != nil {
		t.Fatal(err)
	}
	if caller := books.AsMap()["caller"]; caller != paygateDN {
		t.Errorf("the ledger was called by %q, want %s", caller, paygateDN)
	}
	if err := client.Invoke(ctx, ledgerPost, wrapperspb.Int64(1), books); status.Code(err) != codes.PermissionDenied {
		t.Errorf("the outside books: %v, want PERMISSION_DENIED", err)
	}
}

func paymentsTCP(t *testing.T, m *running) {
	t.Helper()
	conn, err := net.DialTimeout("tcp", m.inbound(t, "paygate", 7070), patience)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	for _, sale := range [][2]string{{"SALE 3.50", "APPROVED "}, {"SALE nothing", "DECLINED "}, {"SALE 1", "APPROVED "}} {
		if _, err := io.WriteString(conn, sale[0]+"\n"); err != nil {
			t.Fatal(err)
		}
		if line, err := in.ReadString('\n'); err != nil || !strings.HasPrefix(line, sale[1]) {
			t.Errorf("%s is answered %q (%v), want %s", sale[0], line, err, sale[1])
		}
	}
}

// paymentsDoor is an endpoint of the example behind the gateway, and how a client with a certificate of its own is
// served there.
type paymentsDoor struct {
	name, address string
	ask           func(ctx context.Context, address string, config *tls.Config) error
}

func paymentsDoors(t *testing.T, m *running) []paymentsDoor {
	t.Helper()
	return []paymentsDoor{
		{"checkout", m.inbound(t, "checkout", 8081), askCheckout},
		{"ledger", m.inbound(t, "ledger", 9000), askLedger},
		{"terminal", m.inbound(t, "terminal", 7000), askTerminal},
	}
}

// askCheckout wants the caller's name from NGINX; a nil configuration is plaintext.
func askCheckout(ctx context.Context, address string, config *tls.Config) error {
	scheme := "https"
	if config == nil {
		scheme = "http"
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+address+"/payments/caller", nil)
	if err != nil {
		return err
	}
	c := http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
	response, err := c.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("it answers %s", response.Status)
	}
	return nil
}

// askLedger wants the balance from HAProxy.
func askLedger(ctx context.Context, address string, config *tls.Config) error {
	transport := insecure.NewCredentials()
	if config != nil {
		transport = credentials.NewTLS(config)
	}
	client, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(transport), grpc.WithAuthority("ledger.payments.internal"))
	if err != nil {
		return err
	}
	defer client.Close()
	return client.Invoke(ctx, ledgerBalance, new(emptypb.Empty), new(structpb.Struct))
}

// askTerminal wants an answer to a line from the built-in proxy.
func askTerminal(ctx context.Context, address string, config *tls.Config) error {
	var conn net.Conn
	var err error
	if config == nil {
		conn, err = new(net.Dialer).DialContext(ctx, "tcp", address)
	} else {
		conn, err = (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", address)
	}
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if _, err := io.WriteString(conn, "REFUND\n"); err != nil {
		return err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err == nil && !strings.HasPrefix(line, "DECLINED") {
		err = fmt.Errorf("it answers %q", line)
	}
	return err
}

// tried is one attempt at a door.
func (d paymentsDoor) tried(t *testing.T, config *tls.Config) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	return d.ask(ctx, d.address, config)
}

// clientOf is the TLS of a client that shows a certificate, and trusts the root of a mesh.
func clientOf(t *testing.T, m *running, server string, certificate *tls.Certificate) *tls.Config {
	t.Helper()
	root, err := os.ReadFile(m.Server.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(root) {
		t.Fatal("the mesh's root is no certificate")
	}
	config := &tls.Config{RootCAs: pool, ServerName: server + ".payments.internal"}
	if certificate != nil {
		config.Certificates = []tls.Certificate{*certificate}
	}
	return config
}

// forgeAuthority makes the files that a CA is opened with, of the running one's, and a directory for what it issues:
// the one way to certificates that the server would not issue.
func forgeAuthority(t *testing.T, m *running) string {
	t.Helper()
	state := filepath.Join(shortDir(t), "state")
	server := filepath.Join(m.State, "server")
	for _, part := range []string{"ca", "journal"} {
		walk(t, filepath.Join(server, part), func(path string, data []byte, mode fs.FileMode) {
			to := filepath.Join(state, strings.TrimPrefix(path, server))
			if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o700), os.WriteFile(to, data, mode.Perm())); err != nil {
				t.Fatal(err)
			}
		})
	}
	return state
}

// issuedBy is a certificate by a CA's files, for as long as is said.
func issuedBy(t *testing.T, state, workload, ttl string) *tls.Certificate {
	t.Helper()
	out := filepath.Join(t.TempDir(), "issued")
	if got := countersign(t, "ca", "issue", workload, "--state", state, "--unsealed", "--ttl", ttl, "--out", out); got.status != 0 {
		t.Fatalf("ca issue: status %d\n%s", got.status, got.stderr)
	}
	certificate, err := tls.LoadX509KeyPair(filepath.Join(out, "current", "cert.pem"), filepath.Join(out, "current", "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	return &certificate
}

func paymentsRefused(t *testing.T, m *running) {
	t.Helper()
	state := forgeAuthority(t, m)
	paygate := issuedBy(t, state, "gateway/paygate", "1h")
	expired := issuedBy(t, state, "gateway/paygate", "1s")
	outsider := issuedBy(t, state, "service/checkout", "1h") // a member whom neither checkout nor terminal admits
	foreign := filepath.Join(shortDir(t), "foreign")
	if got := countersign(t, "ca", "init", "--state", foreign, "--trust-domain", "payments.internal", "--unsealed"); got.status != 0 {
		t.Fatalf("ca init: %d %s", got.status, got.stderr)
	}
	stranger := issuedBy(t, foreign, "gateway/paygate", "1h")
	await(t, "the end of a certificate", func() (bool, string) {
		return time.Now().After(expired.Leaf.NotAfter.Add(time.Second)), expired.Leaf.NotAfter.String()
	})
	for _, door := range paymentsDoors(t, m) {
		if err := door.tried(t, clientOf(t, m, door.name, paygate)); err != nil {
			t.Errorf("%s refuses who may call it: %v", door.name, err)
		}
		refused := map[string]*tls.Config{
			"without a certificate": clientOf(t, m, door.name, nil), "with another CA's certificate": clientOf(t, m, door.name, stranger),
			"with an expired certificate": clientOf(t, m, door.name, expired), "in plaintext": nil,
		}
		if door.name != "ledger" { // which checkout may call
			refused["with a certificate that no rule admits"] = clientOf(t, m, door.name, outsider)
		}
		for who, config := range refused {
			if err := door.tried(t, config); err == nil {
				t.Errorf("%s answers one who comes %s", door.name, who)
			}
		}
		if err := door.tried(t, clientOf(t, m, door.name, paygate)); err != nil {
			t.Errorf("%s refuses who may call it, after others came: %v", door.name, err)
		}
	}
}
