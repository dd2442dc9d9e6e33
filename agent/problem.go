package agent

import (
	"fmt"
	"strings"
	"time"

	"countersign.dev/issue"
)

// problem is something that can be wrong. Each has one text at a time, which goes when it is cured.
type problem int

// The problems in the order in which they are told.
const (
	problemCertificate problem = iota // no new certificate can be had
	problemPlan                       // the newest Plan is not in force
	problemBundle                     // the newest bundle is not in use
	problemCRL                        // a revocation list is not in use
	problemDisk                       // the certificate is not on the disk
	problemPlanDisk                   // the Plan is not on the disk
	problemServer                     // the server does not answer
	problemCount
)

// setProblem notes what is wrong; an empty text says that it is well again.
func (a *Agent) setProblem(about problem, text string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.problems[about] == text {
		return
	}
	if text == "" {
		delete(a.problems, about)
	} else {
		a.problems[about] = text
	}
	wake(a.wakeReport)
}

// problem is all that is wrong at this moment, empty when all is well.
func (a *Agent) problem() string {
	var texts []string
	a.mu.Lock()
	held := a.held != nil
	if want := a.wantedNow(); held && want == a.tried && !want.fitsPlan(a.held.identity.Certificate.Leaf) {
		texts = append(texts, "the certificate that the server issued has other names or another kind of key than the Plan wants; compare the versions of countersign")
	}
	for about := range problemCount {
		if text := a.problems[about]; text != "" {
			texts = append(texts, text)
		}
	}
	a.mu.Unlock()
	if held {
		if err := a.expiry(); err != nil {
			texts = append(texts, err.Error())
		}
	}
	if text := a.listsProblem(); text != "" {
		texts = append(texts, text)
	}
	if off := a.clock.offset(); off.Abs() > issue.ClockAllowance {
		texts = append(texts, clockProblem(off))
	}
	return strings.Join(texts, "; ")
}

// clockProblem says that the machine's clock differs too much from the server's.
func clockProblem(offset time.Duration) string {
	direction := "ahead of"
	if offset < 0 {
		direction = "behind"
	}
	return fmt.Sprintf("this machine's clock is %s %s the server's, and %s is the most that certificates allow for; set it right (NTP)",
		offset.Abs().Round(time.Second), direction, issue.ClockAllowance)
}
