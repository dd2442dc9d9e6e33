package mesh

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// ErrVariable says that a text holds a ${...} that stands for nothing.
var ErrVariable = errors.New("unknown variable")

// Variable is a name that may stand as ${NAME} in a service's run.command and run.env. What it
// stands for is the host and port of an address on loopback, which only who starts the application
// knows.
type Variable struct {
	Name string
	// App is true for an address on which the application has to listen, and false for one that it
	// dials.
	App bool
	// Port is that address's port as the specification has it: [Port.App] or [Call.Listen].
	Port int
}

// Variables are the variables of a service: APP_ADDRESS for its first port, APP_ADDRESS_PORT for the
// port of each number, and CALL_SERVICE for each service that it calls, with _PORT behind it where it
// calls several ports of one. The order is that of the specification.
func (v *Service) Variables() []Variable {
	var variables []Variable
	for i, p := range v.Ports {
		if i == 0 {
			variables = append(variables, Variable{"APP_ADDRESS", true, p.App})
		}
		variables = append(variables, Variable{"APP_ADDRESS_" + strconv.Itoa(p.Port), true, p.App})
	}
	calls := map[string]int{}
	for _, c := range v.Calls {
		calls[c.Service]++
	}
	for _, c := range v.Calls {
		name := "CALL_" + variableName(c.Service)
		if calls[c.Service] > 1 {
			name += "_" + strconv.Itoa(c.Port)
		}
		variables = append(variables, Variable{name, false, c.Listen})
	}
	return variables
}

// variableName is a service's name in upper case, with _ for all but letters and digits.
func variableName(service string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= '0' && r <= '9', r >= 'A' && r <= 'Z':
			return r
		}
		return '_'
	}, service)
}

// Expand replaces every ${NAME} in text by what lookup gives, and $$ by a dollar sign; any other
// dollar sign stays. A name that lookup does not know, or a ${ that is not closed, is an
// [ErrVariable].
func Expand(text string, lookup func(name string) (string, bool)) (string, error) {
	var out strings.Builder
	for {
		before, after, found := strings.Cut(text, "$")
		out.WriteString(before)
		if !found {
			return out.String(), nil
		}
		switch {
		case strings.HasPrefix(after, "$"):
			out.WriteByte('$')
			text = after[1:]
		case strings.HasPrefix(after, "{"):
			name, rest, closed := strings.Cut(after[1:], "}")
			if !closed {
				return "", fmt.Errorf("%w: %s is not closed", ErrVariable, quote("${"+name))
			}
			value, ok := lookup(name)
			if !ok {
				return "", fmt.Errorf("%w: %s", ErrVariable, quote("${"+name+"}"))
			}
			out.WriteString(value)
			text = rest
		default:
			out.WriteByte('$')
			text = after
		}
	}
}
