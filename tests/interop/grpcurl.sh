#!/usr/bin/env bash
# grpcurl.sh HOST:PORT: uses the service from the command line as somebody would who has only its address.
set -euo pipefail

target=$1
call() { grpcurl -plaintext -d "$2" "$target" "adamant.v1.OptimizerService/$1"; }
# expect NAME TEXT PATTERN: TEXT, without its white space, has PATTERN in it.
expect() {
  if [[ ${2//[[:space:]]/} != *"$3"* ]]; then
    printf 'FAILED: %s: no %s in\n%s\n' "$1" "$3" "$2" >&2
    exit 1
  fi
  echo "$1: as expected"
}

# Everything that can be called, and what it takes and returns, can be looked up.
for service in $(grpcurl -plaintext "$target" list); do
  for method in $(grpcurl -plaintext "$target" list "$service"); do
    description=$(grpcurl -plaintext "$target" describe "$method")
    expect "describe $method" "$description" "rpc${method##*.}("
    for type in $(grep -o ' \.[A-Za-z0-9_.]*' <<<"$description"); do
      expect "describe ${type#.}" "$(grpcurl -plaintext "$target" describe "${type#.}")" "message${type##*.}{"
    done
  done
done

expect "list" "$(grpcurl -plaintext "$target" list)" adamant.v1.OptimizerService
expect "describe" "$(grpcurl -plaintext "$target" describe adamant.v1.OptimizerService)" 'rpcStepOnce('
expect "describe health" "$(grpcurl -plaintext "$target" describe grpc.health.v1.Health)" 'rpcCheck('
expect "health" "$(grpcurl -plaintext -d '{"service": "adamant.v1.OptimizerService"}' "$target" grpc.health.v1.Health/Check)" \
  '"status":"SERVING"'
expect "describe a message" "$(grpcurl -plaintext "$target" describe adamant.v1.StepHeader)" 'int64expected_step=6;'

name=interop/grpcurl-$$
expect "CreateParameterSet" "$(call CreateParameterSet '{
  "spec": {
    "name": "'$name'",
    "tensors": [{"name": "x", "shape": [2]}],
    "initialization": "INITIALIZATION_ZEROS"
  }
}')" '"created":true'
# The first step of Adam is one learning rate against the gradient, whatever its size; the bits are the same everywhere.
expect "StepOnce" "$(call StepOnce '{
  "header": {"set": "'$name'", "request_id": "first", "expected_step": 0},
  "chunks": [{"values": [0.1, 0.2]}]
}')" '"values":[-0.0009999999,-0.001]'
expect "GetStepResult" "$(call GetStepResult '{"set": "'$name'", "request_id": "first"}')" '"STEP_STATE_COMMITTED"'
call DeleteParameterSet '{"name": "'$name'"}' >/dev/null
# What an error carries can be read, too.
expect "an error's details" "$(call GetParameterSet '{"name": "'$name'"}' 2>&1 || true)" \
  '"reason":"ERROR_REASON_SET_NOT_FOUND"'
