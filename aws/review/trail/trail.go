// Package trail reads what CloudTrail says of who read a secret.
package trail

import (
	"encoding/json"
	"errors"
	"strings"
)

// ErrRecord says that a text is no record of CloudTrail.
var ErrRecord = errors.New("not a record of CloudTrail")

// Read is that somebody read a secret.
type Read struct {
	// Reader is the ARN of a role or user, or the name of a service of AWS; of a session, its role.
	Reader string
	// Secret is the secret as the caller named it: a name, or an ARN, whole or without its random end.
	Secret string
	// Refused says that it was not read.
	Refused bool
}

// Parse reads a record:
// https://docs.aws.amazon.com/awscloudtrail/latest/userguide/cloudtrail-event-reference-record-contents.html.
func Parse(text string) (Read, error) {
	var record struct {
		EventName    string `json:"eventName"`
		ErrorCode    string `json:"errorCode"`
		UserIdentity struct {
			Type           string `json:"type"`
			ARN            string `json:"arn"`
			PrincipalID    string `json:"principalId"`
			AccountID      string `json:"accountId"`
			InvokedBy      string `json:"invokedBy"`
			SessionContext struct {
				SessionIssuer struct {
					ARN string `json:"arn"`
				} `json:"sessionIssuer"`
			} `json:"sessionContext"`
		} `json:"userIdentity"`
		RequestParameters struct {
			SecretID string `json:"secretId"`
		} `json:"requestParameters"`
	}
	if err := json.Unmarshal([]byte(text), &record); err != nil {
		return Read{}, errors.Join(ErrRecord, err)
	}
	if record.EventName == "" {
		return Read{}, ErrRecord
	}
	read := Read{Secret: record.RequestParameters.SecretID, Refused: record.ErrorCode != ""}
	principal := record.UserIdentity.PrincipalID
	if principal != "" && record.UserIdentity.AccountID != "" { // of another account there is no ARN
		principal += " of the account " + record.UserIdentity.AccountID
	}
	for _, who := range []string{record.UserIdentity.SessionContext.SessionIssuer.ARN, record.UserIdentity.ARN, record.UserIdentity.InvokedBy, principal, "somebody"} {
		if who != "" {
			read.Reader = who
			break
		}
	}
	return read, nil
}

// Of tells whether the read was of a secret with that name and ARN.
func (r Read) Of(name, arn string) bool {
	const end = 7 // -AbCdEf
	if r.Secret == "" {
		return false
	}
	return r.Secret == name || r.Secret == arn || len(arn) > end && r.Secret == arn[:len(arn)-end] && strings.HasPrefix(arn, "arn:")
}
