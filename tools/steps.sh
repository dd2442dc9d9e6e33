#!/usr/bin/env bash
# Runs make targets one after the other, goes on after a failure, and ends with a table of what each took, in seconds on
# the clock and of all processors, and with the first words of every test that failed: steps.sh TARGET...
set -uo pipefail
make=${MAKE:-make}
clock=$(mktemp) output=$(mktemp) failures=$(mktemp)
trap 'rm -f "$clock" "$output" "$failures"' EXIT

# cpu sets $used to the processor seconds that the children have used so far.
cpu() {
	times >"$clock"
	used=$(awk -F '[ ms]+' 'NR == 2 { printf "%d", 60 * ($1 + $3) + $2 + $4 }' "$clock")
}

# row LABEL RESULT SECONDS CPU-SECONDS
row() { printf '%-10s %-6s %5d s %6d s CPU' "$@"; }

summary=() failed=0
for step in "$@"; do
	echo "=== $step"
	began=$SECONDS
	cpu
	before=$used
	result=ok
	if ! "$make" --no-print-directory "$step" </dev/null 2>&1 | tee "$output"; then
		result=FAILED
		failed=1
		{
			echo "=== what failed in $step"
			grep -E -A 8 '^ *--- FAIL|^panic:|DATA RACE|^make.*Error' "$output" | cut -c 1-400 | head -n 100 || tail -n 20 "$output"
		} >>"$failures"
	fi
	cpu
	summary+=("$(row "$step" "$result" $((SECONDS - began)) $((used - before)))")
	echo "--- ${summary[-1]}"
done
echo
printf '%s\n' "${summary[@]}"
row all "$([ "$failed" -eq 0 ] && echo ok || echo FAILED)" "$SECONDS" "$used"
echo
cat "$failures"
exit "$failed"
