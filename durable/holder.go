package durable

import "fmt"

// Process is a process of this machine, as far as others may see it.
type Process struct {
	PID     int
	Command string // the name of its program, 15 bytes at most; empty when it is not known
	User    string // its name, or its number; empty when it is not known
	Stopped bool   // by a signal or a debugger: it does nothing until it is continued
}

// String describes it for people.
func (p Process) String() string {
	text := fmt.Sprintf("process %d", p.PID)
	if p.Command != "" {
		text += fmt.Sprintf(" (%.40q)", p.Command)
	}
	if p.User != "" {
		text += fmt.Sprintf(" of the user %.64q", p.User)
	}
	return text
}
