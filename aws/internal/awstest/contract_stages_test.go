package awstest_test

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/aws/aws-sdk-go-v2/aws"
	sm "github.com/aws/aws-sdk-go-v2/service/secretsmanager"
)

func replacesMoved(w *world) error {
	return withVault(w, puts(pending), moves(current, 1, 0), puts(), labels(map[int][]string{0: nil, 1: {previous, pending}, 2: {current}}),
		gives(map[string]string{current: "2", previous: "1", pending: "1"}))
}

func updatesSecret(w *world) error {
	return withVault(w, puts(pending), moves(current, 1, 0), func(v *vault) error {
		made, err := v.client.UpdateSecret(v.ctx, &sm.UpdateSecretInput{SecretId: &v.id, SecretString: aws.String("2"), ClientRequestToken: aws.String(v.token())})
		if err == nil {
			v.versions = append(v.versions, aws.ToString(made.VersionId))
		}
		return err
	}, labels(map[int][]string{0: nil, 1: {previous, pending}, 2: {current}}), gives(map[string]string{current: "2"}))
}

func leavesOthers(w *world) error {
	return withVault(w, moves(own, 0, -1), moves(pending, 0, -1), puts(), labels(map[int][]string{0: {previous, pending, own}, 1: {current}}))
}

func takesStage(w *world) error {
	return withVault(w, puts(own), puts(own), labels(map[int][]string{0: {current}, 1: nil, 2: {own}}))
}

// labels is nil when versions, by their numbers, have these stages and no others.
func labels(wanted map[int][]string) func(*vault) error {
	return func(v *vault) error {
		got, err := v.client.DescribeSecret(v.ctx, &sm.DescribeSecretInput{SecretId: &v.id})
		if err != nil {
			return err
		}
		for _, n := range slices.Sorted(maps.Keys(wanted)) {
			stages := got.VersionIdsToStages[v.versions[n]]
			for _, stage := range []string{current, previous, pending, own} {
				switch {
				case slices.Contains(stages, stage) && !slices.Contains(wanted[n], stage):
					return wrong("leaves %s on the version of before", stage)
				case !slices.Contains(stages, stage) && slices.Contains(wanted[n], stage):
					return wrong("loses %s", stage)
				}
			}
		}
		return nil
	}
}

func movesCurrent(w *world) error {
	return withVault(w, puts(pending), moves(current, 1, 0), gives(map[string]string{current: "1", previous: "0", pending: "1"}))
}

func comparesVersion(w *world) error {
	return withVault(w, puts(pending), puts("OTHER"), func(v *vault) error {
		return refuses(v.move(current, 1, 2), "InvalidParameterException")
	}, gives(map[string]string{current: "0"}))
}

func wantsRemoveFrom(w *world) error {
	return withVault(w, puts(pending), func(v *vault) error {
		return refuses(v.move(current, 1, -1), "InvalidParameterException")
	}, gives(map[string]string{current: "0"}))
}

func wantsVersion(w *world) error {
	return withVault(w, func(v *vault) error {
		absent := v.token()
		_, err := v.client.UpdateSecretVersionStage(v.ctx, &sm.UpdateSecretVersionStageInput{
			SecretId: &v.id, VersionStage: aws.String(current), MoveToVersionId: &absent, RemoveFromVersionId: &v.versions[0],
		})
		return refuses(err, "ResourceNotFoundException", "InvalidParameterException")
	}, labels(map[int][]string{0: {current}}))
}

func limitsStages(w *world) error {
	const most = 20
	return withVault(w, puts(pending), func(v *vault) error {
		for i := range most - 2 {
			if err := v.move(fmt.Sprintf("LABEL-%d", i), i%2, -1); err != nil {
				return err
			}
		}
		return refuses(v.move("LABEL-MORE", 0, -1), "LimitExceededException")
	})
}

func movesOnce(w *world) error {
	const tries = 8
	return withVault(w, func(v *vault) error {
		for i := range tries {
			if err := v.put(fmt.Sprintf("TRY-%d", i)); err != nil {
				return err
			}
		}
		if err := v.move(own, 0, -1); err != nil {
			return err
		}
		var won atomic.Int64
		var running sync.WaitGroup
		for i := range tries {
			running.Go(func() {
				if v.move(own, i+1, 0) == nil {
					won.Add(1)
				}
			})
		}
		if running.Wait(); won.Load() != 1 {
			return wrong("several win, or none")
		}
		return nil
	})
}

func attachesStage(w *world) error {
	return withVault(w, puts(pending), moves(own, 1, -1), gives(map[string]string{own: "1"}), moves(own, -1, 1), func(v *vault) error {
		_, err := v.value(own)
		return refuses(err, "ResourceNotFoundException")
	})
}

func keepsCurrent(w *world) error {
	return withVault(w, func(v *vault) error { return refuses(v.move(current, -1, 0), "InvalidParameterException") },
		gives(map[string]string{current: "0"}))
}
