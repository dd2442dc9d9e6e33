package example

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// maxQuote bounds what a customer may send to /quote, in bytes.
const maxQuote = 1 << 20

// Storefront serves the shop's HTTP service on addr until ctx ends; it calls the catalog service at
// catalog, a host:port:
//
//	GET  /products       every product, as a JSON array (server streaming towards the catalog)
//	GET  /products/NAME  one product (a unary call)
//	POST /quote          names of products, one a line; one JSON object a line comes back for each, as
//	                     soon as the catalog has it (bidirectional streaming)
func Storefront(ctx context.Context, addr, catalog string, log *slog.Logger) error {
	// The sidecar makes TLS of it: between the application and its sidecar is only loopback.
	client, err := grpc.NewClient("passthrough:///"+catalog, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy())
	if err != nil {
		return fmt.Errorf("the catalog's address %q: %w", catalog, err)
	}
	defer client.Close() //nolint:errcheck // the process ends
	return serveHTTP(ctx, addr, storefront(client), log)
}

func storefront(catalog grpc.ClientConnInterface) http.Handler {
	s := &store{catalog: catalog}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /products", s.products)
	mux.HandleFunc("GET /products/{name}", s.product)
	mux.HandleFunc("POST /quote", s.quote)
	return mux
}

// store answers customers. It is not changed after it was made.
type store struct{ catalog grpc.ClientConnInterface }

func (s *store) products(w http.ResponseWriter, r *http.Request) {
	stream, err := s.catalog.NewStream(r.Context(), &grpc.StreamDesc{ServerStreams: true}, methodList)
	if err == nil {
		err = sendAll(stream, new(emptypb.Empty))
	}
	products := []any{}
	for err == nil {
		product := new(structpb.Struct)
		if err = stream.RecvMsg(product); err == nil {
			products = append(products, product.AsMap())
		}
	}
	if !errors.Is(err, io.EOF) {
		fail(w, err)
		return
	}
	answer(w, products)
}

func (s *store) product(w http.ResponseWriter, r *http.Request) {
	product := new(structpb.Struct)
	if err := s.catalog.Invoke(r.Context(), methodGet, wrapperspb.String(r.PathValue("name")), product); err != nil {
		fail(w, err)
		return
	}
	answer(w, product.AsMap())
}

func (s *store) quote(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	stream, err := s.catalog.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, methodQuote)
	if err != nil {
		fail(w, err)
		return
	}
	// Answers are written while the request is still read.
	control := http.NewResponseController(w)
	if err := control.EnableFullDuplex(); err != nil && r.ProtoMajor == 1 {
		fail(w, err)
		return
	}
	lines := bufio.NewScanner(http.MaxBytesReader(w, r.Body, maxQuote))
	encoder := json.NewEncoder(w)
	for answered := false; ; answered = true {
		product, err := next(stream, lines)
		switch {
		case errors.Is(err, io.EOF):
			return
		case err != nil && !answered:
			fail(w, err)
			return
		case err != nil:
			// The status line is sent: an error can only be one more line, and the end.
			encoder.Encode(map[string]string{"error": status.Convert(err).Message()}) //nolint:errcheck // the customer may have gone
			return
		}
		if !answered {
			w.Header().Set("Content-Type", "application/x-ndjson")
		}
		if err := encoder.Encode(product.AsMap()); err != nil {
			return
		}
		control.Flush() //nolint:errcheck // a customer who has gone is noticed by the next line
	}
}

// next sends the next name and takes its answer; io.EOF after the last one.
func next(stream grpc.ClientStream, lines *bufio.Scanner) (*structpb.Struct, error) {
	name := ""
	for name == "" && lines.Scan() {
		name = strings.TrimSpace(lines.Text())
	}
	if err := lines.Err(); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if name == "" {
		if err := stream.CloseSend(); err != nil {
			return nil, err
		}
	} else if err := stream.SendMsg(wrapperspb.String(name)); err != nil && !errors.Is(err, io.EOF) {
		return nil, err // io.EOF says that RecvMsg knows the reason
	}
	product := new(structpb.Struct)
	err := stream.RecvMsg(product)
	if name != "" && errors.Is(err, io.EOF) {
		return nil, status.Error(codes.Unavailable, "the catalog ended the stream early")
	}
	return product, err
}

// sendAll sends the one request of a server-streaming call.
func sendAll(stream grpc.ClientStream, request proto.Message) error {
	if err := stream.SendMsg(request); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return stream.CloseSend()
}

func answer(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	encoder.Encode(value) //nolint:errcheck // the customer has gone: nobody is left to be told
}

// fail answers with the HTTP status that comes nearest to a gRPC one.
func fail(w http.ResponseWriter, err error) {
	s := status.Convert(err)
	code := http.StatusBadGateway
	switch s.Code() {
	case codes.NotFound:
		code = http.StatusNotFound
	case codes.InvalidArgument:
		code = http.StatusBadRequest
	case codes.PermissionDenied:
		code = http.StatusForbidden
	case codes.Unavailable:
		code = http.StatusServiceUnavailable
	case codes.DeadlineExceeded:
		code = http.StatusGatewayTimeout
	default:
	}
	http.Error(w, s.Message(), code)
}
