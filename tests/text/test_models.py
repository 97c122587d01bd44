"""Models with a name here: what a broken download leaves and says, and (slow) the real ones."""

from dataclasses import replace

import pytest
from helpers.downloads import left_in, make_wheel, sha256

from saelib.text import archives, models, pinned


def test_any_other_model_name_stays_what_it_is_and_makes_nothing(home):
    assert models.resolve_model("gpt2") == "gpt2"
    assert models.resolve_model("./folder") == "./folder"
    assert not (home / "data").exists()


def test_a_model_is_called_by_its_label_by_name_and_by_id_and_no_other_is():
    label = "TinyLlama-1.1B-Chat, dequantised from IQ2_XXS"
    assert models.label_of("tinyllama") == label
    assert models.label_of("tinyllama-1.1b-chat-iq2_xxs@0123abcd") == label
    assert models.label_of("tinyllama-1.1b-chat-iq2_xxs-finetuned@0123abcd") is None
    assert models.label_of("TinyLlama/TinyLlama-1.1B-Chat-v1.0") is None


def test_a_gguf_that_cannot_be_converted_leaves_no_model_folder(tiny, monkeypatch):
    content = b"GGUF, but no more than that"
    wheel = make_wheel(tiny / "links", content, "tiny_wheel/model.gguf")
    archives.REQUIREMENTS.write_text(
        f"tiny-wheel==1.0 --hash=sha256:{sha256(wheel.read_bytes())}\n"
    )
    gguf = pinned.Asset("tiny-wheel", "tiny_wheel/model.gguf", sha256(content))
    monkeypatch.setitem(models.MODELS, "embedded", replace(models.MODELS["embedded"], gguf=gguf))
    with pytest.raises(
        pinned.AssetError,
        match=r"model\.gguf could not be converted \(.*Error.*\); nothing was kept",
    ):
        models.named_model("embedded")
    assert left_in(tiny) == set()


# ---- the real ones


@pytest.mark.slow
def test_the_embedded_model_is_an_ordinary_folder_that_predicts_text():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = models.named_model("embedded")
    assert models.resolve_model("embedded") == str(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (model.config.model_type, model.config.num_hidden_layers, model.config.hidden_size) == (
        "llama",
        30,
        576,
    )
    assert model.dtype == torch.float32
    assert not hasattr(model.config, "quantization_config")
    text = "The capital of France is Paris, which lies on the river Seine. "
    text += "The capital of Italy is Rome."
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        loss = model(ids, labels=ids).loss.item()
    assert loss < 3, "nats a token; a broken conversion gives about ln(49152) = 10.8"


@pytest.mark.slow
def test_the_embedded_tokenizer_splits_digits_and_gives_text_back():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models.named_model("embedded"))
    text = "Ends here.\n\n1984 was  19 years’ work: ½ naïve."
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert ids[0] != tokenizer.bos_token_id == 1
    assert "|".join(tokenizer.decode(i) for i in ids).startswith(
        "E|nds| here|.|\n\n|1|9|8|4| was|  |1|9| years"
    )


@pytest.mark.slow
@pytest.mark.skipif(
    not (pinned.assets_dir() / models.MODELS["tinyllama"].folder).is_dir(),
    reason="tinyllama was not made here; a test does not fetch 319 MB",
)
def test_tinyllama_is_an_ordinary_folder_with_bos_that_predicts_text():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = models.named_model("tinyllama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "The capital of France is Paris, which lies on the river Seine. "
    text += "The capital of Italy is Rome."
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    assert ids[0, 0] == tokenizer.bos_token_id == 1
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == text
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (22, 2048)
    with torch.inference_mode():
        loss = model(ids, labels=ids).loss.item()
    assert loss < 3, "nats a token; a broken conversion gives about ln(32000) = 10.4"
