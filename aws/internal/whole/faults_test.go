package whole_test

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"countersign.dev/aws/internal/awstest/pcafake"
)

// TestFaults has AWS fail, one fault at a time. Its tests run at once: they wait for AWS most of the time. Each of them has
// a mesh of its own.
func TestFaults(t *testing.T) {
	t.Parallel()
	tests := []func(*testing.T){lastingFaults, passingFaults, killedAnywhere, killedByName, wrongCertificates, deletedSecrets, disabledKey, clocks}
	together(t, []string{"lasting", "passing", "killed", "killed by name", "wrong certificates", "deleted secrets", "disabled key", "clocks"}, func(t *testing.T, n int) { tests[n](t) })
}

// trouble is a way in which a call goes wrong, and what is said of it.
type trouble struct {
	name  string
	fault fault
	wants []string
}

// lasting are those that no repeating helps against: AWS is asked in vain.
var lasting = []trouble{
	{"throttled", fault{answer: refusing(400, "ThrottlingException", "Rate exceeded")}, []string{"AWS throttles it", "wait a minute and try again"}},
	{
		"denied",
		fault{answer: refusing(400, "AccessDeniedException", "User: arn:aws:sts::123456789012:assumed-role/rotation/f is not authorized to perform: ACTION on resource: arn:aws:x:eu-central-1:123456789012:y because no identity-based policy allows the ACTION action")},
		[]string{"AWS denies it", `add to the policy of the role of arn:aws:sts::123456789012:assumed-role/rotation/f: {"Effect":"Allow","Action":"ACTION","Resource":"arn:aws:x:eu-central-1:123456789012:y"}`},
	},
	{"failing", fault{answer: refusing(500, "InternalServiceError", "We are sorry")}, []string{"AWS does not answer as it should", "try again later", "https://health.aws.amazon.com"}},
	{"expired", fault{answer: refusing(400, "ExpiredTokenException", "The security token included in the request is expired")}, []string{"the AWS credentials do not hold", "renew them"}},
	{"expired for good", fault{forGood: true, answer: refusing(400, "ExpiredTokenException", "The security token included in the request is expired")}, []string{"the AWS credentials do not hold", "renew them"}},
	{"failing for good", fault{forGood: true, answer: refusing(503, "ServiceUnavailable", "We are sorry")}, []string{"AWS does not answer as it should", "try again later"}},
}

// passing are those that nobody is to notice.
var passing = []trouble{
	{name: "throttled once", fault: fault{once: true, answer: refusing(400, "ThrottlingException", "Rate exceeded")}},
	{name: "failing once", fault: fault{once: true, answer: refusing(500, "InternalServiceError", "We are sorry")}},
	{name: "answer lost", fault: fault{once: true, lose: true}},
	{name: "slow", fault: fault{once: true, slow: time.Second}},
}

// sites are the calls of a rotation that replaces a certificate by the next one.
func (l *lab) sites() []site {
	l.t.Helper()
	if status, said := l.rotate("--force"); status != 0 {
		l.t.Fatalf("%d\n%s", status, said)
	}
	return l.faults.trace()
}

// soak tells whether everything is tried, for which there is not the time each time.
func soak() bool { return os.Getenv("COUNTERSIGN_SOAK") != "" }

// weighty tells whether a call changes something, reads a secret, or asks for a certificate.
func (s site) weighty() bool {
	return s.on != "the record" && !strings.Contains(s.action, "secretsmanager:Describe") && !strings.Contains(s.action, ":List")
}

// chosen are the sites that the nth of some tests tries: with COUNTERSIGN_SOAK=1 all, else one test tries each that is
// weighty, and some of the others. turns say whose turn it is: those that wait for AWS have fewer.
func chosen(sites []site, nth int, turns []int) []site {
	if soak() {
		return sites
	}
	var all []site
	turn, others := 0, 0
	for _, s := range sites {
		if !s.weighty() {
			if others++; others%11 != 0 {
				continue
			}
		}
		if turns[turn%len(turns)] == nth {
			all = append(all, s)
		}
		turn++
	}
	return all
}

// together runs tests at once: they wait most of the time.
func together(t *testing.T, names []string, test func(t *testing.T, n int)) {
	t.Helper()
	var group sync.WaitGroup
	for n, name := range names {
		group.Go(func() { t.Run(name, func(t *testing.T) { test(t, n) }) })
	}
	group.Wait()
}

func namesOf(troubles []trouble) (names []string) {
	for _, t := range troubles {
		names = append(names, t.name)
	}
	return names
}

// recovers has the fault gone, and expects the next rotation to end the work: with at most so many certificates since there
// were some.
func (l *lab) recovers(before held, issued, most int) {
	l.t.Helper()
	l.faults.end()
	var args []string
	if l.current("w") == before {
		args = append(args, "--force")
	}
	status, said := l.rotate(append(args, "w")...)
	if status != 0 {
		l.t.Fatalf("the next rotation: %d\n%s", status, said)
	}
	if now := l.current("w"); now.serial == before.serial {
		l.t.Errorf("after the next rotation %s is current still\n%s", now.serial, said)
	}
	if more := l.pca.Issued() - issued; more < 1 || more > most {
		l.t.Errorf("%d certificates were issued, want at most %d\n%s", more, most, said)
	}
	l.tidy("w")
}

// lastingFaults lets each call of a rotation fail, one at a time, whatever is tried: what is current stays, or is the
// proven new one; it is said what to do; and the next rotation ends the work with one certificate.
func lastingFaults(t *testing.T) {
	t.Helper()
	together(t, namesOf(lasting), func(t *testing.T, n int) {
		kind := lasting[n]
		l := newLab(t, 5000, pcafake.Options{}, "w")
		l.sites() // the first certificate
		sites := l.sites()
		for _, at := range chosen(sites, n, []int{1, 3, 4, 1, 3, 0, 1, 3, 2, 1, 3, 4, 1, 3, 0, 1, 3, 2, 1, 5, 3, 1, 3, 4, 1, 3, 0, 1, 3, 2}) {
			l.fails(at, kind)
			if t.Failed() {
				t.Fatalf("%s: %s", kind.name, at)
			}
		}
	})
}

// fails lets one call of a rotation fail.
func (l *lab) fails(at site, kind trouble) {
	l.t.Helper()
	before, issued := l.current("w"), l.pca.Issued()
	l.faults.set(at, kind.fault)
	status, said := l.rotate("w", "--force")
	if !l.faults.end() {
		l.t.Fatalf("%s was not reached\n%s", at, said)
	}
	now, record := l.current("w"), l.record("w")
	switch status {
	case 1:
		for _, want := range kind.wants {
			l.says(said, strings.ReplaceAll(want, "ACTION", at.action))
		}
		began := !strings.Contains(said, "asking Secrets Manager in the region") // else it has ended before there was anything to note
		if began && at.on != "the record" && !kind.fault.forGood && (record.Failures == 0 || record.LastErrorStep == "" || !strings.Contains(record.LastError, kind.wants[0])) {
			l.t.Errorf("the record does not say what happened: %+v\n%s", record, said)
		}
	case 0: // what comes after the end, and is done by the next one
		if now == before || record.Step != "" {
			l.t.Errorf("it has succeeded, and %s is current; the record: %+v\n%s", now.serial, record, said)
		}
	default:
		l.t.Errorf("status %d\n%s", status, said)
	}
	if os.Getenv("COUNTERSIGN_SHOW") != "" {
		l.t.Logf("%s %s: %d, %v\n%s", kind.name, at, status, now != before, said)
	}
	most := 1
	if strings.Contains(said, "is current again") {
		most++
	}
	l.recovers(before, issued, most)
}

// passingFaults lets the first try of each call of a rotation fail, or its answer get lost: nobody notices, and one
// certificate is issued.
func passingFaults(t *testing.T) {
	t.Helper()
	together(t, namesOf(passing), func(t *testing.T, n int) {
		l := newLab(t, 5000, pcafake.Options{}, "w")
		l.sites() // the first certificate
		for _, at := range chosen(l.sites(), n, []int{2, 1, 2, 3, 2, 0, 2, 3}) {
			before, issued := l.current("w"), l.pca.Issued()
			l.faults.set(at, passing[n].fault)
			status, said := l.rotate("w", "--force")
			if !l.faults.end() {
				t.Fatalf("%s was not reached\n%s", at, said)
			}
			if now := l.current("w"); status != 0 || now == before || l.pca.Issued() != issued+1 {
				t.Fatalf("%s, %s: status %d, %s, %d certificates\n%s", passing[n].name, at, status, now.serial, l.pca.Issued()-issued, said)
			}
			l.tidy("w")
		}
	})
}

// killedAnywhere kills a rotation at its steps, one after the other.
func killedAnywhere(t *testing.T) {
	t.Helper()
	l := newLab(t, 5000, pcafake.Options{}, "w")
	l.sites()
	stride := 9
	if soak() {
		stride = 1
	}
	step, killed := 1, true
	for ; killed; step += stride {
		before, issued := l.current("w"), l.pca.Issued()
		status, _, said := l.run([]string{"COUNTERSIGN_FAULT=" + fmt.Sprint(step)}, "rotate", "once", "w", "--force")
		killed = status == -1
		if !killed && status != 0 {
			t.Fatalf("step %d: %d\n%s", step, status, said)
		}
		l.recovers(before, issued, 1)
		if t.Failed() {
			t.Fatalf("step %d\n%s", step, said)
		}
	}
	if step < 40 {
		t.Errorf("everything was done within %d steps; are they counted?", step)
	}
	t.Logf("%d steps, every %dth tried", step, stride)
}

// killedByName kills it at steps by their names, so that one that is taken out is noticed, and each starts where the one
// before was killed: together they issue one certificate.
func killedByName(t *testing.T) {
	t.Helper()
	l := newLab(t, 5000, pcafake.Options{}, "w")
	for _, step := range []string{
		"secretsmanager.lease.named", "secretsmanager.lease.moved", "rotate.request", "rotate.request.staged", "rotate.issue",
		"secretsmanager.put", "acmpca.spent", "acmpca.issued", "rotate.issued", "rotate.stage", "rotate.version.staged", "rotate.verify",
		"rotate.promote", "rotate.promoted", "rotate.deploy", "rotate.rollout.begun", "rotate.rollout.ended", "rotate.observe", "rotate.observed",
	} {
		if status, _, said := l.run([]string{"COUNTERSIGN_FAULT=" + step}, "rotate", "once", "w"); status != -1 {
			t.Fatalf("nobody was killed at %s: %d\n%s", step, status, said)
		}
		l.current("w")
	}
	if status, said := l.rotate("w"); status != 0 {
		t.Fatalf("%d\n%s", status, said)
	}
	if n := l.pca.Issued(); n != 1 {
		t.Errorf("%d certificates were issued, want 1", n)
	}
	l.tidy("w")
}
