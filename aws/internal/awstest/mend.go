package awstest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// mended is moto's Secrets Manager with what it gets wrong put right before and after it, as docs/doubles.md lists. What moto
// does right stays moto's.
type mended struct {
	moto http.Handler
	mu   sync.Mutex // held while a version is looked at and written
	made sync.Map   // when versions were made, by secret and version
}

// secretsManager is one for the process, as moto is.
var secretsManager = &mended{moto: double(moto)}

// maxSecret is how long a value may be, in bytes:
// https://docs.aws.amazon.com/secretsmanager/latest/userguide/reference_limits.html.
const maxSecret = 65536

func (m *mended) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		(&refusal{kind: malformed, message: err.Error()}).write(w, jsonProtocol)
		return
	}
	_, operation, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
	in := map[string]any{}
	if json.Unmarshal(body, &in) != nil {
		operation = "" // moto's to refuse
	}
	switch operation {
	case "GetSecretValue":
		if text(in, "VersionId") == "" && text(in, "VersionStage") == "" {
			in["VersionStage"] = "AWSCURRENT"
		}
	case "CreateSecret", "UpdateSecret", "PutSecretValue":
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.write(w, r, operation, in) {
			return
		}
		if operation == "PutSecretValue" || operation == "UpdateSecret" && text(in, "SecretString")+text(in, "SecretBinary") != "" {
			m.put(w, r, in)
			return
		}
	case "UpdateSecretVersionStage":
		m.mu.Lock() // moto compares and writes without a lock
		defer m.mu.Unlock()
		if refused := m.move(r, in); refused != nil {
			refused.write(w, jsonProtocol)
			return
		}
	case "BatchGetSecretValue":
		m.batch(w, r, in)
		return
	case "RotateSecret":
		described := m.ask(r, "DescribeSecret", map[string]any{"SecretId": in["SecretId"]})
		if described != nil && text(described, "RotationLambdaARN") == "" && text(in, "RotationLambdaARN") == "" {
			(&refusal{kind: malformed, code: "InvalidRequestException", message: "No Lambda rotation function ARN is associated with this secret."}).write(w, jsonProtocol)
			return
		}
	case "ListSecretVersionIds":
		m.versions(w, r, in)
		return
	}
	if operation != "" {
		body, _ = json.Marshal(in)
	}
	m.pass(w, r, body)
}

func invalidParameter(format string, args ...any) *refusal {
	return &refusal{kind: malformed, code: "InvalidParameterException", message: fmt.Sprintf(format, args...)}
}

// pass lets moto answer.
func (m *mended) pass(w http.ResponseWriter, r *http.Request, body []byte) {
	again := r.Clone(r.Context())
	again.Body, again.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	m.moto.ServeHTTP(w, again)
}

// ask asks moto something for itself; nil is for an answer that is not 200.
func (m *mended) ask(r *http.Request, operation string, params map[string]any) map[string]any {
	body, _ := json.Marshal(params)
	again := r.Clone(r.Context())
	again.Header.Set("X-Amz-Target", "secretsmanager."+operation)
	w := httptest.NewRecorder()
	m.pass(w, again, body)
	var answer map[string]any
	if w.Code != http.StatusOK || json.Unmarshal(w.Body.Bytes(), &answer) != nil {
		return nil
	}
	return answer
}

// write answers what is to be written in place of moto, or tells that moto may: a value that is too long is refused, and a
// token that is known is the same request again only when the value is the same.
func (m *mended) write(w http.ResponseWriter, r *http.Request, operation string, in map[string]any) bool {
	const base64Growth = 4.0 / 3
	if len(text(in, "SecretString")) > maxSecret || float64(len(text(in, "SecretBinary"))) > maxSecret*base64Growth+4 {
		(&refusal{kind: malformed, message: "1 validation error detected: Value at 'secretString' failed to satisfy constraint: Member must have length less than or equal to 65536"}).write(w, jsonProtocol)
		return true
	}
	token := text(in, "ClientRequestToken")
	if operation != "PutSecretValue" || token == "" {
		return false
	}
	known := m.ask(r, "GetSecretValue", map[string]any{"SecretId": in["SecretId"], "VersionId": token})
	if known == nil {
		return false
	}
	if text(known, "SecretString") != text(in, "SecretString") || text(known, "SecretBinary") != text(in, "SecretBinary") {
		(&refusal{kind: malformed, code: "ResourceExistsException", message: "You can't use ClientRequestToken " + token + " because that value is already in use for a version of secret " + text(known, "ARN") + "."}).write(w, jsonProtocol)
		return true
	}
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	_ = json.NewEncoder(w).Encode(map[string]any{"ARN": known["ARN"], "Name": known["Name"], "VersionId": token, "VersionStages": known["VersionStages"]})
	return true
}

// date puts the time at which a version was made in the place of that of the question.
func (m *mended) date(r *http.Request, in, version map[string]any) {
	key := [2]string{text(in, "SecretId"), text(version, "VersionId")}
	made, known := m.made.Load(key)
	if !known {
		value := m.ask(r, "GetSecretValue", map[string]any{"SecretId": in["SecretId"], "VersionId": key[1]})
		if made = value["CreatedDate"]; made == nil {
			return // it has no value
		}
		m.made.Store(key, made)
	}
	version["CreatedDate"] = made
}

// versions lists them by pages, newest first, without those that have no stage unless they are asked for, and with the times
// at which they were made.
func (m *mended) versions(w http.ResponseWriter, r *http.Request, in map[string]any) {
	all, deprecated, limit := maps.Clone(in), in["IncludeDeprecated"] == true, 100
	if n, ok := in["MaxResults"].(float64); ok && n >= 1 {
		limit = min(limit, int(n))
	}
	delete(all, "MaxResults")
	delete(all, "NextToken")
	all["IncludeDeprecated"] = true
	answer := m.ask(r, "ListSecretVersionIds", all)
	if answer == nil {
		body, _ := json.Marshal(all)
		m.pass(w, r, body)
		return
	}
	found, _ := answer["Versions"].([]any)
	found = slices.DeleteFunc(found, func(version any) bool {
		fields, _ := version.(map[string]any)
		stages, _ := fields["VersionStages"].([]any)
		return len(stages) == 0 && !deprecated
	})
	from, err := strconv.Atoi(text(in, "NextToken"))
	if text(in, "NextToken") != "" && (err != nil || from < 0 || from > len(found)) {
		(&refusal{kind: malformed, code: "InvalidNextTokenException", message: "Invalid NextToken."}).write(w, jsonProtocol)
		return
	}
	to := min(from+limit, len(found))
	for _, version := range found[from:to] {
		if fields, ok := version.(map[string]any); ok {
			m.date(r, in, fields)
		}
	}
	answer["Versions"] = found[from:to]
	delete(answer, "NextToken")
	if to < len(found) {
		answer["NextToken"] = strconv.Itoa(to)
	}
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	_ = json.NewEncoder(w).Encode(answer)
}
