package expiry

import (
	"testing"
	"time"
)

// onTasks makes Amazon ECS run api: its instances are tasks, and no server knows them.
func onTasks(f *Facts) {
	w := &f.Workloads[0]
	w.Tasks = &Tasks{Service: "shop/api", Replace: "aws ecs update-service"}
	i := &w.Instances[0]
	i.Name, i.Reported, i.Seen, i.Ends, i.Started = "0a1b", "", "", time.Time{}, f.Now.Add(-time.Hour)
}

// blind makes no listener of api show a certificate.
func blind(f *Facts) {
	for i := range f.Workloads[0].Instances[0].Endpoints {
		e := &f.Workloads[0].Instances[0].Endpoints[i]
		e.Served, e.Problem = nil, "no route to host"
	}
}

// taskFindings are about instances that Amazon ECS runs.
var taskFindings = map[string]findingCase{
	"all is well on ECS": {change: onTasks},
	"a task serves what was current": {
		change: func(f *Facts) { onTasks(f); serveOld(f) },
		want:   []string{"critical store_ahead_of_endpoint api " + listen},
		says:   []string{"the new one was never taken", "`aws ecs update-service` has ECS replace all of them"},
	},
	"it is being replaced": {
		change: func(f *Facts) {
			onTasks(f)
			serveOld(f)
			*f.Workloads[0].Rotation = Rotation{Step: "deploy", Began: f.Now.Add(-time.Minute), Holder: "who rotates", LastSuccess: f.Now.Add(-6 * day)}
		},
	},
	"a task is unhealthy, and serves what was current": {
		change: func(f *Facts) {
			onTasks(f)
			serveOld(f)
			f.Workloads[0].Instances[0].Problem = "the task is UNHEALTHY"
		},
		want: []string{"critical store_ahead_of_endpoint api " + listen, "warning instance_problem api"},
	},
	"the store went back, and a task did not": {
		change: func(f *Facts) {
			onTasks(f)
			w := &f.Workloads[0]
			w.Stored.Current, w.Stored.Previous = w.Stored.Previous, w.Stored.Current
			w.Stored.Current.Certificate = leaf("aa00", f.Now, 2*day)
			f.Issued["aa00"] = Issued{Serial: "aa00", Identity: apiID, NotBefore: w.Stored.Current.NotBefore, NotAfter: w.Stored.Current.NotAfter}
		},
		want: []string{"warning endpoint_ahead_of_store api " + listen},
		says: []string{"`aws ecs update-service`"},
	},
	"the tasks cannot be reached": {
		change: func(f *Facts) { onTasks(f); blind(f) },
		want:   []string{"critical endpoint_unreachable api ecs:shop/api"},
		says:   []string{"(2 were tried): no route to host", "inside the VPC"},
	},
	"one of two tasks cannot be reached": {
		change: func(f *Facts) {
			onTasks(f)
			w := &f.Workloads[0]
			w.Instances = append(w.Instances, Instance{Name: "0c1d", Connected: true, Endpoints: []Endpoint{{Listener: "0.0.0.0_9080", Address: "10.0.0.3:9080", Problem: "refused"}}})
		},
		want: []string{"critical endpoint_unreachable api 10.0.0.3:9080"},
	},
	"the tasks cannot be reached, and were started before": {
		change: func(f *Facts) {
			onTasks(f)
			blind(f)
			f.Workloads[0].Instances[0].Started = f.Now.Add(-2 * day)
		},
		want: []string{"critical endpoint_unreachable api ecs:shop/api", "critical store_ahead_of_endpoint api ecs:shop/api"},
	},
	"a gateway's task was started before": {
		change: func(f *Facts) {
			onTasks(f)
			f.Workloads[0].Instances[0].Endpoints = nil
			f.Workloads[0].Instances[0].Started = f.Now.Add(-2 * day)
		},
		want: []string{"critical store_ahead_of_endpoint api ecs:shop/api"},
		says: []string{"it has an older certificate, which it read when it started"},
	},
	"the same, while it is being replaced": {
		change: func(f *Facts) {
			onTasks(f)
			f.Workloads[0].Instances[0].Endpoints = nil
			f.Workloads[0].Instances[0].Started = f.Now.Add(-2 * day)
			*f.Workloads[0].Rotation = Rotation{Step: "deploy", Began: f.Now.Add(-time.Minute), Holder: "who rotates", LastSuccess: f.Now.Add(-6 * day)}
		},
	},
	"a gateway's task was started since": {
		change: func(f *Facts) { onTasks(f); f.Workloads[0].Instances[0].Endpoints = nil },
	},
	"no task is to run": {
		change: func(f *Facts) { onTasks(f); f.Workloads[0].Instances = nil },
		want:   []string{"warning no_instance api ecs:shop/api"},
		says:   []string{"is to have no tasks", "DesiredCount"},
	},
	"no task comes up": {
		change: func(f *Facts) {
			onTasks(f)
			f.Workloads[0].Instances = nil
			f.Workloads[0].Tasks.Desired, f.Workloads[0].Tasks.Starting = 2, 1
		},
		want: []string{"critical no_instance api ecs:shop/api"},
		says: []string{"2 are to, and 1 are starting"},
	},
	"ECS does not answer": {
		change: func(f *Facts) {
			f.Workloads[0].Instances, f.Workloads[0].InstancesKnown = nil, false
			f.Unreached = []Unreached{{Code: CodeTasks, Place: "ecs:shop", Problem: "denied", Lost: "what the tasks of api serve"}}
		},
		want: []string{"critical tasks_unknown ecs:shop"},
		says: []string{"denied; not checked: what the tasks of api serve", "ecs:ListTasks"},
	},
	"nobody knows of instances": {
		change: func(f *Facts) {
			f.Workloads[0].Instances, f.Workloads[0].InstancesKnown, f.Workloads[0].NotLookedAt = nil, false, true
		},
		want: []string{"warning not_looked_at api"},
		says: []string{"none was looked at"},
	},
}

// serveOld makes api serve the certificate of before, which is two days old.
func serveOld(f *Facts) {
	old := leaf("aa00", f.Now, 2*day)
	f.Workloads[0].Stored.Previous.Certificate = old
	f.Issued["aa00"] = Issued{Serial: "aa00", Identity: apiID, NotBefore: old.NotBefore, NotAfter: old.NotAfter}
	for i := range f.Workloads[0].Instances[0].Endpoints {
		f.Workloads[0].Instances[0].Endpoints[i].Served = served(f.Workloads[0].Stored.Previous.Certificate)
	}
}

// TestTasks asserts that a gateway's task without a listener of its own is an item all the same, and counts what was seen.
func TestTasks(t *testing.T) {
	facts := healthy(noon)
	onTasks(&facts)
	if got := Compare(facts, DefaultLimits()).EndpointsSeen; got != 2 {
		t.Errorf("%d endpoints seen, want 2", got)
	}
	facts.Workloads[0].Instances[0].Endpoints = nil
	report := Compare(facts, DefaultLimits())
	reported := 0
	for _, item := range report.Items {
		if item.Kind == KindReported && item.Place == "by its start" && item.Serial == "aa01" && item.State == StateOK {
			reported++
		}
	}
	if reported != 1 || report.EndpointsSeen != 0 {
		t.Errorf("%d items by the start, %d endpoints seen: %+v", reported, report.EndpointsSeen, report.Items)
	}
}
