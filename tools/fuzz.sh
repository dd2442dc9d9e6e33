#!/usr/bin/env bash
# Runs every fuzz target of the module for a short while: fuzz.sh [SECONDS-EACH [SECONDS-IN-ALL]].
# The targets are found, not listed. Seeds alone also run as unit tests; this looks for new inputs.
set -euo pipefail
each=${1:-4} budget=${2:-150}

targets=()
while read -r folder; do
	for name in $(cat "$folder"/*_test.go 2>/dev/null | sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' | sort -u); do
		targets+=("$folder $name")
	done
done < <(go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.Dir}}{{end}}' ./... | grep .)
if [ "${#targets[@]}" -eq 0 ]; then
	echo "no fuzz target was found" >&2
	exit 1
fi
if [ $((each * ${#targets[@]})) -gt "$budget" ]; then
	each=$((budget / ${#targets[@]}))
	[ "$each" -ge 1 ] || each=1
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
failed=0
for target in "${targets[@]}"; do
	read -r folder name <<<"$target"
	printf '%-60s' "${folder#"$PWD"/} $name"
	for attempt in 1 2; do
		status=0
		go test -run '^$' -fuzz "^$name\$" -fuzzminimizetime 1x -fuzztime "${each}s" -timeout 5m "$folder" >"$log" 2>&1 || status=$?
		# The fuzzing engine sometimes reports its own deadline as a failure (no input is written
		# then); that is not a finding, and is tried once more.
		if [ "$status" -ne 0 ] && [ "$attempt" -eq 1 ] && grep -q 'context deadline exceeded' "$log" && ! grep -q 'Failing input written' "$log"; then
			continue
		fi
		break
	done
	if [ "$status" -eq 0 ]; then
		inputs=$(sed -n 's/^fuzz: elapsed: .* execs: \([0-9]*\).*/\1 inputs/p' "$log" | tail -1)
		echo "${inputs:-the seeds, and no time for more}"
	else
		echo FAILED
		cat "$log"
		failed=1
	fi
done
exit "$failed"
