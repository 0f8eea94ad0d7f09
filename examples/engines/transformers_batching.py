"""Answers several questions at once in transformers, with the blocks of the batch lent by infer-accel.

python examples/engines/transformers_batching.py MODEL
"""

import sys
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, ContinuousBatchingConfig, GenerationConfig

from infer_accel.integrations import transformers as accelerated

path = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa").eval()
questions = [f"What is {number} plus {number}?" for number in range(2, 6)]
prompts = [
    tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
    )
    for question in questions
]


def answer() -> list[list[int]]:
    """Return the tokens of all answers."""
    outputs = model.generate_batch(
        inputs=prompts,
        generation_config=GenerationConfig(
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        ),
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=32, num_blocks=64, max_batch_tokens=256
        ),
        progress_bar=False,
    )
    return [list(outputs[name].generated_tokens) for name in sorted(outputs)]


alone = answer()
if not accelerated.install():  # the log says why
    sys.exit("this version of transformers is not known")
start = time.perf_counter()
tokens = answer()
print(f"{len(prompts)} answers in {time.perf_counter() - start:.1f} s")
for question, ids in zip(questions, tokens, strict=True):
    print(f"  {question} {tokenizer.decode(ids, skip_special_tokens=True)}")
assert tokens == alone
print("the same tokens as without")
