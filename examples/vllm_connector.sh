#!/bin/sh
# A vLLM server whose prompt pages outlive it: what one run has computed, the next one loads.
#
#     examples/vllm_connector.sh MODEL DIRECTORY [more options of vllm serve]
set -eu
model=$1 directory=$2
shift 2
exec vllm serve "$model" --host 127.0.0.1 "$@" --kv-transfer-config "{
  \"kv_connector\": \"InferAccelConnector\",
  \"kv_connector_module_path\": \"infer_accel.integrations.vllm_connector\",
  \"kv_role\": \"kv_both\",
  \"kv_load_failure_policy\": \"recompute\",
  \"kv_connector_extra_config\": {\"root_dir\": \"$directory\", \"capacity_bytes\": 8589934592}
}"
