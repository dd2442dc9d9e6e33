package example

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The full names of the ledger's methods, as a client invokes them.
const (
	methodPost    = "/payments.Ledger/Post"
	methodBalance = "/payments.Ledger/Balance"
)

// maxPayment bounds the body of a payment, in bytes, and mostCents one payment, in cents.
const (
	maxPayment = 64 << 10
	mostCents  = 100_000_000
)

// Ledger serves the gRPC service payments.Ledger on addr until ctx ends. Its messages are protobuf's
// well-known types, and it names in every answer who the sidecar says is calling (x-client-cert):
//
//	rpc Post(Int64Value) returns (Struct)  adds an amount in cents to the books
//	rpc Balance(Empty) returns (Struct)    what the books say
func Ledger(ctx context.Context, addr string, log *slog.Logger) error {
	return serveGRPC(ctx, addr, func(s *grpc.Server, _ string) { s.RegisterService(&ledgerDesc, &ledger{}) }, log)
}

// ledgerDesc is what protoc-gen-go-grpc would have made of the service.
var ledgerDesc = grpc.ServiceDesc{
	ServiceName: "payments.Ledger",
	HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{
		MethodName: "Post",
		Handler: func(srv any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			cents := new(wrapperspb.Int64Value)
			if err := decode(cents); err != nil {
				return nil, err
			}
			return srv.(*ledger).post(ctx, cents.GetValue())
		},
	}, {
		MethodName: "Balance",
		Handler: func(srv any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			if err := decode(new(emptypb.Empty)); err != nil {
				return nil, err
			}
			return srv.(*ledger).balance(ctx)
		},
	}},
}

// ledger keeps the books in memory.
type ledger struct {
	mu      sync.Mutex
	entries int   // guarded by mu
	cents   int64 // guarded by mu
}

func (l *ledger) post(ctx context.Context, cents int64) (*structpb.Struct, error) {
	if cents <= 0 || cents > mostCents {
		return nil, status.Errorf(codes.InvalidArgument, "an amount of %d cents cannot be booked: it has to be between 1 and %d", cents, mostCents)
	}
	l.mu.Lock()
	l.entries++
	l.cents += cents
	l.mu.Unlock()
	return l.balance(ctx)
}

func (l *ledger) balance(ctx context.Context) (*structpb.Struct, error) {
	l.mu.Lock()
	entries, cents := l.entries, l.cents
	l.mu.Unlock()
	sidecar, _ := metadata.FromIncomingContext(ctx)
	return structpb.NewStruct(map[string]any{
		"entries": entries, "balance": float64(cents) / 100, "caller": strings.Join(sidecar.Get("x-client-cert"), ", "),
	})
}

// dialLedger opens a client of the ledger at addr, a host:port on loopback: the sidecar makes TLS of it.
func dialLedger(addr string) (*grpc.ClientConn, error) {
	client, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy())
	if err != nil {
		return nil, fmt.Errorf("the ledger's address %q: %w", addr, err)
	}
	return client, nil
}

// Checkout serves the payments of a web shop over HTTP on addr until ctx ends; it calls the ledger at
// ledger, a host:port:
//
//	POST /payments          takes {"card": "4111111111111111", "amount": 12.50} and answers what the ledger says
//	GET  /payments/balance  what the books say
//	GET  /payments/caller   what the sidecar says about the caller
func Checkout(ctx context.Context, addr, ledger string, log *slog.Logger) error {
	client, err := dialLedger(ledger)
	if err != nil {
		return err
	}
	defer client.Close() //nolint:errcheck // the process ends
	return serveHTTP(ctx, addr, checkout(client), log)
}

func checkout(ledger grpc.ClientConnInterface) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /payments", func(w http.ResponseWriter, r *http.Request) {
		var payment struct {
			Card   string  `json:"card"`
			Amount float64 `json:"amount"`
		}
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxPayment)).Decode(&payment); err != nil {
			// Neither the answer nor a log repeats what was sent: it may hold a card's number.
			fail(w, status.Error(codes.InvalidArgument, "a payment is a JSON object with card and amount"))
			return
		}
		masked, ok := mask(payment.Card)
		if !ok {
			fail(w, status.Error(codes.InvalidArgument, "a card's number has 12 to 19 digits"))
			return
		}
		entry, err := post(r.Context(), ledger, payment.Amount)
		if err != nil {
			fail(w, err)
			return
		}
		entry["card"] = masked
		answer(w, entry)
	})
	mux.HandleFunc("GET /payments/balance", func(w http.ResponseWriter, r *http.Request) {
		books := new(structpb.Struct)
		if err := ledger.Invoke(r.Context(), methodBalance, new(emptypb.Empty), books); err != nil {
			fail(w, err)
			return
		}
		answer(w, books.AsMap())
	})
	mux.HandleFunc("GET /payments/caller", func(w http.ResponseWriter, r *http.Request) {
		// The sidecar removes what callers send under these names and sets its own.
		answer(w, map[string][]string{
			"caller": r.Header.Values("X-Client-Cert"), "certificate": r.Header.Values("X-Forwarded-Client-Cert"), "for": r.Header.Values("X-Forwarded-For"),
		})
	})
	return mux
}

// post books an amount and gives what the ledger answers.
func post(ctx context.Context, ledger grpc.ClientConnInterface, amount float64) (map[string]any, error) {
	cents := math.Round(amount * 100)
	if !(cents >= 1 && cents <= mostCents) { // also not a number
		return nil, status.Errorf(codes.InvalidArgument, "an amount is between 0.01 and %d", mostCents/100)
	}
	entry := new(structpb.Struct)
	if err := ledger.Invoke(ctx, methodPost, wrapperspb.Int64(int64(cents)), entry); err != nil {
		return nil, err
	}
	return entry.AsMap(), nil
}

// mask leaves the last four digits of a card's number, which is all that may be shown to everybody (PCI DSS
// 4.0.1, requirement 3.4.1, allows the first ones as well).
func mask(card string) (string, bool) {
	if len(card) < 12 || len(card) > 19 || strings.Trim(card, "0123456789") != "" {
		return "", false
	}
	return strings.Repeat("*", len(card)-4) + card[len(card)-4:], true
}

// Terminal serves card terminals over TCP on addr until ctx ends; it calls the ledger at ledger, a host:port. A
// terminal writes lines "SALE AMOUNT" and reads for each "APPROVED NUMBER" or "DECLINED REASON".
func Terminal(ctx context.Context, addr, ledger string, log *slog.Logger) error {
	client, err := dialLedger(ledger)
	if err != nil {
		return err
	}
	defer client.Close() //nolint:errcheck // the process ends
	return serveLines(ctx, addr, log, func(ctx context.Context, conn net.Conn) error { return sell(ctx, conn, client) })
}

// sell holds one conversation with a terminal.
func sell(ctx context.Context, conn net.Conn, ledger grpc.ClientConnInterface) error {
	reader := bufio.NewReaderSize(conn, maxLine)
	for {
		if ctx.Err() == nil {
			conn.SetReadDeadline(time.Now().Add(idleLimit))
		}
		line, err := reader.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF):
			return nil // also in the middle of a line: a sale that was not sent whole is none
		case errors.Is(err, bufio.ErrBufferFull):
			return fmt.Errorf("a line has more than %d characters", maxLine)
		case err != nil:
			return fmt.Errorf("reading: %w", err)
		}
		if _, err := io.WriteString(conn, sale(ctx, ledger, strings.TrimSpace(string(line)))+"\n"); err != nil {
			return fmt.Errorf("answering: %w", err)
		}
	}
}

// sale answers one line.
func sale(ctx context.Context, ledger grpc.ClientConnInterface, line string) string {
	text, ok := strings.CutPrefix(line, "SALE ")
	amount, err := strconv.ParseFloat(text, 64)
	if !ok || err != nil {
		return "DECLINED a sale is SALE AMOUNT"
	}
	entry, err := post(ctx, ledger, amount)
	if err != nil {
		return "DECLINED " + strings.Join(strings.Fields(status.Convert(err).Message()), " ")
	}
	return fmt.Sprintf("APPROVED %v", entry["entries"])
}
