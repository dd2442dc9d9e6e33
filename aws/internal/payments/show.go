//go:build linux

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"

	"github.com/aws/aws-sdk-go-v2/aws"

	"countersign.dev/aws/internal/awstest/deployed"
	"countersign.dev/aws/internal/awstest/ecsfake/jail"
)

// workloads are those of the example, with the port at which they show a certificate; the gateway shows none.
var workloads = []struct {
	name, engine string
	port         int
}{
	{"paygate", "NGINX", 0}, {"checkout", "NGINX", 8081}, {"ledger", "HAProxy", 9000}, {"terminal", "HAProxy", 7000},
}

// doors are the ports of the gateway, by its own number, at which this machine reaches it.
type doors map[int]string

// openDoors makes the gateway's balancer reachable from the network that this program was started in: from its loopback alone.
func openDoors(ctx context.Context, t *terminal, m *deployed.Mesh) (doors, error) {
	opened := doors{}
	var wait sync.WaitGroup
	t.Cleanup(wait.Wait)
	for _, port := range []int{8080, 8090, 7070} {
		to, err := m.Balancer("paygate", port)
		if err != nil {
			return nil, err
		}
		// Its own number where that is free.
		listener, err := jail.ListenOutside(ctx, net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			listener, err = jail.ListenOutside(ctx, "127.0.0.1:0")
		}
		if err != nil {
			return nil, fmt.Errorf("open a port for the gateway: %w", err)
		}
		t.Cleanup(func() { listener.Close() })
		opened[port] = listener.Addr().String()
		wait.Go(func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				wait.Go(func() { carry(ctx, conn, to) })
			}
		})
	}
	return opened, nil
}

// carry connects a client with the gateway's balancer.
func carry(ctx context.Context, client net.Conn, to string) {
	defer client.Close()
	gateway, err := new(net.Dialer).DialContext(ctx, "tcp4", to)
	if err != nil {
		return
	}
	defer gateway.Close()
	stop := context.AfterFunc(ctx, func() { client.Close(); gateway.Close() })
	defer stop()
	var wait sync.WaitGroup
	for _, pair := range [][2]net.Conn{{client, gateway}, {gateway, client}} {
		wait.Go(func() {
			_, _ = io.Copy(pair[1], pair[0]) // whoever ends it, both end
			if tcp, ok := pair[1].(*net.TCPConn); ok {
				_ = tcp.CloseWrite() // it is closed altogether soon
			}
		})
	}
	wait.Wait()
}

// table shows what runs where.
func (s *start) table(ctx context.Context, m *deployed.Mesh) error {
	w := tabwriter.NewWriter(s.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SERVICE\tPROXY\tBALANCER\tTASK\tADDRESS\tCONTAINERS\tSERIAL")
	for _, workload := range workloads {
		tasks, err := m.Tasks(ctx, workload.name)
		if err != nil {
			return err
		}
		balancer, err := m.Balancer(workload.name, workload.port)
		if err != nil {
			return err
		}
		balancer, _, _ = strings.Cut(balancer, ":")
		for _, task := range tasks {
			var containers []string
			for _, c := range task.Containers {
				state := strings.ToLower(aws.ToString(c.LastStatus))
				if c.ExitCode != nil {
					state = "ended " + strconv.Itoa(int(*c.ExitCode))
				}
				containers = append(containers, aws.ToString(c.Name)+" "+state)
			}
			address, err := deployed.Address(task, workload.port)
			if err != nil {
				return err
			}
			serial := "(shows none)"
			if workload.port == 0 {
				address, _, _ = strings.Cut(address, ":")
			} else if serial, err = deployed.Serial(ctx, address); err != nil {
				return err
			}
			arn := aws.ToString(task.TaskArn)
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", workload.name, workload.engine, balancer, arn[strings.LastIndex(arn, "/")+1:][:8], address, strings.Join(containers, ", "), serial)
		}
	}
	return w.Flush()
}

// tell says what to try.
func (s *start) tell(m *deployed.Mesh, d doors) {
	fmt.Fprintf(s.out, `
The addresses above are of a network of their own. From this machine the gateway is reached at
  http://%[1]s (payments), http://%[2]s (the ledger, gRPC), %[3]s (card terminals).

  curl -d '{"card": "4111111111111111", "amount": 12.34}' http://%[1]s/payments
  curl http://%[1]s/payments/balance
  echo 'SALE 12.34' | nc -q1 %[4]s

What you type here are arguments of countersign, which runs as the role %[5]s and reaches these doubles. Its
specification is that of the example:

%[6]s
Ctrl-C ends everything.
`, d[8080], d[8090], d[7070], strings.Replace(d[7070], ":", " ", 1), m.Role("rotation"), words)
}

// words are examples of what can be typed.
const words = `  rotate once checkout --force  replaces the certificate of checkout, and its tasks
  rotate status                 shows what the secrets hold, and what is spent of the budget
  check expiry mesh.yaml        compares that with what the tasks serve
  ps                            shows the table again
  help                          shows this
  exit                          ends everything
`

// console does what is typed.
type console struct {
	out   io.Writer
	table func() error               // shows what runs where
	run   func(args ...string) error // runs countersign
}

// obey does what is typed until the end of what can be read or of ctx. It tells whether somebody typed the end.
func (c console) obey(ctx context.Context, in io.Reader) (ended bool) {
	lines := bufio.NewScanner(in)
	for lines.Scan() && ctx.Err() == nil {
		typed := strings.Fields(lines.Text())
		if len(typed) > 0 && filepath.Base(typed[0]) == "countersign" { // as in a shell
			if typed = typed[1:]; len(typed) == 0 {
				typed = []string{"help"}
			}
		}
		var err error
		switch {
		case len(typed) == 0:
		case len(typed) == 1 && slices.Contains([]string{"exit", "quit"}, typed[0]):
			return true
		case len(typed) == 1 && slices.Contains([]string{"help", "?"}, typed[0]):
			fmt.Fprint(c.out, words, "Whatever else you type are arguments of countersign; --help shows all of its commands.\n")
		case len(typed) == 1 && typed[0] == "ps":
			err = c.table()
		default:
			err = c.run(typed...)
		}
		if err != nil {
			fmt.Fprintln(c.out, err)
		}
	}
	return false
}
