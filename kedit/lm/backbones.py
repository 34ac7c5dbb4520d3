"""Hugging Face models with their tokenizers: load, extend, describe. Knows architectures and no method."""

import json
import logging
import os
import re
import socket
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import constants
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
)
from transformers.utils.hub import cached_files

SEQ2SEQ = ("bart", "mbart", "t5", "mt5")
CAUSAL = ("gpt2", "gpt_neo", "gptj", "gpt_neox", "llama", "mistral", "qwen2", "qwen3")
ENCODERS = ("roberta", "xlm-roberta", "bert", "camembert", "electra", "mpnet", "distilbert", "modernbert")
Dtype = Literal["float32", "bfloat16", "float16"]
ATTENTIONS = ("sdpa", "eager", "flash_attention_2", "flex_attention")
"""Others are names of hub repositories, whose code would be run."""
TOKENIZER_FILES = ("tokenizer.json", "vocab.*", "*.model")


class MadeModel(ABC):
    """A model that is made when it is first needed, and kept."""

    @abstractmethod
    def make(self) -> Path:
        """The Hugging Face folder that holds it, written unless it is complete."""


@dataclass
class Backbone:
    """The language model to start from.

    Args:
        name: hub id or local folder of a pretrained model. Without it the weights are random.
        made: makes the model instead, when it is first needed.
        revision: branch, tag or commit of a hub model.
        architecture: a model configuration, as in {model_type: bart, d_model: 128}; with `name` it overrides
            single settings (dropout: 0.0), without `name` it is the whole architecture.
        dtype: type of the weights. Those that are trained want float32, whatever precision the trainer computes in.
        attention: sdpa, eager, flash_attention_2 or flex_attention; by default sdpa where the architecture has it
            (GPT-J and GPT-Neo have only eager and flash_attention_2).
        gradient_checkpointing: recompute activations in the backward pass: less memory, about a third more time.
        vocabulary_multiple: pad the vocabulary to a multiple of this (64 suits tensor cores).
    """

    name: str | None = None
    revision: str | None = None
    made: MadeModel | None = None
    architecture: dict[str, Any] | None = None
    dtype: Dtype = "float32"
    attention: str | None = None
    gradient_checkpointing: bool = False
    vocabulary_multiple: int = 1

    def __post_init__(self) -> None:
        if self.name is None and self.made is None and not (self.architecture or {}).get("model_type"):
            raise ValueError(
                "backbone names no model: give backbone.name (a hub id or a folder) or backbone.architecture with a "
                f"model_type ({', '.join(SEQ2SEQ)})"
            )
        for key in ("trust_remote_code", "auto_map", "attn_implementation", "code_revision"):
            if key in (self.architecture or {}):
                raise ValueError(f"backbone.architecture.{key}: code that comes with a model is not run: leave it out")
        if self.attention is not None and self.attention not in ATTENTIONS:
            raise ValueError(f"backbone.attention is {self.attention}, wanted one of {', '.join(ATTENTIONS)}")
        if self.name is not None and self.made is not None:
            raise ValueError("backbone names a model and makes one: give backbone.name or backbone.made, not both")

    @property
    def source(self) -> str | None:
        """Where the model is loaded from, made if need be; None for random weights."""
        return str(self.made.make()) if self.made is not None else self.name


def load_tokenizer(name: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The fast tokenizer of a hub id or a local folder.

    Raises:
        OSError: there is none to be had; the message says what to do.
    """
    folder = Path(name).expanduser()
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in TOKENIZER_FILES):
        # transformers would make up one of a few tokens
        raise OSError(f"{name}: holds no tokenizer, wanted one of the files {', '.join(TOKENIZER_FILES)}")
    return _load(AutoTokenizer, "tokenizer", str(name), revision=revision, use_fast=True)


def _load(automatic: Any, what: str, name: str, **options: Any) -> Any:
    """`automatic.from_pretrained`, with an OSError that names `name` and the remedy where that fails."""
    is_folder = os.path.isdir(os.path.expanduser(name))
    if is_folder:
        name = os.path.expanduser(name)
    elif name.startswith((".", "~", os.sep)) or name.count("/") > 1 or os.path.isdir(name.split("/")[0]):
        raise FileNotFoundError(f"{name}: no such folder, wanted one that holds a {what} as transformers saves it")
    try:
        # without network the hub's client tries again and again, for a minute
        return automatic.from_pretrained(
            # what a folder brings along as its own code is never run, nor is anybody asked
            name, local_files_only=not is_folder and not _hub_answers(), trust_remote_code=False, **options
        )  # fmt: skip
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, TypeError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        if is_folder:
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise OSError(f"{name}: holds no {what} that transformers can load: {_told(reason)}") from error
        if re.search("gated|restricted|401|403", str(error)):
            raise OSError(f"{name}: its owner asks for a licence or a login first: `hf auth login`") from error
        # the latter is how transformers says that there are no files to make a tokenizer of
        if not isinstance(error, OSError) and "backend tokenizer" not in str(error):
            raise OSError(f"{name}: transformers can load no {what} from it: {_told(str(error))}") from error
        raise OSError(
            f"{name}: no such folder here, and {_host()} cannot be reached or has no such {what}: "
            f"`hf download {name} --local-dir FOLDER` where there is access and give that folder, or fill the client's "
            "cache and set HF_HUB_OFFLINE=1"
        ) from error


def fetch(backbone: Backbone) -> None:
    """Have a hub model's files in the client's cache, or the made one written: for one process of a node, so that the
    others find them. A folder is left alone.

    Raises:
        OSError: the model of that name cannot be had.
    """
    name = backbone.source
    if name is None or os.path.isdir(os.path.expanduser(name)):
        return
    _load(AutoConfig, "model", name, revision=backbone.revision)
    load_tokenizer(name, backbone.revision)
    _load(_Weights, "model", name, revision=backbone.revision)


class _Weights:
    """The files of a hub model's weights, in the order in which transformers looks for them."""

    FILES = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)

    @classmethod
    def from_pretrained(cls, name: str, *, trust_remote_code: bool = False, **options: Any) -> None:
        for file in cls.FILES:
            found = cached_file(name, file, _raise_exceptions_for_missing_entries=False, **options)
            if found is None:
                continue
            if file.endswith(".index.json"):
                shards = sorted(set(json.loads(Path(found).read_text(encoding="utf-8"))["weight_map"].values()))
                cached_files(name, shards, **options)
            return
        raise OSError(f"{name} has none of {', '.join(cls.FILES)}")


def _told(reason: str) -> str:
    """A library's reason without the lists of everything that it knows."""
    return re.split(r"(?<=[.:]) (?:Should|Should have|Use|If|Please)\b|\n", reason.strip())[0][:240]


def _host() -> str:
    return re.sub(r"^https?://|/.*$", "", constants.ENDPOINT)


def _hub_answers() -> bool:
    """Whether the hub may be reached: behind a proxy, or when told to stay offline, its client knows better."""
    if constants.HF_HUB_OFFLINE or any(os.environ.get(f"{name}_proxy") or os.environ.get(f"{name.upper()}_PROXY")
                                       for name in ("https", "http", "all")):  # fmt: skip
        return True
    host, _, port = _host().partition(":")
    try:
        socket.create_connection(
            (host, int(port or (80 if constants.ENDPOINT.startswith("http:") else 443))), 3
        ).close()
    except OSError:
        return False
    return True


def load_config(backbone: Backbone, families: Sequence[str] = SEQ2SEQ) -> PreTrainedConfig:
    """The model's configuration, checked to be of one of the architectures that are wanted.

    Raises:
        ValueError: the architecture is another one.
        OSError: the model of that name cannot be had.
    """
    settings = dict(backbone.architecture or {})
    config = None
    model_type = settings.get("model_type")
    if (source := backbone.source) is not None:
        config = _load(AutoConfig, "model", source, revision=backbone.revision, **settings)
        model_type = config.model_type
    if model_type not in families:
        raise ValueError(f"backbone {source or 'architecture'} is a {model_type}, wanted one of {', '.join(families)}")
    if config is None:
        try:
            config = AutoConfig.for_model(**settings)
        except StrictDataclassError as error:
            raise ValueError(f"backbone.architecture: {' '.join(str(error).split())}") from error
    return config


def load_seq2seq(backbone: Backbone, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """An encoder-decoder whose vocabulary holds every token of `tokenizer`."""
    return _model(AutoModelForSeq2SeqLM, load_config(backbone, SEQ2SEQ), backbone, tokenizer)


def load_causal(backbone: Backbone, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A decoder-only model whose vocabulary holds every token of `tokenizer`."""
    return _model(AutoModelForCausalLM, load_config(backbone, CAUSAL), backbone, tokenizer)


def load_encoder(backbone: Backbone, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """An encoder whose vocabulary holds every token of `tokenizer`. A pooler that its weights lack is random: masked
    language models were trained without one.
    """
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(_no_load_report)  # twelve lines about a masked language model's head, which is not wanted
    try:
        return _model(AutoModel, load_config(backbone, ENCODERS), backbone, tokenizer, may_lack="pooler.")
    finally:
        logger.removeFilter(_no_load_report)


def _no_load_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()


def _model(
    automatic: Any, config: PreTrainedConfig, backbone: Backbone, tokenizer: PreTrainedTokenizerBase, may_lack: str = ""
) -> PreTrainedModel:
    """Weights are made on the CPU whatever device context the caller is in: transformers would otherwise ask for
    accelerate, and ZeRO-3's context would skip the initialisation in silence.
    """
    dtype = getattr(torch, backbone.dtype)
    with torch.device("cpu"):
        if (source := backbone.source) is not None:
            model, loading = _load(
                automatic,
                "model",
                source,
                revision=backbone.revision,
                config=config,
                attn_implementation=backbone.attention,
                dtype=dtype,
                output_loading_info=True,
            )
            # transformers draws what is not there at random
            lacking = sorted(set(loading["missing_keys"]) & {name for name, _ in model.named_parameters()})
            if may_lack:
                lacking = [name for name in lacking if not name.startswith(may_lack)]
            if lacking:
                more = f" and {len(lacking) - 1} more weights" if len(lacking) > 1 else ""
                raise OSError(
                    f"{source}: lacks {lacking[0]}{more}, which would be random: wanted all weights of a "
                    f"{type(model).__name__}, check backbone.name and backbone.architecture"
                )
        else:
            _complete(config, tokenizer)
            model = automatic.from_config(config, attn_implementation=backbone.attention).to(dtype)
        grow_vocabulary(model, len(tokenizer), backbone.vocabulary_multiple)
    if backbone.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return model


def _complete(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Fill in what a random model takes from its tokenizer."""
    config.vocab_size = len(tokenizer)
    config.pad_token_id = tokenizer.pad_token_id
    config.bos_token_id = tokenizer.bos_token_id
    config.eos_token_id = tokenizer.eos_token_id
    config.forced_eos_token_id = None
    if not config.is_encoder_decoder:
        return
    # BART begins decoding at </s>, T5 at <pad>
    config.decoder_start_token_id = tokenizer.eos_token_id if "bart" in config.model_type else tokenizer.pad_token_id


def grow_vocabulary(model: PreTrainedModel, tokens: int, multiple: int = 1) -> None:
    """Make room for `tokens` token ids; a model that has room (T5's vocabulary is padded) is left as it is.

    An output head that is not tied to the embedding (T5 v1.1, mT5) stays so: `resize_token_embeddings` would replace
    it by the embedding unless the configuration says that they differ.
    """
    embedding: Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    if len(embedding) >= tokens and len(embedding) % multiple == 0:
        return
    head = model.get_output_embeddings()
    if head is not None and head.weight is not embedding:
        model.config.tie_word_embeddings = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.resize_token_embeddings(
            max(tokens, len(embedding)), pad_to_multiple_of=multiple if multiple > 1 else None
        )


def add_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> dict[str, int]:
    """Add `tokens` as special tokens where they are missing; their ids by token."""
    missing = [token for token in tokens if token not in tokenizer.get_vocab()]
    if missing:
        tokenizer.add_tokens(missing, special_tokens=True)
    vocabulary = tokenizer.get_vocab()
    return {token: vocabulary[token] for token in tokens}


def save_skeleton(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write all that is needed beside the weights to rebuild the model: config.json, generation config, tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def output_head(model: PreTrainedModel) -> tuple[nn.Parameter, Tensor | None]:
    """Weight [V, D] and bias [V] (or None) that turn final states into logits: those of `packing.decode` or
    `causal.states`. BART's bias is a constant, GPT-J's a parameter.
    """
    head = model.get_output_embeddings()
    bias = getattr(model, "final_logits_bias", None)
    return head.weight, head.bias if bias is None else bias[0]


def output_scale(model: PreTrainedModel) -> float:
    """What decoder states are multiplied by before the head: d_model ** -0.5 for T5 v1.0, else 1."""
    return model.config.d_model**-0.5 if getattr(model.config, "scale_decoder_outputs", False) else 1.0


def switch_dropout_off(model: PreTrainedModel) -> None:
    """Make the model's own dropout 0, in training too (adapters put on later keep theirs)."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "activation_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The transformer blocks of a decoder-only model, in order."""
    lists = [module for module in model.base_model.children() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len)
