#!/usr/bin/env bash
# Runs every fuzz target of the module for a short while: fuzz.sh [SECONDS-EACH [SECONDS-IN-ALL]].
# The targets are found, not listed. Seeds alone also run as unit tests; this looks for new inputs.
set -euo pipefail
each=${1:-4} budget=${2:-110}

targets=()
while read -r package folder; do
	for name in $(cat "$folder"/*_test.go 2>/dev/null | sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' | sort -u); do
		targets+=("$package $folder $name")
	done
done < <(go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}} {{.Dir}}{{end}}' ./... | grep .)
if [ "${#targets[@]}" -eq 0 ]; then
	echo "no fuzz target was found" >&2
	exit 1
fi
if [ $((each * ${#targets[@]})) -gt "$budget" ]; then
	each=$((budget / ${#targets[@]}))
	[ "$each" -ge 1 ] || each=1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
log=$work/log
corpus=$(go env GOCACHE)/fuzz # where go test keeps the inputs that it has found
built='' failed=0

# once runs a target of a package for a while. It is what `go test -fuzz` does, but for the binary of a package, which is
# linked once for all its targets and is run where its seeds are.
once() { # PACKAGE FOLDER NAME
	if [ "$built" != "$1" ]; then
		built=''
		go test -c -vet=off -fuzz "^$3\$" -o "$work/fuzz.test" "$2" || return
		built=$1
	fi
	(cd "$2" && "$work/fuzz.test" -test.run '^$' -test.fuzz "^$3\$" -test.fuzzcachedir "$corpus/$1" -test.fuzzminimizetime 1x \
		-test.fuzztime "${each}s" -test.timeout 5m)
}

for target in "${targets[@]}"; do
	read -r package folder name <<<"$target"
	printf '%-60s' "${folder#"$PWD"/} $name"
	for attempt in 1 2; do
		status=0
		once "$package" "$folder" "$name" >"$log" 2>&1 </dev/null || status=$?
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
