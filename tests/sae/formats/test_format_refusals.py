"""What cannot be read is refused with one sentence that names file, field and value."""

import io
import json
import re
import zipfile

import numpy as np
import pytest
import torch
from helpers.published import D_IN, K, random_sae, weights, write_folder, write_gemma_scope
from safetensors.torch import load_file, save_file

from saelib.sae.formats import FormatError, export, load


@pytest.fixture
def folder(tmp_path):
    """A plain SAE as SAELens has it."""
    return export(random_sae("sae"), "saelens", tmp_path / "sae")


def change(folder, file="sae_weights.safetensors", **tensors):
    """Other tensors in a folder; None leaves one out."""
    merged = load_file(folder / file) | tensors
    kept = {name: t.clone() for name, t in merged.items() if t is not None}
    save_file(kept, folder / file)


def change_config(folder, file="cfg.json", **values):
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(config | values))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"b_enc": None}, r"sae_weights.safetensors: b_enc is missing; it holds W_dec, W_enc, b_d"),
        ({"b_enc": torch.zeros(7)}, r"b_enc has shape \[7\]; W_enc \[12, 40\] asks for \[40\]"),
        ({"W_dec": torch.zeros(12, 40)}, r"W_dec has shape \[12, 40\]; .* asks for \[40, 12\]"),
        ({"W_enc": torch.zeros(480)}, r"W_enc has shape \[480\]; expected a matrix"),
        ({"b_enc": torch.zeros(40, dtype=torch.int64)}, "b_enc is of type int64; expected float64"),
        ({"b_enc": torch.full((40,), torch.nan)}, r"damaged \(b_enc holds values that are not fin"),
        ({"b_extra": torch.zeros(40)}, "holds b_extra, which this reader does not know"),
        ({"scaling_factor": torch.full((40,), 2.0)}, "holds a scaling_factor other than 1"),
        ({"W_enc": torch.zeros(12, 0)}, r"W_enc has shape \[12, 0\]; expected a matrix"),
    ],
)
def test_weights_that_do_not_fit(folder, tensors, message):
    change(folder, **tensors)
    with pytest.raises(FormatError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architecture": "matching_pursuit"}, "architecture = 'matching_pursuit': expected 'stan"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations = 'layer_norm': expected"),
        ({"reshape_activations": "hook_z"}, "reshape_activations = 'hook_z': expected 'none'"),
        ({"activation_fn": "tanh-relu"}, "activation_fn = 'tanh-relu': expected 'relu'"),
        ({"architecture": "topk"}, "k = None: expected a whole number"),
        (
            {"architecture": "topk", "k": 0},
            "sae_weights.safetensors: .*k = 0 .*: expected at least",
        ),
        (
            {"apply_b_dec_to_input": "false"},
            "apply_b_dec_to_input = 'false': expected true or fals",
        ),
        ({"rescale_acts_by_decoder_norm": "false"}, "rescale_acts_by_decoder_norm = 'false': exp"),
        ({"metadata": {"hook_name": "blocks.0.hook_mlp_out"}}, "names no site .* give site="),
    ],
)
def test_settings_that_no_sae_here_computes(folder, values, message):
    change_config(folder, **values)
    with pytest.raises(FormatError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"b_enc": torch.ones(1)}, r"b_enc has shape \[1\]; W_enc \[12, 40\] asks for \[40\]"),
        ({"b_dec": torch.ones(13)}, r"b_dec has shape \[13\]; W_enc \[12, 40\] asks for \[12\]"),
        (
            {"W_dec": torch.ones(40)},
            r"W_dec has shape \[40\]; W_enc \[12, 40\] asks for \[40, 12\]",
        ),
    ],
)
def test_shapes_are_looked_at_before_arithmetic_that_would_stretch_them(folder, tensors, message):
    change_config(folder, apply_b_dec_to_input=False, rescale_acts_by_decoder_norm=True)
    load(folder)
    change(folder, **tensors)
    with pytest.raises(FormatError, match=message):
        load(folder)


def test_another_width_or_site_than_asked(folder):
    with pytest.raises(FormatError, match="an SAE of width 12; asked for width 576"):
        load(folder, d_in=576)
    with pytest.raises(FormatError, match="an SAE of site 6; asked for site 3"):
        load(folder, site=3)
    assert load(folder, site=6, d_in=D_IN).config.site == 6


def test_own_folders_are_read_and_refused_alike(tmp_path):
    sae = random_sae("gated")
    sae.save(tmp_path)
    assert torch.equal(load(tmp_path).mean, sae.mean)
    with pytest.raises(FormatError, match="an SAE of width 12; asked for width 576"):
        load(tmp_path, d_in=576)
    with pytest.raises(FormatError, match="an SAE of site 6; asked for site 3"):
        load(tmp_path, site=3)


def test_no_folder_no_known_files_no_known_format(tmp_path, folder):
    with pytest.raises(FormatError, match="there is no such folder; the hub's begin with 'hf://'"):
        load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatError, match=r"no known format .*saelens: cfg.json . sae_weights"):
        load(tmp_path / "empty")
    with pytest.raises(FormatError, match="format = 'onnx': expected one of saelib, saelens"):
        load(folder, format="onnx")
    change_config(folder, k=K)
    with pytest.raises(FormatError, match=r"sae.safetensors is missing"):
        load(folder, format="sparsify")


def test_a_damaged_file(folder):
    (folder / "sae_weights.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(FormatError, match=r"sae_weights.safetensors: damaged, or no safetensors"):
        load(folder)
    (folder / "cfg.json").write_text("{")
    with pytest.raises(FormatError, match=r"cfg.json: damaged, not JSON"):
        load(folder)
    (folder / "cfg.json").write_text("[]")
    with pytest.raises(FormatError, match=r"cfg.json: expected a mapping of fields, found \[\]"):
        load(folder)


def test_a_pickle_is_never_opened(tmp_path):
    (tmp_path / "ae.pt").write_bytes(b"\x80\x02cos\nsystem\n")
    (tmp_path / "config.json").write_text("{}")
    for source in (tmp_path, tmp_path / "ae.pt"):
        with pytest.raises(FormatError, match=r"ae.pt is a pickle.*safetensors.torch.save_file"):
            load(source)


def test_a_numpy_file_with_objects_is_not_opened(tmp_path):
    arrays = {name: t.numpy() for name, t in weights().items()}
    arrays["b_enc"] = np.array([{"a": 1}], dtype=object)
    np.savez(tmp_path / "params.npz", **arrays)
    with pytest.raises(FormatError, match=r"params.npz: damaged, or it holds pickled objects"):
        load(tmp_path, site=1)


def test_numpy_files_that_are_none(tmp_path):
    folder = write_gemma_scope(tmp_path / "a", weights() | {"extra": torch.zeros(1)})
    with pytest.raises(FormatError, match="holds extra, which this reader does not know"):
        load(folder, site=1)
    with zipfile.ZipFile(folder / "params.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("W_enc.npy", b"x")
    with pytest.raises(FormatError, match=r"params.npz: .*packed by method 14; expected stored"):
        load(folder, site=1)
    (folder / "params.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(FormatError, match=r"params.npz: damaged"):
        load(folder, site=1)
    with zipfile.ZipFile(folder / "params.npz", "w") as archive:
        archive.writestr("W_enc.npy", b"short")
    with pytest.raises(FormatError, match=r"params.npz: damaged"):
        load(folder, site=1)


def npy(shape="(40, 12)", kind="<f4", data=b""):
    """An array's file with a header of one's own."""
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (npy("(1099511627776,)"), "holds fewer numbers than its shape says"),
        (npy(f"({2**70},)"), "holds fewer numbers than its shape says"),
        (npy(f"({2**70}, 0)"), "damaged"),
        (npy(data=bytes(1000)), "holds fewer numbers than its shape says"),
        (npy("(True,)", data=bytes(4)), "damaged"),
        (npy("(" * 50, data=bytes(4)), "damaged"),
        (npy("-" * 9000 + "1"), "damaged"),
        (npy("(1,)", "<f16", bytes(16)), "an array of type float128; expected numbers"),
        (npy(data=bytes(1 << 20)), "it unpacks to .* bytes, over 16 times its size"),
    ],
)
def test_a_numpy_file_s_sizes_are_looked_at_before_room_is_made(tmp_path, member, message):
    with zipfile.ZipFile(tmp_path / "params.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("W_enc.npy", member)
    with pytest.raises(FormatError, match=rf"params.npz: .*{message}"):
        load(tmp_path, site=1)


def test_two_numpy_arrays_of_one_name_are_refused(tmp_path):
    arrays = {name: t.numpy() for name, t in weights().items()}
    np.savez(tmp_path / "params.npz", w_enc=2 * arrays["W_enc"], **arrays)
    with pytest.raises(FormatError, match=r"params.npz: .*it holds two arrays of one name"):
        load(tmp_path, site=1)


def test_a_lone_array_in_the_place_of_the_archive(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.ones(3))
    (tmp_path / "params.npz").write_bytes(buffer.getvalue())
    with pytest.raises(FormatError, match=r"params.npz: damaged"):
        load(tmp_path, site=1)


@pytest.mark.parametrize(
    ("name", "shape", "wanted"),
    [("b_dec", 13, "12"), ("b_enc", 1, "40"), ("threshold", 1, "40"), ("W_dec", 40, "40, 12")],
)
def test_gemma_scope_s_arrays_of_other_shapes(tmp_path, name, shape, wanted):
    folder = write_gemma_scope(tmp_path / "a", weights() | {name: torch.ones(shape)})
    message = re.escape(f"{name} has shape [{shape}]; W_enc [12, 40] asks for [{wanted}]")
    with pytest.raises(FormatError, match=message):
        load(folder, site=1)


def test_a_numpy_file_of_the_other_order_of_bytes_is_read(tmp_path):
    here = write_gemma_scope(tmp_path / "a", weights())
    (tmp_path / "b").mkdir()
    arrays = {name: t.numpy().astype(">f4") for name, t in weights().items()}
    np.savez(tmp_path / "b" / "params.npz", **arrays)
    assert torch.equal(load(here, site=1).b_enc, load(tmp_path / "b", site=1).b_enc)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"activation": "groupmax"}, "activation = 'groupmax': expected 'topk'"),
        ({"transcode": True}, "transcode = True: expected False"),
        ({"k": "many"}, "k = 'many': expected a whole number"),
    ],
)
def test_sparsify_s_other_coders(tmp_path, values, message):
    config = {"activation": "topk", "k": K} | values
    write_folder(tmp_path / "layers.1", "cfg.json", config, "sae.safetensors", weights())
    with pytest.raises(FormatError, match=message):
        load(tmp_path / "layers.1")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"act_fn": "gelu"}, "act_fn = 'gelu': expected 'relu' or 'topk' or 'jumprelu'"),
        ({"norm_activation": "token-wise"}, "norm_activation = 'token-wise': expected 'dataset-w"),
        ({"use_glu_encoder": True}, "use_glu_encoder = True: expected False"),
        ({"hook_point_out": "blocks.1.hook_mlp_out"}, "hook_point_out = 'blocks.1.hook_mlp_out'"),
        ({"dataset_average_activation_norm": {"in": 0}}, "dataset_average_activation_norm = 0:"),
        ({"dataset_average_activation_norm": {"in": 5e-324}}, "activation_norm = 5e-324: expected"),
        ({"dataset_average_activation_norm": {"in": True}}, "activation_norm = True: expected a n"),
        ({"dataset_average_activation_norm": {"in": 10**400}}, "_norm = 1000.*: expected a number"),
        ({"d_model": None}, "d_model = None: expected a whole number"),
        ({"d_model": 400}, "d_model = 400: its weights are of width 12"),
        ({"jump_relu_threshold": -5}, "jump_relu_threshold = -5: expected a number from 0"),
        ({"jump_relu_threshold": "x"}, "jump_relu_threshold = 'x': expected a number from 0"),
        ({"jump_relu_threshold": [1]}, r"jump_relu_threshold = \[1\]: expected a number from 0"),
        ({"jump_relu_threshold": 10**400}, "jump_relu_threshold = 1000.*: expected a number from"),
        ({"use_decoder_bias": "false"}, "use_decoder_bias = 'false': expected true or false"),
        ({"sparsity_include_decoder_norm": "false"}, "sparsity_include_decoder_norm = 'false': e"),
        ({"apply_decoder_bias_to_pre_encoder": 0}, "apply_decoder_bias_to_pre_encoder = 0: expect"),
        ({"act_fn": "topk", "jump_relu_threshold": 0, "top_k": 10**30}, "k = 1000.*: expected"),
        ({"hook_point_in": f"blocks.{'9' * 5000}.hook_resid_post"}, "names no site of the residu"),
    ],
)
def test_openmoss_s_other_coders(tmp_path, values, message):
    config = {
        "act_fn": "jumprelu",
        "hook_point_in": "blocks.1.hook_resid_post",
        "d_model": D_IN,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": 4.0},
        "jump_relu_threshold": 0.5,
    }
    w = weights()
    tensors = {"W_E": w["W_enc"], "W_D": w["W_dec"], "b_E": w["b_enc"], "b_D": w["b_dec"]}
    name = "sae_weights.safetensors"
    write_folder(tmp_path / "m", "hyperparams.json", config, name, tensors)
    assert load(tmp_path / "m").config.site == 2
    (tmp_path / "m" / "hyperparams.json").write_text(json.dumps(config | values))
    with pytest.raises(FormatError, match=message):
        load(tmp_path / "m")


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        (None, "trainer = None: expected a mapping"),
        ({"dict_class": "IdentityDict"}, "trainer.dict_class = 'IdentityDict': expected 'AutoEn"),
        ({"dict_class": "BatchTopKSAE"}, r"threshold = -1.0: a BatchTopKSAE needs"),
    ],
)
def test_dictionary_learning_s_other_classes(tmp_path, trainer, message):
    folder = export(random_sae("topk"), "dictionary_learning", tmp_path / "ae")
    change_config(folder, "config.json", trainer=trainer)
    with pytest.raises(FormatError, match=message):
        load(folder)


@pytest.mark.parametrize("k", [float("nan"), float("inf"), 2.7])
def test_dictionary_learning_s_k_that_is_no_whole_number(tmp_path, k):
    folder = export(random_sae("topk"), "dictionary_learning", tmp_path / "ae")
    change(folder, "ae.safetensors", k=torch.tensor(k))
    with pytest.raises(FormatError, match=r"ae.safetensors: k = .*: expected a whole number"):
        load(folder)
    change(folder, "ae.safetensors", k=torch.tensor(float(K)))
    assert load(folder).config.options["k"] == K


@pytest.mark.parametrize("format", ["dictionary_learning", "sparsify"])
def test_transposed_tensors_that_are_no_matrix(tmp_path, format):
    if format == "sparsify":
        tensors = weights() | {"encoder.weight": torch.ones(480), "encoder.bias": torch.ones(40)}
        kept = {n: tensors[n] for n in ("encoder.weight", "encoder.bias", "W_dec", "b_dec")}
        config = {"activation": "topk", "k": K}
        folder = write_folder(tmp_path / "h.1", "cfg.json", config, "sae.safetensors", kept)
    else:
        folder = export(random_sae("sae"), format, tmp_path / "ae")
        change(folder, "ae.safetensors", **{"encoder.weight": torch.ones(40, 12, 2)})
    with pytest.raises(FormatError, match=r"W_enc has shape .*; expected a matrix"):
        load(folder)


def test_a_name_on_the_hub_that_is_none():
    with pytest.raises(FormatError, match="hf://a--b/c: the hub does not give it"):
        load("hf://a--b/c")
    with pytest.raises(FormatError, match=r"expected hf://owner/name\[@revision\]\[/folder\]"):
        load("hf://gpt2")
