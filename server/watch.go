package server

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"countersign.dev/api"
	"countersign.dev/id"
	"countersign.dev/mesh"
)

// watch serves the stream of Plans: JSON, one text a line, flushed one by one.
func (s *Server) watch(w http.ResponseWriter, r *http.Request) error {
	workload, cert, err := s.member(r)
	if err != nil {
		return err
	}
	var request api.WatchRequest
	if err := decode(w, r, maxBody, &request); err != nil {
		return err
	}
	if err := checkInstance(request.Instance); err != nil {
		return err
	}
	// A certificate that has ended watches nothing, however long ago the connection was made.
	ctx, cancel := context.WithDeadline(r.Context(), cert.NotAfter)
	defer cancel()
	ctx, stop := s.untilShutdown(ctx)
	defer stop()
	st, err := s.registry.attach(ctx, workload, request.Instance)
	if err != nil {
		return err
	}
	defer s.registry.detach(st)
	s.log.InfoContext(ctx, "sidecar connected", "instance", request.Instance, "identity", workload.String(), "remote", r.RemoteAddr, "revision", request.Revision)
	err = s.stream(ctx, w, st, workload, cert, request.Revision)
	s.log.InfoContext(ctx, "sidecar disconnected", "instance", request.Instance, "identity", workload.String(), "reason", err)
	return nil // the stream has begun: there is nobody to tell an error
}

// stream sends events until the peer, the certificate or the server ends, or another stream has taken
// over. It returns why. A reader that is too slow is dropped; nothing is kept for it meanwhile,
// because an event is made when it can be sent.
func (s *Server) stream(ctx context.Context, w http.ResponseWriter, st *stream, workload id.ID, cert *x509.Certificate, held uint64) error {
	control := http.NewResponseController(w)
	if err := control.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Cache-Control", "no-store")
	heartbeat := time.NewTicker(s.timing.heartbeat)
	defer heartbeat.Stop()
	heldCRL := ""
	for first := true; ; first = false {
		if err := s.unrevoked(cert); err != nil {
			return err
		}
		plan, err := s.registry.current(workload)
		if err != nil {
			return err
		}
		crl := s.crls()
		news := crl != heldCRL
		heldCRL = crl
		if !news {
			crl = ""
		}
		if first || news || plan.Revision != held {
			if plan.Revision == held || plan.Revision == 0 { // 0: it could not be stored yet, so nobody is told
				plan = nil
			} else {
				held = plan.Revision
			}
			if err := s.send(control, w, plan, crl); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-st.ended:
			return errors.New("another stream of the same instance took over")
		case <-st.wake:
		case <-heartbeat.C:
			if err := s.send(control, w, nil, ""); err != nil {
				return err
			}
		}
	}
}

// send writes one event; with a nil Plan and no list it only shows that the server lives.
func (s *Server) send(control *http.ResponseController, w http.ResponseWriter, plan *mesh.Plan, crl string) error {
	event := api.Event{Plan: plan, CRL: crl, ServerTime: s.now().UTC()}
	if plan != nil {
		trusted := s.trust.Load()
		event.Bundle, event.Issuer = trusted.pem, trusted.issuer
	}
	line, err := json.Marshal(event)
	if err != nil {
		return fmt.Errorf("write an event: %w", err)
	}
	if err := control.SetWriteDeadline(time.Now().Add(s.timing.write)); err != nil {
		return fmt.Errorf("set a deadline: %w", err)
	}
	if _, err := w.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("write an event: %w", err)
	}
	if err := control.Flush(); err != nil {
		return fmt.Errorf("write an event: %w", err)
	}
	return control.SetWriteDeadline(time.Time{}) // until the next event
}

// report takes an instance's report.
func (s *Server) report(r *http.Request, report api.Report) (api.ReportResponse, error) {
	workload, _, err := s.member(r)
	if err != nil {
		return api.ReportResponse{}, err
	}
	if err := s.registry.report(r.Context(), workload, report); err != nil {
		return api.ReportResponse{}, err
	}
	return api.ReportResponse{ServerTime: s.now().UTC()}, nil
}

// untilShutdown ends a context when the server begins to shut down, so that streams and those who
// wait do not hold it up.
func (s *Server) untilShutdown(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.closing, func() { cancel(errShutdown) })
	return ctx, func() { stop(); cancel(nil) }
}
