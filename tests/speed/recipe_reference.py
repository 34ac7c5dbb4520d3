"""RECIPE beside the paper's own code, in one run, on one tiny Llama and one RoBERTa encoder with random weights.

    git clone https://github.com/qizhou000/RECIPE && git -C RECIPE checkout b8ff1fc
    python tests/speed/recipe_reference.py --reference RECIPE [--encoder-layers 12 ...]

Training steps (batch of 8 edits), edits with 10,000 stored, decisions which edit a question means, and what a memory
adds to the language model's own `generate`. The paper's code is run as it stands, its file of data made here; without
`--reference` ours is measured alone. All ways take turns; told are medians of processor time, in which other work on
the machine does not count, and ratios in both that and passing time (on a GPU in the latter only).
"""

import argparse
import functools
import json
import logging
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, RobertaConfig, RobertaModel

from kedit.benchmarks import CounterFact
from kedit.editing.edits import Edit
from kedit.editing.sources import Question, QuestionSource
from kedit.lm.backbones import Backbone, load_tokenizer
from kedit.lm.tokenizers import train_tokenizer
from kedit.recipe import RecipeData, RecipeModule
from kedit.recipe.data import Evaluation
from kedit.recipe.encoding import encode_keys, encode_queries, like_length
from kedit.recipe.gate import Gate
from kedit.recipe.memory import Memory
from kedit.recipe.prefix import PrefixedModel
from kedit.recipe.repository import Repository
from kedit.recipe.texts import TextEncoder
from kedit.recipe.trained import Trained, build_networks

KEY_WIDTH = 4096
"""Of the paper's keys."""


class Taken(NamedTuple):
    """Seconds of processor time, and of passing time."""

    worked: float
    passed: float

    def __truediv__(self, parts: float) -> "Taken":  # type: ignore[override]
        return Taken(self.worked / parts, self.passed / parts)

    def __sub__(self, other: "Taken") -> "Taken":
        return Taken(self.worked - other.worked, self.passed - other.passed)


def now() -> Taken:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Taken(time.process_time(), time.perf_counter())


def timed(action: Callable[[], object]) -> Taken:
    start = now()
    action()
    return now() - start


def median(taken: list[Taken]) -> Taken:
    return Taken(*(statistics.median(values) for values in zip(*taken, strict=True)))


def in_turn(actions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Taken]:
    """The median of each action, all taking turns after one that does not count."""
    found: dict[str, list[Taken]] = {name: [] for name in actions}
    for turn in range(repeats + 1):
        for name, action in actions.items():
            taken = timed(action)
            if turn:
                found[name].append(taken)
    return {name: median(each) for name, each in found.items()}


def table(title: str, found: Mapping[str, Taken], unit: str, per: Mapping[str, float] | None = None) -> None:
    """Milliseconds and rates; ratios to the first, `per` of each for one measured."""
    first, many = next(iter(found)), per or {}
    base = found[first] / many.get(first, 1)
    print(f"\n{title}\n{'':46}{'ms':>9}{unit + '/s':>12}{'ratio':>8}{'passing':>9}")
    for name, taken in found.items():
        one = taken / many.get(name, 1)
        print(f"{name:46}{one.worked * 1e3:9.2f}{1 / one.worked:12.2f}{base.worked / one.worked:8.2f}"
              f"{base.passed / one.passed:9.2f}", flush=True)  # fmt: skip


# what is measured on -------------------------------------------------------------------------------------------------


def rows(number: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Rows of CounterFact in the paper's form, about made-up people: other ones for each seed below 6. They have about
    as many tokens as the real ones.
    """
    rng = random.Random(0)
    parts = [rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") + rng.choice("lmnrst") for _ in range(60)]
    first, last, towns = (["".join(rng.sample(parts, 2)).capitalize() for _ in range(many)] for many in (100, 400, 100))
    ways = [("{} is a citizen of", "The country whose passport {} carries is"), ("{} was born in the town of",
            "As a child {} lived where the family had always lived, in"), ("The mother tongue of {} is",
            "At home with friends {} speaks nothing but")]  # fmt: skip
    for case in range(min(number, 20_000)):
        place = (20_000 * seed + case) * 7919 % 120_000  # a prime: each place comes once
        who, other = (f"{first[one // 1200]} {last[one // 3 % 400]}" for one in (place, 119_999 - place))
        prompt, rephrased = ways[place % 3]
        yield {
            "case_id": case, "prompt": prompt.format(who), "target_new": rng.choice(towns), "subject": who,
            "ground_truth": rng.choice(towns), "locality_prompt": prompt.format(other),
            "rephrase_prompt": f"{rng.choice(first)} came there late and left at once. {rephrased.format(who)}",
            "locality_ground_truth": rng.choice(towns),
        }  # fmt: skip


class MadeQuestions(QuestionSource):
    """Texts that no edit concerns."""

    name = "made"

    def __iter__(self) -> Iterator[Question]:
        return (Question(f"who was it that first wrote about {row['subject']}", []) for row in rows(500, seed=2))


def write(folder: Path, options: argparse.Namespace) -> None:
    """Models, tokenizers and edits to learn from, in a folder."""
    texts = [" ".join(map(str, row.values())) for row in rows(4000)]
    tokenizer = train_tokenizer(texts, 4000, prefix_space=True)
    torch.manual_seed(0)
    special = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id, "eos_token_id": None}
    llama = LlamaForCausalLM(LlamaConfig(
        vocab_size=options.vocabulary, hidden_size=options.width, intermediate_size=4 * options.width,
        num_hidden_layers=options.layers, num_attention_heads=options.width // 64, **special,
    ))  # fmt: skip
    roberta = RobertaModel(RobertaConfig(
        vocab_size=options.encoder_vocabulary, num_hidden_layers=options.encoder_layers, type_vocab_size=1,
        intermediate_size=options.encoder_intermediate, max_position_embeddings=514,
        pad_token_id=tokenizer.pad_token_id,
    ))  # fmt: skip
    for name, model in {"model": llama, "encoder": roberta}.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "edits.json").write_text(json.dumps(list(rows(2000))))
    millions = [sum(part.numel() for part in model.parameters()) / 1e6 for model in (llama, roberta)]
    print(f"Llama of {options.layers} layers, width {options.width}, {options.vocabulary} ids, {millions[0]:.1f} M "
          f"weights; RoBERTa of {options.encoder_layers} layers, width 768, {options.encoder_vocabulary} ids, "
          f"{millions[1]:.1f} M; float32, {options.device}, {options.threads} threads", flush=True)  # fmt: skip


def paper(folder: Path, options: argparse.Namespace) -> Any:
    """The paper's editor and its data, from its repository."""
    sys.path.insert(0, str(options.reference.resolve()))
    import utils.global_attrs as folders  # type: ignore[import-not-found]

    folders.ROOT_PATH = folders.MODEL_PATH = ""  # an ellipsis as it comes
    from editors.recipe import models  # type: ignore[import-not-found]
    from editors.recipe.data import RECIPETrainData  # type: ignore[import-not-found]
    from editors.recipe.recipe import RECIPE, RECIPEConfig  # type: ignore[import-not-found]

    tokenizer = load_tokenizer(folder / "model")
    models.RobertaTokenizer = type("Ours", (), {"from_pretrained": staticmethod(lambda _: tokenizer)})
    training = RECIPEConfig.TrainingConfig(1e-5, 1e-5, 1, 1, 1, 1, 1, 1, 1.2, 1.2)
    config = RECIPEConfig(
        edit_model_name="tiny", prompt_token_n=3, knowledge_rep_dim=KEY_WIDTH, knowl_rep_prot_token_n=10,
        model_hidden_size=options.width, begin_layer_path="model.layers.0", lm_head_path="lm_head", training=training,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(folder / "model").to(options.device)
    editor = RECIPE(model, tokenizer, config, options.device, str(folder / "encoder"))
    editor.data = RECIPETrainData(tokenizer, None, "cf", str(folder / "edits.json"), False, options.device)
    return editor


# training ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """One way of training: its name, and the options that differ."""

    name: str
    edits: int = 8
    negatives: int = 0
    unrelated: int = 0
    reference: bool = False
    fused: bool = False


WAYS = [
    Way("ours, reference: true", reference=True),
    Way("ours, reference: true, fused AdamW", reference=True, fused=True),
    Way("ours, the same texts", fused=False),
    Way("ours, the same texts, fused AdamW", fused=True),
    Way("ours, with 48 negatives, 8 unrelated, fused", negatives=48, unrelated=8, fused=True),
    Way("ours, 32 edits, 192 and 32, fused", edits=32, negatives=192, unrelated=32, fused=True),
]


class Steps(Callback):
    """When each training step ended, batch-making included."""

    def __init__(self) -> None:
        self.ends: list[Taken] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:  # fmt: skip
        self.ends.append(now())


def train_ours(way: Way, folder: Path, options: argparse.Namespace) -> list[Taken]:
    """Seconds of each step but the first."""
    seed_everything(0, verbose=False)
    data = RecipeData(
        CounterFact(str(folder / "edits.json")), unrelated=[MadeQuestions()], batch_edits=way.edits,
        negatives=way.negatives, unrelated_queries=way.unrelated,
        evaluation=Evaluation(validation_edits=1, validation_stored=0),
    )  # fmt: skip
    module = RecipeModule(
        Backbone(str(folder / "model")), trunk=Backbone(str(folder / "encoder")), reference=way.reference,
        slot_width=options.slot_width, key_width=KEY_WIDTH,
        optimizer=functools.partial(torch.optim.AdamW, lr=1e-5, fused=way.fused or None),
    )  # fmt: skip
    steps = Steps()
    Trainer(
        accelerator="gpu" if options.device == "cuda" else "cpu", devices=1, max_steps=options.steps + 1,
        callbacks=[steps], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, num_sanity_val_steps=0,
    ).fit(module, data)  # fmt: skip
    return [after - before for before, after in zip(steps.ends, steps.ends[1:], strict=False)]


def train_paper(editor: Any, options: argparse.Namespace) -> list[Taken]:
    """Seconds of each step but the first, with the batch it makes of its tokenised rows."""
    editor.set_train(True)
    editor.rng, editor.ema_loss, editor.log_per_i = np.random.default_rng(0), 1, 10
    parts = (editor.knowl_rep_model, editor.prompt_transformer)
    editor.opt = torch.optim.Adam([{"params": part.parameters(), "lr": 1e-5} for part in parts])
    drawn = np.random.default_rng(1)
    taken = []
    for _ in range(options.steps + 1):
        start = now()
        about_keys, about_edits = editor.data.get_data_by_ids(drawn.integers(editor.data.sample_count, size=8))
        editor.__train_a_batch__(*about_keys, *about_edits)
        taken.append(now() - start)
    del editor.opt
    editor.set_train(False)
    return taken[1:]


def training(folder: Path, editor: Any, options: argparse.Namespace) -> None:
    found: dict[str, list[Taken]] = {}
    for _ in range(options.rounds):
        if editor is not None:
            found.setdefault("the paper's code", []).extend(train_paper(editor, options))
        for way in (WAYS[number] for number in options.ways):
            found.setdefault(way.name, []).extend(train_ours(way, folder, options))
    medians = {name: median(taken) for name, taken in found.items()}
    table("Training, a step", medians, "steps")
    table("Training, an edit", medians, "edits", {one.name: one.edits for one in WAYS} | {"the paper's code": 8})


# edits and questions -------------------------------------------------------------------------------------------------


def open_memory(
    folder: Path, store: Path, model: PrefixedModel, reference: bool, options: argparse.Namespace
) -> Memory:
    """A memory of random networks that holds so many edits, their keys made up."""
    tokenizer = load_tokenizer(folder / "model")
    sizes = {"tokens": 3, "key_width": KEY_WIDTH, "sentinel_tokens": 10}
    if not reference:
        sizes = {"tokens": 5, "slots": 4, "slot_width": options.slot_width}
    trained = Trained.of(model.model, tokenizer, "tiny", sizes=sizes, reference=reference)
    trunk = AutoModel.from_pretrained(folder / "encoder")
    networks = build_networks(trained, trunk).eval().requires_grad_(False).to(options.device)
    texts = TextEncoder(tokenizer, tokenizer)
    calibration = encode_queries(networks, texts, [question.question for question in MadeQuestions()])
    gate = Gate(*calibration, networks=networks)
    repository = Repository.open(store, encoder="made", key_width=networks.key_width)
    edits = [made(row, "filler") for row in rows(options.stored, seed=3)]
    keys_ND = torch.nn.functional.normalize(torch.randn(len(edits), networks.key_width), dim=1)
    keys_ND *= encode_keys(networks, texts, edits[:32]).norm(dim=1).mean().cpu()  # as long as true ones
    repository.add(edits, keys_ND.numpy())
    return Memory(networks, texts, model, repository, gate)


def made(row: dict[str, Any], kind: str) -> Edit:
    return Edit(f"{kind}{row['case_id']}", f"{row['prompt']}", row["target_new"], row["subject"])


def editing(memories: Mapping[str, Memory], editor: Any, options: argparse.Namespace) -> None:
    """Edits until they are found: each is followed by a question, whose time is little beside a batch's."""
    fresh = (made(row, "new") for row in rows(20_000, seed=4))
    take = lambda number: [next(fresh) for _ in range(number)]  # noqa: E731

    def add(memory: Memory, number: int) -> None:
        edits = take(number)
        memory.add(edits)
        assert memory.decide([edits[0].prompt])[0].edit is not None

    actions, per = {}, {}
    if editor is not None:

        def add_paper() -> None:
            for edit in take(100 // options.repeats):
                editor.edit_one_piece({"prompt": edit.prompt, "subject": edit.subject, "target_new": edit.target})

        actions["the paper's code, one by one"], per["the paper's code, one by one"] = add_paper, 100 // options.repeats
    for name, memory in memories.items():
        actions[f"{name}, batches of {options.batch}"] = functools.partial(add, memory, options.batch)
        actions[f"{name}, one by one"] = functools.partial(add, memory, 1)
        per[f"{name}, batches of {options.batch}"] = options.batch
    table(f"An edit, {options.stored:,} stored", in_turn(actions, options.repeats), "edits", per)


def fill(editor: Any, number: int) -> None:
    """Made-up edits, beside the sentinel."""
    editor.restore_to_original_model()
    keys_ND = torch.randn(number, KEY_WIDTH, device=editor.device)
    prompts_NTE = torch.randn(number, *editor.prompts_base.shape[1:], device=keys_ND.device)
    editor.knowledge_base = torch.cat([editor.knowledge_base, keys_ND])
    editor.prompts_base = torch.cat([editor.prompts_base, prompts_NTE])


def asking(memories: Mapping[str, Memory], editor: Any, options: argparse.Namespace) -> None:
    """Which edit a question means."""
    words = [row["prompt"] for row in rows(2000, seed=5)]
    drawn = random.Random(0)
    for size in (1, 32):
        actions: dict[str, Callable[[], object]] = {}
        if editor is not None:
            actions["the paper's code"] = lambda: no_grad(editor.retrieve_and_get_ids_sim, drawn.sample(words, size))  # noqa: B023
        for name, memory in memories.items():
            actions[name] = lambda memory=memory: memory.decide(drawn.sample(words, size))  # type: ignore[misc]  # noqa: B023
        memory = next(iter(memories.values()))

        def read() -> None:
            for _, batch in like_length(memory.texts, drawn.sample(words, size), torch.device(options.device)):  # noqa: B023
                memory.networks.trunk(input_ids=batch.ids_NL, attention_mask=batch.real_NL.long())  # noqa: B023

        actions["the encoder alone, common to all"] = lambda: no_grad(read)
        found = in_turn(actions, 4 * options.repeats)
        table(f"A decision, {options.stored:,} stored, {size} at once", found, "questions", dict.fromkeys(found, size))


@torch.no_grad()
def no_grad(action: Callable[..., object], *given: Any) -> object:
    return action(*given)


# answers -------------------------------------------------------------------------------------------------------------


def answering(name: str, memory: Memory, options: argparse.Namespace) -> None:
    """What the memory adds to the model's own `generate` where each prompt has an edit, part by part."""
    model = memory.model
    assert isinstance(model, PrefixedModel)
    tokenizer = model.tokenizer
    edits = [made(row, "asked") for row in rows(32, seed=1)]
    memory.add(edits)
    for size in (1, 32):
        prompts = [edit.prompt for edit in edits[:size]]
        decisions = memory.decide(prompts)
        meant = [type(one)(one.edit, True, *(getattr(one, part) for part in ("similarity", "threshold", "margin")))
                 for one in decisions]  # fmt: skip
        vectors = memory.vectors(meant)

        def bare() -> None:
            given = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left").to(options.device)  # noqa: B023
            with torch.no_grad():
                ids = model.model.generate(**given, max_new_tokens=16, do_sample=False, pad_token_id=0)  # type: ignore[operator]
            tokenizer.batch_decode(ids, skip_special_tokens=True)

        found = in_turn({
            "the model's own generate": bare,
            "without vectors": lambda: model.generate(prompts, max_new_tokens=16),  # noqa: B023
            "with vectors": lambda: model.generate(prompts, vectors, max_new_tokens=16),  # noqa: B023
            "queries": lambda: encode_queries(memory.networks, memory.texts, prompts),  # noqa: B023
            "decisions": lambda: memory.decide(prompts),  # noqa: B023
            "prompt vectors": lambda: memory.vectors(meant),  # noqa: B023
        }, 2 * options.repeats)  # fmt: skip
        whole = found["the model's own generate"].worked
        parts = {
            "queries read by the encoder": found["queries"].worked,
            "search, gate and look-up": found["decisions"].worked - found["queries"].worked,
            "prompt vectors": found["prompt vectors"].worked,
            "longer rows": found["with vectors"].worked - found["without vectors"].worked,
            "our generate around the model's": found["without vectors"].worked - whole,
        }
        print(f"\nAdded to generate (16 tokens, {size} at once, {whole * 1e3:.1f} ms): {name}")
        for part, seconds in [*parts.items(), ("in all", sum(parts.values()))]:
            print(f"{part:46}{seconds * 1e3:9.2f} ms{seconds / whole:9.1%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, help="folder of the paper's repository")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2, help="of training, each way anew")
    parser.add_argument("--steps", type=int, default=2, help="of training in a round, that count")
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--stored", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=256, help="edits added at once")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--encoder-layers", type=int, default=2)
    parser.add_argument("--encoder-intermediate", type=int, default=256, help="roberta-base's is 3072")
    parser.add_argument("--encoder-vocabulary", type=int, default=8_000)
    parser.add_argument("--slot-width", type=int, default=64, help="as by default; the configurations have 192")
    parser.add_argument("--ways", type=int, nargs="*", default=list(range(len(WAYS) - 1)), help="of training")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, options)
        editor = paper(folder, options) if options.reference else None
        training(folder, editor, options)
        model = AutoModelForCausalLM.from_pretrained(folder / "model").to(options.device)
        prefixed = PrefixedModel(model, load_tokenizer(folder / "model"))
        memories = {
            "ours": open_memory(folder, folder / "slots", prefixed, False, options),
            "ours, reference: true": open_memory(folder, folder / "paper", prefixed, True, options),
        }
        if editor is not None:
            with torch.no_grad():
                fill(editor, options.stored)
        # before real edits are stored: untrained networks find these all alike, as trained ones never do
        asking(memories, editor, options)
        editing(memories, editor, options)
        for title, memory in memories.items():
            answering(title, memory, options)
            memory.close()


if __name__ == "__main__":
    main()
