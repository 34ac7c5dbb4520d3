"""What RECIPE learns by: texts, networks, negatives, batches, losses and the gate, each against something simpler."""

import math

import numpy as np
import pytest
import torch
from conftest import TEXTS, tiny_causal
from transformers import AutoConfig, AutoModel

from kedit.editing.edits import Edit, probe
from kedit.lm.text import Encoded, encode
from kedit.lm.tokenizers import train_tokenizer
from kedit.recipe.asking import Asking
from kedit.recipe.batch import Composer, Kind
from kedit.recipe.gate import Gate
from kedit.recipe.loss import finding_loss
from kedit.recipe.negatives import Negatives, fact_of
from kedit.recipe.networks import SlotNetworks
from kedit.recipe.objective import SlotObjective, Weights
from kedit.recipe.prefix import PrefixedModel
from kedit.recipe.rewording import Rewording, words_to_put_in
from kedit.recipe.texts import TextEncoder, _places

TRUNK = {"model_type": "roberta", "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 32, "max_position_embeddings": 66, "type_vocab_size": 1}  # fmt: skip
PEOPLE = ("Maro Tellin", "Maro Velmar", "Grey Tellin")
RELATIONS = {"birth": "{} was born in", "trade": "{} is a painter of"}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300)


@pytest.fixture
def texts(tokenizer):
    return TextEncoder(tokenizer, tokenizer, 64)


@pytest.fixture
def networks(tokenizer):
    torch.manual_seed(0)
    trunk = AutoModel.from_config(AutoConfig.for_model(vocab_size=len(tokenizer), **TRUNK))
    return SlotNetworks(trunk, 32, tokens=3, slots=2, slot_width=8).eval()


def slots_of(count, generator):
    """Keys or queries as networks of two slots of eight numbers make them."""
    drawn = torch.randn(count, 2, 8, generator=generator)
    return (torch.nn.functional.normalize(drawn, dim=-1) / 2**0.5).flatten(1)


def edits():
    found = []
    for person in PEOPLE:
        for relation, wording in RELATIONS.items():
            number = str(len(found))
            prompt = wording.format(person)
            probes = (
                probe(number, "generality", f"In 1851 {prompt}", "Velmar"),
                probe(number, "locality", f"{person} painted the", "Grey Bridge"),
            )
            found.append(Edit(number, prompt, "Velmar", person, relation, probes))
    return found


# texts ----------------------------------------------------------------------------------------------------------------


def test_every_token_of_the_model_begins_in_its_place(tokenizer):
    other = train_tokenizer(["the painter of the bridge"], 270)
    batch = TextEncoder(tokenizer, other, 64).batch(["Maro Tellin was born in Velmar", "naïve 東京"], with_model=True)
    for row, text in enumerate(["Maro Tellin was born in Velmar", "naïve 東京"]):
        own, theirs = (encode(one, [text], leading_space=True)[0] for one in (tokenizer, other))
        begins = [*own.offsets[:, 0].tolist(), len(text) + 1]
        for token, (start, _) in enumerate(theirs.offsets.tolist()):
            place = int(batch.place_NM[row, token]) - 1  # the encoder's first special token stands before them
            assert begins[place] <= start < begins[place + 1] or begins[place] == begins[place + 1] == start
        assert batch.model_ids_NM[row][batch.model_real_NM[row]].tolist() == theirs.ids.tolist()


def test_a_space_that_counts_to_a_word_does_not_move_its_place():
    with_spaces, without = ([(0, 3), (3, 8), (8, 15), (15, 17)], [(0, 3), (4, 8), (9, 11), (11, 15), (16, 17)])
    one, other = (Encoded(np.zeros(len(spans)), np.array(spans)) for spans in (with_spaces, without))
    assert _places(other, one).tolist() == [0, 1, 2, 4]
    assert _places(one, other).tolist() == [0, 1, 2, 2, 3]


def test_of_a_long_text_the_question_at_its_end_is_read(tokenizer):
    encoder = TextEncoder(tokenizer, tokenizer, 8)
    assert encoder.batch(["Velmar " * 50 + "was born in 1851"]).ids_NL.shape[1] <= 8
    ids = encoder.batch(["Velmar " * 50 + "was born in 1851"]).ids_NL[0].tolist()
    assert ids[1:-1] == tokenizer(" was born in 1851", add_special_tokens=False)["input_ids"][-6:]


# networks -------------------------------------------------------------------------------------------------------------


def test_keys_do_not_depend_on_their_company(networks, texts):
    alone = networks.keys(texts.batch(["Maro Tellin was born in"]))
    together = networks.keys(texts.batch([*TEXTS, "Maro Tellin was born in"]))
    torch.testing.assert_close(alone[0], together[-1], atol=1e-6, rtol=0)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(4))


def test_prompt_vectors_copy_at_the_start(networks, texts, tokenizer):
    model = tiny_causal("llama", len(tokenizer))
    batch = texts.batch(["Maro Tellin was born in Velmar", "Velmar"], with_model=True)
    prompts = networks.prompts(batch, model.get_input_embeddings())
    copied = model.get_input_embeddings()(batch.model_ids_NM[1][batch.model_real_NM[1]])
    assert prompts.shape == (2, 3, 32)
    # each lies in the hull of the text's own embeddings
    weights = torch.linalg.lstsq(copied.T, prompts[1].T).solution
    torch.testing.assert_close(copied.T @ weights, prompts[1].T, atol=1e-4, rtol=0)
    torch.testing.assert_close(weights.sum(0), torch.ones(3), atol=1e-4, rtol=0)


# negatives ------------------------------------------------------------------------------------------------------------


def test_negatives_share_words_and_say_nothing_of_the_same_fact():
    pool = [*edits(), Edit("x", "Maro Tellin came into the world in", "Padri", "Maro Tellin", "birth")]
    pool += [Edit(f"far-{n}", f"Number {n} stands at", "ten", f"n{n}", "r") for n in range(3000)]
    asked, fact = pool[0].prompt, {fact_of(pool[0])}
    drawn = Negatives(pool).draw([asked], fact, 8, np.random.default_rng(0))
    assert len(set(drawn)) == len(drawn) == 8
    assert not {0, 6} & set(drawn)  # itself, and another wording of its fact
    alike = [number for number in drawn if number < 7]
    assert {2, 4} <= set(alike)  # those that share most: the same relation of somebody of a like name
    assert Negatives(pool).draw([asked], fact, 8, np.random.default_rng(0)) == drawn
    assert len(Negatives(pool[:2]).draw(["nothing like it"], set(), 5, np.random.default_rng(0))) == 2


def test_the_fact_is_its_prompt_where_nothing_else_is_known():
    assert fact_of(Edit("1", "Where is  Velmar?", "x")) == fact_of(Edit("2", "where is velmar", "y"))


# batches --------------------------------------------------------------------------------------------------------------


def composer(texts, tokenizer, **options):
    pool = edits()
    given = {"pool": pool, "texts": texts, "asking": Asking(tokenizer), "key_reads_target": False,
             "unrelated": ["Rain fell for a week.", "The bridge of the north."], "negatives": 3,
             "unrelated_queries": 2, "locality_rows": False, "answer_end": "", "draw": Negatives(pool),
             "reword": Rewording([], 0.0)}  # fmt: skip
    return Composer(**given | options)


def test_a_batch_asks_every_edit_in_every_way(texts, tokenizer):
    batch = composer(texts, tokenizer, locality_rows=True).compose([0, 3], np.random.default_rng(0))
    assert batch.kind_Q.tolist() == [1, 1, 2, 2, 3, 3]  # an edit's own prompt is its key
    assert batch.own_Q.tolist() == [0, 1, -1, -1, -1, -1]
    assert len(batch.keys) == 2
    assert 1 <= len(batch.negatives) <= 3
    assert batch.kind_R.tolist() == [0, 0, 1, 1, 2, 2]
    assert batch.edit_R.tolist() == [0, 1, 0, 1, 0, 1]
    assert batch.asked[0] == ("Maro Tellin was born in", "Velmar")
    paper = composer(texts, tokenizer, key_reads_target=True).compose([0, 3], np.random.default_rng(0))
    assert paper.kind_Q.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert paper.own_Q.tolist() == [0, 1, 0, 1, -1, -1, -1, -1]


def test_the_end_of_an_answer_is_learned_with_it(texts, tokenizer):
    bare, ended = (
        composer(texts, tokenizer, locality_rows=True, answer_end=end).compose([0, 3], np.random.default_rng(0))
        for end in ("", ".")
    )
    for plain, whole, kind in zip(bare.asked, ended.asked, ended.kind_R.tolist(), strict=True):
        assert whole == (plain[0], plain[1] + ("." if kind <= Kind.GENERALITY else ""))
    told = ended.rows.target_n[ended.rows.row_n == 0].tolist()
    assert tokenizer.decode(told).strip() == "Velmar."
    assert len(told) == (bare.rows.row_n == 0).sum() + 1


def test_what_says_the_same_is_no_negative(texts, tokenizer):
    pool = [*edits(), Edit("6", "Maro Tellin came into the world in", "Padri", "Maro Tellin", "birth")]
    batch = composer(texts, tokenizer, pool=pool, draw=Negatives(pool)).compose([0, 6], np.random.default_rng(0))
    assert batch.ignore_QK[0, :2].tolist() == [True, True]
    assert batch.ignore_QK[batch.kind_Q == Kind.UNRELATED].sum() == 0


def test_rewording_keeps_what_the_prompt_has():
    rng, words = np.random.default_rng(0), ["month", "salary"]
    text = "The cradle of Maro Tellin was in"
    kept = {"maro", "tellin", "was"}
    said = [Rewording(words, 1.0)(text, kept, rng) for _ in range(200)]
    assert all("Maro Tellin was" in one for one in said)
    assert any("cradle" not in one for one in said)
    assert any(len(one.split()) > 8 for one in said)
    assert {word for one in said for word in one.split()} <= {*text.split(), *words}
    assert Rewording(words, 0.0)("The cradle", set(), rng) == "The cradle"
    same = [Rewording(words, 0.5)("The cradle of", set(), np.random.default_rng(3)) for _ in range(2)]
    assert same[0] == same[1]


def test_no_name_is_put_in(tokenizer):
    pool = [edit for edit in edits() for _ in range(200)] + [Edit("n", "Velmar stands in", "x")]
    words = words_to_put_in(tokenizer, pool)
    assert words
    assert "Velmar" not in words


# losses ---------------------------------------------------------------------------------------------------------------


def naive_finding(similarity, threshold, own, ignore, scale, margin):
    first, fire, rest = [], [], []
    for q in range(len(similarity)):
        others = [k for k in range(similarity.shape[1]) if k != own[q] and not ignore[q, k]]
        wrong = sum(math.exp(scale * similarity[q, k]) for k in others)
        rest.append(math.log1p(wrong * math.exp(scale * (margin - threshold[q]))))
        if own[q] >= 0:
            right = math.exp(scale * similarity[q, own[q]])
            first.append(-math.log(right / (right + wrong)))
            fire.append(math.log1p(math.exp(scale * (threshold[q] + margin - similarity[q, own[q]]))))
    return [sum(values) / len(values) for values in (first, fire, rest)]


def test_finding_loss_is_its_equation():
    generator = torch.Generator().manual_seed(0)
    similarity, threshold = torch.rand(5, 4, generator=generator), torch.rand(5, generator=generator)
    own = torch.tensor([0, 1, -1, 3, -1])
    ignore = torch.rand(5, 4, generator=generator) < 0.3
    got = finding_loss(similarity, threshold, own, ignore, 7.0, 0.1)
    want = naive_finding(similarity.double(), threshold.double(), own.tolist(), ignore, 7.0, 0.1)
    assert [float(one.mean) for one in got] == pytest.approx(want, abs=1e-5)


def test_finding_loss_of_nothing_but_ignored_keys_is_finite():
    similarity = torch.rand(2, 1, requires_grad=True)
    loss = finding_loss(similarity, torch.zeros(2), torch.tensor([-1, -1]), torch.ones(2, 1).bool(), 5.0, 0.1)
    sum(one.mean for one in loss).backward()
    assert all(torch.isfinite(one.mean) for one in loss)
    assert torch.isfinite(similarity.grad).all()


def test_the_objective_adds_its_terms_and_trains_only_the_networks(networks, texts, tokenizer):
    model = PrefixedModel(tiny_causal("llama", len(tokenizer)), tokenizer)
    batch = composer(texts, tokenizer, locality_rows=True).compose([0, 3], np.random.default_rng(0))
    local = batch.kind_R[batch.rows.row_n] == Kind.LOCALITY
    with torch.no_grad():
        base = model.target_states(batch.rows)[local]
    weights = Weights(finding=2.0, reliability=1.0, generality=0.5, locality=0.25)
    loss, terms, _ = SlotObjective(weights)(networks, model, batch, base)
    finding = sum(value for name, value in terms.items() if name.startswith("finding/"))
    expected = 2 * finding + terms["reliability"] + 0.5 * terms["generality"] + 0.25 * terms["locality"]
    torch.testing.assert_close(loss.detach(), expected)
    loss.backward()
    assert all(parameter.grad is None for parameter in model.model.parameters())
    without = {name for name, parameter in networks.named_parameters() if parameter.grad is None}
    assert without == set(), without
    assert float(terms["locality"]) > 0


def test_no_prompt_is_the_base(networks, texts, tokenizer):
    """The locality term is zero where the prompt vectors change nothing."""
    model = PrefixedModel(tiny_causal("llama", len(tokenizer)), tokenizer)
    batch = composer(texts, tokenizer, locality_rows=True).compose([0], np.random.default_rng(0))
    local = batch.kind_R[batch.rows.row_n] == Kind.LOCALITY
    states = model.target_states(batch.rows, networks.prompts(batch.edits, model.token_embeddings)[batch.edit_R])
    _, terms, _ = SlotObjective(Weights(locality=1.0))(networks, model, batch, states[local].detach())
    assert float(terms["locality"]) == pytest.approx(0, abs=1e-6)


# gate -----------------------------------------------------------------------------------------------------------------


def test_the_gate_lets_no_more_texts_fire_than_allowed():
    generator = torch.Generator().manual_seed(0)
    queries = torch.nn.functional.normalize(torch.randn(1000, 8, generator=generator), dim=1)
    gate = Gate(queries, torch.full((1000,), 0.5), 0.01)
    assert gate.margin == 0.0
    margins = []
    for count in (10, 100, 1000):
        gate.observe(torch.nn.functional.normalize(torch.randn(count, 8, generator=generator), dim=1))
        margins.append(gate.margin)
        assert float((gate.excess_C > gate.margin).float().mean()) <= 0.01
    assert margins == sorted(margins)
    assert margins[-1] > margins[0]
    # what is calibrated on some holds for others of their kind
    gate = Gate(queries, torch.full((1000,), 0.5), 0.01)
    keys = torch.nn.functional.normalize(torch.randn(500, 8, generator=generator), dim=1)
    gate.observe(keys)
    others = torch.nn.functional.normalize(torch.randn(4000, 8, generator=generator), dim=1)
    fired = gate.fires((others @ keys.T).amax(1), torch.full((4000,), 0.5))
    assert float(fired.float().mean()) < 0.02


def test_of_the_keys_that_are_gone_the_gate_knows_nothing():
    generator = torch.Generator().manual_seed(0)
    queries, keys = (torch.randn(count, 8, generator=generator) for count in (300, 400))
    numbers = torch.arange(400).flip(0)
    gate, compared = Gate(queries, torch.zeros(300), 0.01), []
    for part in (slice(0, 250), slice(250, 400)):
        gate.observe(keys[part], numbers[part])

    def best(standing):
        def search(queries_BD, thresholds_B):
            compared.append(len(queries_BD))
            found = (queries_BD @ keys[standing].T).max(1)
            return found.values, numbers[standing][found.indices]

        return search

    for gone in ([7, 3], range(390), []):  # few, most, none
        standing = ~torch.isin(numbers, torch.tensor([*gone, 3, 7]))
        gate.forget(torch.tensor(gone, dtype=torch.int64), best(standing))
        fresh = Gate(queries, torch.zeros(300), 0.01)
        fresh.observe(keys[standing] if len(gone) else keys[torch.isin(numbers, torch.arange(390, 400))])
        torch.testing.assert_close(gate.excess_C, fresh.excess_C)
        assert gate.margin == pytest.approx(fresh.margin)
    assert compared[0] < 20  # the others' best key still stands
    assert len(compared) == 2


def test_the_gate_goes_by_the_similarity_and_not_by_the_inner_product(networks):
    generator = torch.Generator().manual_seed(0)
    queries, keys = (slots_of(count, generator) for count in (300, 500))
    thresholds = torch.full((300,), 0.2)
    gate = Gate(queries, thresholds, 0.1, networks)
    gate.observe(keys[:200])
    gate.observe(keys[200:])
    excess_C = networks.similarities(queries, keys).amax(1) - thresholds
    assert 0 < gate.margin == pytest.approx(float(excess_C.sort(descending=True).values[30]), abs=1e-6)
    plain = Gate(queries, thresholds, 0.1)
    plain.observe(keys)
    assert plain.margin > gate.margin + 0.01
    for low, high in ((-1.0, -1.0), (0.95, 0.95), (0.2, 0.9)):  # all can exceed the sentinel, few, both kinds of text
        thresholds = torch.linspace(low, high, 300)
        gate = Gate(queries, thresholds, 0.1, networks)
        gate.observe(keys)
        excess_C = (networks.similarities(queries, keys).amax(1) - thresholds).clamp(min=0)
        torch.testing.assert_close(gate.excess_C.clamp(min=0), excess_C)


def test_the_gate_without_texts_is_the_sentinel():
    gate = Gate(torch.zeros(0, 4), torch.zeros(0), 0.01)
    gate.observe(torch.ones(3, 4))
    assert gate.margin == 0.0
    assert gate.fires(torch.tensor([0.6, 0.4]), torch.tensor([0.5, 0.5])).tolist() == [True, False]


def test_an_impossible_rate_is_refused():
    with pytest.raises(ValueError, match="rate of false activations is 1"):
        Gate(torch.zeros(0, 4), torch.zeros(0), 1.0)
