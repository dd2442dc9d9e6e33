package main

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// Whoever invokes a function that cannot be made is told why, by the Runtime API; the log has it as well.
func TestFunctionNotMade(t *testing.T) {
	var path, told string
	runtime := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		path, told = r.URL.Path, string(body)
		w.WriteHeader(http.StatusAccepted)
	}))
	defer runtime.Close()
	t.Setenv("AWS_LAMBDA_RUNTIME_API", strings.TrimPrefix(runtime.URL, "http://"))
	var stderr bytes.Buffer
	if got := notMade(t.Context(), errors.New("no memory of its own"), &stderr); got != exitFailure {
		t.Errorf("the status is %d", got)
	}
	if path != "/2018-06-01/runtime/init/error" || !strings.Contains(told, "no memory of its own") || !strings.Contains(stderr.String(), "no memory of its own") {
		t.Errorf("%s was told %s, and the log has %s", path, told, stderr.String())
	}
	path = ""
	if got := notMade(t.Context(), nil, &stderr); got != exitOK || path != "" {
		t.Errorf("nothing is wrong, the status is %d, and %q was told", got, path)
	}
	runtime.Close()
	stderr.Reset()
	if got := notMade(t.Context(), errors.New("no memory of its own"), &stderr); got != exitFailure || !strings.Contains(stderr.String(), "telling Lambda") {
		t.Errorf("nobody could be told: %d, %s", got, stderr.String())
	}
}
