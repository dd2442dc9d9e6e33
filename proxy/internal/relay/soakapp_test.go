package relay

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"testing"
	"time"
)

// soakApp is the application.
type soakApp struct {
	addr  netip.AddrPort
	mu    sync.Mutex
	conns map[net.Conn]bool
}

func newSoakApp(t *testing.T) *soakApp {
	t.Helper()
	a := &soakApp{conns: map[net.Conn]bool{}}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a.addr = ln.Addr().(*net.TCPAddr).AddrPort()
	srv := &http.Server{Handler: http.HandlerFunc(a.answer), Protocols: new(http.Protocols), ReadHeaderTimeout: time.Minute}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	srv.ConnState = func(c net.Conn, state http.ConnState) {
		a.mu.Lock()
		defer a.mu.Unlock()
		if state == http.StateClosed || state == http.StateHijacked {
			delete(a.conns, c)
		} else {
			a.conns[c] = true
		}
	}
	served := make(chan struct{})
	go func() { defer close(served); _ = srv.Serve(ln) }()
	t.Cleanup(func() { _ = srv.Close(); <-served })
	return a
}

// breakOne resets one of the application's connections.
func (a *soakApp) breakOne(r *rand.Rand) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for c := range a.conns {
		if tcp, ok := c.(*net.TCPConn); ok && r.IntN(2) == 0 {
			_ = tcp.SetLinger(0)
		}
		_ = c.Close()
		return
	}
}

func (a *soakApp) answer(w http.ResponseWriter, r *http.Request) {
	n, _ := strconv.Atoi(r.URL.Query().Get("size"))
	content := bytes.Repeat([]byte(r.URL.Query().Get("name")+" "), n/2+1)[:n]
	sum := sha256.Sum256(content)
	w.Header().Set("X-Sum", hex.EncodeToString(sum[:]))
	w.Header().Set("Trailer", "X-Request")
	own := sha256.New()
	switch r.URL.Path {
	case "/echo":
		_ = http.NewResponseController(w).EnableFullDuplex()
		_, err := io.Copy(io.MultiWriter(w, own), r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
	case "/whole":
		if _, err := io.Copy(own, r.Body); err != nil {
			panic(http.ErrAbortHandler)
		}
		_, _ = w.Write(content)
	case "/early":
		w.WriteHeader(http.StatusForbidden)
		_, _ = w.Write(content)
	case "/abort":
		_, _ = w.Write(content[:n/2])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	case "/hang":
		if r.ProtoMajor == 1 || r.ContentLength > 64<<10 || r.ContentLength < 0 { // who reads it not, is not told of the caller's end
			_, _ = io.Copy(io.Discard, r.Body)
		}
		<-r.Context().Done()
	}
	w.Header().Set("X-Request", hex.EncodeToString(own.Sum(nil)))
}
