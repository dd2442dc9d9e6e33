package stack

import (
	"context"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	events "github.com/aws/aws-sdk-go-v2/service/eventbridge/types"
)

// makeRule puts a rule and its targets, again when they differ.
func makeRule(ctx context.Context, s *Stack, id string, properties map[string]any, old *Resource) (result, error) {
	r, err := decode[rule](properties)
	if err != nil {
		return result{}, err
	}
	if old != nil {
		r.Name = &old.Physical
	}
	in := &eventbridge.PutRuleInput{
		Name: s.named(r.Name, id, 64), Description: r.Description, EventBusName: r.EventBusName, RoleArn: r.RoleArn, ScheduleExpression: r.ScheduleExpression,
		State: events.RuleState(aws.ToString(r.State)),
	}
	if r.EventPattern != nil {
		pattern, err := text(r.EventPattern)
		if err != nil {
			return result{}, err
		}
		in.EventPattern = &pattern
	}
	for _, tag := range r.Tags {
		in.Tags = append(in.Tags, events.Tag{Key: aws.String(tag.Key), Value: aws.String(tag.Value)})
	}
	out, err := s.clients.events.PutRule(ctx, in)
	if err != nil {
		return result{}, fmt.Errorf("put the rule: %w", err)
	}
	put := &eventbridge.PutTargetsInput{Rule: in.Name, EventBusName: in.EventBusName}
	for _, t := range r.Targets {
		one := events.Target{Id: aws.String(t.ID), Arn: aws.String(t.Arn), RoleArn: t.RoleArn, Input: t.Input, InputPath: t.InputPath}
		if t.RetryPolicy != nil {
			one.RetryPolicy = &events.RetryPolicy{MaximumEventAgeInSeconds: t.RetryPolicy.MaximumEventAgeInSeconds, MaximumRetryAttempts: t.RetryPolicy.MaximumRetryAttempts}
		}
		if t.DeadLetterConfig != nil {
			one.DeadLetterConfig = &events.DeadLetterConfig{Arn: t.DeadLetterConfig.Arn}
		}
		put.Targets = append(put.Targets, one)
	}
	if len(put.Targets) == 0 {
		return result{}, errors.New("a rule without targets does nothing")
	}
	answer, err := s.clients.events.PutTargets(ctx, put)
	if err != nil {
		return result{}, fmt.Errorf("put the targets: %w", err)
	}
	if answer.FailedEntryCount > 0 {
		return result{}, fmt.Errorf("put the targets: %s", aws.ToString(answer.FailedEntries[0].ErrorMessage))
	}
	return result{*in.Name, map[string]string{"Arn": aws.ToString(out.RuleArn)}}, nil
}
