#!/usr/bin/env bash
# Is this tree slower than another commit? Builds loadgen of both, runs them in turn, and compares the trials.
#
#   BASE    commit to compare with (HEAD)
#   ROUNDS  runs of each (10)
#   UNLIKE  if set, compares unlike runs as well; needed if BASE is older than the check for that
#   PLANT   if set, the other side is not this tree but BASE with slow-writer.patch, and has to come out as slower
#
# Arguments go to loadgen. The order changes with every round, so that neither side profits from what the machine does.
set -euo pipefail
root=$(git -C "$(dirname "${BASH_SOURCE[0]}")" rev-parse --show-toplevel)
commit=$(git -C "$root" rev-parse --short "${BASE:-HEAD}")
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
mkdir "$tmp/src" "$tmp/base" "$tmp/this"
build() { go -C "$1" build -pgo=auto -buildvcs=false -o "$2" ./cmd/loadgen; }

git -C "$root" archive "$commit" | tar -x -C "$tmp/src"
build "$tmp/src" "$tmp/base/loadgen"
name="this tree"
if [[ -n ${PLANT:-} ]]; then
	name="$commit with a slower writer"
	patch --quiet -p1 -d "$tmp/src" <"$root/benchmarks/compare/slow-writer.patch"
	build "$tmp/src" "$tmp/this/loadgen"
else
	build "$root" "$tmp/this/loadgen"
fi

run() { # side commit round
	"$tmp/$1/loadgen" "${@:4}" --commit "$2" --out "$tmp/out" >/dev/null
	mv "$tmp/out/report.json" "$tmp/$1/$3.json"
	rm -r "$tmp/out"
}
rounds=${ROUNDS:-10}
for ((round = 1; round <= rounds; round++)); do
	if ((round % 2)); then
		run base "$commit" "$round" "$@"
		run this "$name" "$round" "$@"
	else
		run this "$name" "$round" "$@"
		run base "$commit" "$round" "$@"
	fi
done
echo "$commit against $name, $rounds alternating rounds"
status=0
"$tmp/this/loadgen" compare ${UNLIKE:+--unlike} "$tmp/base" "$tmp/this" || status=$?
if [[ -n ${PLANT:-} ]]; then
	((status == 3))
	exit
fi
exit "$status"
