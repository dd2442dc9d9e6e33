package up

import (
	"bytes"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"countersign.dev/id"
	"countersign.dev/mesh"
)

// document describes the mesh as it runs.
func (r *run) document() *Document {
	doc := &Document{
		Version:     DocumentVersion,
		Mesh:        r.cfg.Spec.Mesh,
		TrustDomain: r.cfg.Spec.TrustDomain,
		PID:         r.pid,
		State:       r.state.dir,
		Logs:        r.logs.dir,
		Control:     r.state.control,
		Server:      r.identity,
	}
	doc.Server.PID, _, _ = r.server.process()
	for _, i := range r.all {
		doc.Workloads = append(doc.Workloads, i.describe(r.state.sidecar(i.name), i.pids()))
	}
	return doc
}

// announce says that the mesh is ready: the run document first, so that it is there when somebody
// acts on the rest.
func (r *run) announce() error {
	ready := time.Since(r.begun)
	doc := r.document()
	if err := doc.write(r.state.documentPath()); err != nil {
		return err
	}
	switch {
	case r.cfg.JSON:
		line, err := doc.line()
		if err != nil {
			return err
		}
		if _, err := r.cfg.Stdout.Write(line); err != nil {
			return fmt.Errorf("writing the run document to standard output: %w", err)
		}
	case len(r.cfg.Command) > 0: // standard output is the command's
		r.console.line("%s", strings.TrimSuffix(doc.table(ready, r.state.documentPath(), r.state.temporary), "\n"))
	default:
		if _, err := fmt.Fprint(r.cfg.Stdout, doc.table(ready, r.state.documentPath(), r.state.temporary)); err != nil {
			return fmt.Errorf("writing the table to standard output: %w", err)
		}
	}
	return nil
}

// table describes the mesh to people. It took ready to start; path is where the run document is.
func (d *Document) table(ready time.Duration, path string, temporary bool) string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "\nThe mesh %q is ready after %.1f s.\n\n", d.Mesh, ready.Seconds())
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "WORKLOAD\tINSTANCE\tIDENTITY\tADDRESS\tTLS\tAPPLICATION\tADMIN\tPID\tAPP PID")
	fmt.Fprintf(w, "-\tserver\t-\t%s\tstrict\t-\t-\t%d\t-\n", d.Server.URL, d.Server.PID)
	for _, one := range d.Workloads {
		for n := range max(1, len(one.Inbound), len(one.appAddresses())) {
			row := []string{"", "", "", "", "", "", "", "", ""}
			if n == 0 {
				row = []string{one.Name, one.Instance, one.Identity.String(), "-", "-", "-", one.Admin, fmt.Sprint(one.PID), "-"}
				if one.App != nil && one.App.PID != 0 {
					row[8] = fmt.Sprint(one.App.PID)
				}
			}
			if n < len(one.Inbound) {
				row[3], row[4] = one.Inbound[n].url(), one.Inbound[n].security()
			}
			if addresses := one.appAddresses(); n < len(addresses) {
				row[5] = addresses[n]
				if one.App.PID == 0 {
					row[5] += " (expected)"
				}
			}
			fmt.Fprintln(w, strings.TrimRight(strings.Join(row, "\t"), "\t"))
		}
	}
	_ = w.Flush() // it writes to memory
	fmt.Fprintln(&b)
	for _, one := range d.Workloads {
		if (mesh.ProxyPlan{Engine: one.Engine}).Real() {
			fmt.Fprintf(&b, "%s is served by %s (process %d)%s.\n", one.Instance, one.Engine, one.EnginePID, one.origin())
		}
	}
	for _, one := range d.Workloads {
		if one.Kind == id.Gateway {
			for _, in := range one.Inbound {
				fmt.Fprintf(&b, "Traffic from outside enters at %s (%s).\n", in.url(), one.Name)
			}
		}
	}
	fmt.Fprintf(&b, "In another terminal, 'countersign status' and others find this mesh after\n  export %s=%s\n", EnvRun, path)
	where := "in " + d.State
	if temporary {
		where = "in a temporary directory, removed at the end"
	}
	fmt.Fprintf(&b, "This runs and tests a mesh; it is not isolation: all processes run as one user on one machine, whoever is on\n"+
		"it reaches the applications directly, and the keys of the CA are stored unsealed (%s).\n", where)
	return b.String()
}

// origin says where a certificate comes from, where that is worth a word.
func (w *Workload) origin() string {
	if w.Delivery == mesh.DeliverStore {
		return ", with a certificate from a store"
	}
	return ""
}

func (w *Workload) appAddresses() []string {
	if w.App == nil {
		return nil
	}
	return w.App.Addresses
}

// url is the address as one would paste it.
func (in *Inbound) url() string {
	switch in.Protocol {
	case mesh.HTTP, mesh.HTTP2:
		if in.TLS == mesh.Off {
			return "http://" + in.Address
		}
		return "https://" + in.Address
	default:
		return in.Address
	}
}

// security says in a word or two how a listener is protected.
func (in *Inbound) security() string {
	if in.TLS == mesh.Off || in.ClientAuth == mesh.Require {
		return string(in.TLS)
	}
	return fmt.Sprintf("%s (client certificate: %s)", in.TLS, in.ClientAuth)
}
