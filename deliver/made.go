package deliver

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"countersign.dev/credential"
	"countersign.dev/durable"
	"countersign.dev/mtls"
)

// MadeFile is the file of a generation that says what the generation was made of.
const MadeFile = "made.json"

// mostMade is the greatest size of a [MadeFile] in bytes.
const mostMade = 16 << 10

// Made says what a generation was made of. It holds no secret: versions' ids are what their writer called them, or keyed
// digests.
type Made struct {
	// Version is the version of the secret with certificate and key.
	Version string `json:"version"`
	// Bundle is the version of the roots, where they are a secret of their own, or a digest of them; empty when they came
	// with the certificate.
	Bundle string `json:"bundle,omitempty"`
	// Serial is the leaf's, as the API spells it.
	Serial string `json:"serial"`
	// Configuration is a digest of the proxy's configuration, empty when none was written.
	Configuration string `json:"configuration,omitempty"`
	// Revocation is a digest of the revocation lists, empty when there are none.
	Revocation string `json:"revocation,omitempty"`
}

// Digest names a public text, so that two can be told apart.
func Digest(text []byte) string {
	if len(text) == 0 {
		return ""
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:16])
}

// File is the file of a generation.
func (m Made) File() durable.File {
	text, err := json.Marshal(m)
	if err != nil {
		text = []byte("{}") // texts can always be marshalled
	}
	return durable.File{Name: MadeFile, Data: append(text, '\n'), Perm: 0o644}
}

// madeOf reads what a generation was made of. A generation of another maker, or one that is not there, is the zero Made.
func madeOf(dir string) (Made, error) {
	path := filepath.Join(dir, MadeFile)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || (err == nil && (!info.Mode().IsRegular() || info.Size() > mostMade)) {
		return Made{}, nil
	}
	if err != nil {
		return Made{}, err
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return Made{}, err
	}
	return parseMade(text), nil
}

// parseMade reads the text of a [MadeFile]. What does not parse is the zero Made: the generation is made anew then.
func parseMade(text []byte) Made {
	var m Made
	if err := json.Unmarshal(text, &m); err != nil {
		return Made{}
	}
	return m
}

// Offer is what a source has at a moment.
type Offer struct {
	Input credential.Input
	// Version and Bundle are as in [Made].
	Version, Bundle string
}

// clear overwrites what is secret.
func (o *Offer) clear() {
	clear(o.Input.Key.Data)
	clear(o.Input.Passphrase.Data)
}

// Check reads an offer and asks whether it will do; see [credential.Credential.Check]. It overwrites the secrets of the offer.
// The error says which version it is about.
func (o *Offer) Check(want credential.Expect) (*credential.Credential, error) {
	cred, err := o.check(want)
	if err != nil && o.Version != "" {
		err = versioned(Made{Version: o.Version, Bundle: o.Bundle}, err)
	}
	return cred, err
}

func (o *Offer) check(want credential.Expect) (*credential.Credential, error) {
	cred, err := credential.Parse(o.Input)
	o.clear()
	if err == nil {
		err = cred.Check(want)
	}
	if err != nil {
		return nil, err
	}
	return cred, nil
}

// Made is what a generation of this offer was made of.
func (o *Offer) Made(cred *credential.Credential, configuration, revocation []byte) Made {
	return Made{
		Version: o.Version, Bundle: o.Bundle, Serial: mtls.Serial(cred.Leaf()),
		Configuration: Digest(configuration), Revocation: Digest(revocation),
	}
}

// ownOffer is what a generation holds, as a source would offer it.
func ownOffer(dir string, have Made) (*Offer, error) {
	o := &Offer{Version: have.Version, Bundle: have.Bundle}
	for _, file := range []struct {
		name string
		to   *credential.Value
	}{
		{credential.CertFile, &o.Input.Certificate}, {credential.KeyFile, &o.Input.Key}, {credential.BundleFile, &o.Input.Bundle},
	} {
		data, err := os.ReadFile(filepath.Join(dir, file.name))
		if err != nil {
			o.clear()
			return nil, err
		}
		*file.to = credential.Value{Name: file.name, Data: data}
	}
	return o, nil
}
