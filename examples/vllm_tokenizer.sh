#!/bin/sh
# A vLLM server whose prompts and tokens are made natively: chat, completions and /tokenize.
#
#     examples/vllm_tokenizer.sh MODEL [more options of vllm serve]
set -eu
model=$1
shift
exec vllm serve "$model" --host 127.0.0.1 --tokenizer-mode infer_accel "$@"
