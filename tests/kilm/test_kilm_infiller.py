import numpy as np
import pytest
import torch
from conftest import TEXTS, tiny_model

from kedit.editing.sources import Candidate, DataError
from kedit.kilm import Infiller
from kedit.kilm.infilling import STRUCTURE
from kedit.kilm.marking import MarkedMention, cut_context, source_and_prefix
from kedit.lm.backbones import add_tokens, save_skeleton

MENTIONS = ["Maro Tellin", "Tellin company", "heron"]
CANDIDATES = [
    [Candidate("Maro (painter)", "Painter from Velmar", 5), Candidate("Velmar", "Harbour town", 1)],
    [Candidate("Tellin", "Company"), Candidate("Tellin (heron)", "Species of heron"), Candidate("Maro")],
    [Candidate("heron", "Species", 3.0)],
]


@pytest.fixture(params=["bart", "t5", "t5-v1.1"])
def infiller(request, tokenizer_folders):
    from kedit.lm.backbones import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_folders["bart" if request.param == "bart" else "t5"])
    add_tokens(tokenizer, STRUCTURE)
    model = tiny_model(request.param, len(tokenizer)).eval()
    model.config.decoder_start_token_id = tokenizer.eos_token_id if request.param == "bart" else tokenizer.pad_token_id
    # a random model repeats itself: sharpened, it says different things of different mentions
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return Infiller(model, tokenizer, batch_size=2)


def test_results_do_not_depend_on_the_batch(infiller):
    together = infiller.describe(TEXTS, MENTIONS, most=10)
    chosen = infiller.disambiguate(TEXTS, MENTIONS, CANDIDATES)
    assert len(set(together)) > 1
    for text, mention, options, description, choice in zip(TEXTS, MENTIONS, CANDIDATES, together, chosen, strict=True):
        assert infiller.describe([text], [mention], most=10) == [description]
        alone = infiller.disambiguate([text], [mention], [options])[0]
        assert alone.chosen == choice.chosen
        assert alone.scores == pytest.approx(choice.scores, abs=1e-4)
    assert (
        infiller.answer(["Who?", "Where is the bridge of Velmar?"], most=8)[1]
        == infiller.answer(["Where is the bridge of Velmar?"], most=8)[0]
    )


def likelihood(infiller, text, mention, string):
    """log p of each token of `string` in the place of the description, by the stock model on one sequence."""
    marks = infiller.marks
    source, prefix = source_and_prefix(infiller.mark(text, mention), marks, infiller.context_tokens)
    decoder = np.concatenate([prefix, string])
    logits = infiller.model(
        input_ids=torch.tensor(source)[None], decoder_input_ids=torch.tensor(decoder[:-1])[None]
    ).logits[0]
    assert marks.masks[0] in source
    logp = logits.log_softmax(-1)[len(prefix) - 1 :]
    return logp[torch.arange(len(string)), torch.tensor(string)].detach().numpy()


def test_scores_are_the_stock_models_likelihoods(infiller):
    encode = lambda text: infiller.tokenizer(" " + text, add_special_tokens=False)["input_ids"]  # noqa: E731
    sums = infiller.disambiguate(TEXTS, MENTIONS, CANDIDATES)
    means = infiller.disambiguate(TEXTS, MENTIONS, CANDIDATES, scoring="mean")
    priors = infiller.disambiguate(TEXTS, MENTIONS, CANDIDATES, scoring="prior")
    both = infiller.disambiguate(TEXTS, MENTIONS, CANDIDATES, descriptions=True)
    marks = infiller.marks
    for k, (text, mention) in enumerate(zip(TEXTS, MENTIONS, strict=True)):
        prior = np.array([c.prior for c in CANDIDATES[k]]) + 1e-6
        for c, candidate in enumerate(CANDIDATES[k]):
            title = [*encode(candidate.title), marks.sep]
            logp = likelihood(infiller, text, mention, title)
            assert sums[k].scores[c] == pytest.approx(logp.sum(), abs=1e-3)
            assert means[k].scores[c] == pytest.approx(logp.mean(), abs=1e-3)
            assert priors[k].scores[c] == pytest.approx(logp.sum() + np.log(prior[c] / prior.sum()), abs=1e-3)
            stop = marks.masks[1] if marks.family == "t5" else marks.end_ent_desc
            whole = [*title, *(encode(candidate.description) if candidate.description else []), stop]
            assert both[k].scores[c] == pytest.approx(likelihood(infiller, text, mention, whole).sum(), abs=1e-3)
        assert sums[k].chosen == int(np.argmax(sums[k].scores))


def test_candidates_that_fill_more_than_a_row_are_scored_all(infiller):
    many = [Candidate(f"Maro {number} of the town of Velmar by the grey bridge") for number in range(40)]
    few = infiller.disambiguate(TEXTS[:1], MENTIONS[:1], [many[:3]])[0]
    all_scores = infiller.disambiguate(TEXTS[:1], MENTIONS[:1], [many])[0].scores
    assert len(all_scores) == 40
    assert all_scores[:3] == pytest.approx(few.scores, abs=1e-4)
    assert len(set(all_scores)) > 20


def test_no_candidates_no_choice(infiller):
    assert infiller.disambiguate(TEXTS[:1], MENTIONS[:1], [[]])[0].chosen == -1
    assert infiller.describe([], []) == []


def test_long_contexts_are_cut_around_the_mention(infiller):
    text = " ".join([TEXTS[1]] * 60) + " Maro Tellin. " + " ".join([TEXTS[2]] * 60)
    marked = infiller.mark(text, "Maro Tellin")
    ids, start, end, slot = cut_context(marked, infiller.context_tokens)
    assert len(ids) == infiller.context_tokens < len(marked.ids)
    assert infiller.tokenizer.decode(ids[start:end]).strip() == "Maro Tellin"
    assert slot == end
    assert 0.3 < start / len(ids) < 0.7
    assert infiller.describe([text], ["Maro Tellin"], most=4)


def test_mentions_that_are_not_there_are_named(infiller):
    with pytest.raises(DataError, match="'Dino' does not stand in the text"):
        infiller.describe(TEXTS[:1], ["Dino"])
    with pytest.raises(DataError, match="characters 90 to 95"):
        infiller.describe(TEXTS[:1], [(90, 95)])
    with pytest.raises(DataError, match="slot 13 lies inside"):
        infiller.appositive(TEXTS[0], "painter Maro Tellin", TEXTS[0].index("Maro") + 1)


def test_an_appositive_is_asked_for_at_its_slot(infiller):
    text = TEXTS[0]
    slot = text.index(" was")
    assert isinstance(infiller.appositive(text, "Maro Tellin", slot), str)
    marked = infiller.mark(text, "Maro Tellin")
    marked.slot = len(marked.ids) - 3
    source, _ = source_and_prefix(marked, infiller.marks, infiller.context_tokens)
    decoded = infiller.tokenizer.decode(source)
    hole = "<mask>" if infiller.marks.family == "bart" else "<extra_id_0>"
    assert decoded.index("</ent>") < decoded.index("<ent_desc>") - 5
    assert f"<ent_desc>{hole}</ent_desc>" in decoded


def test_few_shot_examples_stand_before_the_question(infiller):
    asked = []
    encode = infiller._encode

    def remember(sources):
        asked.extend(infiller.tokenizer.decode(source) for source in sources)
        return encode(sources)

    infiller._encode = remember
    infiller.answer(["Who painted?"], examples=[("Where is it?", "Velmar")], most=3)
    assert "Question: Where is it? Answer: Velmar \n\n Question: Who painted? Answer:" in asked[0]


def test_an_export_loads_by_its_folder(infiller, tmp_path):
    infiller.model.save_pretrained(tmp_path)
    save_skeleton(infiller.model, infiller.tokenizer, tmp_path)
    again = Infiller.from_pretrained(tmp_path, device="cpu")
    assert again.describe(TEXTS, MENTIONS, most=6) == infiller.describe(TEXTS, MENTIONS, most=6)


def test_what_does_not_fit_the_model_is_named(infiller):
    text = " ".join(["Velmar"] * 900)
    with pytest.raises(DataError, match="the model has room for"):
        infiller.describe([text], [(0, len(text))])
    with pytest.raises(DataError, match="the model has room for"):
        infiller.appositive(text, "Velmar", len(text) - 3)
    long_title = infiller.disambiguate(TEXTS[:1], MENTIONS[:1], [[Candidate("A"), Candidate(text)]])[0]
    assert len(long_title.scores) == 2
    with pytest.raises(DataError, match="slot 999 lies outside"):
        infiller.appositive(TEXTS[0], "Maro Tellin", 999)


def test_a_slot_is_found_by_its_character(infiller):
    text = TEXTS[0]
    asked = []
    infiller.describe_marked = lambda mentions: asked.extend(mentions) or [("", "")]
    for slot in (text.index(" was"), text.index("was")):
        infiller.appositive(text, "Maro Tellin", slot)
    assert asked[0].slot == asked[1].slot == asked[0].span[1]
    source, _ = source_and_prefix(MarkedMention(asked[0].ids, (2, 4), asked[0].question, slot=2), infiller.marks, 99)
    decoded = infiller.tokenizer.decode(source)
    assert decoded.index("</ent_desc>") < decoded.index("<ent>")


def test_a_model_without_the_tokens_is_refused(tokenizer_folders):
    from kedit.lm.backbones import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_folders["bart"])
    with pytest.raises(DataError, match="lacks <ent> </ent>"):
        Infiller(tiny_model("bart", len(tokenizer)), tokenizer)


def test_answers_near_the_end_of_the_position_table_do_not_depend_on_the_batch(infiller):
    long_question = " ".join(["Velmar"] * 90)
    together = infiller.answer(["Where?", long_question], most=40)
    assert together == [infiller.answer([question], most=40)[0] for question in ("Where?", long_question)]
    assert infiller.answer(["Where?"], prompt=("", "?"), most=3)
