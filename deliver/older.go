package deliver

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"path/filepath"
	"time"

	"countersign.dev/credential"
)

const (
	// revokedGrace is how long older workers may serve on when somebody was revoked: what they accepted they judge by the
	// lists of before. It leaves room in the five seconds in which a revocation has to be obeyed.
	revokedGrace = 2 * time.Second
	// olderTime bounds one question to the proxy about them.
	olderTime = 5 * time.Second
)

// EndOlder ends those workers of a proxy that were old when it was made and still are after a grace, and gives their process ids.
type EndOlder func(ctx context.Context, grace time.Duration) ([]int, error)

// revoked are the serials in revocation lists, as the lists have them.
func revoked(lists []byte) map[string]bool {
	serials := make(map[string]bool)
	for {
		var block *pem.Block
		if block, lists = pem.Decode(lists); block == nil {
			return serials
		}
		list, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			continue // the proxy refuses everybody by such a list
		}
		for _, entry := range list.RevokedCertificateEntries {
			serials[entry.SerialNumber.String()] = true
		}
	}
}

// revokes tells whether somebody is revoked in the second lists who was not in the first.
func revokes(before, after []byte) bool {
	known := revoked(before)
	for serial := range revoked(after) {
		if !known[serial] {
			return true
		}
	}
	return false
}

// endOlder ends the proxy's older workers when generation n, which has just come to be served and is not noted as proved yet,
// revokes somebody whom the one that was proved before it does not: on a connection that stays open they would serve him on.
// Which workers they are is asked before it returns: one that grows old later has the new lists.
func (w *Watcher) endOlder(ctx context.Context, d *credential.Directory, n uint64) {
	if w.cfg.Older == nil {
		return
	}
	var before []byte
	if proved, err := d.Proved(); err == nil && proved != 0 && proved != n {
		before, _ = readKept(filepath.Join(d.Path(proved), RevocationFile)) // what cannot be read knew nobody
	}
	after, err := readKept(filepath.Join(d.Path(n), RevocationFile))
	if err != nil || !revokes(before, after) {
		return
	}
	asking, cancel := context.WithTimeout(ctx, olderTime)
	defer cancel()
	end, err := w.cfg.Older(asking)
	if err != nil {
		w.cfg.Log.WarnContext(ctx, "cannot find workers that still serve connections of before a revocation", "error", err)
		return
	}
	w.tasks.Go(func() {
		// The proxy goes on when its watcher ends, and the next watcher knows of no new revocation.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), revokedGrace+olderTime)
		defer cancel()
		ended, err := end(ctx, revokedGrace)
		if err != nil {
			w.cfg.Log.WarnContext(ctx, "cannot end all workers that still serve connections of before a revocation", "error", err)
		}
		if len(ended) > 0 {
			w.cfg.Log.InfoContext(ctx, "ended older workers, for somebody was revoked", "pids", ended)
		}
	})
}
