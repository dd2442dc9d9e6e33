//go:build linux

package ecsfake

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
)

// agentAddress is where a task finds its credentials and its metadata, and nobody else does.
var agentAddress = netip.MustParseAddrPort("169.254.170.2:80")

// role is the ARN of the role that a task's programs have; empty for none.
func (t *task) role() string {
	if t.overrides != nil && t.overrides.TaskRoleArn != nil {
		return *t.overrides.TaskRoleArn
	}
	return aws.ToString(t.definition.TaskRoleArn)
}

// serveTask answers a task's programs at agentAddress until the task is over.
func (f *Fake) serveTask(t *task) error {
	listener, err := t.space.Listen(f.ctx, agentAddress)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v2/credentials/{id}", func(w http.ResponseWriter, r *http.Request) { f.serveCredentials(w, r, t) })
	mux.HandleFunc("GET /v4/{id}", func(w http.ResponseWriter, r *http.Request) { f.serveContainerMetadata(w, r, t) })
	mux.HandleFunc("GET /v4/{id}/task", func(w http.ResponseWriter, _ *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		reply(w, f.taskMetadata(t))
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	f.run(func() { _ = server.Serve(listener) }) // it ends when the server is closed
	f.run(func() {
		f.awaitLast(t)
		server.Close()
	})
	return nil
}

// awaitLast waits until a task has stopped.
func (f *Fake) awaitLast(t *task) {
	select {
	case <-t.kill:
		f.awaitEnd(t)
	case <-f.ctx.Done():
	}
}

// reply writes a JSON document.
func reply(w http.ResponseWriter, document any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(document) // the caller has gone away
}

// serveCredentials gives the credentials of the task's role.
func (f *Fake) serveCredentials(w http.ResponseWriter, r *http.Request, t *task) {
	if r.PathValue("id") != t.roleID || t.role() == "" || f.options.Assume == nil {
		http.Error(w, `{"code":"InvalidIdInRequest","message":"CredentialsV2Request: ID not found","HTTPErrorCode":400}`, http.StatusBadRequest)
		return
	}
	credentials, err := f.options.Assume(t.role())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	reply(w, map[string]string{
		"RoleArn": t.role(), "AccessKeyId": credentials.AccessKeyID, "SecretAccessKey": credentials.SecretAccessKey,
		"Token": credentials.Token, "Expiration": credentials.Expires.UTC().Format(time.RFC3339),
	})
}

// serveContainerMetadata describes the container that asks.
func (f *Fake) serveContainerMetadata(w http.ResponseWriter, r *http.Request, t *task) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range t.containers {
		if c.runtimeID == r.PathValue("id") {
			reply(w, c.metadata())
			return
		}
	}
	http.Error(w, fmt.Sprintf("V4 container metadata handler: unable to get container ID from request: unable to find %s", strconv.Quote(r.PathValue("id"))), http.StatusBadRequest)
}

// metadata is a container in the form of the task metadata endpoint, version 4. The lock is held.
func (c *container) metadata() map[string]any {
	t := c.task
	document := map[string]any{
		"DockerId": c.runtimeID, "Name": aws.ToString(c.definition.Name), "DockerName": aws.ToString(c.definition.Name),
		"Image": aws.ToString(c.definition.Image), "ImageID": "", "Type": "NORMAL", "ContainerARN": c.arn,
		"DesiredStatus": t.desired, "KnownStatus": c.status, "Limits": map[string]any{"CPU": c.definition.Cpu},
		"Labels": map[string]string{
			"com.amazonaws.ecs.cluster": aws.ToString(t.cluster.ClusterArn), "com.amazonaws.ecs.container-name": aws.ToString(c.definition.Name),
			"com.amazonaws.ecs.task-arn": t.arn, "com.amazonaws.ecs.task-definition-family": aws.ToString(t.definition.Family),
			"com.amazonaws.ecs.task-definition-version": strconv.Itoa(int(t.definition.Revision)),
		},
		"Networks": []any{map[string]any{"NetworkMode": "awsvpc", "IPv4Addresses": []string{t.space.Address.String()}, "PrivateDNSName": hostname(t)}},
	}
	if c.created != nil {
		document["CreatedAt"], document["StartedAt"] = c.created.UTC().Format(time.RFC3339Nano), c.created.UTC().Format(time.RFC3339Nano)
	}
	if c.exit != nil {
		document["ExitCode"] = *c.exit
	}
	return document
}

// taskMetadata is a task in the same form. The lock is held.
func (f *Fake) taskMetadata(t *task) map[string]any {
	containers := []any{}
	for _, c := range t.containers {
		containers = append(containers, c.metadata())
	}
	document := map[string]any{
		"Cluster": aws.ToString(t.cluster.ClusterArn), "TaskARN": t.arn, "Family": aws.ToString(t.definition.Family), "Revision": strconv.Itoa(int(t.definition.Revision)),
		"DesiredStatus": t.desired, "KnownStatus": t.last, "LaunchType": "FARGATE", "AvailabilityZone": f.options.Region + "a", "Containers": containers,
	}
	if t.service != nil {
		document["ServiceName"] = aws.ToString(t.service.name)
	}
	return document
}

// hosts is a task's /etc/hosts: itself, and the balancers there are.
func (f *Fake) hosts(t *task) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var text strings.Builder
	fmt.Fprintf(&text, "127.0.0.1 localhost\n%s %s\n", t.space.Address, hostname(t))
	for _, b := range f.balancers {
		fmt.Fprintf(&text, "%s %s\n", b.address, b.dnsName())
	}
	return text.String()
}

// Logs is what a container of a task has said so far; empty for one that is not there.
func (f *Fake) Logs(task, container string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if t := f.find(task); t != nil {
		for _, c := range t.containers {
			if aws.ToString(c.definition.Name) == container {
				return c.log.String()
			}
		}
	}
	return ""
}

// Exec runs a program in a container that runs, as ECS Exec does, and returns its exit code and output.
func (f *Fake) Exec(ctx context.Context, task, container string, arguments ...string) (int, []byte, error) {
	f.mu.Lock()
	t := f.find(task)
	if t == nil {
		f.mu.Unlock()
		return 0, nil, fmt.Errorf("there is no task %s", task)
	}
	for _, c := range t.containers {
		if aws.ToString(c.definition.Name) == container && c.process != nil {
			f.mu.Unlock()
			return c.process.Exec(ctx, arguments)
		}
	}
	f.mu.Unlock()
	return 0, nil, fmt.Errorf("task %s has no container %s that runs", task, container)
}

// Dial connects from inside of a task's network, as one of its containers would.
func (f *Fake) Dial(ctx context.Context, task, address string) (net.Conn, error) {
	f.mu.Lock()
	t := f.find(task)
	f.mu.Unlock()
	if t == nil || t.space == nil {
		return nil, fmt.Errorf("there is no task %s", task)
	}
	return t.space.Dial(ctx, address)
}
