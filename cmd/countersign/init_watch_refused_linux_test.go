package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"countersign.dev/api"
	"countersign.dev/issue/issuetest"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// own writes a configuration as somebody else would, who wants keys of at least 128 bits' strength: an RSA key of 2048 bits is
// fit for us, and neither proxy takes it.
func (l *watchLab) own() string {
	l.t.Helper()
	const ciphers = "DEFAULT:@SECLEVEL=3"
	// HAProxy looks at the strength of a key before it reads its own ciphers, and OpenSSL's settings come before both.
	l.ok(os.WriteFile(l.file("openssl.cnf"), []byte("openssl_conf = all\n[all]\nssl_conf = ssl\n[ssl]\nsystem_default = strict\n[strict]\nCipherString = "+ciphers+"\n"), 0o600))
	l.t.Setenv("OPENSSL_CONF", l.file("openssl.cnf"))
	text := fmt.Sprintf("global\n    stats socket %s mode 600\ndefaults\n    mode http\n    timeout connect 1s\n    timeout client 5s\n    timeout server 5s\nfrontend f\n    bind %s ssl crt %s\n    http-request return status 200\n",
		l.file("stats.sock"), l.address, l.file("tls/current/cert-and-key.pem"))
	if l.engine == "nginx" {
		user := ""
		if os.Geteuid() == 0 {
			user = "user root;\n"
		}
		text = fmt.Sprintf("%sdaemon off;\npid %s;\nerror_log stderr;\nevents {}\nhttp { access_log off; server { listen %s ssl; ssl_certificate %s; ssl_certificate_key %s; ssl_ciphers %s; return 200; } }\n",
			user, l.file("pid"), l.address, l.file("tls/current/cert.pem"), l.file("tls/current/key.pem"), ciphers)
	}
	l.ok(os.WriteFile(l.file("own.conf"), []byte(text), 0o600))
	return l.file("own.conf")
}

// TestWatchRefused has a version that the proxy does not take: it is found by the proxy's test, by its reload, or because
// nothing new is served. What was served before is served on, and the next good version is taken at once.
func TestWatchRefused(t *testing.T) {
	for _, engine := range []string{"nginx", "haproxy"} {
		t.Run(engine, func(t *testing.T) {
			l := newWatchLab(t, engine)
			conf := l.own()
			first := l.put("v1", mesh.ECDSAP256)
			l.once()
			l.startProxy(conf, first)
			test := map[string]string{"nginx": l.program + " -t -c " + conf, "haproxy": l.program + " -c -f " + conf}[engine]
			taken := map[string]string{"nginx": "has started no new worker since", "haproxy": "HAProxy has failed to load them"}[engine]
			weak := map[string]string{"nginx": "ee key too small", "haproxy": "unable to load SSL certificate into SSL Context"}[engine]
			version := 1
			for _, way := range []struct {
				name, reload, test, problem string
			}{
				{"by the test", l.way(), test, weak},
				{"by the reload", l.way(), "none", taken},
				{"by nobody", "command:true", "none", "the proxy did not take the new files: it was told 2s ago, and " + l.address.String() + " shows the serial"},
			} {
				l.startWatch("--probe", l.address.String(), "--patience", "2s", "--retry", "1h", "--reload", way.reload, "--test", way.test)
				l.says("/ready", "LIVE")
				served := l.serial()
				version++
				l.put(fmt.Sprint("v", version), mesh.RSA2048)
				l.says("/ready", way.problem)
				l.says("/ready", fmt.Sprintf("version v%d is in force again", version-1))
				l.says("/stats", "countersign.delivery_problem_state: 1\n")
				if shown := l.serial(); shown != served {
					t.Fatalf("%s: %s is served, and not what was before", way.name, shown)
				}
				l.ok(watchPair(l.file("tls")))
				if strings.Count(l.watch.output(), way.problem) != 1 {
					t.Errorf("%s: the log does not say it once", way.name)
				}
				version++
				good := l.put(fmt.Sprint("v", version), mesh.ECDSAP384)
				if way.reload == "command:true" {
					l.says("/ready", fmt.Sprintf("version v%d: the proxy did not take the new files", version))
					good = served
				} else {
					l.says("/stats", "countersign.deliveries_total: 1\n")
					l.says("/stats", "countersign.delivery_problem_state: 0\n")
				}
				if shown := l.serial(); shown != good {
					t.Fatalf("%s: %s is served instead of %s", way.name, shown, good)
				}
				l.watch.kill()
			}
		})
	}
}

// TestWatchKilled kills the watcher at any moment, and the next one goes on: the proxy serves the newest version in the end,
// and nobody ever sees half of one.
func TestWatchKilled(t *testing.T) {
	l := newWatchLab(t, "haproxy")
	serial := l.put("v0", mesh.ECDSAP256)
	l.once(l.conf()...)
	l.startProxy(l.file("conf/haproxy.cfg"), serial)
	readers := l.startReaders()
	for n := range 8 {
		l.startWatch(append(l.conf(), "--reload", l.way())...)
		l.says("/ready", "LIVE")
		serial = l.put(fmt.Sprint("v", n+1), mesh.ECDSAP256)
		<-time.After(rand.N(300 * time.Millisecond)) // any moment will do
		l.watch.kill()
	}
	l.startWatch(append(l.conf(), "--reload", l.way())...)
	l.serves(serial)
	l.says("/stats", "countersign.delivery_problem_state: 0\n")
	l.ok(readers())
}

// TestWatchBeforeProxy starts the watcher first: it waits, and says so.
func TestWatchBeforeProxy(t *testing.T) {
	l := newWatchLab(t, "nginx")
	serial := l.put("v1", mesh.ECDSAP256)
	l.once(l.conf()...)
	l.startWatch(append(l.conf(), "--reload", "pidfile:"+l.file("run/nginx.pid"))...)
	l.says("/ready", "THE PROXY DOES NOT SERVE")
	l.says("/ready", "nobody serves it")
	serial2 := l.put("v2", mesh.ECDSAP256)
	l.says("/certs", serial2)
	l.startProxy(l.file("conf/nginx.conf"), serial2)
	l.says("/ready", "LIVE")
	l.says("/stats", "countersign.delivery_problem_state: 0\n")
	if serial == serial2 {
		t.Error("two versions have one serial")
	}

	// A second watcher of the directory is refused, and another plan in the file is taken.
	second := initCommand(t, nil, l.args(append(l.conf(), "--watch", "--interval", "100ms", "--reload", l.way())...)...)
	if output, err := second.CombinedOutput(); err == nil || !strings.Contains(string(output), "another watcher works there; end it first") {
		t.Errorf("a second watcher: %v\n%s", err, output)
	}
	changed := strings.Replace(l.specification(), "protocol: http, app", "protocol: http, minTLS: \"1.3\", app", 1)
	spec, err := mesh.ParseDocuments([]mesh.Document{{Name: "mesh.yaml", Directory: l.dir, Content: changed}})
	l.ok(err)
	l.plan(spec)
	l.says("/plan", `"minTLS": "1.3"`)
	if shown := l.serial(); shown != serial2 {
		t.Errorf("%s is served", shown)
	}
}

// startServer starts a control plane, whose authority issues all further certificates. It gives the flags of a member.
func (l *watchLab) startServer() (socket string, member []string) {
	l.t.Helper()
	l.ok(os.WriteFile(l.file("mesh.yaml"), []byte(l.specification()), 0o600))
	l.state = l.file("server")
	l.run("ca", "init", "--state", l.state, "--unsealed", "--trust-domain", "shop.internal")
	server := l.child(initCommand(l.t, nil, "server", "--state", l.state, "--mesh", l.file("mesh.yaml"), "--listen", "127.0.0.1:0", "--unsealed", "--output", "json"))
	server.says(l.t, "}\n")
	var info struct {
		URL   string `json:"url"`
		CAPin string `json:"caPin"`
	}
	for line := range strings.Lines(server.output()) {
		if strings.HasPrefix(line, "{") {
			l.ok(json.Unmarshal([]byte(line), &info))
		}
	}
	socket = filepath.Join(l.state, "server.sock")
	l.ok(os.WriteFile(l.file("token"), []byte(l.run("token", "create", "orders", "--socket", socket)), 0o600))
	return socket, []string{"--server", info.URL, "--ca-pin", info.CAPin, "--token-file", l.file("token"), "--state", l.file("agent"), "--instance", "orders-1"}
}

// issued is a certificate of the server's authority.
func (l *watchLab) issued(name string) (chain, key []byte, serial string) {
	l.t.Helper()
	made := filepath.Join(l.t.TempDir(), "made")
	l.run("ca", "issue", "--state", l.state, "--unsealed", "service/"+name, "--out", made)
	var files [3][]byte
	for i, file := range []string{"cert.pem", "key.pem", "ca.pem"} {
		var err error
		files[i], err = os.ReadFile(filepath.Join(made, "current", file))
		l.ok(err)
	}
	block, _ := pem.Decode(files[2])
	root, err := x509.ParseCertificate(block.Bytes)
	l.ok(err)
	l.root = root
	block, _ = pem.Decode(files[0])
	leaf, err := x509.ParseCertificate(block.Bytes)
	l.ok(err)
	return files[0], files[1], mtls.Serial(leaf)
}

// row is what the server says of the instance.
func (l *watchLab) row(socket string) api.Status {
	l.t.Helper()
	var rows []api.Status
	l.ok(json.Unmarshal([]byte(l.run("status", "--socket", socket, "--output", "json")), &rows))
	for _, row := range rows {
		if row.Instance == "orders-1" {
			return row
		}
	}
	return api.Status{}
}

// TestWatchServer has a control plane: it gives the Plan and the revocation lists, and is told the serial that was seen.
func TestWatchServer(t *testing.T) {
	for _, engine := range []string{"nginx", "haproxy"} {
		t.Run(engine, func(t *testing.T) {
			l := newWatchLab(t, engine)
			socket, member := l.startServer()
			conf := l.file("conf/" + map[string]string{"nginx": "nginx.conf", "haproxy": "haproxy.cfg"}[engine])
			serial := l.put("v1", mesh.ECDSAP256)
			l.once(l.conf()...)
			l.startProxy(conf, serial)
			l.startWatch(append(append(l.conf(), "--reload", l.way(), "--patience", "10s"), member...)...)
			l.eventually("the server knows what is served", func() bool {
				s := l.row(socket)
				return s.Serial == serial && s.Connected && s.Error == ""
			})
			serial = l.put("v2", mesh.ECDSAP256)
			l.eventually("the server knows what is served now", func() bool { s := l.row(socket); return s.Serial == serial && s.Error == "" })
			l.says("/plan", `"revision": `)
			if text, err := os.ReadFile(conf); err != nil || !strings.Contains(string(text), "callers") {
				t.Errorf("the proxy is not to tell who calls (%v):\n%s", err, text)
			}
			l.revocation(conf)

			// A version that is not fit is known to the server, and what is served too.
			chain, _, _ := l.certify("orders", mesh.ECDSAP256)
			_, key, _ := l.certify("orders", mesh.ECDSAP256)
			text, err := json.Marshal(map[string]string{"cert_pem": string(chain), "key_pem": string(key), "ca_bundle": string(issuetest.PEM(l.root))})
			l.ok(err)
			_, err = l.store.Stage(t.Context(), "shop/orders", "v3", text)
			l.ok(err)
			l.ok(l.store.Promote(t.Context(), "shop/orders", "v3"))
			l.eventually("the server knows of the problem", func() bool {
				s := l.row(socket)
				return s.Serial == serial && strings.Contains(s.Error, "version v3") && strings.Contains(s.Error, "the key does not belong to")
			})

			// A new specification is put in force by a new generation, in spite of that.
			changed := strings.Replace(l.specification(), "protocol: http, app", "protocol: http, minTLS: \"1.3\", app", 1)
			l.ok(os.WriteFile(l.file("mesh.yaml"), []byte(changed), 0o600))
			l.run("mesh", "apply", l.file("mesh.yaml"), "--socket", socket)
			l.says("/plan", `"minTLS": "1.3"`)
			l.eventually("the configuration is in force", func() bool {
				conn, err := tls.Dial("tcp", l.address.String(), &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12})
				if err == nil {
					conn.Close()
				}
				return err != nil && l.serial() == serial
			})
		})
	}
}

// revocation revokes a caller, who was admitted before, and is refused soon.
func (l *watchLab) revocation(conf string) {
	l.t.Helper()
	l.eventually("callers are looked up", func() bool {
		text, err := os.ReadFile(conf)
		return err == nil && strings.Contains(string(text), "/current/crl.pem")
	})
	l.says("/stats", "countersign.delivery_problem_state: 0\n")
	chain, key, serial := l.certify("client", mesh.ECDSAP256)
	pair, err := tls.X509KeyPair(chain, key)
	l.ok(err)
	roots := x509.NewCertPool()
	roots.AddCert(l.root)
	call := func() error {
		transport := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "orders.shop.internal", Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}}
		return ask(l.t.Context(), transport, l.address)
	}
	l.ok(call())
	l.run("ca", "revoke", serial, "--state", l.state, "--unsealed")
	revoked := time.Now()
	l.eventually("the revoked caller is refused", func() bool { return call() != nil })
	l.t.Logf("refused %s after the command", time.Since(revoked).Round(time.Millisecond))
	chain, key, _ = l.certify("client", mesh.ECDSAP256)
	pair, err = tls.X509KeyPair(chain, key)
	l.ok(err)
	l.ok(call())
}

// run runs a command to its end and gives what it prints.
func (l *watchLab) run(args ...string) string {
	l.t.Helper()
	command := initCommand(l.t, nil, args...)
	var stderr strings.Builder
	command.Stderr = &stderr
	out, err := command.Output()
	if err != nil {
		l.t.Fatalf("%q: %v\n%s", args, err, &stderr)
	}
	return string(out)
}
