package integration

import (
	"bufio"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// webApp is a web application as clients want one, over HTTP/1.1 and HTTP/2:
//
//	/            what it saw of the request, as the recording role does
//	/sum         SHA-256 and length of the request's body
//	/bytes/N     N bytes, with their SHA-256 in X-Sum
//	/hold/ID     "first\n" at once, and "last\n" when somebody asks for /release/ID
//	/gzip        a text that is compressed, whether it was asked for or not
//	/early       413 at once, whatever is still to come
type webApp struct {
	server http.Server
	mu     sync.Mutex
	holds  map[string]chan struct{}
}

func newWebApp() *webApp {
	app := &webApp{holds: map[string]chan struct{}{}}
	mux := http.NewServeMux()
	mux.HandleFunc("/", record)
	mux.HandleFunc("/sum", func(w http.ResponseWriter, r *http.Request) {
		hash := sha256.New()
		n, err := io.Copy(hash, r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		fmt.Fprintf(w, "%s %d\n", hex.EncodeToString(hash.Sum(nil)), n)
	})
	mux.HandleFunc("/bytes/{n}", func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(r.PathValue("n"))
		body := pattern(n)
		w.Header().Set("X-Sum", checksum(body))
		_, _ = w.Write(body)
	})
	mux.HandleFunc("/hold/{id}", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "first\n")
		if err := http.NewResponseController(w).Flush(); err != nil {
			panic(err)
		}
		select {
		case <-app.hold(r.PathValue("id")):
			_, _ = io.WriteString(w, "last\n")
		case <-r.Context().Done():
		}
	})
	mux.HandleFunc("/release/{id}", func(_ http.ResponseWriter, r *http.Request) { close(app.hold(r.PathValue("id"))) })
	mux.HandleFunc("/gzip", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		w.Header().Set("X-Asked-For", r.Header.Get("Accept-Encoding"))
		out := gzip.NewWriter(w)
		_ = json.NewEncoder(out).Encode("compressed by the application")
		_ = out.Close()
	})
	mux.HandleFunc("/early", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		_, _ = io.WriteString(w, "too large\n")
	})
	app.server = http.Server{Handler: mux, Protocols: new(http.Protocols), ReadHeaderTimeout: time.Minute}
	app.server.Protocols.SetHTTP1(true)
	app.server.Protocols.SetUnencryptedHTTP2(true)
	return app
}

func (a *webApp) serve(listener net.Listener) { _ = a.server.Serve(listener) }

// hold is what keeps an answer open until it is closed.
func (a *webApp) hold(id string) chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.holds[id] == nil {
		a.holds[id] = make(chan struct{})
	}
	return a.holds[id]
}

var patterns sync.Map // by length: many readers of one large body share it

// pattern is a body of n bytes that repeats itself at no power of two. It must not be changed.
func pattern(n int) []byte {
	if body, ok := patterns.Load(n); ok {
		return body.([]byte)
	}
	body := make([]byte, n)
	for i := range body {
		body[i] = byte(i % 251)
	}
	patterns.Store(n, body)
	return body
}

func checksum(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:])
}

// oddApp is an application that breaks the rules: it reads the head of a request and does to the
// connection what the test has put down for its path.
type oddApp struct{ scripts sync.Map }

// script is what happens after the head of a request has been read. It tells whether the connection is
// to serve another request.
type script func(conn *net.TCPConn, in *bufio.Reader, request *http.Request) bool

func (a *oddApp) serve(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return // the test is over
		}
		go func() {
			defer conn.Close()
			in := bufio.NewReader(conn)
			for {
				request, err := http.ReadRequest(in)
				if err != nil {
					return
				}
				do, ok := a.scripts.Load(request.URL.Path)
				if !ok {
					fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n")
					continue
				}
				if !do.(script)(conn.(*net.TCPConn), in, request) {
					return
				}
			}
		}()
	}
}
