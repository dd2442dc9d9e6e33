//go:build linux

package ecsfake

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"golang.org/x/sys/unix"

	"countersign.dev/aws/internal/awstest/ecsfake/jail"
)

// container is one container of a task. The double's lock guards what changes.
type container struct {
	task           *task
	arn, runtimeID string
	definition     types.ContainerDefinition
	image          Image
	uid, gid       int
	secrets        []string
	process        *jail.Container
	log            log

	status  string
	began   bool // it was RUNNING once
	exit    *int32
	reason  string
	health  types.HealthStatus
	created *time.Time
}

// override takes what the caller of RunTask set for this container.
func (c *container) override(all []types.ContainerOverride) {
	for _, o := range all {
		if aws.ToString(o.Name) != aws.ToString(c.definition.Name) {
			continue
		}
		if o.Command != nil {
			c.definition.Command = o.Command
		}
		c.definition.Environment = append(slices.Clone(c.definition.Environment), o.Environment...)
	}
}

// maxLog is how much of a container's output is kept, in bytes: its end.
const maxLog = 1 << 20

// log keeps what a container says.
type log struct {
	mu   sync.Mutex
	text []byte
}

// Write keeps a piece of output.
func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, p...)
	if len(l.text) > maxLog {
		l.text = slices.Clone(l.text[len(l.text)-maxLog/2:])
	}
	return len(p), nil
}

// String is what was said so far.
func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text)
}

// supervise waits for what a container depends on, runs it, and stops it when the task stops.
func (f *Fake) supervise(c *container) {
	t := c.task
	if err := f.awaitDependencies(c); err != nil {
		f.change(func() { f.ended(c, nil, err.Error(), types.TaskStopCodeTaskFailedToStart, "Task failed to start") })
		return
	}
	select {
	case <-t.stop: // it was told to stop before this one began
		f.change(func() { f.ended(c, nil, "", types.TaskStopCodeUserInitiated, "") })
		return
	default:
	}
	process, err := f.begin(c)
	if err != nil {
		reason := "CannotStartContainerError: " + err.Error()
		f.change(func() { f.ended(c, nil, reason, types.TaskStopCodeTaskFailedToStart, reason) })
		return
	}
	f.change(func() {
		c.process, c.status, c.began, c.created = process, running, true, aws.Time(time.Now())
		t.settle()
	})
	if c.definition.HealthCheck != nil {
		f.run(func() { f.checkUp(c) })
	}
	select {
	case <-process.Done():
	case <-t.kill:
		f.end(c)
	}
	code := int32(process.Code())
	f.change(func() {
		f.ended(c, &code, "", types.TaskStopCodeEssentialContainerExited, "Essential container in task exited")
	})
}

// ended notes that a container is over, or never began. When it is essential, or the last one, the task stops. The lock is held.
func (f *Fake) ended(c *container, code *int32, reason string, stop types.TaskStopCode, why string) {
	c.status, c.exit, c.reason = stopped, code, reason
	t := c.task
	left := slices.ContainsFunc(t.containers, func(other *container) bool { return other.status != stopped })
	if aws.ToBool(c.definition.Essential) || !left {
		f.stopTask(t, stop, why)
	}
	t.settle()
}

// begin starts a container's program.
func (f *Fake) begin(c *container) (*jail.Container, error) {
	spec, err := f.spec(c)
	if err != nil {
		return nil, err
	}
	return jail.Start(spec, c.task.space, &c.log)
}

// spec describes a container to package jail.
func (f *Fake) spec(c *container) (jail.Spec, error) {
	d, t := &c.definition, c.task
	spec := jail.Spec{
		Root: f.rootDirectory(), Hostname: hostname(t), Host: c.image.Host, Binds: slices.Clone(c.image.Binds),
		Processes: t.pause, Dirs: c.image.Dirs, Links: c.image.Links, ReadOnly: aws.ToBool(d.ReadonlyRootFilesystem), UID: c.uid, GID: c.gid,
		Directory: orDefault(orDefault(aws.ToString(d.WorkingDirectory), c.image.Directory), "/"),
	}
	spec.Files = append(slices.Clone(c.image.Files), jail.File{Path: "/etc/hosts", Content: f.hosts(t)}, jail.File{Path: "/etc/hostname", Content: hostname(t) + "\n"})
	if c.image.Host {
		spec.Files = append(spec.Files, accounts()...)
	}
	if p := d.LinuxParameters; p != nil {
		spec.Init = aws.ToBool(p.InitProcessEnabled)
		if p.Capabilities != nil {
			var err error
			if spec.Drop, spec.DropAll, err = dropped(p.Capabilities.Drop); err != nil {
				return spec, err
			}
		}
		for _, disk := range p.Tmpfs {
			spec.Tmpfs = append(spec.Tmpfs, jail.Tmpfs{Path: aws.ToString(disk.ContainerPath), Size: int64(disk.Size) << 20})
		}
	}
	for _, limit := range d.Ulimits {
		if spec.Limits == nil {
			spec.Limits = map[int][2]uint64{}
		}
		spec.Limits[limits[limit.Name]] = [2]uint64{uint64(limit.SoftLimit), uint64(limit.HardLimit)}
	}
	for _, mount := range d.MountPoints {
		path := aws.ToString(mount.ContainerPath)
		if err := f.own(c, aws.ToString(mount.SourceVolume), path); err != nil {
			return spec, err
		}
		spec.Binds = append(spec.Binds, jail.Bind{Source: t.volumes[aws.ToString(mount.SourceVolume)], Target: path, Writable: !aws.ToBool(mount.ReadOnly)})
	}
	spec.Arguments = arguments(d, c.image)
	if len(spec.Arguments) == 0 {
		return spec, errors.New("no command specified")
	}
	spec.Environment = f.environment(c)
	return spec, nil
}

// arguments are the program and what it is called with: entryPoint and command, or the image's. An entryPoint of
// the definition takes the image's command away.
func arguments(d *types.ContainerDefinition, image Image) []string {
	entryPoint, command := image.EntryPoint, image.Command
	if len(d.EntryPoint) > 0 {
		entryPoint, command = d.EntryPoint, nil
	}
	if len(d.Command) > 0 {
		command = d.Command
	}
	return append(slices.Clone(entryPoint), command...)
}

// own gives a volume the owner and mode of the image's directory, when it is mounted for the first time on one
// that the image declares as a volume.
func (f *Fake) own(c *container, volume, path string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := c.task
	if t.owned[volume] || !slices.Contains(c.image.Volumes, path) {
		return nil
	}
	for _, dir := range c.image.Dirs {
		if dir.Path != path {
			continue
		}
		if err := errors.Join(os.Chmod(t.volumes[volume], dir.Mode), os.Chown(t.volumes[volume], dir.UID, dir.GID)); err != nil {
			return fmt.Errorf("give the volume %s its owner: %w", volume, err)
		}
	}
	t.owned[volume] = true
	return nil
}

// environment is what a container's program finds: nothing of this process's.
func (f *Fake) environment(c *container) []string {
	t := c.task
	variables := []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME=" + hostname(t), "HOME=/",
		"AWS_EXECUTION_ENV=AWS_ECS_FARGATE", "AWS_REGION=" + f.options.Region, "AWS_DEFAULT_REGION=" + f.options.Region,
		"ECS_CONTAINER_METADATA_URI_V4=http://" + agentAddress.Addr().String() + "/v4/" + c.runtimeID,
	}
	if f.front != "" {
		variables = append(variables, "AWS_ENDPOINT_URL="+f.front)
	}
	if t.role() != "" && f.options.Assume != nil {
		variables = append(variables, "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI=/v2/credentials/"+t.roleID)
	}
	variables = append(variables, c.image.Environment...)
	for _, variable := range c.definition.Environment {
		variables = append(variables, aws.ToString(variable.Name)+"="+aws.ToString(variable.Value))
	}
	variables = append(variables, c.secrets...)
	// Of two with one name the later one counts; programs differ in which one they would take.
	seen := map[string]bool{}
	var unique []string
	for _, variable := range slices.Backward(variables) {
		name, _, _ := strings.Cut(variable, "=")
		if !seen[name] {
			seen[name] = true
			unique = append(unique, variable)
		}
	}
	slices.Reverse(unique)
	return unique
}

// hostname is a task's host name.
func hostname(t *task) string {
	return "ip-" + strings.ReplaceAll(t.space.Address.String(), ".", "-") + ".eu-central-1.compute.internal"
}

// capabilities are the numbers of those that containers have by default.
var capabilities = map[string]int{
	"CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "FSETID": 4, "KILL": 5, "SETGID": 6, "SETUID": 7, "SETPCAP": 8, "NET_BIND_SERVICE": 10,
	"NET_RAW": 13, "SYS_CHROOT": 18, "MKNOD": 27, "AUDIT_WRITE": 29, "SETFCAP": 31,
}

// limits are the numbers of those that Fargate lets a definition set.
var limits = map[types.UlimitName]int{types.UlimitNameNofile: unix.RLIMIT_NOFILE, types.UlimitNameCore: unix.RLIMIT_CORE, types.UlimitNameNproc: unix.RLIMIT_NPROC}

// dropped reads the names of capabilities to drop.
func dropped(names []string) (numbers []int, all bool, err error) {
	for _, name := range names {
		number, known := capabilities[name]
		switch {
		case name == "ALL":
			all = true
		case known:
			numbers = append(numbers, number)
		default:
			return nil, false, unsupported("dropping the capability " + name)
		}
	}
	return numbers, all, nil
}

// checkUp runs a container's health check as long as the container runs.
func (f *Fake) checkUp(c *container) {
	h := c.definition.HealthCheck
	command := h.Command[1:]
	if h.Command[0] == "CMD-SHELL" {
		command = append([]string{"/bin/sh", "-c"}, command...)
	}
	grace := time.Now().Add(f.seconds(aws.ToInt32(h.StartPeriod)))
	failures := int32(0)
	for f.pause(f.seconds(orDefaultNumber(h.Interval, 30))) {
		ctx, cancel := context.WithTimeout(f.ctx, time.Duration(orDefaultNumber(h.Timeout, 5))*time.Second)
		code, output, err := c.process.Exec(ctx, command)
		cancel()
		select {
		case <-c.process.Done():
			return
		default:
		}
		health := c.health
		switch {
		case err == nil && code == 0:
			failures, health = 0, types.HealthStatusHealthy
		case time.Now().After(grace) || health == types.HealthStatusHealthy:
			failures++
			if failures >= orDefaultNumber(h.Retries, 3) {
				health = types.HealthStatusUnhealthy
			}
			f.options.Log("task %s: health check of %s: code %d, %s, %v", c.task.id, aws.ToString(c.definition.Name), code, output, err)
		}
		if health != c.health {
			f.change(func() { c.health = health })
		}
	}
}

// orDefaultNumber is a number, or another one where it is not set.
func orDefaultNumber(n *int32, other int32) int32 {
	if n == nil {
		return other
	}
	return *n
}

// show is a container as AWS describes it. The lock is held.
func (c *container) show() types.Container {
	shown := types.Container{
		ContainerArn: &c.arn, TaskArn: &c.task.arn, Name: c.definition.Name, Image: c.definition.Image, RuntimeId: &c.runtimeID,
		LastStatus: &c.status, ExitCode: c.exit, HealthStatus: c.health, NetworkBindings: []types.NetworkBinding{},
	}
	if shown.HealthStatus == "" {
		shown.HealthStatus = types.HealthStatusUnknown
	}
	if c.reason != "" {
		shown.Reason = &c.reason
	}
	if c.task.space != nil {
		shown.NetworkInterfaces = []types.NetworkInterface{{AttachmentId: aws.String("eni-attach-" + c.task.id[:8]), PrivateIpv4Address: aws.String(c.task.space.Address.String())}}
	}
	return shown
}

// end asks a container to end when nobody depends on it any more, and makes it.
func (f *Fake) end(c *container) {
	f.awaitDependants(c)
	signal := c.image.StopSignal
	if signal == 0 {
		signal = syscall.SIGTERM
	}
	if f.ctx.Err() != nil {
		signal = syscall.SIGKILL
	}
	c.process.Signal(signal)
	timer := time.NewTimer(time.Duration(orDefaultNumber(c.definition.StopTimeout, 30)) * time.Second)
	defer timer.Stop()
	select {
	case <-c.process.Done():
		return
	case <-timer.C:
	case <-f.ctx.Done():
	}
	c.process.Signal(syscall.SIGKILL)
	<-c.process.Done()
}
