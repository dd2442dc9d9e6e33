package server

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"countersign.dev/api"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// peer is a small agent: a key, a certificate when it has one, and an HTTP/2 client.
type peer struct {
	r        *remote
	instance string
	key      crypto.Signer
	chain    []*x509.Certificate
	client   *http.Client
}

// newPeer makes a peer that trusts the server by its pin.
func (r *remote) newPeer(instance string) *peer {
	r.f.t.Helper()
	key, err := mtls.GenerateKey(mesh.ECDSAP256)
	if err != nil {
		r.f.t.Fatal(err)
	}
	p := &peer{r: r, instance: instance, key: key}
	p.connect()
	return p
}

// connect makes a new client, with the certificate of now.
func (p *peer) connect() {
	if p.client != nil {
		p.client.CloseIdleConnections()
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	pin := p.r.info.CAPin
	transport := &http.Transport{Protocols: protocols, TLSClientConfig: &tls.Config{
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if got := mtls.Pin(cs.PeerCertificates[len(cs.PeerCertificates)-1]); got != pin {
				return fmt.Errorf("pin %s, want %s", got, pin)
			}
			return nil
		},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			certificate := &tls.Certificate{PrivateKey: p.key}
			for _, cert := range p.chain {
				certificate.Certificate = append(certificate.Certificate, cert.Raw)
			}
			return certificate, nil
		},
	}}
	p.client = &http.Client{Transport: transport}
	p.r.f.t.Cleanup(p.client.CloseIdleConnections)
}

// csr is a certificate request without names.
func (p *peer) csr() string {
	p.r.f.t.Helper()
	text, err := mtls.NewCSR(p.key)
	if err != nil {
		p.r.f.t.Fatal(err)
	}
	return string(text)
}

// post sends a message and reads the answer.
func (p *peer) post(path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	return p.send(path, "application/json", bytes.NewReader(body), out)
}

func (p *peer) send(path, contentType string, body io.Reader, out any) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, p.r.info.URL+path, body)
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", contentType)
	response, err := p.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		e := api.DecodeError(response)
		return fmt.Errorf("status %d: %w", response.StatusCode, e)
	}
	return json.NewDecoder(response.Body).Decode(out)
}

// enroll gets the first certificate.
func (p *peer) enroll(token string) error {
	var credentials api.Credentials
	err := p.post(api.PathEnroll, api.EnrollRequest{Token: token, Instance: p.instance, CSR: p.csr()}, &credentials)
	if err != nil {
		return err
	}
	return p.take(credentials)
}

// renew gets the next certificate.
func (p *peer) renew() error {
	var credentials api.Credentials
	if err := p.post(api.PathRenew, api.RenewRequest{Instance: p.instance, CSR: p.csr()}, &credentials); err != nil {
		return err
	}
	return p.take(credentials)
}

func (p *peer) take(credentials api.Credentials) error {
	chain, err := mtls.ParseCertificates([]byte(credentials.Chain))
	if err != nil {
		return err
	}
	p.chain = chain
	p.connect()
	return nil
}

func (p *peer) serial() string { return mtls.Serial(p.chain[0]) }

// joinAs makes a peer with a certificate.
func (r *remote) joinAs(workload, instance string) *peer {
	r.f.t.Helper()
	p := r.newPeer(instance)
	if err := p.enroll(r.token(workload, 1)); err != nil {
		r.f.t.Fatal(err)
	}
	return p
}

// report says that the instance listens at the addresses, port by port.
func (p *peer) report(revision uint64, listening ...api.Listening) error {
	return p.reportAs(api.Report{Revision: revision, Listening: listening})
}

func (p *peer) reportAs(report api.Report) error {
	report.Instance, report.Serial, report.NotAfter = p.instance, p.serial(), p.chain[0].NotAfter
	report.LastRenewal = time.Now()
	var answer api.ReportResponse
	err := p.post(api.PathReport, report, &answer)
	if err == nil && answer.ServerTime.IsZero() {
		err = errors.New("no server time")
	}
	return err
}

// watching is an open watch.
type watching struct {
	p      *peer
	cancel context.CancelFunc
	body   io.ReadCloser
	events chan api.Event // closed at the end
}

// watch opens the stream of Plans.
func (p *peer) watch(revision uint64) *watching {
	p.r.f.t.Helper()
	w, err := p.tryWatch(revision)
	if err != nil {
		p.r.f.t.Fatal(err)
	}
	return w
}

func (p *peer) tryWatch(revision uint64) (*watching, error) {
	body, err := json.Marshal(api.WatchRequest{Instance: p.instance, Revision: revision})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, p.r.info.URL+api.PathWatch, bytes.NewReader(body))
	if err != nil {
		cancel()
		return nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := p.client.Do(request) //nolint:bodyclose // watching.close closes it
	if err != nil {
		cancel()
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		defer cancel()
		defer response.Body.Close()
		return nil, fmt.Errorf("status %d: %w", response.StatusCode, api.DecodeError(response))
	}
	w := &watching{p: p, cancel: cancel, body: response.Body, events: make(chan api.Event)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(w.events)
		scanner := bufio.NewScanner(response.Body)
		scanner.Buffer(nil, 1<<20)
		for scanner.Scan() {
			var event api.Event
			if json.Unmarshal(scanner.Bytes(), &event) != nil {
				return
			}
			select {
			case w.events <- event:
			case <-ctx.Done():
				return
			}
		}
	}()
	p.r.f.t.Cleanup(func() { w.close(); <-done })
	return w, nil
}

func (w *watching) close() {
	w.cancel()
	w.body.Close()
}

// next is the next event.
func (w *watching) next() api.Event {
	w.p.r.f.t.Helper()
	select {
	case event, ok := <-w.events:
		if !ok {
			w.p.r.f.t.Fatal("the stream has ended")
		}
		return event
	case <-time.After(patience):
		w.p.r.f.t.Fatal("no event comes")
	}
	panic("not reached")
}

// plan is the next Plan for which a condition holds.
func (w *watching) plan(what string, ok func(*mesh.Plan) bool) *mesh.Plan {
	w.p.r.f.t.Helper()
	deadline := time.Now().Add(patience)
	for time.Now().Before(deadline) {
		if event := w.next(); event.Plan != nil && ok(event.Plan) {
			if event.Bundle == "" {
				w.p.r.f.t.Error("a Plan came without the bundle")
			}
			return event.Plan
		}
	}
	w.p.r.f.t.Fatalf("no Plan comes %s", what)
	panic("not reached")
}

// ended waits for the end of the stream.
func (w *watching) ended() {
	w.p.r.f.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case _, ok := <-w.events:
			if !ok {
				return
			}
		case <-deadline:
			w.p.r.f.t.Fatal("the stream does not end")
		}
	}
}

// anyPlan accepts every Plan.
func anyPlan(*mesh.Plan) bool { return true }
