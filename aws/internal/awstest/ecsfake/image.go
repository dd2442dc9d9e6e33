//go:build linux

package ecsfake

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"countersign.dev/aws/internal/awstest/ecsfake/jail"
)

// Image is what an image's name stands for.
type Image struct {
	// Host shows this machine's programs and libraries; without it the image holds only what follows.
	Host  bool
	Binds []jail.Bind
	// Dirs are directories of the image. Those that Volumes names lend owner and mode to a task's volume that is mounted there first.
	Dirs    []jail.Dir
	Volumes []string
	Files   []jail.File
	Links   map[string]string

	EntryPoint, Command []string
	// User is UID, UID:GID or a name of the few that every image here knows; root when empty.
	User        string
	Environment []string
	Directory   string
	// StopSignal asks the program to end; SIGTERM when 0.
	StopSignal syscall.Signal
}

// people are the users and groups that images here know, with one number each.
var people = map[string]int{"root": 0, "www-data": 33, "haproxy": 99, "nginx": 101, "nobody": 65534}

// Countersign is the image that this repository's Dockerfile makes, around a binary of this machine.
func Countersign(binary string) Image {
	return Image{
		Binds:   []jail.Bind{{Source: binary, Target: "/countersign"}},
		Dirs:    []jail.Dir{{Path: "/tls", UID: 101, GID: 101, Mode: 0o700}, {Path: "/proxy", UID: 101, GID: 101, Mode: 0o700}},
		Volumes: []string{"/tls", "/proxy"}, User: "101:101",
		EntryPoint: []string{"/countersign"}, Command: []string{"init", "--from", "env", "--to", "/tls"},
	}
}

// NGINX is an image around this machine's NGINX, which ends gracefully, as the official one does.
func NGINX() Image {
	return Image{
		Host: true, Command: []string{"nginx", "-g", "daemon off;"}, StopSignal: syscall.SIGQUIT,
		Binds: existing("/etc/nginx"),
		Dirs: []jail.Dir{
			{Path: "/var/log/nginx", Mode: 0o755}, {Path: "/var/cache/nginx", UID: 101, GID: 101, Mode: 0o755}, {Path: "/var/lib/nginx", UID: 101, GID: 101, Mode: 0o755},
		},
		Links: map[string]string{"/var/log/nginx/access.log": "/dev/stdout", "/var/log/nginx/error.log": "/dev/stderr"},
	}
}

// HAProxy is an image around this machine's HAProxy, which ends gracefully, as the official one does.
func HAProxy() Image {
	return Image{
		Host: true, User: "haproxy", StopSignal: syscall.SIGUSR1,
		Command: []string{"haproxy", "-f", "/usr/local/etc/haproxy/haproxy.cfg"},
		Dirs:    []jail.Dir{{Path: "/var/lib/haproxy", UID: 99, GID: 99, Mode: 0o755}},
	}
}

// Shell is an image with this machine's programs.
func Shell() Image { return Image{Host: true, Command: []string{"sh"}} }

// existing are binds of those paths that are there.
func existing(paths ...string) []jail.Bind {
	var binds []jail.Bind
	for _, path := range paths {
		if _, err := os.Stat(path); err == nil {
			binds = append(binds, jail.Bind{Source: path, Target: path})
		}
	}
	return binds
}

// image finds what a name stands for.
func (f *Fake) image(name string) (Image, bool) {
	if image, ok := f.options.Images[name]; ok {
		return image, true
	}
	short, _, _ := strings.Cut(name, "@")
	short = filepath.Base(short)
	short, _, _ = strings.Cut(short, ":")
	image, ok := f.options.Images[short]
	return image, ok
}

// person reads a user as task definitions and images name it.
func person(user string) (uid, gid int, err error) {
	if user == "" {
		return 0, 0, nil
	}
	name, groupName, hasGroup := strings.Cut(user, ":")
	if uid, err = personID(name, user); err != nil {
		return 0, 0, err
	}
	if _, known := people[name]; known && !hasGroup {
		return uid, uid, nil
	}
	if hasGroup {
		gid, err = personID(groupName, user)
	}
	return uid, gid, err
}

// personID is the number of a user or group.
func personID(name, user string) (int, error) {
	if id, known := people[name]; known {
		return id, nil
	}
	id, err := strconv.Atoi(name)
	if err != nil || id < 0 || id > 1<<31-1 {
		return 0, refuse("ClientException", "unable to find user %s: no matching entries in passwd file", user)
	}
	return id, nil
}

// accounts are /etc/passwd and /etc/group of an image with programs.
func accounts() []jail.File {
	var passwd, group strings.Builder
	for _, name := range []string{"root", "www-data", "haproxy", "nginx", "nobody"} {
		id := strconv.Itoa(people[name])
		passwd.WriteString(name + ":x:" + id + ":" + id + "::/:/usr/sbin/nologin\n")
		group.WriteString(name + ":x:" + id + ":\n")
	}
	return []jail.File{{Path: "/etc/passwd", Content: passwd.String()}, {Path: "/etc/group", Content: group.String()}, {Path: "/etc/nsswitch.conf", Content: "passwd: files\ngroup: files\nhosts: files\n"}}
}
