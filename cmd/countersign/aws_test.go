package main

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"countersign.dev/aws/session"
	"countersign.dev/expiry"
	"countersign.dev/mesh"
	"countersign.dev/rotate"
)

// TestBadAWS: where a region can be named is said by who lacks one, and only what somebody has written is a mistake of his.
func TestBadAWS(t *testing.T) {
	for _, test := range []struct {
		err   error
		usage bool
		want  string
	}{
		{session.ErrNoRegion, true, "set AWS_REGION to one such as eu-central-1, or give --region"},
		{fmt.Errorf("%w: no scheme", session.ErrConfig), true, "no scheme"},
		{session.ErrCredentials, false, "do not hold"},
	} {
		err := badAWS(test.err, regionByFlag)
		if _, usage := errors.AsType[usageError](err); usage != test.usage || !strings.HasSuffix(err.Error(), test.want) {
			t.Errorf("%v becomes %v, a mistake of the user: %t", test.err, err, usage)
		}
	}
	if err := badAWS(nil, regionByFlag); err != nil {
		t.Error(err)
	}
}

// TestUnconfigured: a mistake that keeps some from their turn is theirs, and one that keeps all is everybody's.
func TestUnconfigured(t *testing.T) {
	bad := fmt.Errorf("opening: %w", session.ErrNoRegion)
	good := rotate.Target{}
	store, authority, service := rotate.Target{Store: brokenStore{bad}}, rotate.Target{Authority: brokenAuthority{bad}}, rotate.Target{Rollout: brokenService{bad}}
	other := rotate.Target{Store: brokenStore{errors.New("the disk is away")}}
	for name, test := range map[string]struct {
		targets []rotate.Target
		want    bool
	}{
		"none":        {nil, false},
		"all":         {[]rotate.Target{store, authority, service}, true},
		"one is well": {[]rotate.Target{store, good}, false},
		"one another": {[]rotate.Target{store, other}, false},
	} {
		err := unconfigured(test.targets)
		if _, usage := errors.AsType[usageError](err); usage != test.want || (err == nil) == test.want {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := unconfigured(storesAlone([]rotate.Target{authority, service})); err != nil {
		t.Errorf("a status of stores is kept back by an authority: %v", err)
	}
	if authority.Authority == nil {
		t.Error("the target itself has lost its authority")
	}
}

// TestFitted: a command that a finding advises can be run as it stands there.
func TestFitted(t *testing.T) {
	stores := map[string]mesh.DeclaredStore{
		"disk":  {Store: mesh.Store{Type: mesh.StoreFile, Dir: "/var/my secrets", IdentityFile: "it's.age"}},
		"vault": {Store: mesh.Store{Type: mesh.StoreSecretsManager, Region: "eu-central-1", Endpoint: "https://127.0.0.1"}},
	}
	const action = "`countersign secret versions m/a` shows what is there; `countersign rotate once --force a` writes it, `countersign rotate status` shows it"
	for _, test := range []struct{ place, path, want string }{
		{"store:vault m/a", "mesh.yaml", "`countersign secret versions --store secretsmanager:eu-central-1 --endpoint-url https://127.0.0.1 m/a` shows what is there; `countersign rotate once --mesh mesh.yaml --force a` writes it, `countersign rotate status --mesh mesh.yaml` shows it"},
		{"store:disk m/a", "", "`countersign secret versions --store 'file:/var/my secrets' --identity-file 'it'\\''s.age' m/a` shows what is there; `countersign rotate once --force a` writes it, `countersign rotate status` shows it"},
		{"server.sock", "", action},
	} {
		findings := []expiry.Finding{{Place: test.place, Action: action}}
		(&expiryWatch{stores: stores}).fitted(findings, test.path)
		if findings[0].Action != test.want {
			t.Errorf("%s: %s", test.place, findings[0].Action)
		}
	}
}

// locked is a buffer that several may write to.
type locked struct {
	mu  sync.Mutex
	out bytes.Buffer
}

// Write implements [io.Writer].
func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out.Write(p)
}

// TestWaiting: who waits for less than a second is told nothing, and others what is being done from then on.
func TestWaiting(t *testing.T) {
	for name, test := range map[string]struct {
		first, second time.Duration
		want          string
	}{
		"fast": {patience / 4, patience / 4, ""},
		"slow": {patience * 2, patience, "countersign: asking one ...\ncountersign: asking two ...\n"},
		"late": {patience / 2, patience, "countersign: asking two ...\n"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				out := new(locked)
				w := newWaiting(out)
				w.say("asking one")
				time.Sleep(test.first)
				w.say("asking two")
				time.Sleep(test.second)
				w.stop()
				w.say("asking three")
				time.Sleep(patience)
				if got := out.out.String(); got != test.want {
					t.Errorf("it says %q, want %q", got, test.want)
				}
			})
		})
	}
	failed := errors.New("it failed")
	if err := patiently(new(locked), "x", func() error { return failed }); !errors.Is(err, failed) {
		t.Error(err)
	}
}
