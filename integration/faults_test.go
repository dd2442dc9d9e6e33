package integration

import (
	"context"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"countersign.dev/api"
)

// The server is killed again and again under load: no request fails, the sidecars tell how long they
// can do without it, and when it stays up renewals go on.
func TestServerKilledUnderLoad(t *testing.T) {
	spec, _, load := rotating(t)
	mesh := start(t, write(t, spec))
	url := "http://" + mesh.inbound(t, "colorgateway", 8080) + "/color"
	ctx, stop := context.WithCancel(t.Context())
	var killing sync.WaitGroup
	kills := 0
	killing.Go(func() {
		for ctx.Err() == nil && kills < 5 {
			if pid := mesh.find(t, "server"); pid != 0 {
				if err := syscall.Kill(pid, syscall.SIGKILL); err == nil {
					kills++
				}
			}
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	})
	wrk(t, 32, load, url)
	stop()
	killing.Wait()
	if kills == 0 {
		t.Fatal("the server was never killed")
	}
	since := time.Now()
	await(t, "a renewal after the last kill", func() (bool, string) {
		rows, err := api.NewAdmin(mesh.Server.Socket).Status(t.Context())
		if err != nil {
			return false, err.Error()
		}
		renewed := 0
		for _, row := range rows {
			if row.LastRenewal.After(since) && row.Connected {
				renewed++
			}
			if row.Connected && row.SurvivesSeconds <= 0 {
				return false, row.Instance + " says that it does not survive"
			}
		}
		return renewed == 2, "renewed since: not both"
	})
	t.Logf("the server was killed %d times; both sidecars renewed %s after the last", kills, time.Since(since).Round(time.Millisecond))
}

// While the server does not answer, /stats tells how long a sidecar survives, a killed sidecar starts
// from its state, and serves.
func TestSidecarStartsWithoutServer(t *testing.T) {
	mesh := start(t, colorapp("mesh.yaml"))
	url := "http://" + mesh.inbound(t, "colorgateway", 8080) + "/color"
	get(t, url)
	before, err := servedSerial(t.Context(), mesh.inbound(t, "colorteller", 9080))
	if err != nil {
		t.Fatal(err)
	}
	server := mesh.find(t, "server")
	if err := syscall.Kill(server, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(server, syscall.SIGCONT) })
	mesh.kill(t, "proxy", "colorteller-1")
	mesh.kill(t, "proxy", "colorgateway-1")
	await(t, "the colour after the sidecars were killed", func() (bool, string) {
		status, body, err := try(t, url)
		if err != nil {
			return false, err.Error()
		}
		return status == 200 && body == "yellow", body
	})
	after, err := servedSerial(t.Context(), mesh.inbound(t, "colorteller", 9080))
	if err != nil || after != before {
		t.Errorf("the certificate is %s after the restart (%v), want %s from the state", after, err, before)
	}
	found := false
	for name, value := range stats(t, mesh.instance(t, "colorteller")) {
		if strings.Contains(name, "survives") {
			found = found || value > 0
		}
	}
	if !found {
		t.Error("/stats does not tell how long the sidecar survives")
	}
}

// An application and a sidecar that are killed come back, and nothing of them is left beside.
func TestKilledProcessesComeBack(t *testing.T) {
	mesh := start(t, colorapp("mesh.yaml"))
	url := "http://" + mesh.inbound(t, "colorgateway", 8080) + "/color"
	get(t, url)
	count := len(descendants(t, mesh.command.Process.Pid))
	for _, words := range [][]string{{"example", "colorteller"}, {"proxy", "colorteller-1"}, {"proxy", "colorgateway-1"}} {
		pid := mesh.kill(t, words...)
		await(t, "the colour after the death of "+strings.Join(words, " "), func() (bool, string) {
			status, body, err := try(t, url)
			if err != nil {
				return false, err.Error()
			}
			return status == 200 && body == "yellow" && mesh.find(t, words...) != pid, body
		})
	}
	await(t, "as many processes as before", func() (bool, string) {
		n := len(descendants(t, mesh.command.Process.Pid))
		return n == count, strings.TrimSpace(strings.Repeat("x ", n))
	})
}
