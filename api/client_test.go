package api

import (
	"errors"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
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
