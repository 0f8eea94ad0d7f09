#!/bin/sh
# An SGLang server whose hierarchical cache has a disk below the host's memory: pages outlive the server.
#
#     examples/sglang_storage.sh MODEL DIRECTORY [more options of sglang.launch_server]
set -eu
model=$1 directory=$2
shift 2
exec python -m sglang.launch_server --model-path "$model" --host 127.0.0.1 "$@" \
  --enable-hierarchical-cache --hicache-storage-backend dynamic --hicache-storage-backend-extra-config "{
  \"backend_name\": \"infer_accel\",
  \"module_path\": \"infer_accel.integrations.sglang\",
  \"class_name\": \"InferAccelStorage\",
  \"root_dir\": \"$directory\",
  \"capacity_bytes\": 1099511627776
}"
