"""The parameters of each notebook: what its parameter cell holds, with types and ranges."""

from __future__ import annotations

from typing import Literal, get_type_hints

from pydantic import Field, model_validator

from saelib.config import CollectConfig, CorpusConfig
from saelib.study.finding_params import (
    ArchitectureParams,
    FeatureParams,
    GatesParams,
    LambdaParams,
    LengthParams,
    ResampleParams,
    ScheduleParams,
)
from saelib.study.params import (
    All0,
    AtLeastOne,
    Common,
    Count,
    CountOrZero,
    Lambdas,
    NotNegative,
    Params,
    Positive,
    PositiveLambdas,
    Recipe,
    Seeds,
    Sites,
    Sweep,
    build,
)

Source = get_type_hints(CorpusConfig)["source"]
StoreDtype = Literal["auto", "float32", "bfloat16", "float16", "int8"]


class CollectParams(Common):
    """01: a model, a text, and what is stored of its activations."""

    model: str = Field(description="hub id, local folder or .gguf file; embedded; tinyllama")
    dtype: str = Field(description="of the model; auto: bfloat16 where computed, else float32")
    sites: Sites = Field(description="depths of the residual stream, as in hidden_states")
    source: Source = Field(description="where the text comes from")
    path: str = Field(description="file, folder or hub id of the text")
    text_column: str = Field(description="field that holds the text")
    id_column: str = Field(description="field that holds the page id; empty: the row's number")
    n_docs: All0 = Field(description="pages, drawn by a hash of their ids")
    detokenize: bool = Field(description="FEVER only: -LRB- and the like become text again")
    ctx_len: int = Field(description="tokens of a context")
    min_ctx_len: int = Field(description="shortest context kept; 0 keeps whole ones only")
    contexts_per_page: All0 = Field(description="at most")
    bos: Literal["auto", "always", "never"] = Field(description="begin contexts with BOS")
    on_bad_line: Literal["raise", "skip"] = Field(description="what a malformed line does")
    corpus_seed: CountOrZero = Field(description="which pages and contexts are taken")
    batch_tokens: AtLeastOne = Field(description="tokens of a forward")
    shard_tokens: AtLeastOne = Field(description="rows of a shard")
    store_dtype: StoreDtype = Field(description="of the stored rows; auto: the model's")
    stream_tokens: CountOrZero = Field(description="shuffle buffer of live rows; 0: a store")
    stream_contexts: Count = Field(description="live: training contexts that are stored too")
    stream_held_out: CountOrZero = Field(description="live: held-out contexts stored; 0: all")
    probe_contexts: Count = Field(description="contexts run again at every depth, and with BOS")
    pca_rank: Count = Field(description="directions of the honest reconstruction")

    def corpus(self) -> CorpusConfig:
        """The text, as the package takes it."""
        names = [name for name in CorpusConfig.__dataclass_fields__ if name != "seed"]
        values = {name: getattr(self, name) for name in names} | {"seed": self.corpus_seed}
        return build(CorpusConfig, values, {"seed": "corpus_seed"})

    def collection(self) -> CollectConfig:
        """How activations are stored, as the package takes it."""
        sizes = {"batch_tokens": self.batch_tokens, "shard_tokens": self.shard_tokens}
        return build(CollectConfig, sizes | {"dtype": self.store_dtype}, {"dtype": "store_dtype"})

    @model_validator(mode="after")
    def _collects(self) -> CollectParams:
        self.corpus()
        self.collection()
        return self


class TrainSaeParams(Common, ScheduleParams, LambdaParams):
    """02: the trade-off, the L1 coefficient (F4) and the schedules (F1)."""


class TrainGatedParams(GatesParams, LengthParams):
    """03: Gated SAEs, with two losses, beside plain ones."""


class ResamplingParams(ResampleParams):
    """04: does resampling dead latents explain the Gated SAE's error?"""


class LayerParams(Common, Recipe, Sweep):
    """05: depths compared, causes of their gap, dictionary against encoder, all depths."""

    margin: NotNegative = Field(description="FVUs nearer than this share are called equal")
    original_lam: Positive = Field(description="the original recipe's one λ, raw units")
    refine: CountOrZero = Field(description="further λ between two over a factor 2 apart in L0")
    cause_seeds: Seeds = Field(description="seeds of the 16 coalitions")
    cause_tokens: Count = Field(description="training tokens of each of their SAEs")
    cause_latents: Count = Field(description="dictionary size of their SAEs")
    cause_batch: Count = Field(description="tokens per step, for them")
    cause_lambdas: PositiveLambdas = Field(description="λ between which their L0 is matched")
    split_seeds: Seeds = Field(description="seeds of the SAEs whose codes are searched")
    split_tokens: Count = Field(description="ordinary test tokens of that search")
    learn_tokens: Count = Field(description="training tokens of dictionaries without encoder")
    longer: Positive = Field(description="multiple of the training tokens")
    wider: Positive = Field(description="multiple of the dictionary size")
    shuffled_lambdas: Lambdas = Field(description="λ for activations with shuffled dimensions")
    depth_step: Count = Field(description="every so many sites, for the section on all depths")
    depth_contexts: Count = Field(description="contexts of each page, for the same")
    depth_tokens: Count = Field(description="training tokens of an SAE, for the same")
    depth_lambdas: PositiveLambdas = Field(description="λ between which its L0 is matched")


class FeaturesParams(FeatureParams):
    """06: latents one by one, and whether fewer of a deep site look like one thing."""


class ArchitecturesParams(ArchitectureParams):
    """07: every architecture at the same L0."""


PARAMETERS: dict[str, type[Params]] = {
    "01_collect": CollectParams,
    "02_train_sae": TrainSaeParams,
    "03_train_gated": TrainGatedParams,
    "04_resampling": ResamplingParams,
    "05_layer_analysis": LayerParams,
    "06_features": FeaturesParams,
    "07_architectures": ArchitecturesParams,
}
