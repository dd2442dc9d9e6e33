package integration

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/net/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The test binary is also the applications of the meshes: started with envRole it serves a role on
// the addresses in envListen until it is told to stop.
const (
	envRole   = "COUNTERSIGN_TEST_ROLE"
	envListen = "COUNTERSIGN_TEST_LISTEN"
)

func runRole(role string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	roles := map[string]func(context.Context, string) error{
		"http": serveEcho, "grpc": serveGRPC, "tcp": serveTCP, "loud": serveLoud, "spill": spill,
	}
	serve := roles[role]
	if serve == nil {
		fmt.Fprintf(os.Stderr, "no role %q\n", role)
		return 2
	}
	if err := serve(ctx, os.Getenv(envListen)); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// seen is what the recording application saw of a request; it answers with it.
type seen struct {
	Proto    string
	Method   string
	Target   string
	Host     string
	Headers  http.Header
	Trailers http.Header
	Body     string
	Length   int64
	Remote   string
}

// serveEcho records: it answers every request with what it saw of it. Below /slow/N it takes N
// milliseconds, at /ws it echoes WebSocket messages, at /bytes/N it answers N bytes, and at
// /informed it sends a trailer.
func serveEcho(ctx context.Context, address string) error {
	mux := http.NewServeMux()
	mux.Handle("/ws", websocket.Handler(func(ws *websocket.Conn) { _, _ = io.Copy(ws, ws) }))
	mux.HandleFunc("/slow/{ms}", func(w http.ResponseWriter, r *http.Request) {
		ms, _ := strconv.Atoi(r.PathValue("ms"))
		select {
		case <-time.After(time.Duration(ms) * time.Millisecond):
		case <-r.Context().Done():
		}
		record(w, r)
	})
	mux.HandleFunc("/bytes/{n}", func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(r.PathValue("n"))
		_, _ = io.CopyN(w, zeros{}, int64(n))
	})
	mux.HandleFunc("/informed", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Checksum")
		record(w, r)
		w.Header().Set("X-Checksum", "42")
	})
	mux.HandleFunc("/", record)
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Addr: address, Handler: mux, Protocols: &protocols, ReadHeaderTimeout: time.Minute}
	defer context.AfterFunc(ctx, func() { server.Close() })()
	return server.ListenAndServe()
}

func record(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(seen{
		Proto: r.Proto, Method: r.Method, Target: r.RequestURI, Host: r.Host, Headers: r.Header,
		Trailers: r.Trailer, Body: string(body), Length: r.ContentLength, Remote: r.RemoteAddr,
	})
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// The methods of the gRPC role; their messages are StringValues.
const (
	methodUnary  = "/test.Echo/Unary"
	methodStream = "/test.Echo/Stream"
)

// serveGRPC echoes, unary and streaming both ways. The text "fail" is answered with a status and a
// trailer.
func serveGRPC(ctx context.Context, address string) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "test.Echo", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Unary", Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			in := new(wrapperspb.StringValue)
			if err := decode(in); err != nil {
				return nil, err
			}
			_ = grpc.SetTrailer(ctx, metadata.Pairs("x-echo", in.GetValue()))
			if in.GetValue() == "fail" {
				return nil, status.Error(codes.FailedPrecondition, "told to")
			}
			md, _ := metadata.FromIncomingContext(ctx)
			return wrapperspb.String(in.GetValue() + " " + strings.Join(md.Get("x-forwarded-client-cert"), ",")), nil
		}}},
		Streams: []grpc.StreamDesc{{StreamName: "Stream", ServerStreams: true, ClientStreams: true, Handler: func(_ any, stream grpc.ServerStream) error {
			for {
				in := new(wrapperspb.StringValue)
				if err := stream.RecvMsg(in); errors.Is(err, io.EOF) {
					stream.SetTrailer(metadata.Pairs("x-end", "reached"))
					return nil
				} else if err != nil {
					return err
				}
				if err := stream.SendMsg(in); err != nil {
					return err
				}
			}
		}}},
	}, nil)
	defer context.AfterFunc(ctx, server.Stop)()
	return server.Serve(listener)
}

// serveTCP answers each line in upper case, and when the caller has closed its half, tells how many
// there were and closes.
func serveTCP(ctx context.Context, address string) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { listener.Close() })()
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			lines := 0
			for in := bufio.NewScanner(conn); in.Scan(); lines++ {
				if _, err := fmt.Fprintln(conn, strings.ToUpper(in.Text())); err != nil {
					return
				}
			}
			fmt.Fprintf(conn, "%d lines\n", lines)
		}()
	}
}

// serveLoud says on its standard error what the search for secrets has to find, and records.
func serveLoud(ctx context.Context, address string) error {
	fmt.Fprintln(os.Stderr, "said aloud:", os.Getenv(envPlanted))
	return serveEcho(ctx, address)
}
