"""Methods of transformers' models, on compressed ones: right, or refused before anything is touched."""

from __future__ import annotations

import os

import pytest

import tnc
from tnc.errors import CheckpointError, WeightError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
IDS = torch.arange(1, 15).reshape(2, 7)


def llama(tied):
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=tied)
    return transformers.LlamaForCausalLM(config).eval()


def gpt2():
    config = transformers.GPT2Config(vocab_size=96, n_embd=32, n_layer=1, n_head=4, bos_token_id=1, eos_token_id=1)
    return transformers.GPT2LMHeadModel(config).eval()


MODELS = {
    "llama": lambda: llama(False),
    "llama, tied": lambda: llama(True),
    "gpt2": gpt2,
    "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**SIZES)).eval(),
}

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")


@pytest.fixture(params=MODELS)
def made(request):
    return MODELS[request.param]


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def test_tying_and_initializing_again_changes_nothing(made):
    model = tnc.compress(made(), "svd", rank=0.5)
    before, count = logits(model), len(list(model.parameters()))
    model.tie_weights()
    model.init_weights()
    assert torch.equal(logits(model), before) and len(list(model.parameters())) == count


def test_embeddings_are_not_resized_by_half(made):
    model = tnc.compress(made(), "svd", rank=0.5)
    before, parameters = logits(model), {name: id(p) for name, p in model.named_parameters()}
    for arguments in ({"new_num_tokens": 104}, {"pad_to_multiple_of": 64}):
        with pytest.raises(WeightError, match=r"tnc\.nn\.uninstall\(model\), resize, and compress again"):
            model.resize_token_embeddings(**arguments)
    assert {name: id(p) for name, p in model.named_parameters()} == parameters
    assert torch.equal(logits(model), before) and model.config.vocab_size == 96
    assert model.resize_token_embeddings() is model.get_input_embeddings()
    tnc.nn.uninstall(model).resize_token_embeddings(104)
    tnc.compress(model, "svd", rank=0.5)
    with torch.no_grad():
        assert model(IDS + 89).logits.shape[-1] == 104


def test_save_pretrained_is_refused(made, tmp_path):
    model = tnc.compress(made(), "svd", rank=0.5)
    with pytest.raises(WeightError, match=r"tnc\.nn\.save.*tnc\.nn\.uninstall"):
        model.save_pretrained(tmp_path / "folder")
    with pytest.raises(WeightError, match="random weights"):
        torch.nn.ModuleDict({"inner": model})["inner"].save_pretrained(tmp_path / "folder")
    assert not os.listdir(tmp_path)
    expected = logits(tnc.nn.uninstall(model))
    assert type(model) is type(made())
    model.save_pretrained(tmp_path / "folder")
    assert torch.allclose(logits(type(model).from_pretrained(tmp_path / "folder").eval()), expected, atol=1e-6)


def test_a_model_on_the_meta_device_is_filled(made, tmp_path):
    model = tnc.compress(made(), "svd", rank=0.5)
    tnc.nn.save(model, tmp_path / "model.safetensors")
    with torch.device("meta"):
        fresh = made()
    tnc.nn.load(fresh, tmp_path / "model.safetensors")
    assert not any(x.is_meta for x in (*fresh.parameters(), *fresh.buffers()))
    assert torch.allclose(logits(fresh), logits(model), atol=1e-6)
    assert len(list(fresh.parameters())) == len(list(model.parameters()))


def test_buffers_of_older_files_are_no_mismatch():
    model = MODELS["bert"]()
    state = {**model.state_dict(), "bert.embeddings.position_ids": torch.arange(512)[None]}
    fresh = tnc.install(MODELS["bert"](), tnc.compress_weights(state, "svd", rank=0.9))
    assert fresh.bert.embeddings.position_ids.shape == (1, 512)


class Sentences(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, k):
        return {"input_ids": IDS[0], "labels": IDS[0]}


@pytest.mark.parametrize("name", ["llama, tied", "bert"])
def test_a_trainer_goes_on_from_its_checkpoint(name, tmp_path):
    pytest.importorskip("accelerate")
    options = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "logging_strategy": "no"}
    options |= {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 2}
    arguments = transformers.TrainingArguments(str(tmp_path), **options)
    torch.manual_seed(0)
    dense = MODELS[name]()
    state = dense.state_dict()
    first = tnc.compress(dense, "svd", rank=0.5)
    transformers.Trainer(first, arguments, train_dataset=Sentences()).train()
    again = MODELS[name]()
    again.load_state_dict(state)
    second = transformers.Trainer(tnc.compress(again, "svd", rank=0.5), arguments, train_dataset=Sentences())
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert torch.equal(logits(first.eval()), logits(second.model.eval()))
    with pytest.raises(CheckpointError, match=r"state dict of a compressed model.*load_state_dict"):
        tnc.nn.load(MODELS[name](), tmp_path / "checkpoint-2" / "model.safetensors")
