#!/usr/bin/env bash
# ik-llama-cpp-python 0.1.5 (ik_llama.cpp) computes prompts of 32 tokens and more wrongly for Q4_1 and Q5_1.
#
# Two-layer llama models of noise are written with gguf 0.19.0: one in a quantised type, one in F32 with
# the same values. Logits of the quantised file should be within some 2 % of the other's, which is what
# int8 activations cost, whatever the length of the prompt. In Q4_0, Q5_0 and Q8_0 they are (1.2 to 1.8 %), and
# in Q4_1 up to 31 tokens. From 32 tokens on Q4_1 and Q5_1 are off by about 70 %: another answer, without
# an error. llama-cpp-python 0.3.36 (llama.cpp), given the same files, is off by 1.5 %. Seen with SmolLM2-135M
# in Q4_1 first: perplexity 141, where llama.cpp and others give 44. On two processors with AVX2, as the wheel is built.
#
# Expected before it was run: both types as near as Q4_0, as the two programs share their formats and tests.
# Exits 0 while this is so, 1 when the behaviour changes. Installs into a temporary folder.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q "gguf==0.19.0" "ik-llama-cpp-python==0.1.5"

cat > "$work/write.py" <<'PYTHON'
import sys

import gguf
import numpy as np

WIDTH, HEADS, TOKENS, LAYERS, MLP = 576, 9, 512, 2, 1536
draw = np.random.default_rng(1)


def matrix(rows, columns, scale=1.0):
    return (draw.standard_normal((rows, columns)) * scale / np.sqrt(columns)).astype(np.float32)


tensors = {
    "token_embd.weight": matrix(TOKENS, WIDTH, 8.0),
    "output.weight": matrix(TOKENS, WIDTH, 4.0),
}
shapes = {name: (WIDTH, WIDTH) for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
shapes |= {"ffn_gate": (MLP, WIDTH), "ffn_up": (MLP, WIDTH), "ffn_down": (WIDTH, MLP)}
for layer in range(LAYERS):
    for name, shape in shapes.items():
        tensors[f"blk.{layer}.{name}.weight"] = matrix(*shape)


def write(path, type_of):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(TOKENS)
    writer.add_tokenizer_model("llama")
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    writer.add_token_list(special + [f"t{i}" for i in range(TOKENS - len(special))])
    writer.add_token_scores([0.0] * TOKENS)
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (TOKENS - len(special)))
    ones = np.ones(WIDTH, np.float32)
    writer.add_tensor("output_norm.weight", ones)
    for layer in range(LAYERS):
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", ones)
        writer.add_tensor(f"blk.{layer}.ffn_norm.weight", ones)
    for name, value in tensors.items():
        quantised = gguf.quantize(value, type_of) if name.startswith("blk") else value
        if path.endswith("-f32.gguf"):
            plain = gguf.dequantize(quantised, type_of) if name.startswith("blk") else value
            writer.add_tensor(name, plain.reshape(value.shape))
        elif name.startswith("blk"):
            writer.add_tensor(name, quantised, raw_dtype=type_of)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


for name in ("Q4_0", "Q4_1", "Q5_1"):
    for end in ("", "-f32"):
        write(f"{sys.argv[1]}/{name}{end}.gguf", gguf.GGMLQuantizationType[name])
PYTHON

cat > "$work/ask.py" <<'PYTHON'
import ctypes
import sys

import ik_llama_cpp._ctypes_api as api
import numpy as np


def logits(path, count):
    settings = api.llama_model_default_params()
    settings.n_gpu_layers = 0
    model = api.llama_model_load_from_file(path.encode(), settings)
    settings = api.llama_context_default_params()
    settings.n_ctx = settings.n_batch = 256
    settings.n_threads = settings.n_threads_batch = 1
    context = api.llama_init_from_model(model, settings)
    batch = api.llama_batch_init(count, 0, 1)
    batch.n_tokens = count
    for i in range(count):
        batch.token[i], batch.pos[i], batch.n_seq_id[i] = 10 + 7 * i, i, 1
        batch.seq_id[i][0], batch.logits[i] = 0, i == count - 1
    if api.llama_decode(context, batch):
        sys.exit("the forward pass failed")
    pointer = ctypes.cast(
        api.llama_get_logits_ith(context, count - 1), ctypes.POINTER(ctypes.c_float)
    )
    return np.ctypeslib.as_array(pointer, (512,)).copy()


folder, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
api.llama_backend_init()
ours, exact = logits(f"{folder}/{name}.gguf", count), logits(f"{folder}/{name}-f32.gguf", count)
off = float(np.linalg.norm(ours - exact) / np.linalg.norm(exact))
as_found = 0.3 < off < 3 if name != "Q4_0" and count >= 32 else off < 0.05
print(f"{name}, {count} tokens: off by {off:.4f}")
sys.exit(not as_found)
PYTHON

"$work/venv/bin/python" "$work/write.py" "$work"
changed=0
for asked in "Q4_0 1" "Q4_0 32" "Q4_1 1" "Q4_1 31" "Q4_1 32" "Q5_1 1" "Q5_1 32"; do
    # shellcheck disable=SC2086 - two arguments
    "$work/venv/bin/python" "$work/ask.py" "$work" $asked 2> "$work/log" || changed=1
done
if [ "$changed" = 1 ]; then
    tail -3 "$work/log"
    echo "CHANGED: a figure is not what it was with these versions"
    exit 1
fi
echo "as found: prompts of 32 tokens and more in Q4_1 and Q5_1 are off by about 70 %"

# Seen on 2026-11-30, on an AMD EPYC (AVX2):
#   Q4_0, 1 tokens: off by 0.0127
#   Q4_0, 32 tokens: off by 0.0171
#   Q4_1, 1 tokens: off by 0.0128
#   Q4_1, 31 tokens: off by 0.0159
#   Q4_1, 32 tokens: off by 0.7184
#   Q5_1, 1 tokens: off by 0.0131
#   Q5_1, 32 tokens: off by 0.6863
