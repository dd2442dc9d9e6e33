//go:build linux

package ecsfake

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"golang.org/x/sys/unix"

	"countersign.dev/aws/internal/awstest/ecsfake/jail"
)

// The states of tasks and containers.
const (
	provisioning = "PROVISIONING"
	pending      = "PENDING"
	running      = "RUNNING"
	deactivating = "DEACTIVATING"
	stopping     = "STOPPING"
	stopped      = "STOPPED"
)

// task is one task. The double's lock guards what changes; run's goroutine owns space and volumes.
type task struct {
	id, arn    string
	cluster    *types.Cluster
	definition *types.TaskDefinition
	overrides  *types.TaskOverride
	group      string
	startedBy  string
	tags       []types.Tag
	service    *service    // nil for a task of its own
	deployment *deployment // which one of the service's
	containers []*container

	space    *jail.Space
	pause    *jail.Container // holds the processes of a task whose containers share them; else nil
	volumes  map[string]string
	owned    map[string]bool // volumes that have got their owner
	roleID   string          // the path of its credentials
	metadata string          // the path of its metadata

	desired, last          string
	stopCode               types.TaskStopCode
	stoppedReason          string
	created                time.Time
	started, stoppingAt    *time.Time
	stoppedAt              *time.Time
	stop                   chan struct{} // closed when it has to stop
	kill                   chan struct{} // closed when its targets have drained
	targets                []*target
	failed, counted, ready bool // as its service has judged it
}

// hexID makes an id like a task's.
func hexID() string {
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails (crypto/rand)
	return hex.EncodeToString(id)
}

// launch makes a task and starts it. The lock is held.
func (f *Fake) launch(t *task) *task {
	t.id = hexID()
	t.arn = f.arn("ecs", "task/"+aws.ToString(t.cluster.ClusterName)+"/"+t.id)
	t.desired, t.last, t.created = running, provisioning, time.Now()
	t.stop, t.kill = make(chan struct{}), make(chan struct{})
	t.roleID, t.metadata = hexID(), t.id
	t.volumes, t.owned = map[string]string{}, map[string]bool{}
	for i := range t.definition.ContainerDefinitions {
		c := &container{task: t, definition: t.definition.ContainerDefinitions[i], status: pending, runtimeID: t.id + "-" + strconv.Itoa(i)}
		if t.overrides != nil {
			c.override(t.overrides.ContainerOverrides)
		}
		c.arn = f.arn("ecs", "container/"+aws.ToString(t.cluster.ClusterName)+"/"+t.id+"/"+hexID())
		if c.definition.HealthCheck != nil {
			c.health = types.HealthStatusUnknown
		}
		t.containers = append(t.containers, c)
	}
	f.tasks = append(f.tasks, t)
	f.run(func() { f.live(t) })
	f.wake()
	return t
}

// live is a task's life.
func (f *Fake) live(t *task) {
	f.options.Log("task %s of %s starts", t.id, t.group)
	err := f.prepare(t)
	if err != nil {
		f.change(func() { f.stopTask(t, types.TaskStopCodeTaskFailedToStart, err.Error()) })
	} else {
		f.change(func() {
			for _, c := range t.containers {
				f.run(func() { f.supervise(c) })
			}
		})
	}
	select {
	case <-t.stop:
	case <-f.ctx.Done():
		f.change(func() { f.stopTask(t, types.TaskStopCodeUserInitiated, errClosed.Error()) })
	}
	if err == nil {
		f.leaveTargets(t)
	}
	f.change(func() { t.last = stopping })
	close(t.kill)
	if err == nil {
		f.awaitEnd(t)
	}
	f.change(func() {
		for _, c := range t.containers {
			c.status = stopped
		}
	})
	f.dismantle(t)
	f.change(func() {
		t.last, t.stoppedAt = stopped, aws.Time(time.Now())
		f.options.Log("task %s of %s has stopped: %s %s", t.id, t.group, t.stopCode, t.stoppedReason)
	})
}

// awaitEnd waits until no container of a task that stops is left, also when the double is closed.
func (f *Fake) awaitEnd(t *task) {
	for {
		f.mu.Lock()
		changed := f.changed
		left := slices.ContainsFunc(t.containers, func(c *container) bool { return c.status != stopped })
		f.mu.Unlock()
		if !left {
			return
		}
		<-changed
	}
}

// prepare makes what all containers of a task share. Errors are worded as AWS words why a task could not start.
func (f *Fake) prepare(t *task) error {
	space, err := f.network.Join()
	if err != nil {
		return fmt.Errorf("ResourceInitializationError: unable to set up the task's network: %w", err)
	}
	f.change(func() { t.space, t.last = space, pending })
	for _, c := range t.containers {
		name := aws.ToString(c.definition.Image)
		image, ok := f.image(name)
		if !ok {
			return fmt.Errorf("CannotPullContainerError: pull image manifest has been retried 1 time(s): failed to resolve ref %s: not found", name)
		}
		c.image = image
		if c.uid, c.gid, err = person(orDefault(aws.ToString(c.definition.User), image.User)); err != nil {
			return fmt.Errorf("CannotStartContainerError: %w", err)
		}
		if c.secrets, err = f.fetch(f.ctx, t, &c.definition); err != nil {
			return fmt.Errorf("ResourceInitializationError: unable to pull secrets or registry auth: execution resource retrieval failed: %w", err)
		}
	}
	if err := f.serveTask(t); err != nil {
		return fmt.Errorf("ResourceInitializationError: %w", err)
	}
	if t.definition.PidMode == types.PidModeTask {
		if t.pause, err = jail.Start(jail.Spec{Pause: true, Hostname: hostname(t)}, space, io.Discard); err != nil {
			return fmt.Errorf("ResourceInitializationError: %w", err)
		}
	}
	for _, volume := range t.definition.Volumes {
		name := aws.ToString(volume.Name)
		path := filepath.Join(f.work, t.id+"-"+name)
		if err := os.Mkdir(path, 0o700); err != nil {
			return fmt.Errorf("ResourceInitializationError: make the volume %s: %w", name, err)
		}
		if err := unix.Mount("volume", path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755,size=64m"); err != nil {
			return fmt.Errorf("ResourceInitializationError: make the volume %s: %w", name, err)
		}
		t.volumes[name] = path
	}
	return nil
}

// dismantle gives up what a task had.
func (f *Fake) dismantle(t *task) {
	for name, path := range t.volumes {
		if err := errors.Join(unix.Unmount(path, unix.MNT_DETACH), os.Remove(path)); err != nil {
			f.options.Log("task %s: give the volume %s up: %v", t.id, name, err)
		}
	}
	for _, c := range t.containers {
		if c.process != nil {
			c.process.Close()
		}
	}
	if t.pause != nil {
		t.pause.Signal(syscall.SIGKILL)
		<-t.pause.Done()
		t.pause.Close()
	}
	if t.space != nil {
		t.space.Close()
	}
}

// stopTask tells a task to stop, with the reason that is shown; only the first one counts. The lock is held.
func (f *Fake) stopTask(t *task, code types.TaskStopCode, reason string) {
	if t.desired == stopped {
		return
	}
	t.desired, t.stopCode, t.stoppedReason, t.stoppingAt = stopped, code, reason, aws.Time(time.Now())
	if t.last == running {
		t.last = deactivating
	}
	close(t.stop)
	f.wake()
}

// settle works the task's state out from its containers'. The lock is held.
func (t *task) settle() {
	if t.desired == stopped || t.last == running {
		return
	}
	for _, c := range t.containers {
		if c.status == pending {
			return
		}
	}
	t.last, t.started = running, aws.Time(time.Now())
}

// health is the task's, by its essential containers. The lock is held.
func (t *task) health() types.HealthStatus {
	health := types.HealthStatus("")
	for _, c := range t.containers {
		if c.definition.HealthCheck == nil || !aws.ToBool(c.definition.Essential) {
			continue
		}
		switch {
		case c.health == types.HealthStatusUnhealthy:
			return types.HealthStatusUnhealthy
		case c.health == types.HealthStatusUnknown:
			health = types.HealthStatusUnknown
		case health == "":
			health = types.HealthStatusHealthy
		}
	}
	if health == "" {
		return types.HealthStatusUnknown
	}
	return health
}

// checked says whether an essential container has a health check.
func (t *task) checked() bool {
	return slices.ContainsFunc(t.containers, func(c *container) bool {
		return c.definition.HealthCheck != nil && aws.ToBool(c.definition.Essential)
	})
}

// show is a task as AWS describes it. The lock is held.
func (t *task) show() types.Task {
	shown := types.Task{
		TaskArn: &t.arn, ClusterArn: t.cluster.ClusterArn, TaskDefinitionArn: t.definition.TaskDefinitionArn, Group: &t.group,
		DesiredStatus: &t.desired, LastStatus: &t.last, HealthStatus: t.health(), LaunchType: types.LaunchTypeFargate,
		Cpu: t.definition.Cpu, Memory: t.definition.Memory, CreatedAt: &t.created, StartedAt: t.started, StoppingAt: t.stoppingAt, StoppedAt: t.stoppedAt,
		StopCode: t.stopCode, Overrides: t.overrides, Tags: t.tags, AvailabilityZone: aws.String("eu-central-1a"), PlatformVersion: aws.String("1.4.0"), PlatformFamily: aws.String("Linux"), Version: 1,
	}
	if t.stoppedReason != "" {
		shown.StoppedReason = &t.stoppedReason
	}
	if t.startedBy != "" {
		shown.StartedBy = &t.startedBy
	}
	if t.overrides == nil {
		shown.Overrides = &types.TaskOverride{}
	}
	if t.space != nil {
		shown.Attachments = []types.Attachment{{
			Id: aws.String("eni-attach-" + t.id[:8]), Type: aws.String("ElasticNetworkInterface"), Status: aws.String("ATTACHED"),
			Details: []types.KeyValuePair{
				{Name: aws.String("networkInterfaceId"), Value: aws.String("eni-" + t.id[:17])},
				{Name: aws.String("privateIPv4Address"), Value: aws.String(t.space.Address.String())},
			},
		}}
	}
	for _, c := range t.containers {
		shown.Containers = append(shown.Containers, c.show())
	}
	return shown
}

// find finds a task by ARN or id. The lock is held.
func (f *Fake) find(name string) *task {
	id := name[strings.LastIndex(name, "/")+1:]
	for _, t := range f.tasks {
		if t.id == id {
			return t
		}
	}
	return nil
}
