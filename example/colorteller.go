package example

import (
	"context"
	"io"
	"log/slog"
	"net/http"
)

// Colorteller serves the Color App's service on addr until ctx ends:
//
//	/color         the colour
//	/color/caller  who the sidecar says is calling: the subject of the caller's certificate
//	/ping          200, for health checks
func Colorteller(ctx context.Context, addr, color string, log *slog.Logger) error {
	return serveHTTP(ctx, addr, colorteller(color), log)
}

func colorteller(color string) http.Handler {
	text := func(of func(*http.Request) string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			io.WriteString(w, of(r)) //nolint:errcheck // the caller has gone: nobody is left to be told
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/color", text(func(*http.Request) string { return color }))
	mux.HandleFunc("/color/caller", text(func(r *http.Request) string {
		// The sidecar removes what callers send under this name and sets its own.
		if subject := r.Header.Get("X-Client-Cert"); subject != "" {
			return subject
		}
		return "anonymous"
	}))
	mux.HandleFunc("/ping", text(func(*http.Request) string { return "" }))
	return mux
}
