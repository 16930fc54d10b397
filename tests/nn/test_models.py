"""Whole models of Hugging Face, made from their configurations: nothing is downloaded."""

from __future__ import annotations

import copy
import os
import warnings

import pytest

import tnc

torch = pytest.importorskip("torch")

from tnc.nn.surgery.parameters import factorizations  # noqa: E402 - after the check that torch is here

os.environ["HF_HUB_OFFLINE"] = "1"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")

VOCABULARY, WIDTH = 96, 48


def gpt2():
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCABULARY, n_positions=32, n_embd=WIDTH, n_layer=2, n_head=4, resid_pdrop=0, embd_pdrop=0,
            attn_pdrop=0, bos_token_id=1, eos_token_id=0, pad_token_id=0,
        )
    )  # fmt: skip


def bert():
    return transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
            max_position_embeddings=32, hidden_dropout_prob=0, attention_probs_dropout_prob=0,
        )
    )  # fmt: skip


def llama():
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
            num_key_value_heads=2, max_position_embeddings=32, bos_token_id=1, eos_token_id=0, pad_token_id=0,
        )
    )  # fmt: skip


def mixtral():
    model = transformers.MixtralForCausalLM(
        transformers.MixtralConfig(
            vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
            num_key_value_heads=2, num_local_experts=4, max_position_embeddings=32, bos_token_id=1, eos_token_id=0,
            pad_token_id=0,
        )
    )  # fmt: skip
    model.set_experts_implementation("eager")  # grouped_mm knows no float64
    return model


def whisper():
    return transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(
            vocab_size=VOCABULARY, d_model=WIDTH, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, num_mel_bins=24, max_source_positions=20,
            max_target_positions=32, dropout=0, pad_token_id=0, bos_token_id=1, eos_token_id=0,
            decoder_start_token_id=1, suppress_tokens=[], begin_suppress_tokens=[],
        )
    )  # fmt: skip


MODELS = {"gpt2": gpt2, "bert": bert, "llama": llama, "mixtral": mixtral, "whisper": whisper}
each_model = pytest.mark.parametrize("name", MODELS)

# Too small to gain anything at rank 2: two token types, four experts to route to.
DENSE = {"bert.embeddings.token_type_embeddings.weight"}


def example(name):
    words = {"input_ids": torch.randint(2, VOCABULARY, (2, 9))}
    if name == "whisper":
        words = {"input_features": torch.randn(2, 24, 40).double(), "decoder_input_ids": words["input_ids"]}
    if name == "bert":
        words["attention_mask"] = torch.tensor([[1] * 9, [1] * 6 + [0] * 3])
    return words


def logits(model, **inputs):
    return model(**inputs).logits


@pytest.fixture
def made(planted):
    def make(name, method="svd", rank=2, **options):
        model = planted.plant(MODELS[name]().double(), method, rank).eval()
        return model, tnc.compress(copy.deepcopy(model), tnc.Rule("?*", method, rank), **options)  # tables, too

    return make


@each_model
def test_outputs_agree_and_every_core_trains(planted, made, execution, name):
    model, small = made(name, execution=execution)
    rows = small.tnc_report.rows
    assert {row.name for row in rows if row.method == "dense"} <= DENSE
    matrices = {n for n, p in model.named_parameters() if p.ndim >= 2}
    assert {row.name for row in rows if row.method != "tied"} == matrices
    inputs = example(name)
    found, expected = logits(small, **inputs), logits(model, **inputs)
    assert planted.gap(found, expected) < 1e-10  # a dozen layers amplify the rounding of a fit
    planted.total(found).backward()
    planted.total(expected).backward()
    train = {n for n, p in model.named_parameters(remove_duplicate=False) if p.grad is not None and p.grad.any()}
    cores = {n: list(cores) for n, _, _, cores in factorizations(small) if n in train}
    assert len(cores) > 0.9 * len(rows) - 1
    assert [n for n, each in cores.items() if not all(core.grad.any() for core in each)] == []
    assert sum(p.numel() for p in small.parameters()) == small.tnc_report.total_after


@each_model
def test_save_load_and_uninstall(planted, made, tmp_path, name):
    model, small = made(name)
    inputs = example(name)
    tnc.nn.save(small, tmp_path / "model.safetensors")
    fresh = tnc.nn.load(MODELS[name]().double().eval(), tmp_path / "model.safetensors")
    assert torch.equal(logits(fresh, **inputs), logits(small, **inputs))
    assert len(list(fresh.parameters())) == len(list(small.parameters()))
    dense = tnc.nn.uninstall(small)
    assert list(dense.state_dict()) == list(model.state_dict())
    assert [type(m) for m in dense.modules()] == [type(m) for m in model.modules()]
    assert planted.gap(logits(dense, **inputs), logits(model, **inputs)) < 1e-10


@pytest.mark.parametrize("name", ["gpt2", "llama", "mixtral", "whisper"])
def test_generation(made, name):
    """With its cache of keys and values: one token at a time, the batch and length change."""
    model, small = made(name)
    inputs = {key: value for key, value in example(name).items() if key != "decoder_input_ids"}
    if name != "whisper":
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    options = {"max_new_tokens": 6, "do_sample": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Whisper's own remarks on its configuration
        found, expected = (one.generate(**inputs, **options) for one in (small, model))
    assert torch.equal(found, expected) and found.shape[1] >= 6


@pytest.mark.parametrize("name", ["gpt2", "whisper", "bert"])
def test_the_head_stays_tied(made, name):
    _, small = made(name)
    table, head = small.get_input_embeddings(), small.get_output_embeddings()
    assert isinstance(table, tnc.nn.Embedding) and isinstance(head, tnc.nn.Linear)
    assert table.tnc_weight.get_parameter("0") is head.tnc_weight.get_parameter("0")
    assert {row.method for row in small.tnc_report.rows} >= {"tied"}


def test_conv1d_is_a_transposed_linear(planted, made):
    """GPT-2 keeps two thirds of its parameters in a class of its own."""
    _, small = made("gpt2", "mpo(order=2)")
    layer = small.transformer.h[0].attn.c_attn
    assert isinstance(layer, transformers.pytorch_utils.Conv1D) and layer.weight.shape == (WIDTH, 3 * WIDTH)
    touched = sum(row.before for row in small.tnc_report.rows if row.method not in ("dense", "tied"))
    assert touched > 0.95 * small.tnc_report.total
    assert small.tnc_report.total_after < 0.4 * small.tnc_report.total


def test_fused_experts_are_factorized(planted, made):
    """Nine tenths of a mixture of experts are parameters of three axes that no layer owns."""
    model, small = made("mixtral")
    kinds = {row.name: row for row in small.tnc_report.rows if "experts" in row.name}
    assert len(kinds) == 4 and all(row.method == "svd" and len(row.shape) == 3 for row in kinds.values())
    experts = small.model.layers[0].mlp.experts
    assert isinstance(experts, type(model.model.layers[0].mlp.experts))
    assert experts.gate_up_proj.shape == (4, 128, WIDTH)


@pytest.mark.parametrize("way", ["eager", "batched_mm", "grouped_mm"])
def test_every_way_to_run_experts(planted, made, way):
    model, small = made("mixtral")
    inputs = example("mixtral")
    for one in (model, small):
        one.float().set_experts_implementation(way)
    with torch.no_grad():
        assert planted.gap(logits(small, **inputs), logits(model, **inputs)) < 1e-5


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_gradient_checkpointing(planted, made, name):
    _, small = made(name)
    inputs = example(name)
    small.train()
    planted.total(logits(small, **inputs)).backward()
    expected = {n: p.grad.clone() for n, p in small.named_parameters()}
    small.zero_grad()
    small.activation_checkpointing_enable()
    planted.total(logits(small, **inputs, use_cache=False)).backward()
    assert planted.gap({n: p.grad for n, p in small.named_parameters()}, expected) < 1e-12


def test_a_checkpoint_of_hugging_face_goes_into_a_fresh_model(planted, made, tmp_path):
    """What ``save_pretrained`` writes is what the command line reads, tied names left out."""
    model, _ = made("gpt2")
    model.save_pretrained(tmp_path)
    state = tnc.checkpoint.read_weights(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in state
    checkpoint = tnc.compress_weights(state, "svd", rank=2)
    fresh = tnc.install(gpt2().double().eval(), checkpoint)
    inputs = example("gpt2")
    assert planted.gap(logits(fresh, **inputs), logits(model, **inputs)) < 1e-10


def test_compiled_without_graph_breaks(planted, made):
    model, small = made("llama")
    inputs = example("llama")
    torch._dynamo.reset()
    compiled = torch.compile(small, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert planted.gap(logits(compiled, **inputs, use_cache=False), logits(model, **inputs)) < 1e-10
