package lambdafake_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"countersign.dev/aws/internal/awstest/lambdafake"
)

// asFunction makes a process of this test binary a function that does one thing.
const asFunction = "LAMBDAFAKE_TEST_FUNCTION"

func TestMain(m *testing.M) {
	if mode := os.Getenv(asFunction); mode != "" {
		act(mode)
	}
	os.Exit(m.Run())
}

// act speaks the Runtime API by hand, so that also what no SDK would do is shown.
func act(mode string) {
	base := "http://" + os.Getenv("AWS_LAMBDA_RUNTIME_API") + "/2018-06-01/runtime/"
	if mode == "init" {
		send(base+"init/error", `{"errorMessage":"no configuration","errorType":"Init"}`)
		select {}
	}
	for {
		response, err := http.Get(base + "invocation/next")
		if err != nil {
			os.Exit(1)
		}
		event, _ := io.ReadAll(response.Body)
		_ = response.Body.Close()
		id := response.Header.Get("Lambda-Runtime-Aws-Request-Id")
		switch {
		case id == "" || response.Header.Get("Lambda-Runtime-Deadline-Ms") == "" || response.Header.Get("Lambda-Runtime-Invoked-Function-Arn") == "":
			os.Exit(4)
		case mode == "error":
			send(base+"invocation/"+id+"/error", `{"errorMessage":"no","errorType":"Refused"}`)
		case mode == "wrong":
			if status := send(base+"invocation/another/response", `{}`); status != http.StatusBadRequest {
				os.Exit(5)
			}
			if status := send(base+"invocation/"+id+"/response", strings.Repeat("x", 7<<20)); status != http.StatusRequestEntityTooLarge {
				os.Exit(6)
			}
			fallthrough
		default:
			if status := send(base+"invocation/"+id+"/response", string(event)); status != http.StatusAccepted {
				os.Exit(7)
			}
			if status := send(base+"invocation/"+id+"/response", string(event)); status != http.StatusBadRequest {
				os.Exit(8)
			}
		}
	}
}

func send(url, body string) int {
	response, err := http.Post(url, "application/json", strings.NewReader(body))
	if err != nil {
		os.Exit(1)
	}
	_, _ = io.Copy(io.Discard, response.Body)
	_ = response.Body.Close()
	return response.StatusCode
}

func function(t *testing.T, mode string) *lambdafake.Function {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return lambdafake.New(t, func(ctx context.Context) *exec.Cmd {
		command := exec.CommandContext(ctx, self)
		command.Env = append(os.Environ(), asFunction+"="+mode)
		return command
	})
}

func TestInvoke(t *testing.T) {
	for _, mode := range []string{"echo", "wrong"} {
		f := function(t, mode)
		for range 2 {
			if payload, err := f.Invoke([]byte(`{"a":1}`), time.Minute); err != nil || string(payload) != `{"a":1}` {
				t.Errorf("%s: %s, %v", mode, payload, err)
			}
		}
		if f.Starts() != 1 {
			t.Errorf("%s: %d processes", mode, f.Starts())
		}
	}
}

func TestErrors(t *testing.T) {
	for mode, want := range map[string]string{"error": "Refused: no", "init": "Init: no configuration"} {
		_, err := function(t, mode).Invoke([]byte(`{}`), time.Minute)
		if told, ok := errors.AsType[*lambdafake.FunctionError](err); !ok || told.Error() != want {
			t.Errorf("%s: %v", mode, err)
		}
	}
	none := lambdafake.New(t, func(ctx context.Context) *exec.Cmd { return exec.CommandContext(ctx, "/nonexistent/bootstrap") })
	if _, err := none.Invoke([]byte(`{}`), time.Minute); err == nil || !strings.Contains(err.Error(), "starting the function") {
		t.Errorf("no program: %v", err)
	}
}
