package session

import (
	"errors"
	"net/http"
	"strings"
)

// general is what helps against an error of AWS that this package knows no more of than its name and status: AWS has hundreds of
// names, and gives new ones.
type general struct {
	// remedy is for [Remedy].
	remedy, advice string
}

// The kinds of such errors.
var (
	overQuota = &general{
		"use less of what is limited, or ask AWS for more of it",
		"it is a quota, and asking again alone does not help: see what of it can go, or ask for more of it (`aws service-quotas list-service-quotas` shows those that can be raised)",
	}
	inProgress = &general{
		"wait until AWS is done with what is in progress",
		"something else is being done with it at this moment: wait a minute and run this again; where it stays so, CloudTrail shows who is at it",
	}
	refusedAsIs = &general{
		"see what AWS refuses about it",
		"AWS refuses it as it is, and asking again alone does not help: see whether the name or ARN, the account and the region are those that are meant, and in what state the resource is",
	}
)

// otherwise judges errors of AWS that nothing is known of. What is not there, or is there already, says so itself.
func (e *Error) otherwise() bool {
	has := func(words ...string) bool {
		for _, word := range words {
			if strings.Contains(e.Code, word) {
				return true
			}
		}
		return false
	}
	switch {
	case e.Code == "", e.Code == unknownError, status(e.err) >= http.StatusInternalServerError, has("NotFound", "NoSuch", "DoesNotExist", "Exists"):
		return false
	case has("LimitExceeded", "QuotaExceeded"):
		e.general = overQuota
	case has("InProgress", "Concurrent", "Conflict", "InUse"):
		e.general = inProgress
	default:
		e.general = refusedAsIs
	}
	e.advice = e.general.advice
	return true
}

// Known gives an explained error without the advice that holds for any error of its kind, for those who know more of it and say
// what to do themselves. Others are left as they are.
func Known(err error) error {
	e, ok := err.(*Error) //nolint:errorlint // what is around it has words of its own
	if !ok || e.general == nil {
		return err
	}
	known := *e
	known.general, known.advice = nil, ""
	return &known
}

// generalRemedy is [Remedy] for an error that nothing more is known of.
func generalRemedy(err error) string {
	if e, ok := errors.AsType[*Error](err); ok && e.general != nil {
		return e.general.remedy
	}
	return ""
}
