#!/usr/bin/env bash
# Runs make targets one after the other, goes on after a failure, and ends with a table of what each
# took: steps.sh TARGET...
set -uo pipefail
make=${MAKE:-make}

summary=() failed=0 start=$SECONDS
for step in "$@"; do
	echo "=== $step"
	began=$SECONDS
	if "$make" --no-print-directory "$step" </dev/null; then
		result=ok
	else
		result=FAILED
		failed=1
	fi
	line=$(printf '%-12s %-6s %5d s' "$step" "$result" $((SECONDS - began)))
	echo "--- $line"
	summary+=("$line")
done
echo
printf '%s\n' "${summary[@]}"
printf '%-12s %-6s %5d s\n' all "$([ "$failed" -eq 0 ] && echo ok || echo FAILED)" $((SECONDS - start))
exit "$failed"
