#!/bin/sh
# A vLLM server whose blocks are kept by infer-accel's pool, and named a prompt at a time. An experiment.
#
#     examples/vllm_block_pool.sh MODEL [more options of vllm serve]
set -eu
model=$1
shift
export INFER_ACCEL_VLLM_BLOCK_POOL=1
exec vllm serve "$model" --host 127.0.0.1 "$@"
