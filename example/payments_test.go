package example

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/structpb"
)

// payments starts the three services, two of which dial the ledger.
func payments(t *testing.T) (checkout, ledger, terminal string) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	ledger = serve(t, func(ctx context.Context, addr string) error { return Ledger(ctx, addr, log) })
	checkout = serve(t, func(ctx context.Context, addr string) error { return Checkout(ctx, addr, ledger, log) })
	terminal = serve(t, func(ctx context.Context, addr string) error { return Terminal(ctx, addr, ledger, log) })
	return checkout, ledger, terminal
}

func pay(t *testing.T, url, body string) (int, string) {
	t.Helper()
	response, err := http.Post(url, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(text)
}

func TestCheckout(t *testing.T) {
	checkout, _, _ := payments(t)
	url := "http://" + checkout + "/payments"
	code, body := pay(t, url, `{"card": "4111111111111111", "amount": 12.50}`)
	var entry map[string]any
	if err := json.Unmarshal([]byte(body), &entry); code != http.StatusOK || err != nil {
		t.Fatalf("a payment is %d %q (%v)", code, body, err)
	}
	want := map[string]any{"entries": 1.0, "balance": 12.5, "card": "************1111", "caller": ""}
	if diff := cmp.Diff(want, entry); diff != "" {
		t.Errorf("the entry (-want +got):\n%s", diff)
	}
	for name, sent := range map[string]string{
		"no JSON": "4111111111111111", "a card with letters": `{"card": "4111 1111 1111 1111", "amount": 1}`, "a short card": `{"card": "41111111111", "amount": 1}`,
		"nothing to pay": `{"card": "4111111111111111"}`, "too much": `{"card": "4111111111111111", "amount": 1e7}`, "less than nothing": `{"card": "4111111111111111", "amount": -1}`,
	} {
		if code, body := pay(t, url, sent); code != http.StatusBadRequest || strings.Contains(body, "4111") {
			t.Errorf("%s: %d %q, want 400 without the card's number", name, code, body)
		}
	}
	if code, body := get(t, url+"/balance"); code != http.StatusOK || !strings.Contains(body, `"balance": 12.5`) {
		t.Errorf("GET /payments/balance = %d %q", code, body)
	}
	subject := "CN=paygate,OU=gateway,O=payments.internal"
	if code, body := get(t, url+"/caller", "X-Client-Cert", subject); code != http.StatusOK || !strings.Contains(body, subject) {
		t.Errorf("GET /payments/caller = %d %q, want %q in it", code, body, subject)
	}
}

// The ledger says who called by the word of the sidecar.
func TestLedger(t *testing.T) {
	_, ledger, _ := payments(t)
	client, err := grpc.NewClient("passthrough:///"+ledger, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-client-cert", "CN=terminal")
	books := new(structpb.Struct)
	if err := client.Invoke(ctx, methodBalance, new(emptypb.Empty), books); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]any{"entries": 0.0, "balance": 0.0, "caller": "CN=terminal"}, books.AsMap()); diff != "" {
		t.Errorf("the books (-want +got):\n%s", diff)
	}
}

func TestTerminal(t *testing.T) {
	_, _, terminal := payments(t)
	conn, err := net.Dial("tcp", terminal)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	in := bufio.NewReader(conn)
	for _, exchange := range [][2]string{
		{"SALE 12.50", "APPROVED 1"},
		{"SALE 0.01", "APPROVED 2"},
		{"SALE 0", "DECLINED an amount"},
		{"SALE NaN", "DECLINED an amount"},
		{"REFUND 1", "DECLINED a sale"},
		{"SALE one", "DECLINED a sale"},
		{"SALE 3", "APPROVED 3"},
	} {
		if _, err := io.WriteString(conn, exchange[0]+"\n"); err != nil {
			t.Fatal(err)
		}
		if line, err := in.ReadString('\n'); err != nil || !strings.HasPrefix(line, exchange[1]) {
			t.Errorf("%s is answered %q (%v), want %q", exchange[0], line, err, exchange[1])
		}
	}
	// A sale that is not sent whole is none.
	if _, err := io.WriteString(conn, "SALE 100"); err != nil {
		t.Fatal(err)
	}
	conn.(*net.TCPConn).CloseWrite()
	if rest, err := io.ReadAll(in); err != nil || len(rest) != 0 {
		t.Errorf("half a sale is answered %q (%v)", rest, err)
	}
}
