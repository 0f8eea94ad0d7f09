#!/bin/sh
# A vLLM server that takes adapters while it runs, and refuses those that would hurt or do nothing.
#
#     examples/vllm_lora.sh MODEL [more options of vllm serve]
#
#     curl -X POST http://127.0.0.1:8000/v1/load_lora_adapter -H 'content-type: application/json' \
#         -d '{"lora_name": "translate", "lora_path": "/adapters/translate"}'
set -eu
model=$1
shift
export VLLM_PLUGINS=infer_accel_lora_guard,infer_accel_lora_grouped
export VLLM_ALLOW_RUNTIME_LORA_UPDATING=True
exec vllm serve "$model" --host 127.0.0.1 --enable-lora --max-loras 8 --max-lora-rank 64 "$@"
