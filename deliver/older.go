package deliver

import (
	"context"
	"path/filepath"
	"time"

	"countersign.dev/credential"
	"countersign.dev/reload"
)

// olderTime bounds one question to the proxy about its older workers.
const olderTime = 5 * time.Second

// EndOlder ends those workers of a proxy that were old when it was made and still are after a grace, and gives their process ids.
type EndOlder func(ctx context.Context, grace time.Duration) ([]int, error)

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
	if err != nil || !reload.Revokes(before, after) {
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
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reload.RevokedGrace+olderTime)
		defer cancel()
		ended, err := end(ctx, reload.RevokedGrace)
		if err != nil {
			w.cfg.Log.WarnContext(ctx, "cannot end all workers that still serve connections of before a revocation", "error", err)
		}
		if len(ended) > 0 {
			w.cfg.Log.InfoContext(ctx, "ended older workers, for somebody was revoked", "pids", ended)
		}
	})
}
