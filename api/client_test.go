package api

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestDecodeError(t *testing.T) {
	for name, c := range map[string]struct{ contentType, body, code, message string }{
		"an error":        {"application/json", `{"code":"forbidden","message":"no"}`, CodeForbidden, "no"},
		"with a charset":  {"application/json; charset=utf-8", `{"code":"forbidden","message":"no"}`, CodeForbidden, "no"},
		"another type":    {"text/html", `{"code":"forbidden","message":"no"}`, CodeInternal, "the server answered 502 Bad Gateway"},
		"no JSON":         {"application/json", `oops`, CodeInternal, "the server answered 502 Bad Gateway"},
		"no code":         {"application/json", `{"message":"no"}`, CodeInternal, "the server answered 502 Bad Gateway"},
		"nothing":         {"", "", CodeInternal, "the server answered 502 Bad Gateway"},
		"more than fits":  {"application/json", `{"message":"` + strings.Repeat("x", 2<<20) + `"}`, CodeInternal, "the server answered 502 Bad Gateway"},
		"a strange field": {"application/json", `{"code":"forbidden","message":"no","new":1}`, CodeForbidden, "no"},
	} {
		e := DecodeError(&http.Response{
			Status: "502 Bad Gateway", Header: http.Header{"Content-Type": {c.contentType}}, Body: io.NopCloser(strings.NewReader(c.body)),
		})
		if e.Code != c.code || e.Error() != c.message {
			t.Errorf("%s: %s %q, want %s %q", name, e.Code, e.Message, c.code, c.message)
		}
	}
}

func TestNoServer(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	_, err := NewAdmin(socket).Status(t.Context())
	if !errors.Is(err, ErrNoServer) || !strings.Contains(err.Error(), socket) {
		t.Errorf("%v, want ErrNoServer that names the socket", err)
	}
	if err := NewAdmin(socket).Journal(t.Context(), io.Discard); !errors.Is(err, ErrNoServer) {
		t.Errorf("%v, want ErrNoServer", err)
	}
}

// TestSilentServer asks a server that was stopped: the socket takes connections, and nobody answers.
func TestSilentServer(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	admin := NewAdmin(socket)
	admin.patience = 50 * time.Millisecond
	for name, ask := range map[string]func() error{
		"status":    func() error { _, err := admin.Status(t.Context()); return err },
		"confirmed": func() error { _, err := admin.Confirmed(t.Context(), 1, time.Hour); return err },
		"apply":     func() error { _, err := admin.Apply(t.Context(), ApplyRequest{}); return err },
		"rotation":  func() error { _, err := admin.Rotation(t.Context(), true); return err },
		"issue":     func() error { _, err := admin.Issue(t.Context(), IssueRequest{}); return err },
		"journal":   func() error { return admin.Journal(t.Context(), io.Discard) },
	} {
		err := ask()
		if want := "the server does not answer within 50ms (socket " + socket + "); is it stopped or overloaded?"; !errors.Is(err, ErrNoServer) || err.Error() != want {
			t.Errorf("%s: %v, want %s", name, err, want)
		}
	}
}

// TestSlowServer asks a server that takes its time: what may last is waited for, as long as it answers other questions,
// and an answer that stops in the middle is not.
func TestSlowServer(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan struct{}, 1000)
	mux := http.NewServeMux()
	mux.HandleFunc(PathCA, func(w http.ResponseWriter, _ *http.Request) {
		asked <- struct{}{}
		_, _ = io.WriteString(w, "{}")
	})
	mux.HandleFunc(PathRotation, func(w http.ResponseWriter, _ *http.Request) {
		<-asked // it was watched
		<-asked
		_, _ = io.WriteString(w, `{"next":"finish"}`)
	})
	mux.HandleFunc(PathMesh, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "{")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	server := httptest.NewUnstartedServer(mux)
	server.Listener.Close()
	server.Listener = listener
	server.Start()
	defer server.Close()
	admin := NewAdmin(socket)
	admin.patience = 500 * time.Millisecond
	if rotation, err := admin.Rotation(t.Context(), true); err != nil || rotation.Next != "finish" {
		t.Errorf("%+v, %v, want an answer", rotation, err)
	}
	if _, err := admin.Mesh(t.Context()); !errors.Is(err, ErrNoServer) || !strings.Contains(err.Error(), "does not answer within") {
		t.Errorf("%v, want that the server does not answer", err)
	}
}
