package ecs

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"countersign.dev/aws/session"
	"countersign.dev/rotate"
)

func TestOpen(t *testing.T) {
	for _, c := range []Config{{Cluster: "payments"}, {Service: "checkout"}} {
		if _, err := Open(t.Context(), c); err == nil || !strings.Contains(err.Error(), "deploy:") {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if _, err := Open(t.Context(), Config{Cluster: "payments", Service: "checkout", Region: "no region"}); !errors.Is(err, session.ErrConfig) {
		t.Errorf("%v, want ErrConfig", err)
	}
}

// TestBegin forces a deployment, and remembers which one it is.
func TestBegin(t *testing.T) {
	f := &fake{service: serviceOf(2, deployed(5, "PRIMARY", "IN_PROGRESS", 2, 0), deployed(4, "ACTIVE", "COMPLETED", 2, 2)), tasks: []object{taskOf("a1", 4, "127.0.0.9")}}
	s := open(t, f)
	id, err := s.Begin(t.Context(), targetOf(t, nil, 9443))
	if err != nil || id != "ecs-svc/5@2026-11-23T08:05:00.125Z" || f.called("UpdateService") != 1 {
		t.Errorf("%q, %v; %q", id, err, f.calls)
	}
	back, err := parseDeployment(id)
	if err != nil || back.String() != id {
		t.Errorf("%s, %v", back, err)
	}
	for _, text := range []string{"", "none", "ecs-svc/5", "@2026-11-23T08:05:00.125Z", "ecs-svc/5@yesterday"} {
		if _, err := parseDeployment(text); !errors.Is(err, rotate.ErrRolloutFailed) {
			t.Errorf("%q: %v", text, err)
		}
	}

	// A service without tasks is left alone.
	f.service = serviceOf(0, deployed(4, "PRIMARY", "COMPLETED", 0, 0))
	f.tasks = nil
	id, err = s.Begin(t.Context(), targetOf(t, nil, 9443))
	if err != nil || id != nobody || f.called("UpdateService") != 1 {
		t.Errorf("%q, %v; %q", id, err, f.calls)
	}
	said, err := wait(t.Context(), s, id)
	if err != nil {
		t.Error(err)
	}
	says(t, said, "to have no tasks")
	if seen, err := s.Look(t.Context(), targetOf(t, nil, 9443)); err != nil || len(seen) != 0 {
		t.Errorf("%+v, %v", seen, err)
	}
}

// TestSettle waits until a service is steady again after it has started tasks.
func TestSettle(t *testing.T) {
	event := func(seconds float64, text string) object {
		return object{"id": "1", "createdAt": at(seconds), "message": "(service checkout) " + text}
	}
	steady, started := event(9, "has reached a steady state."), event(10, "has started 2 tasks: (task a1) (task a2).")
	registered := event(11, "registered 1 targets in (target-group checkout)")
	with := func(desired, running int, events ...object) object {
		s := serviceOf(desired, deployed(4, "PRIMARY", "COMPLETED", desired, running))
		s["events"] = events
		return s
	}
	again := with(2, 2, event(12, "has reached a steady state."), registered, started, steady)
	for name, c := range map[string]struct {
		service object
		looks   int // at least
		says    string
	}{
		"steady":                   {with(2, 2, steady, started), 1, ""},
		"nothing is told":          {with(2, 2), 1, ""},
		"started a moment ago":     {with(2, 2, registered, started, steady), 4, "not steady since it has started tasks at 2026-11-23T08:00:10Z"},
		"nothing runs":             {with(2, 0, started, steady), 1, ""},
		"nothing is to run":        {with(0, 2, started, steady), 1, ""},
		"the service is not there": {nil, 1, ""},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fake{service: c.service}
			f.change = func(looks int) {
				if looks == 4 {
					f.service = again
				}
			}
			var said strings.Builder
			open(t, f).Settle(t.Context(), rotate.Target{}, func(text string) { said.WriteString(text + "\n") })
			if n := f.called("DescribeServices"); n != c.looks || f.called("UpdateService") != 0 || (said.Len() == 0) != (c.says == "") || strings.Count(said.String(), "\n") > 1 {
				t.Errorf("%d looks, want %d; %q", n, c.looks, said.String())
			}
			says(t, said.String(), c.says)
		})
	}

	ctx, cancel := context.WithCancel(t.Context())
	f := &fake{service: with(2, 2, started), change: func(looks int) {
		if looks == 3 {
			cancel()
		}
	}}
	open(t, f).Settle(ctx, rotate.Target{}, func(string) {})
	if f.called("DescribeServices") < 3 {
		t.Errorf("it did not wait: %q", f.calls)
	}
}

// failure is an answer of AWS's that is an error.
func failure(code int, name, message string) (int, object) {
	return code, object{"__type": "com.amazonaws.ecs#" + name, "message": message}
}

const caller = "User: arn:aws:sts::123456789012:assumed-role/rotation/1 is not authorized to perform: "

// TestBeginRefused tells what will never be from what nobody knows.
func TestBeginRefused(t *testing.T) {
	on := func(action string, code int, name, message string) func(*fake) {
		return func(f *fake) {
			f.answer = func(called string, _ object) (int, object) {
				if called != action {
					return 0, nil
				}
				return failure(code, name, message)
			}
		}
	}
	for name, c := range map[string]struct {
		change func(*fake)
		never  bool
		is     error
		says   []string
		calls  int // of UpdateService
	}{
		"no cluster": {on("DescribeServices", 400, "ClusterNotFoundException", "Cluster not found."), true, nil, []string{"there is no cluster payments in eu-central-1", "'deploy'"}, 0},
		"no service": {func(f *fake) { f.service = nil }, true, nil, []string{"has no service checkout (MISSING)", "deploy the service first"}, 0},
		"deleted":    {func(f *fake) { f.service["status"] = "INACTIVE" }, true, nil, []string{"is INACTIVE", "deleted"}, 0},
		"draining":   {func(f *fake) { f.service["status"] = "DRAINING" }, true, nil, []string{"is DRAINING"}, 0},
		"another controller": {
			func(f *fake) { f.service["deploymentController"] = object{"type": "CODE_DEPLOY"} }, true, nil, []string{"CODE_DEPLOY", "--no-deploy"}, 0,
		},
		"no address": {func(f *fake) { delete(f.tasks[0], "attachments") }, true, nil, []string{"awsvpc"}, 0},
		"may not look": {
			on("DescribeServices", 400, "AccessDeniedException", caller+"ecs:DescribeServices on resource: arn:aws:ecs:eu-central-1:123456789012:service/payments/checkout because no identity-based policy allows it"),
			true, session.ErrDenied,
			[]string{`{"Effect":"Allow","Action":"ecs:DescribeServices","Resource":"arn:aws:ecs:eu-central-1:123456789012:service/payments/checkout"}`},
			0,
		},
		"may not deploy": {
			on("UpdateService", 400, "AccessDeniedException", caller+"ecs:UpdateService"),
			true, session.ErrDenied,
			[]string{`"Action":"ecs:UpdateService","Resource":"arn:aws:ecs:eu-central-1:123456789012:service/payments/checkout"`},
			1,
		},
		"not deployable": {on("UpdateService", 400, "ServiceNotActiveException", "Service was not ACTIVE."), true, nil, []string{"ServiceNotActiveException"}, 1},
		"expired":        {on("UpdateService", 400, "ExpiredTokenException", "The security token included in the request is expired"), false, session.ErrCredentials, []string{"renew them"}, 1},
		"no primary":     {func(f *fake) { f.service["deployments"] = []object{} }, false, nil, []string{"without a primary deployment"}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fake{service: serviceOf(2, deployed(4, "PRIMARY", "COMPLETED", 2, 2)), tasks: []object{taskOf("a1", 4, "127.0.0.9")}}
			s := open(t, f)
			c.change(f)
			id, err := s.Begin(t.Context(), targetOf(t, nil, 9443))
			if err == nil || id != "" || errors.Is(err, rotate.ErrRolloutFailed) != c.never || (c.is != nil && !errors.Is(err, c.is)) || f.called("UpdateService") != c.calls {
				t.Fatalf("%q, %v; %q", id, err, f.calls)
			}
			says(t, err.Error(), c.says...)
		})
	}
}

// TestTransient gets over what passes: throttling and failures of ECS itself.
func TestTransient(t *testing.T) {
	f := &fake{service: serviceOf(2, deployed(5, "PRIMARY", "COMPLETED", 2, 2))}
	failed := 0
	f.answer = func(string, object) (int, object) {
		if failed++; failed%2 == 1 {
			if failed%4 == 1 {
				return failure(http.StatusBadRequest, "ThrottlingException", "Rate exceeded")
			}
			return failure(http.StatusInternalServerError, "ServerException", "An error occurred")
		}
		return 0, nil
	}
	s := open(t, f)
	if _, err := wait(t.Context(), s, "ecs-svc/5@2026-11-23T08:05:00.125Z"); err != nil {
		t.Error(err)
	}
	if id, err := s.Begin(t.Context(), rotate.Target{}); err != nil || id == "" {
		t.Error(err)
	}
}

// TestOutage waits while ECS fails for longer than a call is tried, and does not know when it never ends.
func TestOutage(t *testing.T) {
	f := &fake{service: serviceOf(2, deployed(5, "PRIMARY", "COMPLETED", 2, 2))}
	s := open(t, f)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	f.answer = func(string, object) (int, object) {
		return failure(http.StatusBadRequest, "ServerException", "An error occurred (it is one that is not tried again)")
	}
	var said strings.Builder
	err := s.Wait(ctx, rotate.Target{}, "ecs-svc/5@2026-11-23T08:05:00.125Z", func(text string) {
		said.WriteString(text)
		f.set(func() { f.answer = nil })
	})
	if err != nil {
		t.Error(err)
	}
	says(t, said.String(), "ServerException")

	f.set(func() {
		f.answer = func(string, object) (int, object) { return failure(http.StatusBadRequest, "ServerException", "away") }
	})
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := wait(short, s, "ecs-svc/5@2026-11-23T08:05:00.125Z"); err == nil || errors.Is(err, rotate.ErrRolloutFailed) {
		t.Errorf("%v, want one that says nothing of the roll-out", err)
	}
	f.set(func() {
		f.answer = func(string, object) (int, object) {
			return failure(http.StatusBadRequest, "AccessDeniedException", caller+"ecs:DescribeServices")
		}
	})
	if _, err := wait(t.Context(), s, "ecs-svc/5@2026-11-23T08:05:00.125Z"); !errors.Is(err, session.ErrDenied) || errors.Is(err, rotate.ErrRolloutFailed) {
		t.Errorf("%v, want ErrDenied at once", err)
	}
}
