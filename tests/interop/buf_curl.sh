#!/usr/bin/env bash
# buf_curl.sh HOST:PORT: uses the service with `buf curl`, which has only its address and asks the server for the rest.
set -euo pipefail

service=http://$1/adamant.v1.OptimizerService
call() { buf curl --protocol grpc --http2-prior-knowledge --data "$2" "$service/$1"; }
# expect NAME TEXT PATTERN: TEXT, without its white space, has PATTERN in it.
expect() {
  if [[ ${2//[[:space:]]/} != *"$3"* ]]; then
    printf 'FAILED: %s: no %s in\n%s\n' "$1" "$3" "$2" >&2
    exit 1
  fi
  echo "buf curl: $1: as expected"
}

expect "list of methods" "$(buf curl --protocol grpc --http2-prior-knowledge --list-methods "http://$1")" \
  adamant.v1.OptimizerService/StepOnce

name=interop/buf-$$
expect "CreateParameterSet" "$(call CreateParameterSet '{
  "spec": {
    "name": "'$name'",
    "tensors": [{"name": "x", "shape": [2]}],
    "initialization": "INITIALIZATION_ZEROS"
  }
}')" '"created":true'
step='{"header": {"set": "'$name'", "requestId": "first", "expectedStep": 0}, "chunks": [{"values": [0.1, 0.2]}]}'
expect "StepOnce" "$(call StepOnce "$step")" '"values":[-0.0009999999,-0.001]'
expect "StepOnce, again" "$(call StepOnce "$step")" '"replayed":true'
# Each message of a stream is a JSON document.
expect "Step" "$(call Step '{"header": {"set": "'$name'"}} {"chunks": [{"values": [0.1, 0.2]}]} {"last": true}')" \
  '"step":"2"'
call DeleteParameterSet '{"name": "'$name'"}' >/dev/null
# buf leaves what an error carries in Base64, which begins with the reason: field 1, ERROR_REASON_SET_NOT_FOUND.
expect "an error's details" "$(call GetParameterSet '{"name": "'$name'"}' 2>&1 || true)" \
  '"type":"adamant.v1.ErrorDetail","value":"CBQS'
