//go:build linux

package ecsfake

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"countersign.dev/aws/internal/awstest/ecsfake/shape"
)

// maxDefinition is the largest task definition that AWS takes, in bytes.
const maxDefinition = 64 << 10

// invalid refuses a request as AWS does: ClientException with the reason.
func invalid(format string, arguments ...any) error {
	return refuse("ClientException", format, arguments...)
}

// registerTaskDefinition adds a revision.
func (f *Fake) registerTaskDefinition(in *ecs.RegisterTaskDefinitionInput) (*ecs.RegisterTaskDefinitionOutput, error) {
	if err := checkDefinition(in); err != nil {
		return nil, err
	}
	if text, err := json.Marshal(shape.JSON(in)); err != nil || len(text) > maxDefinition {
		return nil, invalid("Actual length: '%d'. Max allowed length is '%d' bytes.", len(text), maxDefinition)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	family := aws.ToString(in.Family)
	revision := len(f.families[family]) + 1
	definition := &types.TaskDefinition{
		TaskDefinitionArn: aws.String(f.arn("ecs", "task-definition/"+family+":"+strconv.Itoa(revision))),
		Family:            in.Family, Revision: int32(revision), Status: types.TaskDefinitionStatusActive,
		ContainerDefinitions: in.ContainerDefinitions, Volumes: in.Volumes, Cpu: in.Cpu, Memory: in.Memory,
		ExecutionRoleArn: in.ExecutionRoleArn, TaskRoleArn: in.TaskRoleArn, NetworkMode: in.NetworkMode, PidMode: in.PidMode, IpcMode: in.IpcMode,
		RequiresCompatibilities: in.RequiresCompatibilities, Compatibilities: []types.Compatibility{types.CompatibilityEc2, types.CompatibilityFargate},
		RuntimePlatform: in.RuntimePlatform, EphemeralStorage: in.EphemeralStorage, RegisteredAt: aws.Time(time.Now()),
		RegisteredBy: aws.String("arn:aws:iam::" + f.options.Account + ":root"),
	}
	for i := range definition.ContainerDefinitions {
		c := &definition.ContainerDefinitions[i]
		if c.Essential == nil {
			c.Essential = aws.Bool(true)
		}
		for j := range c.PortMappings {
			c.PortMappings[j].HostPort = c.PortMappings[j].ContainerPort
		}
	}
	f.families[family] = append(f.families[family], definition)
	return &ecs.RegisterTaskDefinitionOutput{TaskDefinition: definition, Tags: in.Tags}, nil
}

// checkDefinition refuses what AWS refuses for Fargate, and what the double cannot run.
func checkDefinition(in *ecs.RegisterTaskDefinitionInput) error {
	switch {
	case !wellNamed(aws.ToString(in.Family)):
		return invalid("Invalid task definition family name.")
	case len(in.ContainerDefinitions) == 0:
		return invalid("Container list cannot be empty.")
	case in.NetworkMode != types.NetworkModeAwsvpc:
		return invalid("Fargate only supports network mode ‘awsvpc’.")
	case in.Cpu == nil:
		return invalid("Fargate requires that 'cpu' be defined at the task level.")
	case in.Memory == nil:
		return invalid("Fargate requires that 'memory' be defined at the task level.")
	case !fits(aws.ToString(in.Cpu), aws.ToString(in.Memory)):
		return invalid("No Fargate configuration exists for given values: %s CPU, %s memory. See the Amazon ECS documentation for the valid values.", aws.ToString(in.Cpu), aws.ToString(in.Memory))
	case in.PidMode != "" && in.PidMode != types.PidModeTask:
		return invalid("Fargate only supports pidMode 'task'.")
	case in.IpcMode != "":
		return unsupported("ipcMode")
	case in.ProxyConfiguration != nil || len(in.PlacementConstraints) > 0 || aws.ToBool(in.EnableFaultInjection):
		return unsupported("proxyConfiguration, placement and fault injection")
	}
	volumes := map[string]bool{}
	for _, volume := range in.Volumes {
		if volume.DockerVolumeConfiguration != nil || volume.EfsVolumeConfiguration != nil || volume.FsxWindowsFileServerVolumeConfiguration != nil || volume.S3filesVolumeConfiguration != nil ||
			aws.ToBool(volume.ConfiguredAtLaunch) || volume.Host != nil && volume.Host.SourcePath != nil {
			return unsupported("volumes other than a task's own")
		}
		if name := aws.ToString(volume.Name); !wellNamed(name) || volumes[name] {
			return invalid("Volume name %q is not valid, or is there twice.", name)
		}
		volumes[aws.ToString(volume.Name)] = true
	}
	return checkContainers(in, volumes)
}

// wellNamed says whether a name has up to 255 letters, digits, - and _.
func wellNamed(name string) bool {
	return name != "" && len(name) <= 255 && strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") == ""
}

// fits says whether Fargate has tasks of this size: of the table, the rows up to 4 CPUs.
func fits(cpu, memory string) bool {
	units, err1 := strconv.Atoi(cpu)
	mib, err2 := strconv.Atoi(memory)
	if err1 != nil || err2 != nil {
		return false
	}
	switch units {
	case 256:
		return mib == 512 || mib == 1024 || mib == 2048
	case 512, 1024, 2048, 4096:
		gib := units / 512
		most := map[int]int{512: 4, 1024: 8, 2048: 16, 4096: 30}[units]
		return mib%1024 == 0 && mib/1024 >= gib && mib/1024 <= most
	}
	return false
}

// checkContainers refuses what is wrong with single containers, or between them.
func checkContainers(in *ecs.RegisterTaskDefinitionInput, volumes map[string]bool) error {
	names := map[string]*types.ContainerDefinition{}
	essential := false
	for i := range in.ContainerDefinitions {
		c := &in.ContainerDefinitions[i]
		name := aws.ToString(c.Name)
		if !wellNamed(name) || names[name] != nil {
			return invalid("Container name %q is not valid, or is there twice.", name)
		}
		if aws.ToString(c.Image) == "" {
			return invalid("Container.image should not be null or empty.")
		}
		names[name] = c
		essential = essential || c.Essential == nil || *c.Essential
	}
	if !essential {
		return invalid("At least one container must be marked as essential.")
	}
	for i := range in.ContainerDefinitions {
		c := &in.ContainerDefinitions[i]
		for _, check := range []func() error{
			func() error { return checkSupport(c) },
			func() error { return checkSecrets(in, c) },
			func() error { return checkMounts(c, volumes) },
			func() error { return checkHealth(c) },
			func() error { return checkDependencies(c, names) },
		} {
			if err := check(); err != nil {
				return err
			}
		}
	}
	return checkCycles(in.ContainerDefinitions)
}

// checkSupport refuses members that the double, or Fargate, does not carry out.
func checkSupport(c *types.ContainerDefinition) error {
	name := aws.ToString(c.Name)
	if aws.ToBool(c.Privileged) {
		return invalid("Fargate compatible task definitions do not support privileged containers (%s).", name)
	}
	if c.StopTimeout != nil && (*c.StopTimeout < 0 || *c.StopTimeout > 120) {
		return invalid("Container.stopTimeout of %s has to be at most 120.", name)
	}
	unable := map[string]bool{
		"links": len(c.Links) > 0, "volumesFrom": len(c.VolumesFrom) > 0, "environmentFiles": len(c.EnvironmentFiles) > 0,
		"firelensConfiguration": c.FirelensConfiguration != nil, "repositoryCredentials": c.RepositoryCredentials != nil,
		"restartPolicy": c.RestartPolicy != nil, "credentialSpecs": len(c.CredentialSpecs) > 0, "dnsServers": len(c.DnsServers) > 0,
		"dnsSearchDomains": len(c.DnsSearchDomains) > 0, "extraHosts": len(c.ExtraHosts) > 0, "disableNetworking": aws.ToBool(c.DisableNetworking),
		"interactive": aws.ToBool(c.Interactive), "pseudoTerminal": aws.ToBool(c.PseudoTerminal), "systemControls": len(c.SystemControls) > 0,
		"dockerSecurityOptions": len(c.DockerSecurityOptions) > 0, "resourceRequirements": len(c.ResourceRequirements) > 0, "hostname": c.Hostname != nil,
	}
	if p := c.LinuxParameters; p != nil {
		unable["linuxParameters.devices"] = len(p.Devices) > 0
		unable["linuxParameters.maxSwap, swappiness and sharedMemorySize"] = p.MaxSwap != nil || p.Swappiness != nil || p.SharedMemorySize != nil
		if p.Capabilities != nil {
			unable["linuxParameters.capabilities.add"] = len(p.Capabilities.Add) > 0
			if _, _, err := dropped(p.Capabilities.Drop); err != nil {
				return err
			}
		}
	}
	for what, is := range unable {
		if is {
			return unsupported(what + " of the container " + name)
		}
	}
	for _, limit := range c.Ulimits {
		if _, known := limits[limit.Name]; !known {
			return unsupported("the limit " + string(limit.Name) + " of the container " + name)
		}
	}
	for _, port := range c.PortMappings {
		if port.HostPort != nil && aws.ToInt32(port.HostPort) != aws.ToInt32(port.ContainerPort) {
			return invalid("When networkMode=awsvpc, the host ports and container ports in port mappings must match.")
		}
	}
	return nil
}

// checkSecrets refuses secrets that nobody could fetch.
func checkSecrets(in *ecs.RegisterTaskDefinitionInput, c *types.ContainerDefinition) error {
	taken := map[string]bool{}
	for _, variable := range c.Environment {
		taken[aws.ToString(variable.Name)] = true
	}
	for _, secret := range c.Secrets {
		name := aws.ToString(secret.Name)
		if taken[name] {
			return invalid("The secret name must be unique and not shared with any new or existing environment variables set on the container, such as '%s'.", name)
		}
		taken[name] = true
		if in.ExecutionRoleArn == nil {
			return invalid("When you are specifying container secrets, you must also specify a value for 'executionRoleArn'.")
		}
		if _, err := readReference(aws.ToString(secret.ValueFrom)); err != nil {
			return err
		}
	}
	if c.LogConfiguration != nil && c.LogConfiguration.LogDriver == types.LogDriverAwslogs && in.ExecutionRoleArn == nil {
		return invalid("Fargate requires task definition to have execution role ARN to support log driver awslogs.")
	}
	return nil
}

// checkMounts refuses mounts of what is not there.
func checkMounts(c *types.ContainerDefinition, volumes map[string]bool) error {
	for _, mount := range c.MountPoints {
		if !volumes[aws.ToString(mount.SourceVolume)] {
			return invalid("Unknown volume '%s'.", aws.ToString(mount.SourceVolume))
		}
		if !strings.HasPrefix(aws.ToString(mount.ContainerPath), "/") {
			return invalid("Container path %q is not absolute.", aws.ToString(mount.ContainerPath))
		}
	}
	return nil
}

// checkHealth refuses health checks out of AWS's limits.
func checkHealth(c *types.ContainerDefinition) error {
	h := c.HealthCheck
	if h == nil {
		return nil
	}
	if len(h.Command) < 2 || h.Command[0] != "CMD" && h.Command[0] != "CMD-SHELL" {
		return invalid("Container.healthCheck.command of %s has to begin with CMD or CMD-SHELL, and to name a command.", aws.ToString(c.Name))
	}
	for _, limit := range []struct {
		name        string
		value       *int32
		least, most int32
	}{{"interval", h.Interval, 5, 300}, {"timeout", h.Timeout, 2, 60}, {"retries", h.Retries, 1, 10}, {"startPeriod", h.StartPeriod, 0, 300}} {
		if limit.value != nil && (*limit.value < limit.least || *limit.value > limit.most) {
			return invalid("Container.healthCheck.%s of %s has to be between %d and %d.", limit.name, aws.ToString(c.Name), limit.least, limit.most)
		}
	}
	return nil
}

// checkDependencies refuses dependencies that can never be met.
func checkDependencies(c *types.ContainerDefinition, names map[string]*types.ContainerDefinition) error {
	for _, dependency := range c.DependsOn {
		on := names[aws.ToString(dependency.ContainerName)]
		if on == nil || on == c {
			return invalid("Container dependency of %s: there is no other container %q.", aws.ToString(c.Name), aws.ToString(dependency.ContainerName))
		}
		switch dependency.Condition {
		case types.ContainerConditionStart:
		case types.ContainerConditionHealthy:
			if on.HealthCheck == nil {
				return invalid("A dependency of %s waits for %s to be HEALTHY, which has no health check.", aws.ToString(c.Name), aws.ToString(on.Name))
			}
		case types.ContainerConditionComplete, types.ContainerConditionSuccess:
			if on.Essential == nil || *on.Essential {
				return invalid("A dependency of %s waits for the end of %s, which is essential: the conditions COMPLETE and SUCCESS cannot be.", aws.ToString(c.Name), aws.ToString(on.Name))
			}
		default:
			return invalid("Container dependency condition %q is not valid.", dependency.Condition)
		}
	}
	return nil
}

// checkCycles refuses containers that wait for each other.
func checkCycles(containers []types.ContainerDefinition) error {
	done := map[string]bool{}
	for range containers {
		for _, c := range containers {
			if !slices.ContainsFunc(c.DependsOn, func(d types.ContainerDependency) bool { return !done[aws.ToString(d.ContainerName)] }) {
				done[aws.ToString(c.Name)] = true
			}
		}
	}
	if len(done) < len(containers) {
		return invalid("Container dependency graph contains a cycle.")
	}
	return nil
}

// definition finds a revision by its ARN, FAMILY:REVISION, or FAMILY for the newest that is active. The lock is held.
func (f *Fake) definition(name string) (*types.TaskDefinition, error) {
	short := name[strings.LastIndex(name, "/")+1:]
	family, revision, given := strings.Cut(short, ":")
	all := f.families[family]
	for i := len(all) - 1; i >= 0; i-- {
		if given && strconv.Itoa(int(all[i].Revision)) == revision || !given && all[i].Status == types.TaskDefinitionStatusActive {
			return all[i], nil
		}
	}
	return nil, invalid("Unable to describe task definition.")
}

// describeTaskDefinition shows one revision.
func (f *Fake) describeTaskDefinition(in *ecs.DescribeTaskDefinitionInput) (*ecs.DescribeTaskDefinitionOutput, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	definition, err := f.definition(aws.ToString(in.TaskDefinition))
	if err != nil {
		return nil, err
	}
	return &ecs.DescribeTaskDefinitionOutput{TaskDefinition: definition}, nil
}

// deregisterTaskDefinition makes one revision inactive: what runs runs on.
func (f *Fake) deregisterTaskDefinition(in *ecs.DeregisterTaskDefinitionInput) (*ecs.DeregisterTaskDefinitionOutput, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !strings.Contains(aws.ToString(in.TaskDefinition), ":") {
		return nil, invalid("Revision is missing.")
	}
	definition, err := f.definition(aws.ToString(in.TaskDefinition))
	if err != nil {
		return nil, err
	}
	definition.Status, definition.DeregisteredAt = types.TaskDefinitionStatusInactive, aws.Time(time.Now())
	return &ecs.DeregisterTaskDefinitionOutput{TaskDefinition: definition}, nil
}

// listTaskDefinitions lists the ARNs of revisions.
func (f *Fake) listTaskDefinitions(in *ecs.ListTaskDefinitionsInput) (*ecs.ListTaskDefinitionsOutput, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	status := in.Status
	if status == "" {
		status = types.TaskDefinitionStatusActive
	}
	arns := []string{}
	for family, all := range f.families {
		for _, definition := range all {
			if definition.Status == status && (in.FamilyPrefix == nil || family == *in.FamilyPrefix) {
				arns = append(arns, aws.ToString(definition.TaskDefinitionArn))
			}
		}
	}
	slices.SortFunc(arns, byRevision)
	if in.Sort == types.SortOrderDesc {
		slices.Reverse(arns)
	}
	return &ecs.ListTaskDefinitionsOutput{TaskDefinitionArns: arns}, nil
}

// byRevision orders ARNs of revisions by family, then number.
func byRevision(a, b string) int {
	familyA, numberA, _ := cutLast(a, ":")
	familyB, numberB, _ := cutLast(b, ":")
	if familyA != familyB {
		return strings.Compare(familyA, familyB)
	}
	n, _ := strconv.Atoi(numberA)
	m, _ := strconv.Atoi(numberB)
	return n - m
}

// cutLast cuts at the last separator.
func cutLast(s, separator string) (before, after string, found bool) {
	i := strings.LastIndex(s, separator)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(separator):], true
}
