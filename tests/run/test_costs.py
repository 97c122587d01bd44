"""What work costs, by hand arithmetic at known shapes, and against real modules and stores."""

import sys
from pathlib import Path

import pytest
from helpers.models import D, tiny_llama
from helpers.shapes import LLAMA2, SMOLLM2
from helpers.stores import SITES, write_store
from transformers import GPT2Config, LlamaConfig

from saelib.config import SAEConfig
from saelib.run import costs
from saelib.sae import build_sae

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import scaling


def test_weights_of_known_models():
    assert costs.block_weights(SMOLLM2) == 576 * (1152 + 384 + 4608) == 3_538_944
    assert costs.lm_weights(SMOLLM2) == 30 * 3_538_944 + 49152 * 576 == 134_479_872
    assert costs.block_weights(LLAMA2) == 4096 * (8192 + 8192 + 33024) == 202_375_168
    assert costs.lm_weights(LLAMA2) == 6_738_149_376  # 6.74 billion, as published


def test_weights_are_those_of_a_real_model_but_for_its_norms():
    model = tiny_llama().model
    norms = sum(p.numel() for name, p in model.named_parameters() if "norm" in name)
    assert (
        costs.lm_weights(costs.shape_of(model.config))
        == sum(p.numel() for p in model.parameters()) - norms
    )


def test_a_token_costs_two_operations_a_weight_and_attention_over_half_its_context():
    assert costs.forward_flops(LLAMA2, 1, 128) == 2 * 202_375_168 + 2 * 4096 * 129
    assert costs.forward_flops(LLAMA2, 31, 128) == 31 * costs.forward_flops(LLAMA2, 1, 128)
    assert costs.forward_flops(SMOLLM2, 0, 128, head=True) == 2 * 49152 * 576


def test_the_shape_of_a_family_that_leaves_fields_out():
    assert costs.shape_of(GPT2Config()) == costs.Shape(768, 12, 12, 12, 4 * 768, 50257, True)
    config = LlamaConfig(
        hidden_size=64, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96
    )
    assert costs.shape_of(config)[2:5] == (4, 2, 96)


def test_a_stored_row_is_its_numbers_its_norm_and_in_8_bits_its_scale():
    sizes = [costs.row_bytes(576, dtype) for dtype in ("float32", "bfloat16", "int8")]
    assert sizes == [4 * 576 + 4, 2 * 576 + 4, 576 + 8]
    assert costs.store_bytes(10, 3, 576, "bfloat16") == 10 * (3 * 1156 + 4)


def test_a_store_s_bytes_are_those_of_a_real_one_but_for_headers(tmp_path):
    store = write_store(tiny_llama(), tmp_path / "store")
    found = sum(file.stat().st_size for file in (tmp_path / "store").rglob("*.safetensors"))
    needed = costs.store_bytes(store.n_rows, len(SITES), D, "float32")
    assert needed < found < 1.02 * needed


@pytest.mark.parametrize("arch", ["sae", "gated"])
def test_an_sae_s_weights_are_those_of_a_real_one(arch):
    sae = build_sae(SAEConfig(arch, 576, 2304))
    assert costs.sae_weights(576, 2304, arch == "gated") == sum(p.numel() for p in sae.parameters())


def test_an_sae_of_eight_times_llama_s_width_trains_in_4_3_gb():
    assert costs.TRAINED * costs.sae_weights(4096, 8 * 4096) / 1e9 == pytest.approx(4.3, abs=0.01)


def test_a_dense_step_is_five_products_and_a_sparse_one_the_encoder_s_and_what_is_active():
    product = 2 * 2304 * 576 * 512
    assert costs.step_flops(576, 2304, 512) == 5 * product
    assert costs.step_flops(576, 2304, 512, full=True) == 7 * product
    assert costs.step_flops(576, 2304, 512, 32) == product + 8 * 576 * 512 * 32
    assert (
        costs.step_flops(576, 2304, 512, 2304) == 5 * product
    )  # with every latent active they are equal
    assert costs.step_flops(576, 2304, 512, 2304, full=True) == 7 * product


def test_saes_at_once_leave_room_for_a_dense_step_and_none_may_fit():
    one = costs.TRAINED * costs.sae_weights(4096, 16384, gated=True)
    dense = 3 * 4 * 4096 * 16384
    assert [costs.at_once(dense + k * one, 4096, 16384, 4096) for k in (0.99, 1, 7.5)] == [0, 1, 7]
    assert costs.at_once(-1e9, 4096, 16384, 4096) == 0


def test_a_ring_sends_nearly_twice_what_is_added_up_and_nothing_alone():
    assert [scaling.all_reduce_bytes(1000, ranks) for ranks in (1, 2, 4)] == [0, 1000, 1500]
    assert scaling.data_parallel_bytes(576, 2304, 2) == 4 * costs.sae_weights(576, 2304)
    assert scaling.latent_split_bytes(576, 512, 2) == 4 * 576 * 513
    assert scaling.latent_split_bytes(576, 512, 2, full=True) == 4 * 576 * 1025


def test_constants_are_fitted_to_measurements_and_tell_one_from_the_others():
    made = [
        {
            "kind": "k",
            "size": str(i),
            "quantities": [i * 1e9, i**2, 1.0],
            "seconds": 2e-9 * i * 1e9 + 0.5,
        }
        for i in (1, 2, 4, 8)
    ]
    assert scaling.fitted(made) == pytest.approx([2e-9, 0, 0.5], abs=1e-6)
    # What does not follow shows as its own error, since its constants are the others'.
    made[2]["seconds"] *= 2
    assert scaling.predicted(made)[2]["error"] == "-50.0%"


def test_more_latents_than_a_gpu_holds_are_short_of_memory_unless_they_are_split():
    whole, split = (
        scaling.extrapolated(1e9, 2**24, 64, how) for how in ("data-parallel", "split by latents")
    )
    assert whole["first"] == "memory" != split["first"]
    assert whole["GB a GPU"] > 2000 > 80 > split["GB a GPU"]
    parts = {
        k: v for k, v in split.items() if k.endswith(", h") and k not in ("in all, h", "reading, h")
    }
    assert sum(parts.values()) == pytest.approx(split["in all, h"])
    assert split["first"] + ", h" == max(parts, key=parts.get)


def test_a_step_s_sum_of_parts_is_near_the_step_recorded_at_the_same_shape():
    rows = {row["size"]: row for row in scaling.h100_steps()}
    row = rows["plain, d = 4,096, 32,768 latents, batch 8,192"]
    assert row["predicted"] == pytest.approx(row["seconds"], rel=0.15)


def test_the_page_is_filled_between_its_markers_or_says_which_is_missing():
    text = "a\n<!-- x -->\nold\n<!-- /x -->\nb"
    assert scaling.filled(text, {"x": ["new", "er"]}) == "a\n<!-- x -->\nnew\ner\n<!-- /x -->\nb"
    with pytest.raises(ValueError, match="<!-- y -->"):
        scaling.filled(text, {"y": []})
