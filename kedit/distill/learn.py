"""One edit is learned: its rows, their teacher and the steps of its adapter, beside those of earlier edits."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit.distill.batch import compose
from kedit.distill.edits import Edit, joined
from kedit.distill.loss import distill_loss
from kedit.distill.own_sentences import bar
from kedit.distill.plan import Plan, Protocol
from kedit.distill.rows import Kind, TransferRows, make_rows
from kedit.distill.teacher import live_states
from kedit.editing.sources import DataError
from kedit.lm.adapters import Lora, adapter_state, add_lora, lora_config
from kedit.lm.backbones import output_head
from kedit.lm.causal import position_limit, states
from kedit.lm.divergences import Head


def rows_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, edit: Edit, bos: bool | None = None
) -> TransferRows:
    """An edit's sentences, tokenised, with what `start_ids` says of `bos` before them."""
    settings = edit.settings
    return make_rows(
        tokenizer, edit.sentences, settings.template, settings.positions, position_limit(model.config), edit.facts,
        bos=bos,
    )  # fmt: skip


def joined_config(model: PreTrainedModel, lora: Lora, edits: int) -> LoraConfig:
    """PEFT's description of the sum of edits: ranks add up, and alpha with them. The model is bare."""
    return lora_config(model, replace(lora, rank=lora.rank * edits, alpha=lora.strength * edits))


def learn(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    edit: Edit,
    earlier: Sequence[Edit],
    lora: Lora,
    progress: bool = True,
    bos: bool | None = None,
) -> list[float]:
    """Learn an edit's adapter and note it in the edit; the model has it when this is done, beside that of `earlier`.

    Args:
        model: the initial model, without any adapter, in evaluation mode: the teacher, then the student.
        tokenizer: its tokenizer.
        edit: facts, sentences and settings.
        earlier: edits in whose presence it is learned; they stay as they are.
        lora: the adapter of an edit.
        progress: whether to show how far it is.
        bos: what stands before every text, as `start_ids` says.

    Returns:
        the loss of every step.

    Raises:
        DataError: states or loss are not finite.
    """
    settings, device = edit.settings, model.device
    rows = rows_of(model, tokenizer, edit, bos)
    own: list[list[int]] = [[] for _ in edit.facts]
    kept: list[list[int]] = [[] for _ in edit.facts]
    for number, row in enumerate(rows.rows):
        (own if row.kind == Kind.EDIT else kept)[row.fact].append(number)
    protocol, ratio = Protocol(passes=settings.passes), settings.regularisation.ratio
    plan = Plan(own, protocol, settings.batch, settings.seed, False, kept, ratio)
    teacher, head = _teacher(model, rows), Head(*output_head(model))
    weight = settings.regularisation.weight
    limit = position_limit(model.config)
    # GPT-Neo's masks end where its positions do
    row_tokens = settings.row_tokens if limit is None else min(settings.row_tokens, limit)
    adapted = _student(model, edit, earlier, lora)
    learned = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    losses: list[float] = []
    steps = bar(f"learning {len(edit.facts)} facts", plan.steps, "steps", progress)
    with steps, torch.enable_grad(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(settings.seed)  # of the adapter's dropout
        for step in range(plan.steps):
            batch = compose(rows, plan.rows(0, step), row_tokens, [1.0, weight, weight], plan.stages[0].facts, 0)
            packed = replace(batch.rows, **{name: tensor.to(device) for name, tensor in vars(batch.rows).items()})
            student_ND = states(model, packed).flatten(0, 1)[batch.where_N.to(device)]
            teacher_ND = torch.cat([teacher[number] for number in batch.numbers]).to(device)
            loss, _, _ = distill_loss(
                student_ND,
                head,
                (teacher_ND, head),
                batch.weights_N.to(device),
                batch.kinds_N.to(device),
                settings.divergence,
            )
            optimizer.zero_grad()
            loss.backward()
            losses.append(float(loss.detach()))
            if not np.isfinite(losses[-1]):
                raise DataError(f"the loss of step {step + 1} is {losses[-1]}: take a smaller settings.learning_rate")
            if settings.clip is not None:
                torch.nn.utils.clip_grad_norm_(learned, settings.clip)
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * settings.schedule.factor(step, plan.steps)
            optimizer.step()
            steps.update()
    tensors = {name: tensor.cpu().clone() for name, tensor in adapter_state(adapted).items()}
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise DataError("the adapter that was learned is not finite: take a smaller settings.learning_rate")
    edit.tensors = tensors
    return losses


def _teacher(model: PreTrainedModel, rows: TransferRows) -> list[Tensor]:
    """Final states [P, D] of the initial model at each row's scored positions, kept off the device."""
    states_ND = live_states(model, rows.prefixes, rows.rows)
    if not states_ND.isfinite().all():
        raise DataError(
            f"the model's states are not finite: load it in float32 or bfloat16 (it is in {model.dtype}), or look "
            "whether its weights are damaged"
        )
    return list(states_ND.cpu().split([len(row.scored) for row in rows.rows]))


def _student(model: PreTrainedModel, edit: Edit, earlier: Sequence[Edit], lora: Lora) -> PeftModel:
    """Put on a fresh adapter, and frozen beside it the sum of earlier edits."""
    beside = joined_config(model, lora, len(earlier)) if earlier else None
    adapted = add_lora(model, lora, edit.settings.seed, edit.number)
    learned = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    if beside is not None:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            adapted.add_adapter("earlier", beside)
        adapted.base_model.set_adapter(["default", "earlier"])  # type: ignore[operator]
        tensors = joined(earlier)
        for name, parameter in adapted.named_parameters():
            if ".earlier." in name:
                parameter.data.copy_(tensors[name.replace(".earlier.", ".")])
    adapted.eval().requires_grad_(False)
    for parameter in learned:
        parameter.requires_grad_(True)
    for layer in adapted.modules():
        if isinstance(layer, LoraLayer):
            layer.lora_dropout["default"].train()  # the new adapter's alone: the teacher has no dropout
    return adapted
