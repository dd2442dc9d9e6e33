package integration

import (
	"strings"
	"testing"
	"time"
)

// The root is replaced under load while real proxies serve, however their certificates come to them.
func TestRootRotationOfRealProxies(t *testing.T) {
	t.Parallel() // it waits for a mesh of its own
	for name, stored := range map[string]string{
		"NGINX by the agent, HAProxy from a store": "back",
		"NGINX from a store, HAProxy by the agent": "front",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := start(t, mixed(t, stored, "reload"), env("TMPDIR="+shortDir(t)))
			stop := r.load(t)
			run := startRotator(t, r, r.Server.CAPin)
			ended := make(chan error, 1)
			go func() { ended <- run.command.Wait() }()
			var err error
			for deadline := time.After(4 * patience); ; {
				select {
				case err = <-ended:
				case <-deadline:
					t.Fatalf("the root is not replaced\n%s", run)
				case <-time.After(2 * time.Second):
					got := r.inside(t, "rotate", "once")
					if got.status != 0 {
						t.Logf("rotate once: %s%s", got.stdout, got.stderr)
					}
					continue
				}
				break
			}
			if err != nil || !strings.Contains(run.String(), "the root of before is gone") {
				t.Errorf("%v\n%s", err, run)
			}
			r.admin(t, "verify", "--timeout", "3m")
			if asked := stop(); asked < 100 {
				t.Errorf("only %d requests were made", asked)
			}
		})
	}
}
