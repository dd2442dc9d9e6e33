package example

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// prices are what the shop sells, in cents.
var prices = map[string]int{"teapot": 2400, "cup": 650, "spoon": 180}

// Catalog serves the shop's gRPC service shop.Catalog on addr until ctx ends; it calls the stock
// service at stock, a host:port. Its messages are protobuf's well-known types:
//
//	rpc Get(StringValue) returns (Struct)                  one product by name
//	rpc List(Empty) returns (stream Struct)                all products
//	rpc Quote(stream StringValue) returns (stream Struct)  a price for each name, as they come
func Catalog(ctx context.Context, addr, stock string, log *slog.Logger) error {
	return serveGRPC(ctx, addr, func(s *grpc.Server, instance string) {
		s.RegisterService(&catalogDesc, &catalog{stock: stock, instance: instance})
	}, log)
}

// The full names of the methods, as a client invokes them.
const (
	methodGet   = "/shop.Catalog/Get"
	methodList  = "/shop.Catalog/List"
	methodQuote = "/shop.Catalog/Quote"
)

// catalogDesc is what protoc-gen-go-grpc would have made of the service.
var catalogDesc = grpc.ServiceDesc{
	ServiceName: "shop.Catalog",
	HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{
		MethodName: "Get",
		Handler: func(srv any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			name := new(wrapperspb.StringValue)
			if err := decode(name); err != nil {
				return nil, err
			}
			return srv.(*catalog).product(ctx, name.GetValue())
		},
	}},
	Streams: []grpc.StreamDesc{{
		StreamName:    "List",
		ServerStreams: true,
		Handler:       func(srv any, stream grpc.ServerStream) error { return srv.(*catalog).list(stream) },
	}, {
		StreamName:    "Quote",
		ServerStreams: true,
		ClientStreams: true,
		Handler:       func(srv any, stream grpc.ServerStream) error { return srv.(*catalog).quote(stream) },
	}},
}

// catalog is the gRPC service. It is not changed after it was made.
type catalog struct {
	stock    string // host:port of the stock service
	instance string // says in answers which instance gave them
}

// product describes one product.
func (c *catalog) product(ctx context.Context, name string) (*structpb.Struct, error) {
	price, ok := prices[name]
	if !ok {
		return nil, status.Errorf(codes.NotFound, "the shop has no product %q", name)
	}
	counts, err := askStock(ctx, c.stock, name)
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return c.describe(name, price, counts[name])
}

func (c *catalog) describe(name string, price, count int) (*structpb.Struct, error) {
	return structpb.NewStruct(map[string]any{
		"name":     name,
		"price":    float64(price) / 100,
		"stock":    count,
		"instance": c.instance,
	})
}

// list sends every product, in alphabetical order.
func (c *catalog) list(stream grpc.ServerStream) error {
	if err := stream.RecvMsg(new(emptypb.Empty)); err != nil {
		return err
	}
	names := make([]string, 0, len(prices))
	for name := range prices {
		names = append(names, name)
	}
	slices.Sort(names)
	counts, err := askStock(stream.Context(), c.stock, names...)
	if err != nil {
		return status.Error(codes.Unavailable, err.Error())
	}
	for _, name := range names {
		product, err := c.describe(name, prices[name], counts[name])
		if err != nil {
			return err
		}
		if err := stream.SendMsg(product); err != nil {
			return err
		}
	}
	return nil
}

// quote answers each name when it comes.
func (c *catalog) quote(stream grpc.ServerStream) error {
	for {
		name := new(wrapperspb.StringValue)
		switch err := stream.RecvMsg(name); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		product, err := c.product(stream.Context(), name.GetValue())
		if err != nil {
			return err
		}
		if err := stream.SendMsg(product); err != nil {
			return err
		}
	}
}
