"""What is written for another library computes the same there, by that library's own equations."""

import json

import pytest
import torch
from helpers.published import D_IN, N_LATENTS, K, agrees, random_sae, rows, top
from safetensors.torch import load_file

from saelib.sae.formats import FORMATS, FormatError, export, load

READ_BACK = {"p_anneal": "sae"}  # trained otherwise, but a plain SAE in what it computes
WRITTEN = [
    (name, arch) for name, layout in FORMATS.items() if layout.write for arch in layout.archs
]


@pytest.mark.parametrize(("format", "arch"), WRITTEN)
def test_an_sae_comes_back_as_it_went_out(format, arch, tmp_path):
    sae = random_sae(arch)
    back = load(export(sae, format, tmp_path / "out", model="toy"))
    x = rows()
    assert agrees(back, x, sae.encode_raw(x), sae.reconstruct(x))
    assert (sae.encode_raw(x) > 0).float().mean() > 0.02
    assert back.config.arch == READ_BACK.get(arch, arch)
    assert back.config.normalize == "none"
    assert back.config.site == sae.config.site
    torch.testing.assert_close(back.encode(x), sae.encode_raw(x) / sae.scale, rtol=1e-4, atol=1e-5)


def saelens_codes(name, w, x):
    """The codes of SAELens' classes with b_dec taken from the input."""
    a = (x - w["b_dec"]) @ w["W_enc"]
    if name == "gated":
        return (a + w["b_gate"] > 0) * torch.relu(a * w["r_mag"].exp() + w["b_mag"])
    pre = torch.relu(a + w["b_enc"])
    if name == "topk":
        return top(pre)
    return pre * (pre > w["threshold"]) if name == "jumprelu" else pre


@pytest.mark.parametrize(
    ("arch", "name"),
    [("sae", "standard"), ("gated", "gated"), ("topk", "topk"), ("jumprelu", "jumprelu")],
)
def test_saelens_equations_give_the_same(arch, name, tmp_path):
    sae = random_sae(arch)
    folder = export(sae, "saelens", tmp_path / "out", model="toy")
    config = json.loads((folder / "cfg.json").read_text())
    assert config["architecture"] == name
    assert config["metadata"]["hook_name"] == "blocks.5.hook_resid_post"
    assert config["metadata"]["model_name"] == "toy"
    assert config.get("k", K) == K
    w = load_file(folder / "sae_weights.safetensors")
    f = saelens_codes(name, w, rows())
    assert agrees(sae, rows(), f, f @ w["W_dec"] + w["b_dec"])


def dictionary_codes(name, w, x):
    """The codes of dictionary_learning's classes."""
    if name == "JumpReluAutoEncoder":
        pre = x @ w["W_enc"] + w["b_enc"]
        return torch.relu(pre * (pre > w["threshold"]))
    if name == "GatedAutoEncoder":
        a = (x - w["decoder_bias"]) @ w["encoder.weight"].T
        return (a + w["gate_bias"] > 0) * torch.relu(w["r_mag"].exp() * a + w["mag_bias"])
    bias = w["bias"] if name == "AutoEncoder" else w["b_dec"]
    pre = torch.relu((x - bias) @ w["encoder.weight"].T + w["encoder.bias"])
    return pre if name == "AutoEncoder" else top(pre, int(w["k"]))


@pytest.mark.parametrize(
    ("arch", "name", "bias"),
    [
        ("sae", "AutoEncoder", "bias"),
        ("gated", "GatedAutoEncoder", "decoder_bias"),
        ("topk", "AutoEncoderTopK", "b_dec"),
        ("jumprelu", "JumpReluAutoEncoder", "b_dec"),
    ],
)
def test_dictionary_learning_s_equations_give_the_same(arch, name, bias, tmp_path):
    sae = random_sae(arch)
    folder = export(sae, "dictionary_learning", tmp_path / "out")
    trainer = json.loads((folder / "config.json").read_text())["trainer"]
    assert trainer["dict_class"] == name
    assert trainer["submodule_name"] == "resid_post_layer_5"
    w = load_file(folder / "ae.safetensors")
    f = dictionary_codes(name, w, rows())
    W_dec = w["W_dec"] if "W_dec" in w else w["decoder.weight"].T
    assert agrees(sae, rows(), f, f @ W_dec + w[bias])


@pytest.mark.parametrize("format", ["saelens", "dictionary_learning"])
@pytest.mark.parametrize("arch", ["gated", "batchtopk", "matryoshka"])
def test_what_equals_a_jumprelu_sae_is_written_as_one_on_request(format, arch, tmp_path):
    sae = random_sae(arch)
    back = load(export(sae, format, tmp_path / "out", arch="jumprelu"))
    assert back.config.arch == "jumprelu"
    assert agrees(back, rows(), sae.encode_raw(rows()), sae.reconstruct(rows()))


def test_a_folder_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    layout = FORMATS["saelens"]

    def fails(sae, folder, model):
        layout.write(sae, folder, model)
        raise OSError("disk full")

    monkeypatch.setitem(FORMATS, "saelens", layout._replace(write=fails))
    with pytest.raises(OSError, match="disk full"):
        export(random_sae("sae"), "saelens", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_lies_in_a_folder_is_not_overwritten(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FormatError, match="is there already"):
        export(random_sae("sae"), "saelens", tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("arch", "arguments", "message"),
    [
        (
            "sae",
            {"format": "sae_vis"},
            "format = 'sae_vis': expected one of saelens, dictionary_learning",
        ),
        (
            "sae",
            {"format": "gemma_scope"},
            "'gemma_scope' can be read, not written: expected one of sae",
        ),
        ("batchtopk", {"format": "saelens"}, "'saelens' takes .*; give arch='jumprelu'"),
        ("sae", {"format": "saelens", "arch": "jumprelu"}, "only 'gated', 'batchtopk', 'matr"),
    ],
)
def test_what_cannot_be_written_is_refused(arch, arguments, message, tmp_path):
    with pytest.raises(FormatError, match=message):
        export(random_sae(arch), folder=tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_the_shapes_of_the_helper_are_those_of_its_sae():
    assert random_sae("sae").W_enc.shape == (D_IN, N_LATENTS)
