package up

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReadDocument(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run.json")
	text := `{"version":1,"mesh":"colorapp","trustDomain":"colorapp.internal","pid":1,"state":"/s","logs":"","control":"/s/control.sock",` +
		`"server":{"url":"https://127.1.1.1:8443","socket":"/s/server.sock","pid":2,"caFile":"/s/ca.pem","caPin":"sha256:00"},` +
		`"workloads":[{"name":"colorgateway","kind":"gateway","instance":"colorgateway-1","pid":3,"admin":"http://127.1.1.4:9901",` +
		`"engine":"nginx","enginePid":4,"delivery":"store",` +
		`"identity":"spiffe://colorapp.internal/gateway/colorgateway","state":"/s/sidecars/colorgateway-1","inbound":[` +
		`{"name":"0.0.0.0_8080","address":"127.1.1.2:8080","protocol":"http","tls":"off","clientAuth":"none"}],"outbound":[]}]}`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	doc, err := ReadDocument(path)
	if err != nil {
		t.Fatal(err)
	}
	line, err := doc.line()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(text+"\n", string(line)); diff != "" {
		t.Errorf("the document written again (-want +got):\n%s", diff)
	}
}

func TestReadDocumentRefuses(t *testing.T) {
	dir := t.TempDir()
	for name, test := range map[string]struct{ text, want string }{
		"missing":      {"", "has ended; start it again"},
		"no JSON":      {"mesh: colorapp", "not JSON"},
		"other form":   {`{"version":1,"workloads":7}`, "not JSON of the form"},
		"bad identity": {`{"version":1,"workloads":[{"identity":"x"}]}`, "SPIFFE"},
		"newer":        {`{"version":2}`, "version 2"},
		"none":         {`{}`, "version 0"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, name)
			if test.text != "" {
				if err := os.WriteFile(path, []byte(test.text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			_, err := ReadDocument(path)
			if !errors.Is(err, ErrNoDocument) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("ReadDocument = %v, want ErrNoDocument with the path and %q", err, test.want)
			}
		})
	}
}
