#!/usr/bin/env bash
# ghz.sh HOST:PORT: puts load on the service with a tool that has only its address, and no file that describes it.
set -euo pipefail

target=$1
# load METHOD COUNT DATA: makes COUNT calls, up to ten at a time, and fails unless all succeed. Prints a summary of many.
load() {
  local method=$1 count=$2 summary
  summary=$(ghz --insecure --total "$count" --concurrency "$((count < 10 ? count : 10))" \
                --call "adamant.v1.OptimizerService.$method" --data "$3" "$target")
  if ((count > 1)); then
    printf '%s:\n%s\n' "$method" "$summary"
  fi
  if [[ ! $summary =~ \[OK\]\ +"$count responses" ]]; then
    printf 'FAILED: %s: expected %s calls that are OK, got\n%s\n' "$method" "$count" "$summary" >&2
    exit 1
  fi
}

name=interop/ghz-$$
load CreateParameterSet 1 '{
  "spec": {
    "name": "'$name'",
    "tensors": [{"name": "x", "shape": [2]}],
    "initialization": "INITIALIZATION_ZEROS"
  }
}'
load StepOnce 1000 '{"header": {"set": "'$name'"}, "chunks": [{"values": [0.1, 0.2]}]}'
# Streams of one step each.
load Step 200 '[{"header": {"set": "'$name'"}, "chunks": [{"values": [0.1, 0.2]}], "last": true}]'
load DeleteParameterSet 1 '{"name": "'$name'"}'
