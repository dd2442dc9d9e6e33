package expiry

import "fmt"

// noInstance says that a workload has no instance, or that nobody knows of any.
func (c *comparison) noInstance(w *Workload) {
	f := Finding{Code: CodeNoInstance, Severity: Warning, Workload: w.Name}
	switch {
	case w.NotLookedAt:
		f.Code = CodeNotLookedAt
		f.Message = "nobody knows where its instances are, so that none was looked at: whether they serve what the store has is not known"
		f.Action = "say who runs it, when that is Amazon ECS (deploy: {type: ecs, ...}); else look at each instance yourself: `openssl s_client -connect HOST:PORT` shows the serial that it serves"
	case !w.InstancesKnown || len(w.Instances) > 0:
		return
	case w.Tasks == nil:
		f.Message = "it is declared, and no instance of it is registered: what it would serve cannot be seen"
		f.Action = "start it, or take it out of the specification"
	case w.Tasks.Desired == 0 && w.Tasks.Starting == 0:
		f.Place = "ecs:" + w.Tasks.Service
		f.Message = "it is declared, and its service of ECS is to have no tasks: what it would serve cannot be seen"
		f.Action = "raise the count of its tasks (DesiredCount in the stack), or take it out of the specification"
	default:
		f.Place, f.Severity = "ecs:"+w.Tasks.Service, Critical
		f.Message = fmt.Sprintf("no task of its service runs; %d are to, and %d are starting", w.Tasks.Desired, w.Tasks.Starting)
		f.Action = "see why its tasks stop (`aws ecs describe-services` shows the service's events) and what their container init says in its log"
	}
	c.find(f)
}

// dark tells whether the tasks of a workload have listeners, and none was seen: whoever is outside of their network sees no
// one, whatever they serve.
func (w *Workload) dark() bool {
	if w.Tasks == nil {
		return false
	}
	listeners := 0
	for _, i := range w.Instances {
		for _, e := range i.Endpoints {
			if e.Served != nil {
				return false
			}
			listeners++
		}
	}
	return listeners > 0
}

// unseen says that nobody could look at any task, once for all.
func (c *comparison) unseen(w *Workload) {
	if !w.dark() {
		return
	}
	first, listeners := "", 0
	for _, i := range w.Instances {
		for _, e := range i.Endpoints {
			if listeners++; first == "" {
				first = e.Problem
			}
		}
	}
	c.find(Finding{
		Code: CodeEndpoint, Severity: Critical, Workload: w.Name, Place: "ecs:" + w.Tasks.Service,
		Message: fmt.Sprintf("no listener of its tasks shows a certificate (%d were tried): %s", listeners, first),
		Action:  "run the check inside the VPC, where the tasks' security groups let connections come from; nothing is known about what they serve but what the time of their start says",
	})
}

// byStart judges a task that shows no certificate by when it was started: its init container has read the store then.
func (c *comparison) byStart(w *Workload, i *Instance, stored *Version, busy bool) {
	switch {
	case i.Started.IsZero() || stored.Written.IsZero():
	case !i.Started.Before(stored.Written):
		if len(i.Endpoints) == 0 {
			c.leaf(w, i, shown{Certificate: stored.Certificate, kind: KindReported, places: []string{"by its start"}}, stored, busy)
		}
	case !busy:
		c.items = append(c.items, Item{Kind: KindReported, Workload: w.Name, Instance: i.Name, Place: "by its start", State: StateBehind, Severity: Critical})
		c.find(Finding{
			Code: CodeStoreAhead, Severity: Critical, Workload: w.Name, Instance: i.Name, Place: "ecs:" + w.Tasks.Service,
			Message: fmt.Sprintf("the task was started at %s, and the store has %s since %s: it has an older certificate, which it read when it started", stamp(i.Started), stored.Serial, stamp(stored.Written)),
			Action:  replaced(w),
		})
	}
}

// replaced is what brings the tasks of a workload to what is in the store.
func replaced(w *Workload) string {
	return "a task reads the store when it starts: `" + w.Tasks.Replace + "` has ECS replace all of them"
}
