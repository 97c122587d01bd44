"""Models that people have: loaded exactly, or refused by name and reason; none of their code runs.

Every model is a tiny one of transformers' own classes, saved as an ordinary folder.
"""

import builtins
import json
import time

import numpy as np
import pytest
import torch
import transformers
from helpers.gguf_files import write_gguf
from helpers.models import llama
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM

from saelib.activations.gguf_header import GGUFError, check_gguf
from saelib.activations.hub import ModelLoadError
from saelib.activations.lm import LM

N, D, VOCAB = 4, 32, 61
SIZES = {"num_hidden_layers": N, "hidden_size": D, "num_attention_heads": 4, "vocab_size": VOCAB}
SIZES |= {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
SIZES |= {"intermediate_size": 48, "max_position_embeddings": 32}
OLD_NAMES = {"n_layer": N, "n_embd": D, "n_head": 4, "n_positions": 32, "n_inner": 48}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
DECODERS = {  # layout -> (fields of its config, attention)
    "llama": ({}, "sdpa"),
    "qwen3": (GROUPED, "sdpa"),
    "gemma3_text": ({**GROUPED, "sliding_window": 3}, "sdpa"),
    "olmo2": ({}, "sdpa"),
    "phi": ({}, "sdpa"),
    "falcon": ({}, "sdpa"),
    "mixtral": ({"num_key_value_heads": 2, "num_local_experts": 2}, "sdpa"),
    "opt": ({"ffn_dim": 48, "word_embed_proj_dim": D, "pad_token_id": 1}, "sdpa"),
    "gemma2": ({**GROUPED, "sliding_window": 3}, "eager"),
    "gptj": ({**OLD_NAMES, "rotary_dim": 4}, "eager"),
    "codegen": ({**OLD_NAMES, "rotary_dim": 4, "n_ctx": 32}, "eager"),
    "gpt_neo": (
        {
            "num_layers": N,
            "num_heads": 4,
            "attention_types": [[["global", "local"], N // 2]],
            "window_size": 3,
        },
        "eager",
    ),
    "bloom": ({}, "eager"),
    "mpt": ({"d_model": D, "n_heads": 4, "n_layers": N, "max_seq_len": 32}, "eager"),
    "openai-gpt": (OLD_NAMES, "eager"),
    # attention beside recurrent layers
    "bamba": (
        {
            "num_key_value_heads": 2,
            "attn_layer_indices": [1],
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "mamba_d_state": 4,
        },
        "sdpa",
    ),
    "recurrent_gemma": (
        {"num_key_value_heads": 1, "head_dim": 8, "lru_width": D, "attention_window_size": 8},
        "sdpa",
    ),
}
RECURRENT = {
    "mamba": {"state_size": 4},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 4, "n_groups": 1},
    "falcon_mamba": {"state_size": 4},
    "rwkv": {"attention_hidden_size": D, "context_length": 32},
    "xlstm": {"num_heads": 4, "num_blocks": N},
}


def save_tokenizer(folder):
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0")
    fast.save_pretrained(folder)


def save_model(folder, layout, **fields):
    torch.manual_seed(0)  # transformers draws from the global generator
    config = AutoConfig.for_model(layout, **{**SIZES, **fields})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    save_tokenizer(folder)


@pytest.fixture
def folder(tmp_path):
    """A tiny Llama with its tokenizer, to be damaged."""
    folder = tmp_path / "tiny"
    save_model(folder, "llama")
    return folder


def edit(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def load(path):
    return LM.load(str(path), dtype="float32", device="cpu")


def refusal(path):
    """The one sentence with which a model is refused; it names the model."""
    with pytest.raises(ModelLoadError) as caught:
        load(path)
    assert str(caught.value).startswith(f"model {str(path)!r}")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("layout", DECODERS)
def test_a_model_s_own_attention_gives_its_hidden_states_exactly(layout, tmp_path):
    fields, attention = DECODERS[layout]
    save_model(tmp_path, layout, **fields)
    lm = load(tmp_path)
    assert lm.model.config._attn_implementation == attention
    ids = torch.randint(0, VOCAB, (3, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        reference = lm.model(input_ids=ids, use_cache=False, output_hidden_states=True)
    streams = lm.capture(ids, range(N + 1))
    for site, stream in streams.items():
        assert site == N or torch.equal(stream, reference.hidden_states[site])
        assert torch.equal(lm.continue_from(site, stream, ids), reference.logits)


def test_the_attention_is_not_what_a_config_asks_for(folder):
    edit(folder / "config.json", attn_implementation="some-owner/some-kernel")
    assert load(folder).model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("layout", RECURRENT)
def test_a_recurrent_model_is_refused_by_name_and_reason(layout, tmp_path):
    save_model(tmp_path, layout, **RECURRENT[layout])
    message = refusal(tmp_path)
    assert f"(model_type {layout!r}) is a state-space or recurrent model" in message
    assert message.endswith("expected a decoder with attention")


def test_a_model_that_fails_on_a_token_says_so(tmp_path):
    save_model(tmp_path, "stablelm")  # heads of 8, of which its rotation takes a quarter of 32
    assert "StableLmForCausalLM fails on a single token" in refusal(tmp_path)


# ---- code in a model's folder


@pytest.fixture
def forbidden(monkeypatch):
    """Nothing may ask at the terminal."""

    def ask(prompt=""):
        raise AssertionError(f"asked: {prompt}")

    monkeypatch.setattr(builtins, "input", ask)


CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
Path({ran!r}).touch()
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""
AUTO_MAP = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
TOKENIZER_MAP = {"AutoTokenizer": [None, "own.OwnTokenizer"]}


@pytest.fixture
def with_code(folder, forbidden):
    """The folder, with a module that leaves a trace when it is run."""
    (folder / "own.py").write_text(CODE.format(ran=str(folder.parent / "ran")))
    yield folder
    assert not (folder.parent / "ran").exists()


@pytest.mark.parametrize(
    ("file", "fields"),
    [
        ("config.json", {"model_type": "own", "auto_map": AUTO_MAP}),
        (
            "tokenizer_config.json",
            {"tokenizer_class": "OwnTokenizer", "auto_map": TOKENIZER_MAP},
        ),
    ],
)
def test_a_model_that_needs_code_of_its_folder_is_refused_and_nothing_is_asked_or_run(
    file, fields, with_code
):
    edit(with_code / file, **fields)
    message = refusal(with_code)
    assert "needs code that it brings along (auto_map" in message
    assert "never run" in message


def test_a_known_model_with_code_beside_is_loaded_by_transformers_classes(with_code, caplog):
    edit(with_code / "config.json", auto_map=AUTO_MAP)
    edit(with_code / "tokenizer_config.json", auto_map=TOKENIZER_MAP)
    lm = load(with_code)
    assert type(lm.model) is transformers.LlamaForCausalLM
    assert type(lm.tokenizer).__module__.startswith("transformers.")
    assert "config.json and tokenizer_config.json name code in the folder" in caplog.text
    assert "never run" in caplog.text


# ---- files that are damaged, or that do not fit each other


@pytest.mark.parametrize("text", ["[]", "3", "null", '"llama"'])
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_json_that_is_no_object_is_named(file, text, folder):
    (folder / file).write_text(text)
    kind = type(json.loads(text)).__name__
    assert f"{folder / file}: a {kind}, expected a JSON object" in refusal(folder)


@pytest.mark.parametrize("data", [b"", b"{", b'{"a": "\xff"}'])
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_damaged_json_is_named(file, data, folder):
    (folder / file).write_bytes(data)
    assert f"{folder / file}: damaged, not JSON" in refusal(folder)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", {}),
        ("tokenizer.json", {"model": 3}),
        ("tokenizer.json", {"version": "1.0", "model": {"type": "WordLevel", "vocab": []}}),
        ("tokenizer_config.json", {"tokenizer_class": 3}),
        ("tokenizer_config.json", {"model_max_length": [2048]}),
        ("config.json", {}),
        ("config.json", {"model_type": "no-such-model"}),
        ("config.json", {"model_type": "llama", "num_hidden_layers": "four"}),
        ("config.json", {"model_type": "llama", "hidden_size": -32}),
        ("config.json", {"model_type": ["llama"]}),
        ("config.json", {"model_type": "llama", "vocab_size": None}),
        ("model.safetensors.index.json", {"weight_map": 3}),
    ],
)
def test_values_that_no_library_expects_end_in_a_sentence_too(file, content, folder):
    (folder / file).write_text(json.dumps(content))
    if file == "model.safetensors.index.json":
        (folder / "model.safetensors").unlink()
    refusal(folder)


@pytest.mark.parametrize("keep", [0, 7, 100, 5000])
def test_damaged_weights_are_named(keep, folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert f"{path}: damaged, not safetensors" in refusal(folder)


def test_fewer_layers_in_the_config_than_in_the_file_name_the_weights_left_over(folder):
    edit(folder / "config.json", num_hidden_layers=N - 1)
    message = refusal(folder)
    assert "config does not describe: model.layers.3.input_layernorm.weight, " in message
    assert message.endswith(" and 6 more")


def test_more_layers_in_the_config_than_in_the_file_name_the_weights_lacking(folder):
    edit(folder / "config.json", num_hidden_layers=N + 1)
    assert "lacks the weights model.layers.4.input_layernorm.weight, " in refusal(folder)


def test_weights_of_another_shape_are_named_with_both(folder):
    edit(folder / "config.json", vocab_size=VOCAB + 1)
    message = refusal(folder)
    assert f"lm_head.weight [{VOCAB}, {D}] where the config says [{VOCAB + 1}, {D}]" in message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocab_size": 10**8}, "describes 6,400,035,104 weights, but"),
        ({"vocab_size": 10**7, "quantization_config": None}, "describes 640,035,104 weights, but"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000, but its files hold 39"),
    ],
)
def test_a_config_of_a_far_larger_model_is_refused_before_room_is_made(fields, message, folder):
    edit(folder / "config.json", **fields)
    began = time.monotonic()
    assert f"{folder / 'config.json'}: {message}" in refusal(folder)
    assert time.monotonic() - began < 5


def test_a_config_of_far_more_positions_than_weights_is_refused_before_room_is_made(tmp_path):
    """GPT-J computes a table of them."""
    save_model(tmp_path, "gptj", **OLD_NAMES, rotary_dim=4)
    load(tmp_path)
    edit(tmp_path / "config.json", n_positions=10**8)
    began = time.monotonic()
    assert "describes tables of 1,600,000,000 numbers, as of positions, beside" in refusal(tmp_path)
    assert time.monotonic() - began < 5


def test_a_folder_without_a_tokenizer_says_what_it_lacks(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    assert "instantiate the backend tokenizer from one of: (1) a `tokenizers`" in refusal(folder)


def test_a_weight_too_many_is_named(folder):
    path = folder / "model.safetensors"
    weights = load_file(path) | {"model.norm.bias": torch.zeros(D)}
    save_file(weights, path, {"format": "pt"})
    assert refusal(folder).endswith("config does not describe: model.norm.bias")


# ---- GGUF


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "whole.gguf"
    write_gguf(path, llama(vocabulary=VOCAB))
    return path.read_bytes()


def test_a_whole_gguf_file_passes_and_loads(whole, tmp_path):
    path = tmp_path / "whole.gguf"
    path.write_bytes(whole)
    check_gguf(path)
    assert load(path).n_layers == N


@pytest.mark.parametrize("keep", [0, 3, 4, 23, 24, 60, 400, 900, 0.5, 0.999])
def test_a_gguf_file_cut_short_is_named(keep, whole, tmp_path):
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[: keep if isinstance(keep, int) else int(len(whole) * keep)])
    assert f"{path}: " in refusal(path)


def test_a_length_of_2_to_the_60_is_refused_at_once(whole, tmp_path):
    path = tmp_path / "long.gguf"
    place = whole.index(b"tokenizer.ggml.token_type") + len("tokenizer.ggml.token_type") + 8
    damaged = bytearray(whole)
    damaged[place : place + 8] = (2**60).to_bytes(8, "little")
    path.write_bytes(damaged)
    began = time.monotonic()
    assert "'tokenizer.ggml.token_type' ends at byte" in refusal(path)
    assert time.monotonic() - began < 5


def test_a_damaged_gguf_header_ends_in_an_error_of_its_own_or_passes(whole, tmp_path):
    """Random bytes anywhere in the header: no other error, and no waiting."""
    path = tmp_path / "damaged.gguf"
    header = whole.index(b"output_norm.weight") + 100
    random = np.random.default_rng(0)
    messages = []
    began = time.monotonic()
    for _ in range(1000):
        damaged = bytearray(whole)
        for place in random.integers(0, header, random.integers(1, 4)):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        try:
            check_gguf(path)
        except GGUFError as error:
            messages.append(str(error))
    assert len(messages) > 300
    assert all(message.startswith(f"{path}: ") for message in messages)
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("key", ["block_count", "embedding_length", "feed_forward_length"])
def test_a_size_that_no_tensor_of_a_gguf_file_has_is_refused_at_once(key, whole, tmp_path):
    path = tmp_path / "large.gguf"
    name = f"llama.{key}".encode()
    place = whole.index(name) + len(name) + 4
    path.write_bytes(whole[:place] + (10**9).to_bytes(4, "little") + whole[place + 4 :])
    assert f"{path}: llama.{key} = 1000000000, " in refusal(path)


@pytest.mark.parametrize("blocks", [N - 1, N + 1])
def test_a_gguf_file_of_another_number_of_blocks_than_it_says_is_refused(blocks, tmp_path):
    path = tmp_path / "other.gguf"
    write_gguf(path, llama(vocabulary=VOCAB), blocks)
    message = refusal(path)
    if blocks < N:
        assert f"llama.block_count = {blocks}, but it holds tensors of later blocks" in message
    else:
        assert "lacks the weights model.layers.4.input_layernorm.weight" in message
