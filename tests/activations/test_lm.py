"""The language model at its sites: the model's own numbers, no block too many, left as it was."""

import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import huggingface_hub.constants
import numpy as np
import pytest
import torch
import transformers
from helpers.gguf_files import write_gguf
from helpers.models import run_full
from tokenizers import Tokenizer, models
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from saelib.activations import hub
from saelib.activations import lm as lm_module
from saelib.activations.hub import ModelLoadError
from saelib.activations.lm import LM, content_hash, find_blocks
from saelib.hardware import choose_device, choose_dtype, native_bfloat16
from saelib.text.models import named_model

N, D, VOCAB, TIME = 4, 32, 61, 9
SIZES = {"num_hidden_layers": N, "hidden_size": D, "num_attention_heads": 4, "vocab_size": VOCAB}
SIZES |= {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None, "initializer_range": 0.2}
MLP = {"intermediate_size": 48, "max_position_embeddings": 32}
ALTERNATING = ["full_attention", "sliding_attention"] * (
    N // 2
)  # a wrong block index gets the wrong mask
CONFIGS = {
    "llama": {**MLP, "num_key_value_heads": 2},
    "mistral": {**MLP, "num_key_value_heads": 2, "sliding_window": 3},
    "qwen2": {
        **MLP,
        "num_key_value_heads": 2,
        "use_sliding_window": True,
        "sliding_window": 3,
        "layer_types": ALTERNATING,
    },
    "gemma": {**MLP, "num_key_value_heads": 1, "head_dim": 8},  # scales its embedding
    "gpt2": {"max_position_embeddings": 32},
    "gpt_neox": MLP,
    "bloom": {},  # not asked for: its blocks hand on tuples, as those of older layouts do
}
LAYOUTS = list(CONFIGS)
CAN_SDPA = [
    (layout, attention)
    for layout in LAYOUTS
    for attention in ("sdpa", "eager")
    if layout != "bloom"
]


def _config(layout):
    return transformers.AutoConfig.for_model(layout, **SIZES, **CONFIGS[layout])


def _lm(layout="llama", attention="eager", dtype=torch.float32, seed=0):
    torch.manual_seed(seed)  # transformers draws from the global generator
    model = AutoModelForCausalLM.from_config(
        _config(layout), attn_implementation=attention, dtype=dtype
    )
    return LM(model, name=layout)


def _ids(batch=3, length=TIME, seed=0):
    return torch.randint(0, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def _reference(lm, ids):
    with torch.no_grad():
        return lm.model(input_ids=ids, use_cache=False, output_hidden_states=True)


def _final_norm(lm):
    """The module that follows the block list among its siblings."""
    base = lm.model.base_model
    return next(
        getattr(base, name) for name in ("norm", "ln_f", "final_layer_norm") if hasattr(base, name)
    )


class _Calls:
    """Counts the calls of each block, its attention or MLP submodules, of final norm and head."""

    def __init__(self, lm):
        self.calls, watched = {}, {f"block {i}": block for i, block in enumerate(lm.blocks)}
        watched |= {f"inside {i}": next(block.children()) for i, block in enumerate(lm.blocks)}
        watched |= {"norm": _final_norm(lm), "head": lm.model.get_output_embeddings()}
        for name, module in watched.items():
            self.calls[name] = 0
            module.register_forward_hook(
                lambda *_, name=name: self.calls.__setitem__(name, self.calls[name] + 1)
            )

    def blocks(self):
        assert [self.calls[f"block {i}"] for i in range(N)] == [
            self.calls[f"inside {i}"] for i in range(N)
        ]
        return [self.calls[f"block {i}"] for i in range(N)]


def _hooks(lm):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules())


@pytest.mark.parametrize(("layout", "attention"), [*CAN_SDPA, ("bloom", "eager")])
def test_capture_equals_output_hidden_states_with_difference_zero(layout, attention):
    lm, ids = _lm(layout, attention), _ids()
    hidden = _reference(lm, ids).hidden_states
    assert len(hidden) == N + 1
    streams = lm.capture(ids, range(N + 1))
    assert list(streams) == list(range(N + 1))
    for site in range(N):
        assert torch.equal(streams[site], hidden[site])
        assert torch.equal(lm.capture(ids, [site])[site], hidden[site])  # alone as well as together
    with torch.no_grad():
        assert torch.equal(_final_norm(lm)(streams[N]), hidden[N])
    assert not torch.equal(streams[N], hidden[N])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_capture_in_bfloat16_is_exact_too_and_keeps_the_dtype(layout):
    lm, ids = _lm(layout, dtype=torch.bfloat16), _ids()
    stream = lm.capture(ids, [2])[2]
    assert stream.dtype == torch.bfloat16 == lm.dtype
    assert torch.equal(stream, _reference(lm, ids).hidden_states[2])
    assert torch.equal(lm.continue_from(2, stream, ids), _reference(lm, ids).logits)


@pytest.mark.parametrize(("layout", "attention"), [*CAN_SDPA, ("bloom", "eager")])
def test_an_unchanged_stream_spliced_in_gives_the_model_s_logits(layout, attention):
    lm, ids = _lm(layout, attention), _ids()
    logits = _reference(lm, ids).logits
    assert torch.equal(run_full(lm, ids), logits)
    for site, stream in lm.capture(ids, range(N + 1)).items():
        assert torch.equal(lm.continue_from(site, stream, ids), logits), f"site {site}"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("site", range(N))
def test_a_replaced_stream_gives_what_overwriting_it_in_the_whole_model_gives(layout, site):
    lm, ids = _lm(layout), _ids()
    replaced = torch.randn(*ids.shape, D, generator=torch.Generator().manual_seed(1))
    with lm.blocks[site].register_forward_pre_hook(lambda _, args: (replaced, *args[1:])):
        expected = _reference(lm, ids).logits
    assert torch.equal(lm.continue_from(site, replaced, ids), expected)
    assert not torch.equal(expected, run_full(lm, ids))


def test_a_stream_replaced_at_the_last_site_meets_only_final_norm_and_head():
    lm, ids = _lm(), _ids()
    replaced = torch.randn(*ids.shape, D)
    with torch.no_grad():
        expected = lm.model.lm_head(lm.model.model.norm(replaced))
    assert torch.equal(lm.continue_from(-1, replaced, ids), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("deepest", range(N + 1))
def test_capture_runs_no_block_past_the_deepest_site_nor_norm_nor_head(layout, deepest):
    lm = _lm(layout)
    count = _Calls(lm)
    lm.capture(_ids(), [0, deepest])
    assert count.blocks() == [1] * deepest + [0] * (N - deepest)
    assert count.calls["norm"] == count.calls["head"] == 0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("site", range(N + 1))
def test_continuing_runs_only_what_follows_the_site(layout, site):
    lm, ids = _lm(layout), _ids()
    count = _Calls(lm)
    lm.continue_from(site, torch.randn(*ids.shape, D), ids)
    assert count.blocks() == [0] * site + [1] * (N - site)
    assert count.calls["norm"] == count.calls["head"] == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_model_is_left_unpatched_also_after_an_exception(layout):
    lm, ids = _lm(layout), _ids()
    logits, blocks, hooks, names = (
        run_full(lm, ids),
        list(lm.blocks),
        _hooks(lm),
        list(lm.model.state_dict()),
    )
    streams = lm.capture(ids, [0, 2])

    def fail(*_):
        raise MemoryError("out of memory in a block")

    for run in (
        lambda: lm.capture(ids, [0, 1, N]),
        lambda: lm.continue_from(2, streams[2], ids),
        lambda: lm.continue_from(0, streams[0], ids),
    ):
        with (
            lm.blocks[2].register_forward_pre_hook(fail),
            pytest.raises(MemoryError, match="in a block"),
        ):
            run()
        assert list(lm.blocks) == blocks
        assert _hooks(lm) == hooks
        assert list(lm.model.state_dict()) == names
        assert torch.equal(run_full(lm, ids), logits)


def test_a_stand_in_answers_for_its_block_s_attributes():
    block = _lm().blocks[1]
    # Some models' loops choose the mask by such an attribute.
    block.attention_type = "full_attention"
    stand_in = lm_module._StandIn(block, torch.ones(2))
    assert stand_in.attention_type == "full_attention"
    assert stand_in.self_attn is block.self_attn
    assert list(stand_in.modules()) == [stand_in]
    assert torch.equal(stand_in(torch.zeros(2), attention_mask=None), torch.ones(2))


def test_the_model_is_frozen_and_captured_streams_are_ordinary_tensors():
    lm, ids = _lm("gpt2"), _ids()  # GPT-2 has dropout, so training mode would show
    assert not lm.model.training
    assert not any(p.requires_grad for p in lm.model.parameters())
    stream = lm.capture(ids, [2])[2]
    assert not stream.requires_grad
    weight = torch.ones(D, requires_grad=True)
    (
        stream @ weight
    ).sum().backward()  # "Inference tensors cannot be saved for backward", were it one
    assert_close(weight.grad, stream.sum((0, 1)))
    stream[:] = 0
    assert torch.equal(lm.capture(ids, [2])[2], _reference(lm, ids).hidden_states[2])


def test_a_prefix_of_a_context_has_the_same_stream():
    lm, ids = _lm(), _ids()
    assert_close(lm.capture(ids, [3])[3][:, :5], lm.capture(ids[:, :5], [3])[3])


def test_sites_resolve_by_number_from_the_end_and_by_name():
    lm = _lm()
    assert [lm.site(s) for s in (0, 2, N, -1, -2, -(N + 1), "middle")] == [
        0,
        2,
        N,
        N,
        N - 1,
        0,
        N // 2,
    ]
    assert lm.site(np.int64(-2)) == N - 1
    assert list(lm.capture(_ids(), [-2, "middle", 3])) == [2, 3]


@pytest.mark.parametrize("wrong", [N + 1, -(N + 2), "last", "2", 1.0, True, None])
def test_a_wrong_site_is_named_with_the_valid_range_before_any_forward(wrong):
    lm, ids = _lm(), _ids()
    count = _Calls(lm)
    message = rf"site {wrong!r}: expected 0 to {N}, -1 to -{N + 1} .* 'middle'"
    with pytest.raises(ValueError, match=message):
        lm.capture(ids, [0, wrong])
    with pytest.raises(ValueError, match=message):
        lm.continue_from(wrong, torch.zeros(*ids.shape, D), ids)
    assert sum(count.calls.values()) == 0


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.tensor([[0, VOCAB]]), f"token id {VOCAB}, llama knows 0 to {VOCAB - 1}"),
        (torch.tensor([[-1, 3]]), "token id -1, llama knows"),
        (torch.tensor([1, 2, 3]), r"\(3,\), expected whole numbers \[batch, time\]"),
        (torch.zeros(2, 3), r"float32 \(2, 3\), expected whole numbers"),
        (torch.zeros(0, 3, dtype=torch.long), r"\(0, 3\), expected"),
        (torch.zeros(1, 33, dtype=torch.long), "contexts of 33 tokens, llama takes 32"),
    ],
)
def test_wrong_token_ids_are_refused(ids, message):
    with pytest.raises(ValueError, match=message):
        _lm().capture(ids, [1])


def test_a_stream_of_another_shape_is_refused():
    with pytest.raises(
        ValueError, match=rf"stream at site 2: shape \(3, 8, {D}\), expected \(3, {TIME}, {D}\)"
    ):
        _lm().continue_from(2, torch.zeros(3, TIME - 1, D), _ids())


def test_no_sites_are_refused():
    with pytest.raises(ValueError, match="no sites"):
        _lm().capture(_ids(), [])


def test_int32_ids_and_a_stream_of_another_dtype_are_converted():
    lm, ids = _lm(), _ids()
    stream = lm.capture(ids.int(), [2])[2]
    assert torch.equal(lm.continue_from(2, stream.double(), ids.int()), run_full(lm, ids))


def test_sizes_are_the_config_s():
    lm = _lm("gpt2")
    assert (lm.n_layers, lm.d_model, lm.vocab_size, lm.max_length) == (N, D, VOCAB, 32)
    assert (lm.device.type, lm.dtype) == ("cpu", torch.float32)


def test_the_block_list_is_the_outermost_one_of_that_length_and_must_be_the_only_one():
    lm = _lm()
    lm.blocks[0].experts = torch.nn.ModuleList([torch.nn.Linear(1, 1)] * N)
    assert find_blocks(lm.model, N) is lm.model.model.layers
    lm.model.model.tower = torch.nn.ModuleList([torch.nn.Linear(1, 1)] * N)
    with pytest.raises(
        ValueError, match=rf"one list of {N} blocks, found \['model.layers', 'model.tower'\]"
    ):
        find_blocks(lm.model, N)
    with pytest.raises(
        ValueError, match="LlamaForCausalLM: expected one list of 7 blocks, found none"
    ):
        find_blocks(lm.model, 7)


def test_blocks_that_hand_on_something_else_are_refused_at_once():
    model = _lm().model
    model.model.layers[0].forward = lambda hidden_states, **_: hidden_states[..., :1]
    with pytest.raises(ValueError, match=rf"do not hand on one stream \[batch, time, {D}\]"):
        LM(model)


def test_model_id_changes_with_any_weight_and_not_with_dtype():
    lm = _lm()
    name, digest = lm.model_id.split("@")
    assert name == "llama"
    assert len(digest) == 12
    assert digest == content_hash(_lm().model) == content_hash(_lm().model.bfloat16())
    assert digest != content_hash(_lm(seed=1).model)
    for key in lm.model.state_dict():
        changed = _lm().model
        with torch.no_grad():
            changed.state_dict()[key].mul_(1.05)
        assert content_hash(changed) != digest, key


def test_the_sample_of_a_large_tensor_spreads_over_rows_and_columns():
    position = torch.arange(256 * 256)
    rows = lm_module._sampled((position // 256).float())
    columns = lm_module._sampled((position % 256).float())
    assert len(rows) == lm_module.HASH_SAMPLE
    assert rows.unique().numel() == 256
    assert columns.unique().numel() > 128


def test_dtype_and_device_names_are_checked():
    cpu = torch.device("cpu")
    assert choose_dtype("float16", cpu) == torch.float16
    assert choose_dtype("auto", cpu) == (torch.bfloat16 if native_bfloat16(cpu) else torch.float32)
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(
        ValueError, match="dtype 'fp8': expected one of 'auto', 'float32', 'bfloat16', 'float16'"
    ):
        choose_dtype("fp8", cpu)
    with pytest.raises(ValueError, match="device 'gpu': expected 'auto', 'cpu', 'cuda'"):
        choose_device("gpu")
    with pytest.raises(ValueError, match="device 'cuda:99': torch sees"):
        choose_device("cuda:99")


# The real model


@pytest.fixture(scope="module")
def real():
    return LM.load(str(named_model("embedded")), dtype="float32", device="cpu")


@pytest.mark.slow
def test_smollm2_captures_and_continues_exactly(real):
    text = (
        "The residual stream of a language model is a sum of what its blocks have written into it. "
        * 4
    )
    ids = torch.tensor(real.tokenizer(text)["input_ids"][:64]).view(2, 32)
    reference = _reference(real, ids)
    streams = real.capture(ids, [2, "middle", -2, -1])
    assert list(streams) == [2, 15, 29, 30]
    for site in (2, 15, 29):
        assert torch.equal(streams[site], reference.hidden_states[site])
    with torch.no_grad():
        assert torch.equal(_final_norm(real)(streams[30]), reference.hidden_states[30])
    for site, stream in streams.items():
        assert torch.equal(real.continue_from(site, stream, ids), reference.logits)
    assert real.model_id == f"{named_model('embedded').name}@{content_hash(real.model)}"


@pytest.mark.slow
def test_smollm2_predicts_text_better_than_chance(real):
    ids = torch.tensor(
        [
            real.tokenizer("Paris is the capital of France, and London is the capital of")[
                "input_ids"
            ]
        ]
    )
    assert real.tokenizer.decode(run_full(real, ids)[0, -1].argmax()).strip() in (
        "England",
        "the",
        "Great",
        "Britain",
    )


# Loading. A tiny model and tokenizer are saved once as an ordinary folder.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    _lm().model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(
        folder
    )
    return folder


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """A hub where nobody answers, and an empty cache."""
    _point_hub_at(monkeypatch, tmp_path, "http://127.0.0.1:9")
    return tmp_path / "cache"


def _point_hub_at(monkeypatch, tmp_path, endpoint):
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        endpoint + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_a_local_folder_loads_without_the_hub(folder, no_hub):
    lm = LM.load(str(folder), dtype="float32", device="cpu")
    assert lm.model_id == f"tiny@{content_hash(_lm().model)}"
    assert lm.tokenizer.convert_tokens_to_ids("w7") == 7
    assert lm.model.config._attn_implementation == "sdpa"
    assert_close(run_full(lm, _ids()), run_full(_lm(), _ids()))


def test_the_dtype_is_taken_over(folder):
    lm = LM.load(str(folder), dtype="bfloat16", device="cpu")
    assert lm.dtype == torch.bfloat16
    assert lm.model_id == f"tiny@{content_hash(_lm().model)}"


def test_an_unreachable_hub_is_said_within_seconds(no_hub):
    began = time.monotonic()
    with pytest.raises(ModelLoadError) as caught:
        LM.load("some-owner/some-model", device="cpu")
    assert time.monotonic() - began < 5
    assert str(caught.value).startswith(
        "model 'some-owner/some-model' is no local folder, the hub cannot be reached"
    )
    assert "--local-dir FOLDER` and give that folder" in str(caught.value)
    assert "onnection refused" in repr(caught.value.__cause__)


@pytest.mark.parametrize("name", ["x" * 97, f"{'x' * 60}/{'y' * 60}", "x" * 300, "x" * 10**6])
def test_a_name_that_is_too_long_for_hub_and_folder_is_refused_in_short(no_hub, name):
    with pytest.raises(ModelLoadError, match="there is no such local folder or GGUF file") as error:
        LM.load(name, device="cpu")
    assert len(str(error.value)) < 400


def test_offline_mode_asks_nobody(no_hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ModelLoadError,
        match="model 'some-owner/some-model' is no local folder, the hub cannot be reached",
    ):
        LM.load("some-owner/some-model", device="cpu")


def test_a_cached_model_loads_when_the_hub_is_unreachable(folder, no_hub):
    commit = "0" * 40
    repository = no_hub / "models--some-owner--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / commit).symlink_to(folder)
    began = time.monotonic()
    assert LM.load("some-owner/tiny", dtype="float32", device="cpu").name == "some-owner/tiny"
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (
            403,
            "GatedRepo",
            "model 'an-owner/a-model' is gated and access was refused: accept its licence",
        ),
        (
            404,
            "RepoNotFound",
            "model 'an-owner/a-model' is no local folder and not public on the hub",
        ),
        (503, "", "model 'an-owner/a-model' is no local folder, the hub cannot be reached"),
    ],
)
def test_a_gated_or_missing_model_is_said_with_the_local_way(
    status, code, message, monkeypatch, tmp_path
):
    class Refuse(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Refuse)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    _point_hub_at(monkeypatch, tmp_path, f"http://127.0.0.1:{server.server_port}")
    try:
        with pytest.raises(ModelLoadError) as caught:
            LM.load("an-owner/a-model", device="cpu")
    finally:
        server.shutdown()
        server.server_close()
    assert str(caught.value).startswith(message)
    assert "hf download an-owner/a-model --local-dir FOLDER" in str(caught.value)
    assert str(status) in str(caught.value.__cause__)


@pytest.mark.parametrize(
    "name", ["./not-there", "/not/there", "~/not/there", "data/assets/gone", "model.gguf"]
)
def test_a_missing_folder_is_said_without_asking_the_hub(name, no_hub, monkeypatch):
    monkeypatch.setattr(hub, "get_hf_file_metadata", None)  # would fail when called
    with pytest.raises(ModelLoadError, match=rf"model '{name}': there is no"):
        LM.load(name, device="cpu")


def test_a_missing_gguf_file_is_named(folder):
    for call in (
        {"name": str(folder), "gguf_file": "gone.gguf"},
        {"name": str(folder / "gone.gguf")},
    ):
        with pytest.raises(ModelLoadError, match=r"there is no GGUF file 'gone.gguf' in .*tiny"):
            LM.load(**call, device="cpu")


def test_a_gguf_file_loads_by_path_and_by_folder_and_name(tmp_path, no_hub):
    model = _lm().model
    weights = model.state_dict()
    write_gguf(tmp_path / "tiny.gguf", model)
    for call in (
        {"name": str(tmp_path / "tiny.gguf")},
        {"name": str(tmp_path), "gguf_file": "tiny.gguf"},
    ):
        lm = LM.load(**call, dtype="float32", device="cpu")
        assert lm.name == "tiny"
        for key in (
            "model.embed_tokens.weight",
            "model.layers.3.mlp.down_proj.weight",
            "lm_head.weight",
        ):
            assert torch.equal(lm.model.state_dict()[key], weights[key])
        assert lm.tokenizer.convert_tokens_to_ids("w7") == 8
        assert torch.equal(lm.capture(_ids(), [2])[2], _reference(lm, _ids()).hidden_states[2])


def test_an_empty_folder_is_no_model(tmp_path):
    with pytest.raises(ModelLoadError, match="cannot be loaded") as caught:
        LM.load(str(tmp_path), device="cpu")
    assert caught.value.__cause__ is not None
    assert "\n" not in str(caught.value)


def test_missing_or_broken_weights_are_refused_not_drawn_at_random(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ModelLoadError, match=r"lacks the weights model\.layers\.1\.mlp\.up_proj\.weight"
    ):
        LM.load(str(tmp_path), device="cpu")
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(ModelLoadError, match="cannot be loaded"):
        LM.load(str(tmp_path), device="cpu")
