package main

import (
	"crypto/x509"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"countersign.dev/api"
	"countersign.dev/ca"
	"countersign.dev/journal"
	"countersign.dev/mtls"
)

type caShowCmd struct {
	caState
	outputFlag
}

// Help is what --help adds.
func (caShowCmd) Help() string {
	return `Needs no key. The pin is what "countersign proxy --ca-pin" is given; the journal key is what
"countersign audit log verify --key" is given.

Examples:
  countersign ca show --state /var/lib/countersign
  countersign ca show --socket /var/lib/countersign/server.sock --output json`
}

// Run shows the CA.
func (c caShowCmd) Run(p *process) error {
	shown, err := c.find(p)
	if err != nil {
		return err
	}
	if c.json() {
		return writeJSON(p, shown)
	}
	return shown.write(p.stdout)
}

// find reads the state, or asks the server when there is only a socket.
func (c caShowCmd) find(p *process) (*shownCA, error) {
	if c.State != "" {
		authority, err := ca.Read(c.State)
		if err != nil {
			return nil, err
		}
		return showAuthority(authority)
	}
	socket, err := c.running(p.ctx)
	if err != nil {
		return nil, err
	}
	response, err := api.NewAdmin(socket).CA(p.ctx)
	if err != nil {
		return nil, answered(p, err)
	}
	return showResponse(response)
}

// shownCA is the JSON of `ca show` and `ca init`.
type shownCA struct {
	TrustDomain string           `json:"trustDomain"`
	Pin         string           `json:"pin"`
	JournalKey  string           `json:"journalKey"`
	Root        shownCertificate `json:"root"`
	Issuer      shownCertificate `json:"issuer"`
	// Others are the hierarchies beside the one that signs; see "countersign ca rotate".
	Others []shownHierarchy `json:"others,omitempty"`
	// Sealed is how the private keys are stored; a server does not say.
	Sealed string `json:"sealed,omitempty"`
	// RootKeys are the files with roots' keys in the state; a server does not say.
	RootKeys []string `json:"rootKeys,omitempty"`
}

// shownHierarchy is a root with its issuing CA that does not sign, or signs no more.
type shownHierarchy struct {
	State  string           `json:"state"` // "next" or "retiring"
	Pin    string           `json:"pin"`
	Root   shownCertificate `json:"root"`
	Issuer shownCertificate `json:"issuer"`
}

type shownCertificate struct {
	Subject   string    `json:"subject"`
	Serial    string    `json:"serial"`
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
}

func showCertificate(cert *x509.Certificate) shownCertificate {
	return shownCertificate{
		Subject:   cert.Subject.String(),
		Serial:    mtls.Serial(cert),
		NotBefore: cert.NotBefore.UTC(),
		NotAfter:  cert.NotAfter.UTC(),
	}
}

func showAuthority(authority *ca.Authority) (*shownCA, error) {
	key, err := journal.VerifierKey(ca.JournalDir(authority.State()))
	if err != nil {
		return nil, err
	}
	keys, err := authority.RootKeyFiles()
	if err != nil {
		return nil, err
	}
	shown := &shownCA{
		TrustDomain: authority.TrustDomain(),
		Pin:         authority.Pin(),
		JournalKey:  key,
		Root:        showCertificate(authority.Root()),
		Issuer:      showCertificate(authority.Issuer()),
		Sealed:      authority.Seal(),
		RootKeys:    keys,
	}
	for _, h := range authority.Hierarchies()[1:] {
		shown.Others = append(shown.Others, shownHierarchy{string(h.State), h.Pin(), showCertificate(h.Root), showCertificate(h.Issuer)})
	}
	return shown, nil
}

func showResponse(response *api.CAResponse) (*shownCA, error) {
	shown := &shownCA{TrustDomain: response.TrustDomain, Pin: response.Pin, JournalKey: response.JournalKey}
	type part struct {
		pem string
		to  *shownCertificate
	}
	parts := []part{{response.Root, &shown.Root}, {response.Issuer, &shown.Issuer}}
	if len(response.Roots) > 1 { // an older server does not tell them
		shown.Others = make([]shownHierarchy, len(response.Roots)-1)
		for i, h := range response.Roots[1:] {
			other := &shown.Others[i]
			other.State, other.Pin = h.State, h.Pin
			parts = append(parts, part{h.Root, &other.Root}, part{h.Issuer, &other.Issuer})
		}
	}
	for _, one := range parts {
		certs, err := mtls.ParseCertificates([]byte(one.pem))
		if err != nil {
			return nil, fmt.Errorf("the server's answer: %w", err)
		}
		*one.to = showCertificate(certs[0])
	}
	return shown, nil
}

func (s *shownCA) write(w io.Writer) error {
	trustDomain := s.TrustDomain
	if trustDomain == "" {
		trustDomain = "(none yet: the first start of a server settles it)"
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	rows := [][2]string{
		{"trust domain", trustDomain},
		{"pin", s.Pin},
		{"journal key", s.JournalKey},
		{"root", s.Root.Subject},
		{"  serial", s.Root.Serial},
		{"  valid", validity(s.Root)},
		{"issuer", s.Issuer.Subject},
		{"  serial", s.Issuer.Serial},
		{"  valid", validity(s.Issuer)},
	}
	for _, other := range s.Others {
		rows = append(rows, [][2]string{
			{other.State, other.Root.Subject},
			{"  pin", other.Pin},
			{"  valid", validity(other.Root)},
			{"  issuer", other.Issuer.Subject},
			{"  valid", validity(other.Issuer)},
		}...)
	}
	if s.Sealed != "" {
		rows = append(rows, [2]string{"keys", map[string]string{
			ca.MethodKeyFile:    "sealed with a key file",
			ca.MethodPassphrase: "sealed with a passphrase",
			ca.MethodUnsealed:   "NOT sealed",
		}[s.Sealed]})
		if len(s.RootKeys) == 0 {
			rows = append(rows, [2]string{"root key", "not in the state"})
		}
		for _, file := range s.RootKeys {
			rows = append(rows, [2]string{"root key", file})
		}
	}
	for _, row := range rows {
		if _, err := fmt.Fprintf(table, "%s\t%s\n", row[0], row[1]); err != nil {
			return err
		}
	}
	return table.Flush()
}

func validity(cert shownCertificate) string {
	return cert.NotBefore.Format(time.RFC3339) + " to " + cert.NotAfter.Format(time.RFC3339)
}
