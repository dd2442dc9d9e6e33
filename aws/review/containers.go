package review

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
)

// strong are capabilities by which one container gets at what another one has, and the host.
var strong = []string{"ALL", "SYS_ADMIN", "SYS_PTRACE", "SYS_MODULE", "SYS_RAWIO", "DAC_OVERRIDE", "DAC_READ_SEARCH", "BPF"}

// ofHost are places of a host from which all of its containers can be reached.
var ofHost = []string{"/var/run/docker.sock", "/run/docker.sock", "/var/lib/docker", "/run/containerd", "/var/run/containerd", "/var/lib/ecs", "/proc", "/etc/ecs"}

// reaches tells whether a directory of a host is one of those places, in one, or has one in it.
func reaches(directory string) bool {
	within := func(a, b string) bool { return a == b || strings.HasPrefix(a, strings.TrimSuffix(b, "/")+"/") }
	directory = path.Clean("/" + directory)
	return slices.ContainsFunc(ofHost, func(place string) bool { return within(directory, place) || within(place, directory) })
}

// judgeRights looks for containers that get out of their own: they read the keys of all others.
func (r *reviewer) judgeRights(arn string, d *types.TaskDefinition) {
	say := func(what string) {
		r.add(Error, ContainerRights, arn, what+": it reaches the keys of other containers, and of other tasks of the host", "take it away: nothing of the mesh needs it, and Fargate does not have it")
	}
	if d.NetworkMode == types.NetworkModeHost {
		say("its containers have the network of the host, with the plain ports between applications and proxies")
	}
	if d.PidMode == types.PidModeHost || d.IpcMode == types.IpcModeHost {
		say("its containers see the processes, or the shared memory, of the host")
	}
	if d.PidMode == types.PidModeTask || d.IpcMode == types.IpcModeTask {
		r.add(Error, ContainerRights, arn, "its containers see one another's processes, or shared memory: each of them gets at the key in the proxy's memory, and by /proc at its files", "leave out pidMode and ipcMode, as templates do")
	}
	for _, v := range d.Volumes {
		if v.Host == nil {
			continue
		}
		if from := aws.ToString(v.Host.SourcePath); from != "" && reaches(from) {
			say("the volume " + aws.ToString(v.Name) + " is " + from + " of the host")
		}
	}
	for i := range d.ContainerDefinitions {
		c := &d.ContainerDefinitions[i]
		who := "the container " + aws.ToString(c.Name)
		if aws.ToBool(c.Privileged) {
			say(who + " is privileged")
		}
		if c.LinuxParameters == nil {
			continue
		}
		if len(c.LinuxParameters.Devices) > 0 {
			say(who + " has devices of the host")
		}
		if added := c.LinuxParameters.Capabilities; added != nil {
			if has := slices.DeleteFunc(slices.Clone(added.Add), func(capability string) bool { return !slices.Contains(strong, strings.TrimPrefix(capability, "CAP_")) }); len(has) > 0 {
				say(who + " has the capability " + strings.Join(has, ", "))
			}
		}
	}
}

// judgeVolume looks at where the certificates lie: in memory or on a disk of the task, which goes with it.
func (r *reviewer) judgeVolume(arn string, d *types.TaskDefinition, volume string) {
	for _, v := range d.Volumes {
		if aws.ToString(v.Name) != volume {
			continue
		}
		where := ""
		switch {
		case v.Host != nil && aws.ToString(v.Host.SourcePath) != "":
			where = "the directory " + *v.Host.SourcePath + " of the host"
		case v.EfsVolumeConfiguration != nil:
			where = "the file system " + aws.ToString(v.EfsVolumeConfiguration.FileSystemId) + " (EFS)"
		case v.FsxWindowsFileServerVolumeConfiguration != nil, v.S3filesVolumeConfiguration != nil:
			where = "a file system of others"
		case aws.ToBool(v.ConfiguredAtLaunch):
			where = "a volume that is attached at the start (EBS)"
		case v.DockerVolumeConfiguration != nil:
			where = "a volume of Docker"
		default:
			continue
		}
		r.add(Error, VolumeKept, arn, fmt.Sprintf("the certificates and keys lie in %s (volume %s), where others read them and where they are after the task", where, volume), "use a volume of the task alone, without host and without a configuration; then rotate")
	}
}

// judgeForeign sees whether a secret that a container gets is one of the mesh that is not for its workload.
func (r *reviewer) judgeForeign(arn string, w *workload, container, from string) {
	for _, s := range r.secrets {
		if names(from, s.name) {
			r.add(Error, SecretOfAnother, arn, fmt.Sprintf("the container %s gets %s, which is not for %s", container, s.name, w.name), "take it out of the definition, and rotate it: whoever was in that container has it")
		}
	}
}

// judgeHidden looks for secrets of the mesh where a definition gives them to others than a container: its log, or a registry.
func (r *reviewer) judgeHidden(arn string, c *types.ContainerDefinition) {
	given := map[string]string{}
	if c.LogConfiguration != nil {
		for _, s := range c.LogConfiguration.SecretOptions {
			given["the option "+aws.ToString(s.Name)+" of its log"] = aws.ToString(s.ValueFrom)
		}
	}
	if c.RepositoryCredentials != nil {
		given["the registry of its image"] = aws.ToString(c.RepositoryCredentials.CredentialsParameter)
	}
	for _, what := range sorted(given) {
		for _, s := range r.secrets {
			if names(given[what], s.name) {
				r.add(Error, SecretOfAnother, arn, fmt.Sprintf("the container %s gives %s to %s", aws.ToString(c.Name), s.name, what), "take it out of the definition, and rotate it")
			}
		}
	}
}
