package awstest_test

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	sm "github.com/aws/aws-sdk-go-v2/service/secretsmanager"
)

var secretsContract = []expectation{
	{"CreateSecret", "gives an ARN that ends in a hyphen and six characters, and the value the stage AWSCURRENT", createsSecret},
	{"CreateSecret", "refuses a name that is taken: ResourceExistsException", refusesTakenName},
	{"CreateSecret", "answers the same request token and value again as it did first", repeatsCreation},
	{"GetSecretValue", "without a stage gives AWSCURRENT, also after the stage was moved", readsCurrent},
	{"GetSecretValue", "gives the version of a stage, and of a version id", readsStages},
	{"GetSecretValue", "of a secret or a stage that is not there: ResourceNotFoundException", missesSecret},
	{"GetSecretValue", "gives SecretBinary back as it was put", readsBinary},
	{"PutSecretValue", "with the stage AWSPENDING leaves AWSCURRENT where it is", stagesPending},
	{"PutSecretValue", "without a stage moves AWSCURRENT and AWSPREVIOUS", replacesCurrent},
	{"PutSecretValue", "without a stage takes AWSCURRENT from the version to which it was moved, so that one version has it", replacesMoved},
	{"PutSecretValue", "without a stage leaves AWSPENDING, and stages of one's own, where they are", leavesOthers},
	{"PutSecretValue", "with a stage of one's own takes it from the version that had it", takesStage},
	{"PutSecretValue", "the same token and value again changes nothing", repeatsPut},
	{"PutSecretValue", "the same token with another value: ResourceExistsException", refusesOtherValue},
	{"PutSecretValue", "takes 65536 bytes and refuses more", limitsValue},
	{"PutSecretValue", "refuses a request token of fewer than 32 characters", limitsToken},
	{"UpdateSecret", "with a value makes it AWSCURRENT, as PutSecretValue does, also after the stage was moved", updatesSecret},
	{"UpdateSecretVersionStage", "moves AWSCURRENT, and AWSPREVIOUS to where it was", movesCurrent},
	{"UpdateSecretVersionStage", "refuses to move a stage that is on another version than RemoveFromVersionId, and moves nothing", comparesVersion},
	{"UpdateSecretVersionStage", "refuses to move a stage that is attached when RemoveFromVersionId is absent", wantsRemoveFrom},
	{"UpdateSecretVersionStage", "lets one of eight win that move a stage of one's own from the same version at once", movesOnce},
	{"UpdateSecretVersionStage", "attaches a stage of one's own that is nowhere, and takes it away", attachesStage},
	{"UpdateSecretVersionStage", "refuses to take AWSCURRENT away without a version to move it to", keepsCurrent},
	{"UpdateSecretVersionStage", "refuses to move a stage to a version that is not there, and moves nothing", wantsVersion},
	{"UpdateSecretVersionStage", "refuses a 21st stage, of all versions together: LimitExceededException", limitsStages},
	{"ListSecretVersionIds", "leaves out versions without a stage unless IncludeDeprecated", listsVersions},
	{"ListSecretVersionIds", "gives pages of MaxResults", pagesVersions},
	{"ListSecretVersionIds", "tells when each version was made", datesVersions},
	{"DescribeSecret", "tells the stages of each version", describesSecret},
	{"DescribeSecret", "tells the key, and when the secret is to be deleted", describesEnd},
	{"BatchGetSecretValue", "gives the values of a list of secrets", readsBatch},
	{"BatchGetSecretValue", "gives AWSCURRENT, also after the stage was moved", readsCurrentBatch},
	{"DeleteSecret", "makes the value unreadable, InvalidRequestException, until RestoreSecret", deletesSecret},
	{"DeleteSecret", "lets nothing be written or moved, InvalidRequestException, until RestoreSecret", closesSecret},
	{"PutResourcePolicy", "is given back by GetResourcePolicy, and ends with DeleteResourcePolicy", keepsPolicy},
	{"GetRandomPassword", "has the length asked for, and none of ExcludeCharacters", makesPassword},
	{"RotateSecret", "refuses a secret without a rotation function", refusesRotation},
}

// vault is a secret with one version.
type vault struct {
	*world
	client   *sm.Client
	id       string
	arn      string
	versions []string // in the order in which they were made
}

const (
	current  = "AWSCURRENT"
	pending  = "AWSPENDING"
	previous = "AWSPREVIOUS"
	own      = "COUNTERSIGN-LEASE"
)

func (w *world) vault() (*vault, error) {
	v := &vault{world: w, client: sm.NewFromConfig(w.config), id: w.name("secret")}
	token := w.token()
	made, err := v.client.CreateSecret(w.ctx, &sm.CreateSecretInput{Name: &v.id, SecretString: aws.String("0"), ClientRequestToken: &token})
	if err != nil {
		return nil, err
	}
	v.arn, v.versions = aws.ToString(made.ARN), []string{aws.ToString(made.VersionId)}
	return v, nil
}

// put makes a version whose value is its number.
func (v *vault) put(stages ...string) error {
	token, value := v.token(), fmt.Sprint(len(v.versions))
	_, err := v.client.PutSecretValue(v.ctx, &sm.PutSecretValueInput{SecretId: &v.id, SecretString: &value, ClientRequestToken: &token, VersionStages: stages})
	v.versions = append(v.versions, token)
	return err
}

// value reads by stage; "" asks without one.
func (v *vault) value(stage string) (string, error) {
	input := &sm.GetSecretValueInput{SecretId: &v.id}
	if stage != "" {
		input.VersionStage = &stage
	}
	got, err := v.client.GetSecretValue(v.ctx, input)
	if err != nil {
		return "", err
	}
	return aws.ToString(got.SecretString), nil
}

// wants is nil when the stages hold these values.
func (v *vault) wants(values map[string]string) error {
	for stage, want := range values {
		if got, err := v.value(stage); err != nil {
			return err
		} else if got != want {
			if stage == "" {
				stage = "no stage"
			}
			return wrong("%s gives another version", stage)
		}
	}
	return nil
}

// move moves a stage between versions by their numbers; -1 leaves that parameter out.
func (v *vault) move(stage string, to, from int) error {
	input := &sm.UpdateSecretVersionStageInput{SecretId: &v.id, VersionStage: &stage}
	if to >= 0 {
		input.MoveToVersionId = &v.versions[to]
	}
	if from >= 0 {
		input.RemoveFromVersionId = &v.versions[from]
	}
	_, err := v.client.UpdateSecretVersionStage(v.ctx, input)
	return err
}

// withVault runs on a secret of its own.
func withVault(w *world, steps ...func(*vault) error) error {
	v, err := w.vault()
	if err != nil {
		return err
	}
	for _, step := range steps {
		if err := step(v); err != nil {
			return err
		}
	}
	return nil
}

func puts(stages ...string) func(*vault) error {
	return func(v *vault) error { return v.put(stages...) }
}

func moves(stage string, to, from int) func(*vault) error {
	return func(v *vault) error { return v.move(stage, to, from) }
}

func gives(values map[string]string) func(*vault) error {
	return func(v *vault) error { return v.wants(values) }
}

func createsSecret(w *world) error {
	return withVault(w, gives(map[string]string{current: "0"}), func(v *vault) error {
		if !regexp.MustCompile(`^arn:aws:secretsmanager:eu-central-1:123456789012:secret:` + v.id + `-[A-Za-z0-9]{6}$`).MatchString(v.arn) {
			return wrong("another form of ARN")
		}
		return nil
	})
}

func refusesTakenName(w *world) error {
	return withVault(w, func(v *vault) error {
		_, err := v.client.CreateSecret(v.ctx, &sm.CreateSecretInput{Name: &v.id, SecretString: aws.String("x"), ClientRequestToken: aws.String(v.token())})
		return refuses(err, "ResourceExistsException")
	})
}

func repeatsCreation(w *world) error {
	return withVault(w, func(v *vault) error {
		again, err := v.client.CreateSecret(v.ctx, &sm.CreateSecretInput{Name: &v.id, SecretString: aws.String("0"), ClientRequestToken: &v.versions[0]})
		if err != nil {
			return err
		}
		if aws.ToString(again.ARN) != v.arn || aws.ToString(again.VersionId) != v.versions[0] {
			return wrong("makes another secret")
		}
		return nil
	})
}

func readsCurrent(w *world) error {
	return withVault(w, puts(pending), moves(current, 1, 0), gives(map[string]string{"": "1"}))
}

func readsStages(w *world) error {
	return withVault(w, puts(pending), gives(map[string]string{current: "0", pending: "1"}), func(v *vault) error {
		got, err := v.client.GetSecretValue(v.ctx, &sm.GetSecretValueInput{SecretId: &v.arn, VersionId: &v.versions[1]})
		if err == nil && (aws.ToString(got.SecretString) != "1" || !slices.Equal(got.VersionStages, []string{pending})) {
			return wrong("another version")
		}
		return err
	})
}

func missesSecret(w *world) error {
	return withVault(w, func(v *vault) error {
		_, err := v.value("COUNTERSIGN-NOWHERE")
		if err := refuses(err, "ResourceNotFoundException"); err != nil {
			return err
		}
		_, err = v.client.GetSecretValue(v.ctx, &sm.GetSecretValueInput{SecretId: aws.String(v.id + "-absent")})
		return refuses(err, "ResourceNotFoundException")
	})
}

func readsBinary(w *world) error {
	return withVault(w, func(v *vault) error {
		_, err := v.client.PutSecretValue(v.ctx, &sm.PutSecretValueInput{SecretId: &v.id, SecretBinary: []byte{0, 1, 0xff}, ClientRequestToken: aws.String(v.token())})
		if err != nil {
			return err
		}
		got, err := v.client.GetSecretValue(v.ctx, &sm.GetSecretValueInput{SecretId: &v.id, VersionStage: aws.String(current)})
		if err == nil && (string(got.SecretBinary) != "\x00\x01\xff" || got.SecretString != nil) {
			return wrong("gives something else")
		}
		return err
	})
}

func stagesPending(w *world) error {
	return withVault(w, puts(pending), gives(map[string]string{current: "0", pending: "1"}))
}

func replacesCurrent(w *world) error {
	return withVault(w, puts(), puts(), gives(map[string]string{current: "2", previous: "1"}))
}

func repeatsPut(w *world) error {
	return withVault(w, puts(pending), func(v *vault) error {
		_, err := v.client.PutSecretValue(v.ctx, &sm.PutSecretValueInput{
			SecretId: &v.id, SecretString: aws.String("1"), ClientRequestToken: &v.versions[1], VersionStages: []string{pending},
		})
		return err
	}, gives(map[string]string{current: "0", pending: "1"}))
}

func refusesOtherValue(w *world) error {
	return withVault(w, puts(pending), func(v *vault) error {
		_, err := v.client.PutSecretValue(v.ctx, &sm.PutSecretValueInput{
			SecretId: &v.id, SecretString: aws.String("other"), ClientRequestToken: &v.versions[1], VersionStages: []string{pending},
		})
		return refuses(err, "ResourceExistsException")
	})
}

func limitsValue(w *world) error {
	return withVault(w, func(v *vault) error {
		put := func(size int) error {
			_, err := v.client.PutSecretValue(v.ctx, &sm.PutSecretValueInput{
				SecretId: &v.id, SecretString: aws.String(strings.Repeat("x", size)), ClientRequestToken: aws.String(v.token()),
			})
			return err
		}
		if err := put(65536); err != nil {
			return err
		}
		return refuses(put(65537), "ValidationException", "InvalidParameterException", "LimitExceededException")
	})
}

func limitsToken(w *world) error {
	return withVault(w, func(v *vault) error {
		_, err := v.client.PutSecretValue(v.ctx, &sm.PutSecretValueInput{
			SecretId: &v.id, SecretString: aws.String("x"), ClientRequestToken: aws.String(strings.Repeat("a", 31)),
		})
		return refuses(err, "ValidationException", "InvalidParameterException")
	})
}

// listed are the versions that are told, with or without those that have no stage.
func (v *vault) listed(deprecated bool) ([]string, error) {
	got, err := v.client.ListSecretVersionIds(v.ctx, &sm.ListSecretVersionIdsInput{SecretId: &v.id, IncludeDeprecated: &deprecated})
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, version := range got.Versions {
		ids = append(ids, aws.ToString(version.VersionId))
	}
	return ids, nil
}

func listsVersions(w *world) error {
	return withVault(w, puts(own), moves(own, -1, 1), func(v *vault) error {
		without, err := v.listed(false)
		if err != nil {
			return err
		}
		if slices.Contains(without, v.versions[1]) {
			return wrong("shows them")
		}
		with, err := v.listed(true)
		if err != nil {
			return err
		}
		if !slices.Contains(with, v.versions[1]) {
			return wrong("forgets them")
		}
		return nil
	})
}

func pagesVersions(w *world) error {
	return withVault(w, puts("A"), puts("B"), func(v *vault) error {
		seen := map[string]bool{}
		pages := sm.NewListSecretVersionIdsPaginator(v.client, &sm.ListSecretVersionIdsInput{SecretId: &v.id, MaxResults: aws.Int32(1)})
		for pages.HasMorePages() {
			page, err := pages.NextPage(v.ctx)
			if err != nil {
				return err
			}
			if len(page.Versions) > 1 {
				return wrong("ignores MaxResults")
			}
			for _, version := range page.Versions {
				seen[aws.ToString(version.VersionId)] = true
			}
		}
		if len(seen) != len(v.versions) {
			return wrong("loses versions")
		}
		return nil
	})
}

func datesVersions(w *world) error {
	return withVault(w, puts(), func(v *vault) error {
		first := make(map[string]time.Time)
		for begin := time.Now(); time.Now().Unix() < begin.Unix()+2; { // dates have whole seconds
			got, err := v.client.ListSecretVersionIds(v.ctx, &sm.ListSecretVersionIdsInput{SecretId: &v.id})
			if err != nil {
				return err
			}
			for _, version := range got.Versions {
				made, id := aws.ToTime(version.CreatedDate), aws.ToString(version.VersionId)
				if time.Since(made).Abs() > time.Hour {
					return wrong("tells another time")
				}
				if before, ok := first[id]; ok && !before.Equal(made) {
					return wrong("tells the time of the question")
				}
				first[id] = made
			}
		}
		return nil
	})
}

func describesEnd(w *world) error {
	return withVault(w, func(v *vault) error {
		key, err := kms.NewFromConfig(v.config).CreateKey(v.ctx, &kms.CreateKeyInput{})
		if err != nil {
			return err
		}
		if _, err := v.client.UpdateSecret(v.ctx, &sm.UpdateSecretInput{SecretId: &v.id, KmsKeyId: key.KeyMetadata.Arn}); err != nil {
			return err
		}
		if _, err := v.client.DeleteSecret(v.ctx, &sm.DeleteSecretInput{SecretId: &v.id, RecoveryWindowInDays: aws.Int64(7)}); err != nil {
			return err
		}
		got, err := v.client.DescribeSecret(v.ctx, &sm.DescribeSecretInput{SecretId: &v.id})
		switch {
		case err != nil:
			return err
		case aws.ToString(got.KmsKeyId) != aws.ToString(key.KeyMetadata.Arn):
			return wrong("tells another key")
		case got.DeletedDate == nil:
			return wrong("tells no date")
		}
		return nil
	})
}

func describesSecret(w *world) error {
	return withVault(w, puts(pending), moves(current, 1, 0), func(v *vault) error {
		got, err := v.client.DescribeSecret(v.ctx, &sm.DescribeSecretInput{SecretId: &v.id})
		if err != nil {
			return err
		}
		stages := slices.Sorted(slices.Values(got.VersionIdsToStages[v.versions[1]]))
		if !slices.Equal(stages, []string{current, pending}) || !slices.Equal(got.VersionIdsToStages[v.versions[0]], []string{previous}) {
			return wrong("tells others")
		}
		return nil
	})
}

func readsBatch(w *world) error {
	return withVault(w, func(v *vault) error {
		got, err := v.client.BatchGetSecretValue(v.ctx, &sm.BatchGetSecretValueInput{SecretIdList: []string{v.id}})
		if err == nil && (len(got.SecretValues) != 1 || aws.ToString(got.SecretValues[0].SecretString) != "0") {
			return wrong("gives something else")
		}
		return err
	})
}

func readsCurrentBatch(w *world) error {
	return withVault(w, puts(pending), moves(current, 1, 0), func(v *vault) error {
		got, err := v.client.BatchGetSecretValue(v.ctx, &sm.BatchGetSecretValueInput{SecretIdList: []string{v.id}})
		if err == nil && (len(got.SecretValues) != 1 || aws.ToString(got.SecretValues[0].SecretString) != "1") {
			return wrong("gives another version")
		}
		return err
	})
}

func closesSecret(w *world) error {
	return withVault(w, puts(pending), func(v *vault) error {
		if _, err := v.client.DeleteSecret(v.ctx, &sm.DeleteSecretInput{SecretId: &v.id, RecoveryWindowInDays: aws.Int64(7)}); err != nil {
			return err
		}
		if err := refuses(v.put(pending), "InvalidRequestException"); err != nil {
			return err
		}
		return refuses(v.move(current, 1, 0), "InvalidRequestException")
	})
}

func deletesSecret(w *world) error {
	return withVault(w, func(v *vault) error {
		if _, err := v.client.DeleteSecret(v.ctx, &sm.DeleteSecretInput{SecretId: &v.id, RecoveryWindowInDays: aws.Int64(7)}); err != nil {
			return err
		}
		_, err := v.value(current)
		if err := refuses(err, "InvalidRequestException"); err != nil {
			return err
		}
		_, err = v.client.RestoreSecret(v.ctx, &sm.RestoreSecretInput{SecretId: &v.id})
		return err
	}, gives(map[string]string{current: "0"}))
}

func keepsPolicy(w *world) error {
	document := policy(`{"Effect":"Deny","Principal":"*","Action":"secretsmanager:GetSecretValue","Resource":"*","Condition":{"ArnNotEquals":{"aws:PrincipalArn":"arn:aws:iam::123456789012:role/r"}}}`)
	return withVault(w, func(v *vault) error {
		if _, err := v.client.PutResourcePolicy(v.ctx, &sm.PutResourcePolicyInput{SecretId: &v.id, ResourcePolicy: &document}); err != nil {
			return err
		}
		got, err := v.client.GetResourcePolicy(v.ctx, &sm.GetResourcePolicyInput{SecretId: &v.id})
		if err != nil {
			return err
		}
		if aws.ToString(got.ResourcePolicy) != document {
			return wrong("gives another policy")
		}
		if _, err := v.client.DeleteResourcePolicy(v.ctx, &sm.DeleteResourcePolicyInput{SecretId: &v.id}); err != nil {
			return err
		}
		got, err = v.client.GetResourcePolicy(v.ctx, &sm.GetResourcePolicyInput{SecretId: &v.id})
		if err == nil && aws.ToString(got.ResourcePolicy) != "" {
			return wrong("keeps it")
		}
		return err
	})
}

func makesPassword(w *world) error {
	client := sm.NewFromConfig(w.config)
	for range 5 {
		got, err := client.GetRandomPassword(w.ctx, &sm.GetRandomPasswordInput{PasswordLength: aws.Int64(100), ExcludeCharacters: aws.String("#$%")})
		if err != nil {
			return err
		}
		if len(aws.ToString(got.RandomPassword)) != 100 || strings.ContainsAny(aws.ToString(got.RandomPassword), "#$%") {
			return wrong("another length, or one of them")
		}
	}
	return nil
}

func refusesRotation(w *world) error {
	return withVault(w, func(v *vault) error {
		_, err := v.client.RotateSecret(v.ctx, &sm.RotateSecretInput{SecretId: &v.id, ClientRequestToken: aws.String(v.token())})
		return refuses(err, "InvalidRequestException", "InvalidParameterException")
	})
}
