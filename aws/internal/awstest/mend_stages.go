package awstest

import (
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
)

const (
	stageCurrent  = "AWSCURRENT"
	stagePrevious = "AWSPREVIOUS"
	// maxStages is how many staging labels the versions of a secret have together:
	// https://docs.aws.amazon.com/secretsmanager/latest/userguide/reference_limits.html.
	maxStages = 20
)

// stages are the labels of the versions of a secret, by the versions' ids, and whether the secret is to be deleted; nil when moto does
// not tell.
func (m *mended) stages(r *http.Request, in map[string]any) (all map[string][]string, closed bool) {
	described := m.ask(r, "DescribeSecret", map[string]any{"SecretId": in["SecretId"]})
	versions, _ := described["VersionIdsToStages"].(map[string]any)
	if versions == nil {
		return nil, described["DeletedDate"] != nil
	}
	all = make(map[string][]string)
	for id, labels := range versions {
		all[id] = texts(labels)
	}
	return all, described["DeletedDate"] != nil
}

// markedForDeletion refuses what is to change a secret that is to be deleted.
var markedForDeletion = &refusal{kind: malformed, code: "InvalidRequestException", message: "You can't perform this operation on the secret because it was marked for deletion."}

// texts are the strings of a list in JSON.
func texts(list any) (all []string) {
	values, _ := list.([]any)
	for _, value := range values {
		if s, ok := value.(string); ok {
			all = append(all, s)
		}
	}
	return all
}

// put has moto write a version, by PutSecretValue or UpdateSecret, and puts the labels of the others right. Moto takes AWSCURRENT from the version that it had
// itself made current last, and all other labels of that with it, wherever AWSCURRENT was moved since.
func (m *mended) put(w http.ResponseWriter, r *http.Request, in map[string]any) {
	stages := texts(in["VersionStages"])
	if len(stages) == 0 {
		stages = []string{stageCurrent}
	}
	before, closed := m.stages(r, in)
	if closed {
		markedForDeletion.write(w, jsonProtocol)
		return
	}
	if before != nil && tooMany(before, stages...) {
		tooManyStages.write(w, jsonProtocol)
		return
	}
	body, _ := json.Marshal(in)
	answered := httptest.NewRecorder()
	m.pass(answered, r, body)
	var answer struct{ VersionId string }
	if before != nil && answered.Code == http.StatusOK && json.Unmarshal(answered.Body.Bytes(), &answer) == nil {
		m.settle(r, in, answer.VersionId, after(before, stages))
	}
	maps.Copy(w.Header(), answered.Header())
	w.WriteHeader(answered.Code)
	_, _ = w.Write(answered.Body.Bytes())
}

// after is what the labels of the versions that were there are once a new one has some stages.
func after(before map[string][]string, stages []string) map[string][]string {
	wanted := make(map[string][]string)
	for id, labels := range before {
		wasCurrent := slices.Contains(labels, stageCurrent)
		labels = slices.DeleteFunc(slices.Clone(labels), func(label string) bool { return slices.Contains(stages, label) })
		if slices.Contains(stages, stageCurrent) {
			labels = slices.DeleteFunc(labels, func(label string) bool { return label == stagePrevious })
			if wasCurrent {
				labels = append(labels, stagePrevious)
			}
		}
		wanted[id] = labels
	}
	return wanted
}

// settle makes the labels of all versions but one what is wanted. AWSCURRENT is taken away first, because moto moves
// AWSPREVIOUS by itself then.
func (m *mended) settle(r *http.Request, in map[string]any, but string, wanted map[string][]string) {
	change := func(params map[string]any) {
		params["SecretId"] = in["SecretId"]
		m.ask(r, "UpdateSecretVersionStage", params)
	}
	now, _ := m.stages(r, in)
	for id, labels := range now {
		if id != but && slices.Contains(labels, stageCurrent) && !slices.Contains(wanted[id], stageCurrent) {
			change(map[string]any{"VersionStage": stageCurrent, "RemoveFromVersionId": id})
			now, _ = m.stages(r, in)
			break // no more than one was current
		}
	}
	for id, labels := range now {
		if id == but {
			continue
		}
		for _, label := range labels {
			if !slices.Contains(wanted[id], label) {
				change(map[string]any{"VersionStage": label, "RemoveFromVersionId": id})
			}
		}
		for _, label := range wanted[id] {
			if !slices.Contains(labels, label) {
				change(map[string]any{"VersionStage": label, "MoveToVersionId": id})
			}
		}
	}
}

// move refuses what moto does in half: it takes the label away before it sees that there is no version to move it to; and
// more labels than a secret may have, to leave a secret without AWSCURRENT, and to change one that is to be deleted.
func (m *mended) move(r *http.Request, in map[string]any) *refusal {
	to := text(in, "MoveToVersionId")
	versions, closed := m.stages(r, in)
	_, known := versions[to]
	switch {
	case closed:
		return markedForDeletion
	case to == "" && text(in, "VersionStage") == stageCurrent:
		return invalidParameter("You can only move staging label AWSCURRENT to a different secret version. It can’t be completely removed.")
	case versions == nil || to == "":
		return nil
	case !known:
		return invalidParameter("Not a valid version: %s", to)
	case tooMany(versions, text(in, "VersionStage")):
		return tooManyStages
	default:
		return nil
	}
}

// tooMany tells whether labels that are added make too many.
func tooMany(versions map[string][]string, added ...string) bool {
	all := make(map[string]bool)
	for _, label := range append(slices.Concat(slices.Collect(maps.Values(versions))...), added...) {
		all[label] = true
	}
	return len(all) > maxStages
}

var tooManyStages = &refusal{kind: malformed, code: "LimitExceededException", message: "You have reached the maximum number of staging labels for this secret."}

// batch gives the current versions, where moto gives those that it made current itself.
func (m *mended) batch(w http.ResponseWriter, r *http.Request, in map[string]any) {
	answer := m.ask(r, "BatchGetSecretValue", in)
	values, _ := answer["SecretValues"].([]any)
	if answer == nil {
		body, _ := json.Marshal(in)
		m.pass(w, r, body)
		return
	}
	for i, value := range values {
		fields, _ := value.(map[string]any)
		if current := m.ask(r, "GetSecretValue", map[string]any{"SecretId": fields["ARN"], "VersionStage": stageCurrent}); current != nil {
			values[i] = current
		}
	}
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	_ = json.NewEncoder(w).Encode(answer)
}
