"""Malformed files of every kind: each is refused with file, place and remedy, in a line, and without a traceback."""

import bz2
import gzip
import json
import re
import shutil
import sqlite3
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from checking.malformed import (
    ECBD,
    EDIT,
    FACT,
    FLAT,
    INFERENCE,
    KNOWEDIT,
    MEND,
    MENTION,
    NEEDED,
    NESTED,
    NQ,
    POPULAR,
    RECORDS,
    RIPPLE,
    SENTENCE,
    WEB,
    changed,
    lines,
    without,
    write,
)
from conftest import TEXTS
from kilm.tiny_dump import HEAD, TAIL, page, sample, streams

from kedit.cli import main
from kedit.editing.edits import Edit
from kedit.kilm.build import build_corpus
from kedit.kilm.wikipedia import PAGE
from kedit.lm.tokenizers import train_tokenizer
from kedit.recipe.repository import Repository

# (name, file, content, place behind the file's name, words of the line); "@KIND" behind the name gives --kind
Case = tuple[str, str, object, str, str]


def csv(*rows: str) -> bytes:
    return "\n".join(rows).encode()


def parquet(**columns: object):
    return lambda path: pq.write_table(pa.table(columns), path)


def cut(make, at: float):
    def cut_off(path: Path) -> None:
        make(path)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * at)])

    return cut_off


def edits(*records: object) -> bytes:
    return lines(EDIT, *records)


def other(**fields: object) -> dict:
    return {"prompt": "The moon is", "target": "far", **fields}


GOOD = json.dumps(EDIT).encode() + b"\n"
HEADER = "prompt,target_new,subject,rephrase_prompt,locality_prompt,locality_ground_truth"
ROW = "It is,b,It,So is it,Else,c"

TEXT: list[Case] = [  # what is no JSON, or no text, whatever is meant
    ("broken", "a.jsonl", GOOD + b"{broken\n", ":2", "not JSON.*mend"),
    ("cut off", "a.jsonl", GOOD + GOOD[:40], ":2", "Unterminated string.*close the string"),
    ("end missing", "a.jsonl", GOOD + b'{"prompt": "a"\n', ":2", "not JSON.*the end is missing"),
    ("two on a line", "a.jsonl", GOOD + GOOD.strip() + GOOD, ":2", "Extra data.*a line of its own"),
    ("rubbish behind", "a.jsonl", GOOD + b'{"prompt": "a"} end\n', ":2", "Extra data.*take out what stands there"),
    ("comma at the end", "a.jsonl", GOOD + b'{"prompt": "a",}\n', ":2", "not JSON.*comma"),
    ("single quotes", "a.jsonl", GOOD + b"{'prompt': 'a'}\n", ":2", "not JSON.*JSON quotes by"),
    ("curly quotes", "a.jsonl", GOOD + "{“prompt”: “a”}\n".encode(), ":2", "not JSON.*JSON quotes by"),
    ("backslash", "a.jsonl", GOOD + b'{"prompt": "C:\\dir"}\n', ":2", "not JSON.*backslash as two"),
    ("tab in a string", "a.jsonl", GOOD + b'{"prompt": "a\tb"}\n', ":2", "control character.*line end in it"),
    ("no value", "a.jsonl", GOOD + b'{"prompt": }\n', ":2", "not JSON.*write the value behind the colon"),
    ("python's None", "a.jsonl", GOOD + b'{"prompt": None}\n', ":2", "not JSON.*mend what stands there"),
    ("NaN", "a.jsonl", GOOD + b'{"prompt": NaN, "target": "b"}\n', ":2", "NaN is no number.*leave it out"),
    ("Infinity", "a.jsonl", GOOD + b'{"prompt": -Infinity, "target": "b"}\n', ":2", "-Infinity is no number.*quote"),
    ("larger than numbers", "a.jsonl", GOOD + b'{"prompt": 1e999}\n', ":2", "1e999 is larger.*check it"),
    ("thousands of digits", "a.jsonl", GOOD + b'{"prompt": ' + b"1" * 5000 + b"}\n", ":2", "digits.*quote such"),
    ("duplicate key", "a.jsonl", GOOD + b'{"prompt": "a", "target": "b", "prompt": "c"}\n', ":2", "twice.*keep one"),
    ("deep", "a.jsonl", GOOD + b"[" * 9999 + b"]" * 9999, ":2", "too deep.*three or four levels"),
    ("lone surrogate", "a.jsonl", GOOD + b'{"prompt": "\\ud800", "target": "b"}\n', ":2", "half a character.*take"),
    ("surrogate in a key", "a.jsonl", GOOD + b'{"\\udfff": "a"}\n', ":2", "half a character.*take"),
    ("latin-1", "a.jsonl", GOOD + '{"prompt": "é"}'.encode("latin-1"), ":2", "not UTF-8.*byte 13.*Latin-1"),
    ("utf-16", "a.jsonl", GOOD.decode().encode("utf-16"), ":1", "not UTF-8.*UTF-16: save it as UTF-8"),
    ("gzip", "a.jsonl", gzip.compress(GOOD, mtime=0), ":1", "not UTF-8.*gzip: unpack"),
    ("zip", "a.jsonl", b"PK\x03\x04\xff\xfe", ":1", "not UTF-8.*zip archive: unpack"),
    ("parquet by another name", "a.jsonl", b"PAR1\x15\xff\xfe", ":1", "Parquet: name it .parquet"),
    ("binary", "a.jsonl", bytes(range(256)), ":1", "not JSON|not UTF-8"),
    ("nulls", "a.jsonl", GOOD + b"\0" * 4096, ":2", "not JSON.*mend"),
    ("mark alone", "a.jsonl", b"\xef\xbb\xbf\n", ":1", "not JSON"),
    ("windows lines, second bad", "a.jsonl", GOOD.strip() + b"\r\n{\r\n", ":2", "not JSON.*the end is missing"),
    ("mark, second bad", "a.jsonl", b"\xef\xbb\xbf" + GOOD + b"{\n", ":2", "not JSON"),
    ("10 MB line", "a.jsonl", edits(other(target="x" * 10_000_000)), ":2", "10,000,000 characters.*cut a document"),
    ("10 MB of no JSON", "a.jsonl", GOOD + b"x" * 10_000_000, ":2", "not JSON.*mend"),
    ("empty", "a.jsonl", b"", "", "no record in it.*--kind"),
    ("blank lines", "a.jsonl", b"\n \n\r\n", "", "no record in it.*--kind"),
    ("error page", "a.jsonl", b"<html><body>404</body></html>", ":1", "not JSON.*is it an error page"),
    ("list not closed", "a.json", b"[" + GOOD, ":2", "not JSON.*the end is missing"),
    ("list, bad entry", "a.json", b"[" + GOOD + b",\n{]\n", ":3", "not JSON"),
    ("empty list", "a.json", b"[]", "", "no record in it"),
    ("numbers", "a.jsonl", b"1\n2\n", "", "first record .int.*--kind"),
    ("unknown keys", "a.jsonl", lines({"colour": "red"}), "", "'colour'.*of no kind.*--kind"),
    ("unknown suffix", "a.dat", b"\x01\x02", "", "tells what it is.*--kind"),
    ("gz suffix", "a.gz", gzip.compress(GOOD, mtime=0), "", "tells what it is.*--kind"),
    ("no such file", "a.jsonl", lambda path: None, "", "no such file.*check the name"),
    ("folder of nothing", "a", lambda path: path.mkdir(), "", "is a folder.*--kind"),
    ("folder named as a file@edits", "a.jsonl", lambda path: path.mkdir(), "", "is a folder, wanted a file"),
    ("folder for facts@facts", "a", lambda path: path.mkdir(), "", "folder.*wanted facts"),
    ("folder for mentions@mentions", "a", lambda path: path.mkdir(), "", "is a folder, wanted a file"),
    ("folder for a table@counterfact", "a", lambda path: path.mkdir(), "", "is a folder.*a file in it"),
    ("link to nowhere", "a.jsonl", lambda path: path.symlink_to(path.parent / "gone"), "", "no such file"),
]  # fmt: skip

RECORD: list[Case] = [  # what is JSON, and not what is wanted
    ("edit with a number", "a.jsonl", edits(other(target=3)), ":2", "'target' is int 3, wanted str; quote it"),
    ("edit with null", "a.jsonl", edits(other(target=None)), ":2", "'target' is NoneType null.*a text in quotes"),
    ("edit with a list", "a.jsonl", edits(other(target=["a"])), ":2", "'target' is list.*a text in quotes"),
    ("edit with true", "a.jsonl", edits(other(target=True)), ":2", "'target' is bool true.*quote it"),
    ("edit misspelt", "a.jsonl", edits({"promt": "a", "target": "b"}), ":2", "no 'prompt'.*rename 'promt'"),
    ("edit with more", "a.jsonl", edits(other(colour="red")), ":2", "no field 'colour'.*take it out"),
    ("edit, field nearly right", "a.jsonl", edits(other(subjct="b")), ":2", "no field 'subjct'.*mean 'subject'"),
    ("edit empty", "a.jsonl", edits(other(target="")), ":2", "'target' is empty.*give it some words"),
    ("edit of spaces", "a.jsonl", edits(other(target=" \t ")), ":2", "'target' is empty.*give it some words"),
    ("prompt of spaces", "a.jsonl", edits(other(prompt="\u3000")), ":2", "'prompt' is empty"),
    ("edit of a document", "a.jsonl", edits(other(target="x" * 20_001)), ":2", "20,001 characters.*cut a document"),
    ("right to left", "a.jsonl", edits(other(target="a\u202eb")), ":2", r"U\+202E at place 2.*take it out"),
    ("isolate", "a.jsonl", edits(other(prompt="a\u2067b")), ":2", r"'prompt' holds.*U\+2067.*take it out"),
    ("null character", "a.jsonl", edits(other(target="a\0b")), ":2", r"U\+0000.*take it out"),
    ("bell", "a.jsonl", edits(other(subject="a\ab")), ":2", r"'subject'.*U\+0007.*take it out"),
    ("hidden in an id", "a.jsonl", edits(other(id="a\u202eb")), ":2", r"'id'.*U\+202E.*take it out"),
    ("id twice", "a.jsonl", edits(EDIT | {"prompt": "x"}), ":2", "id 'e1' came before at .*:1.*its own"),
    ("id that is a line", "a.jsonl", lines(EDIT | {"id": "2"}, other()), ":2", "id '2' came before.*its own"),
    ("probe of no aspect", "a.jsonl", edits(other(probes=[{"group": "x", "prompt": "a"}])), ":2, probe 1",
     "'group' is 'x'.*name one"),
    ("probe of the edit itself", "a.jsonl", edits(other(probes=[{"group": "reliability", "prompt": "a"}])),
     ":2, probe 1", "'group'.*name one"),
    ("probe without prompt", "a.jsonl", edits(other(probes=[{"group": "locality"}])), ":2, probe 1",
     "no 'prompt'.*add 'prompt'"),
    ("probe without target", "a.jsonl", edits(other(probes=[{"group": "generality", "prompt": "a"}])), ":2, probe 1",
     "'target' is empty"),
    ("probe that is a text", "a.jsonl", edits(other(probes=["a"])), ":2, probe 1", "wanted a JSON object.*make it one"),
    ("answers of numbers", "a.jsonl", edits(other(probes=[EDIT["probes"][0] | {"answers": ["b", 1]}])), ":2, probe 1",
     "'answers' holds int 1.*value number 2"),
    ("empty answer", "a.jsonl", edits(other(probes=[EDIT["probes"][0] | {"answers": [" "]}])), ":2, probe 1",
     "'answers' is empty"),
    ("probes in an object", "a.jsonl", edits(other(probes={})), ":2", "'probes' is dict.*wanted list.*give a list"),
    ("edits in a list", "a.json", b"[" + GOOD + b"]", ":1", "not JSON|wanted a JSON object"),
    ("fact of no name", "a.jsonl", lines(FACT, FACT | {"id": "b", "name": " "}), ":2", "name is empty.*write"),
    ("fact of no id", "a.jsonl", lines(FACT | {"id": ""}), ":1", "id of 'Velmar' is empty.*of its own"),
    ("fact of no definition", "a.jsonl", lines(FACT | {"definition": "\n"}), ":1", "definition.*is empty.*write one"),
    ("facts of one id", "a.jsonl", lines(FACT, FACT | {"name": "b"}), ":2", "id 'f1' came before.*its own"),
    ("facts of one name", "a.jsonl", lines(FACT, FACT | {"id": "b"}), ":2", "name 'Velmar' came before.*its own"),
    ("fact, alias a number", "a.jsonl", lines(FACT | {"aliases": [3]}), ":1", "'aliases' holds int 3.*quote"),
    ("fact, alias empty", "a.jsonl", lines(FACT | {"aliases": [" "]}), ":1", "alias is empty.*take it out"),
    ("fact, aliases a text", "a.jsonl", lines(FACT | {"aliases": "b"}), ":1", "'aliases' is str.*give a list"),
    ("fact misspelt", "a.jsonl", lines(without(FACT, "aliases") | {"alias": []}), ":1", "'alias'.*mean 'aliases'"),
    ("sentence empty", "a.jsonl", lines(SENTENCE | {"text": ""}), ":1", "text is empty.*write the sentence"),
    ("sentence of no fact@transfer", "a.jsonl", lines({"text": "It rains.", "mention": None}), ":1",
     "says of no fact; give"),
    ("sentence of an unknown fact", "a.jsonl", lines(SENTENCE, {"fact": "f2", "text": "a"}), ":2",
     "no fact 'f2'.*give"),
    ("mention outside", "a.jsonl", lines(SENTENCE | {"mention": [3, 99]}), ":1", "outside the text.*correct it"),
    ("mention turned", "a.jsonl", lines(SENTENCE | {"mention": [9, 3]}), ":1", "outside the text.*correct it"),
    ("mention of texts", "a.jsonl", lines(SENTENCE | {"mention": ["3", "9"]}), ":1", "wanted .start, end.*count"),
    ("mention of truths", "a.jsonl", lines(SENTENCE | {"mention": [False, True]}), ":1", "wanted .start, end.*count"),
    ("context a number", "a.jsonl", lines(SENTENCE | {"context": 5}), ":1", "'context' is int 5.*quote it"),
    ("another definition", "a.jsonl", lines(SENTENCE, SENTENCE | {"definition": "No."}), ":2", "definition.*make them"),
    ("another name", "a.jsonl", lines(SENTENCE, SENTENCE | {"name": "No"}), ":2", "the name of 'f1'.*make them"),
    ("one name of two facts", "a.jsonl", lines(SENTENCE, SENTENCE | {"fact": "g"}), ":2", "is fact 'g' here.*one id"),
    ("set misspelt", "a.jsonl", lines(without(SENTENCE, "context") | {"contxt": ""}), ":1", "'contxt'.*mean 'context'"),
    ("folder of a bad set", "set", lambda path: write(path, "sentences.jsonl", lines({"text": "a"})),
     "/sentences.jsonl:1",
     "says of no fact; give"),
    ("mention not in the text", "a.jsonl", lines(MENTION | {"mention": "Paris"}), ":1",
     "'Paris' does not stand.*as the"),
    ("mention empty", "a.jsonl", lines(MENTION | {"mention": ""}), ":1", "does not stand in.*as the text does"),
    ("span outside", "a.jsonl", lines(MENTION | {"span": [0, 99]}), ":1", "'span'.*22 characters; wanted"),
    ("span below", "a.jsonl", lines(MENTION | {"span": [-3, 4]}), ":1", "'span'.*22 characters; wanted"),
    ("span of three", "a.jsonl", lines(MENTION | {"span": [0, 1, 2]}), ":1", "'span'.*two character offsets.*count"),
    ("candidate of no title", "a.jsonl", lines(MENTION | {"candidates": [{}]}), ":1, candidate 1", "no 'title'.*add"),
    ("candidate, prior a text", "a.jsonl", lines(MENTION | {"candidates": [{"title": "a", "prior": "b"}]}),
     ":1, candidate 1", "'prior' is str.*give a number"),
    ("candidate, prior beyond numbers", "a.jsonl", lines(MENTION | {"candidates": [{"title": "a", "prior": 10**400}]}),
     ":1, candidate 1", "'prior' is int"),
    ("candidates, a text", "a.jsonl", lines(MENTION | {"candidates": "London"}), ":1", "'candidates' is str.*a list"),
    ("template without subject", "a.json", json.dumps([changed(NESTED, "requested_rewrite.prompt", "a")]).encode(),
     ", entry 1, requested_rewrite", "wanted one {}.*put {}"),
    ("template with two", "a.jsonl", lines(changed(NESTED, "requested_rewrite.prompt", "{} {}")),
     ":1, requested_rewrite", "wanted one {}.*put {}"),
    ("target no object", "a.jsonl", lines(changed(NESTED, "requested_rewrite.target_new", "b")),
     ":1, requested_rewrite", "'target_new' is str.*give an object"),
    ("attributes a text", "a.jsonl", lines(NESTED | {"attribute_prompts": "a"}), ":1", "'attribute_prompts' is str"),
    ("rewrite no object", "a.jsonl", lines(NESTED | {"requested_rewrite": "a"}), ":1", "'requested_rewrite' is str"),
    ("paraphrases of numbers", "a.jsonl", lines(NESTED | {"paraphrase_prompts": [1]}), ":1", "holds int 1.*quote"),
    ("ids twice in a table", "a.jsonl", lines(FLAT, FLAT | {"prompt": "b"}), ":2", "id '1' came before.*its own"),
    ("answers of numbers in zsre", "a.jsonl", lines(MEND | {"loc_ans": [[1]]}), ":1", "'loc_ans' holds int 1.*quote"),
    ("nothing left of a table", "a.jsonl", lines(FLAT | {"target_new": ""}), "", "0 edits in this table.*check"),
    ("unknown portability", "a.jsonl", lines(KNOWEDIT | {"portability": {"Resoning": []}}), ":1", "'Resoning'.*rename"),
    ("unknown locality", "a.jsonl", lines(KNOWEDIT | {"locality": {"x": []}}), ":1", "kind of probe 'x'.*rename"),
    ("probe of knowedit", "a.jsonl", lines(changed(KNOWEDIT, "locality.Forgetfulness.0", {"prompt": "a"})),
     ":1, Forgetfulness 1", "no 'ground_truth'.*add"),
    ("locality a list", "a.jsonl", lines(KNOWEDIT | {"locality": []}), ":1", "'locality' is list.*give an object"),
    ("ripple of no verb", "a.jsonl", lines(changed(RIPPLE, "edit.prompt", "X")), ":1, edit",
     "wanted a sentence.*write"),
    ("ripple of no relation", "a.jsonl", lines(RIPPLE | {"edit": {"prompt": "X is Y."}}), ":1, edit", "no 'relation'"),
    ("ripple, fact before", "a.jsonl", lines(changed(RIPPLE, "edit.original_fact", {"prompt": 3})),
     ":1, edit, the fact before", "'prompt' is int 3.*quote it"),
    ("ripple, fact before a text", "a.jsonl", lines(changed(RIPPLE, "edit.original_fact", "x")),
     ":1, edit, the fact before", "wanted a JSON object"),
    ("ripple, queries", "a.jsonl", lines(changed(RIPPLE, "Relation_Specificity.0.test_queries", 5)),
     ":1, Relation_Specificity", "'test_queries' is int 5.*give a list"),
    ("ripple, answers", "a.jsonl",
     lines(changed(RIPPLE, "Relation_Specificity.0.test_queries.0.answers.0", {"aliases": []})),
     ":1, Relation_Specificity 1", "no 'value'.*add"),
    ("ecbd, id of no numbers", "a.jsonl", lines(ECBD | {"ex_id": "Blue"}), ":1", "wanted TITLE_PAGEID.*write it so"),
    ("ecbd, two contexts", "a.jsonl", lines(ECBD, ECBD | {"context": "No."}), ":2", "another name or def.*must agree"),
    ("ecbd, label bare", "a.jsonl", lines(changed(ECBD, "probe_sentences.template_0.label", "March")), ":1",
     "label is 'March'.*write the right words"),
    ("ecbd, no sentinel", "a.jsonl", lines(changed(ECBD, "probe_sentences.template_0.probe_sentence", "a")), ":1",
     "exactly one.*put it where"),
    ("ecbd, two sentinels", "a.jsonl",
     lines(changed(ECBD, "probe_sentences.template_0.probe_sentence", "<extra_id_0> <extra_id_1>")), ":1",
     "exactly one.*put it where"),
    ("ecbd, no template", "a.jsonl", lines(ECBD | {"probe_sentences": {}}), ":1", "no 'template_0'.*add"),
    ("ecbd, context empty", "a.jsonl", lines(ECBD | {"context": " "}), ":1", "definition.*is empty.*write one"),
    ("ecbd, sentences of numbers", "a.jsonl", lines(ECBD | {"augmented_probes": [1]}), ":1", "holds int 1.*quote"),
    ("popular, label bare", "a.jsonl", lines(changed(POPULAR, "probe_sentences.template_0.label", "")), ":1",
     "label is ''.*write the right words"),
    ("inference, no candidate", "a.jsonl", lines(INFERENCE | {"label": "sad"}), ":1", "none of the candidates.*add it"),
    ("inference, candidate twice", "a.jsonl",
     lines(changed(INFERENCE, "probe_sentences.template_0.labels", ["<extra_id_0> brave <extra_id_1>"] * 2)), ":1",
     "candidate comes twice.*take one"),
    ("answer a text", "a.jsonl", lines(NQ | {"answer": "Simmons"}), ":1", "'answer' is str.*give a list"),
    ("answers with null", "a.jsonl", lines(NQ | {"answer": ["a", None]}), ":1", "holds NoneType.*value number 2"),
    ("web question, answers of numbers", "a.json", json.dumps([WEB, WEB | {"answers": [1]}]).encode(), ", entry 2",
     "holds int 1.*quote"),
    ("web question without text", "a.json", json.dumps([WEB, without(WEB, "qText")]).encode(), ", entry 2",
     "no 'qText'.*add 'qText'"),
    ("web questions in lines", "a.jsonl", lines(WEB, WEB), ":2", "Extra data"),
    ("web questions in an object@webquestions", "a.json", lines(WEB), "", "wanted one JSON list.*put .+ around"),
]  # fmt: skip

TABLES: list[Case] = [
    ("csv too short", "a.csv", csv(HEADER, ROW, "a,b"), ":3", "2 fields, and the header has 6.*quote fields"),
    ("csv too long", "a.csv", csv(HEADER, f"{ROW},d"), ":2", "7 fields.*quote fields"),
    ("csv, column twice", "a.csv", csv(f"{HEADER},prompt", f"{ROW},d"), ":1", "a column comes twice.*rename"),
    ("csv, open quote", "a.csv", csv(HEADER, ROW, '"open,b'), ":3", "no CSV.*close the quotation mark"),
    ("csv, quote inside", "a.csv", csv(HEADER, ROW, '"a"b,c'), ":3", "no CSV.*as two"),
    ("csv, field of 200 kB", "a.csv", csv(HEADER, ROW, "x" * 200_000), ":3", "no CSV.*quotation mark"),
    ("csv, latin-1", "a.csv", csv(HEADER, ROW) + "\né".encode("latin-1"), ":3", "not UTF-8.*Latin-1"),
    ("csv, by semicolons", "a.csv", csv(HEADER.replace(",", ";"), ROW.replace(",", ";")), "", "of no kind.*--kind"),
    ("csv, header alone", "a.csv", csv(HEADER), "", "no record in it"),
    ("csv, column missing", "a.csv", csv("prompt,target_new", "a,b"), ":2", "no 'subject'.*add 'subject'"),
    ("csv, empty", "a.csv", b"", "", "no record in it"),
    ("tsv too short", "a.tsv", csv(HEADER, ROW).replace(b",", b"\t") + b"\na", ":3", "1 fields.*quote fields"),
    ("parquet cut", "a.parquet", cut(parquet(prompt=["a"], target_new=["b"]), 0.7), "", "row 0.*make or get it again"),
    ("parquet of nothing", "a.parquet", b"", "", "row 0.*make or get it again"),
    ("parquet, no parquet", "a.parquet", GOOD, "", "row 0.*make or get it again"),
    ("parquet of numbers", "a.parquet", parquet(prompt=["a"], target_new=[1], subject=["a"]), ", row 1",
     "'target_new' is int 1.*quote it"),
    ("parquet with null", "a.parquet", parquet(prompt=["a", None], target_new=["b", "c"], subject=["a", "b"]),
     ", row 2", "no 'prompt'.*add 'prompt'"),
    ("parquet of no rows", "a.parquet", parquet(prompt=pa.array([], pa.string())), "", "no record in it"),
    ("articles cut@articles", "a.parquet", cut(parquet(name=["a"], sections=["[]"]), 0.6), "", "parquet.*again"),
    ("articles without sections@articles", "a.parquet", parquet(name=["a"]), "",
     "wanted the columns name and sections"),
    ("articles of no name@articles", "a.parquet", parquet(name=["a", None], sections=["[]", "[]"]), ", row 2",
     "no article.*download"),
    ("articles, sections broken@articles", "a.parquet", parquet(name=["a"], sections=["[{"]), ", row 1",
     "no article.*download"),
    ("articles, sections of numbers@articles", "a.parquet", parquet(name=["a"], sections=["[1]"]), ", row 1",
     "no article.*download"),
    ("descriptions without tab@descriptions", "a.tsv", b"title\tdescription\nPeru\n", ":2", "wanted title<TAB>"),
    ("descriptions in latin-1@descriptions", "a.tsv", "a\té".encode("latin-1"), "", "not UTF-8"),
    ("descriptions in parquet", "a.parquet", cut(parquet(title=["a"], description=["b"]), 0.5), "", "make or get it"),
    ("descriptions of one column@descriptions", "a.parquet", parquet(title=["a"]), "", "no column description"),
    ("sentences in latin-1", "a.txt", "A town.\nSão João is a town of the north.".encode("latin-1"), ":2",
     "not UTF-8.*Latin-1"),
]  # fmt: skip

PAGES = [page(f"P{number}", f"Text {number}.") for number in range(40)]
WHOLE = (HEAD + "".join(PAGES) + TAIL).encode()
MANY = streams(PAGES, 5)

DUMPS: list[Case] = [
    ("dump empty", "d.xml", b"", "", "is empty.*download it again"),
    ("dump cut", "d.xml", WHOLE[:-40], "", "cut short.*after 39 whole pages.*download"),
    ("dump cut between pages", "d.xml", (HEAD + "".join(PAGES[:5])).encode(), "", "no </mediawiki>.*after 5.*download"),
    ("dump with a bad character", "d.xml", WHOLE.replace(b"Text 7.", b"a\x01b"), "", "broken XML.*near byte.*'P6'"),
    ("dump not nested", "d.xml", WHOLE.replace(b"<title>P7</title>", b"<title>P7"), "",
     "broken XML.*after 7.*download"),
    ("dump, bad utf-8", "d.xml", WHOLE.replace(b"Text 7.", b"\xff"), "", "broken XML.*after 7.*download"),
    ("dump, entity unknown", "d.xml", WHOLE.replace(b"Text 7.", b"&x;"), "", "broken XML.*after 7.*download"),
    ("dump, namespace a word", "d.xml", WHOLE.replace(b"<ns>0</ns>", b"<ns>one</ns>", 1), "",
     "namespace 'one'.*download"),
    ("dump of no pages", "d.xml", (HEAD + TAIL).encode(), "", "holds no pages.*download"),
    ("dump of another root", "d.xml", b"<?xml version='1.0'?><feed></feed>", "", "found <feed>.*download"),
    ("error page for a dump", "d.xml", b"<html><body>Not found</body></html>", "", "no Wikipedia dump.*error page"),
    ("text", "d.xml", b"Once upon a time", "", "no Wikipedia dump.*starts with 'Once"),
    ("gzip for bz2", "d.xml.gz", gzip.compress(WHOLE, mtime=0), "", "no Wikipedia dump.*unpack it first"),
    ("error page for bz2", "d.xml.bz2", b"<html></html>", "", "no Wikipedia dump.*error page"),
    ("bz2 empty", "d.xml.bz2", b"", "", "is empty.*download"),
    ("bz2 cut", "d.xml.bz2", bz2.compress(WHOLE)[:-20], "", "cut short.*bzip2 stream.*download"),
    ("bz2 cut between streams", "d.xml.bz2", b"".join(MANY[:6]), "", "no </mediawiki>.*after 25 .*download"),
    ("bz2 with a bad stream header", "d.xml.bz2", b"".join([*MANY[:3], b"XX" + MANY[3][2:], *MANY[4:]]), "",
     "damaged bzip2 stream header near byte.*after 10"),
    ("bz2 with a flipped bit", "d.xml.bz2",
     b"".join([*MANY[:3], MANY[3][:60] + bytes([MANY[3][60] ^ 4]) + MANY[3][61:]]),
     "", "damaged bzip2 data.*download"),
    ("bz2 of four bytes", "d.xml.bz2", b"BZh9", "", "cut short.*download"),
]  # fmt: skip


def listed(case: Case) -> object:
    return pytest.param(*case[1:], case[0].partition("@")[2], id=case[0])


def every_reader() -> list[Case]:
    """For each reader of JSON lines: a broken line, no object, each needed key away, and of another type; nothing."""
    cases: list[Case] = []
    for name, (kind, record) in RECORDS.items():
        good = lines(record)
        cases.append((f"{name}: second line broken", "a.jsonl", good + b'{"a": tru}\n', ":2", "not JSON.*mend"))
        wanted = "wanted a JSON object.*make it one"
        cases.append((f"{name}: second line a list", "a.jsonl", good + b'["a"]\n', ":2", wanted))
        cases.append((f"{name}: nothing in it@{kind}", "a.jsonl", b"\n", "", "0 edits|no facts|no sentences|no record"))
        for key in NEEDED[name]:
            spoilt = lines(record, without(record, key) | {"zz": 1} if name != "edits" else without(record, key))
            cases.append((f"{name}: no {key}", "a.jsonl", spoilt, ":2", f"no '{key}' here.*(add|rename)"))
            wrong = lines(record, record | {key: 1.5})
            cases.append(
                (f"{name}: {key} a number", "a.jsonl", wrong, ":2", f"'{key}' (is|holds) float 1.5.*(quote|give)")
            )
    nothing = {"mentions", "nq_open", "popular"}  # which may be empty
    return [case for case in cases if not (case[0].endswith(tuple(f"@{kind}" for kind in nothing)))]


FILES = [*TEXT, *RECORD, *TABLES, *DUMPS, *every_reader()]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Check a file; gives the lines of a check that must have found something."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> list[str]:
        capsys.readouterr()
        code = main(["check", *map(str, arguments)])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        assert code == 2, captured.out + captured.err
        assert captured.err == ""
        *told, last = captured.out.splitlines()
        assert re.fullmatch(r"\d+ files?, \d+ with problems \([\d,]+\)", last)
        assert all(len(line) < 1200 and "; " in line for line in told if "more" not in line)
        return told

    return run


def is_told(told: list[str], path: Path | str, place: str, words: str) -> bool:
    return any(re.match(rf"{re.escape(f'{path}{place}')}: .*({words})", line) for line in told)


def test_the_catalogue_is_long_and_has_no_name_twice():
    names = [case[0] for case in FILES]
    assert len(set(names)) == len(names) > 200


@pytest.mark.parametrize(("file", "content", "place", "words", "kind"), list(map(listed, FILES)))
def test_a_malformed_file_is_refused_with_place_and_remedy(run, tmp_path, file, content, place, words, kind):
    write(tmp_path, file, content)
    told = run(file, *(["--kind", kind] if kind else []))
    assert is_told(told, file, place, words), "\n".join(told)


# what kedit itself wrote


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A corpus, a repository and checkpoints, to be copied and spoilt."""
    folder = tmp_path_factory.mktemp("made")
    dump = folder / "d.xml"
    dump.write_text(HEAD + "".join(sample(12)) + TAIL)
    train_tokenizer([*TEXTS, dump.read_text()], 400).save_pretrained(folder / "tokenizer")
    build_corpus([dump], str(folder / "tokenizer"), folder / "corpus", workers=1)
    with Repository.open(folder / "repository", encoder="abc", key_width=4) as store:
        store.add([Edit(f"e{n}", f"The colour of {n} is", "red") for n in range(5)], np.ones((5, 4), np.float32))
    torch.save({"state_dict": {"weight": torch.ones(4, 4), "steps": torch.ones(1)}}, folder / "last.ckpt")
    return folder


def spoilt(name: str, change):
    """Change bytes of a file: by a function of them, or take it away."""

    def spoil(folder: Path) -> None:
        path = folder / name
        if change is None:
            path.unlink()
        else:
            path.write_bytes(change(path.read_bytes()))

    return spoil


def array(name: str, change):
    def spoil(folder: Path) -> None:
        path = folder / f"{name}.npy"
        values = np.load(path)
        path.unlink()
        np.save(path, change(values))

    return spoil


def manifest(**fields: object):
    return spoilt("manifest.json", lambda raw: json.dumps(json.loads(raw) | fields).encode())


def first(value: int):
    def change(values: np.ndarray) -> np.ndarray:
        values.reshape(-1)[0] = value
        return values

    return change


def query(statement: str):
    def change(folder: Path) -> None:
        with sqlite3.connect(folder / "edits.sqlite") as database:
            database.execute(statement)
        database.close()

    return change


def checkpoint(**state: object):
    return lambda path: torch.save(state, path)


STORED = [
    ("corpus", spoilt("manifest.json", None), "holds an unfinished corpus.*`python -m kedit corpus"),
    ("corpus", spoilt("manifest.json", lambda raw: raw[:50]), "manifest.json is not readable.*again"),
    ("corpus", spoilt("manifest.json", lambda raw: b"\xff"), "manifest.json is not readable.*again"),
    ("corpus", spoilt("manifest.json", lambda raw: b"[]"), "manifest.json.*wanted a JSON object.*again"),
    ("corpus", spoilt("manifest.json", lambda raw: b'{"format": 1}'), "manifest.json.*no 'units'.*again"),
    ("corpus", manifest(format=99), "format 99, this version reads 1.*again"),
    ("corpus", manifest(units="many"), "'units' is str.*again"),
    ("corpus", manifest(tokens=5), "tokens.npy holds .* tokens, not 5.*again"),
    ("corpus", manifest(tokenizer={"name": "a"}), "tokenizer: no 'size'.*again"),
    ("corpus", spoilt("tokens.npy", None), "tokens.npy is missing.*again"),
    ("corpus", spoilt("tokens.npy", lambda raw: raw[:-50]), "tokens.npy is cut short.*again"),
    ("corpus", spoilt("articles.npy", lambda raw: b""), "articles.npy is cut short.*again"),
    ("corpus", spoilt("mentions.npy", lambda raw: b"rubbish" * 50), "mentions.npy is cut short or damaged.*again"),
    ("corpus", spoilt("tokens.npy", lambda raw: bytes(b ^ 255 for b in raw[:20]) + raw[20:]), "tokens.npy.*again"),
    ("corpus", array("tokens", lambda values: values.astype(np.float32)), "tokens.npy holds float32.*again"),
    ("corpus", array("mentions", lambda values: values[:, :2]), r"mentions.npy .*wanted whole numbers of shape \[n, 3"),
    ("corpus", array("tokens", first(9999)), "unit 0 holds token 9,999 of a vocabulary.*again"),
    ("corpus", array("mentions", first(-1)), "mentions.npy: unit .* that is none.*again"),
    ("corpus", array("articles", first(9999)), "articles.npy: unit 0 is of an article that is none.*again"),
    ("corpus", array("unit_offsets", first(7000)), "unit_offsets.npy.*lie outside.*again"),
    ("corpus", array("description_offsets", first(-5)), "description_offsets.npy.*lie outside.*again"),
    ("corpus", array("title_offsets", lambda values: values[:-1]), "title_offsets.npy holds .* numbers, not.*again"),
    ("corpus", spoilt("entities.arrow", lambda raw: raw[:-50]), "entities.arrow is cut short.*again"),
    ("corpus", spoilt("anchors.arrow", None), "anchors.arrow is missing.*again"),
    ("corpus", spoilt("tokenizer/tokenizer.json", lambda raw: b"{}"), "its tokenizer does not load.*again"),
    ("repository", spoilt("edits.sqlite", None), "edits.sqlite is missing beside its keys.*restore"),
    ("repository", spoilt("edits.sqlite", lambda raw: b""), "edits.sqlite is empty beside its keys.*restore"),
    ("repository", spoilt("edits.sqlite", lambda raw: b"no database" * 99), "cannot be read.*restore"),
    ("repository", spoilt("edits.sqlite", lambda raw: raw[: len(raw) // 2]), "malformed|cannot be read.*restore"),
    ("repository", query("DELETE FROM meta WHERE key = 'encoder'"), "is damaged .meta.*restore"),
    ("repository", query("UPDATE meta SET value = 9 WHERE key = 'schema'"), "has schema 9.*install a newer"),
    ("repository", query("UPDATE meta SET value = 'int3' WHERE key = 'dtype'"), "header is not the one.*reencode"),
    ("repository", query("UPDATE edit SET target = 'blue' WHERE number = 3"), "edit number 3 .*damaged.*restore"),
    ("repository", query("UPDATE edit SET prompt_hash = x'00' WHERE number = 3"), "number 3 is not found.*restore"),
    ("repository", query("DELETE FROM edit WHERE number = 5"), "4 edits stand, by the log it should be 5.*restore"),
    ("repository", query("DELETE FROM stretch"), "have no checksum.*reencode"),
    ("repository", query("DROP TABLE change"), "no such table.*restore"),
    ("repository", spoilt("keys-1.bin", None), "keys-1.bin is missing.*reencode"),
    ("repository", spoilt("keys-1.bin", lambda raw: raw[:-4]), "its end is lost.*reencode"),
    ("repository", spoilt("keys-1.bin", lambda raw: raw[:-1] + b"x"), "damaged: the keys of edits 1 to 5.*reencode"),
    ("repository", spoilt("keys-1.bin", lambda raw: b"x" + raw[1:]), "of another repository.*reencode"),
    ("last.ckpt", lambda path: path.write_bytes(b""), "incomplete: 0 bytes.*another checkpoint"),
    ("last.ckpt", lambda path: path.write_bytes(path.read_bytes()[:600]), "incomplete: cut off.*another checkpoint"),
    ("last.ckpt", lambda path: path.write_bytes(b"text"), "incomplete: cut off.*or no checkpoint"),
    ("last.ckpt", lambda path: path.write_bytes(path.read_bytes().replace(b"\0\0\x80\x3f" * 4, b"\0\0\x80\x3e" * 4, 1)),
     "incomplete: damaged|cut off"),
    ("last.ckpt", checkpoint(state_dict={"a": torch.tensor([1.0, torch.nan])}), "a holds 1 numbers that are NaN"),
    ("last.ckpt", checkpoint(state_dict={"a.b": torch.tensor([torch.inf] * 3)}), "a.b holds 3 numbers.*another"),
    ("last.ckpt", checkpoint(weights={}), "holds no state_dict.*another checkpoint"),
    ("last.ckpt", checkpoint(state_dict=Path("a")), "objects other than tensors.*another"),
    ("last.ckpt", lambda path: torch.save([1], path), "holds a list.*another"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "spoil", "words"), STORED)
def test_what_was_stored_and_then_damaged(run, made, tmp_path, name, spoil, words):
    source = made / name
    (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    spoil(tmp_path / name)
    told = run(name)
    assert any(line.startswith(name) and re.search(words, line) for line in told), "\n".join(told)


def test_what_was_stored_and_is_whole(made, capsys):
    for name in ("corpus", "repository", "repository/edits.sqlite", "last.ckpt", "d.xml"):
        assert main(["check", str(made / name)]) == 0, capsys.readouterr().out


def test_safetensors_and_folders_of_checkpoints(run, made, tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.tensor([torch.nan])}, tmp_path / "model.safetensors")
    (told,) = run(tmp_path)
    assert "w holds 1 numbers that are NaN" in told
    (tmp_path / "model.safetensors").write_bytes(b"rubbish and no more")
    shutil.copy(made / "last.ckpt", tmp_path / "last.ckpt")
    (tmp_path / "newer.ckpt").write_bytes(b"")
    one, other = run(tmp_path)
    assert "newer.ckpt: incomplete: 0 bytes" in one
    assert "damaged or cut off" in other
    assert run(tmp_path, "--kind", "repository")


# folders of benchmarks

WORDS = "Steve met David ."
KORE = {"text": WORDS, "labels": [{"span": [0, 5], "entity_id": "Q1", "name": "Steve"}]}
LISTED = [{"span": [0, 5], "text": "Steve", "candidates": [{"entity_id": "Q1", "name": "Steve"}]}]
AIDA = {"id": 0, **KORE}
STEVE = "https://en.wikipedia.org/wiki/Steve"
GIVEN = {"doc_id": 1, "mentions": [
    {"mention": "Steve", "gold_url": STEVE, "candidates": [{"url": STEVE, "in_links": 3}]}]}  # fmt: skip
DISAMBIGUATION = [
    ("kore50", KORE | {"labels": 3}, LISTED, "/kore50.benchmark.jsonl:1", "'labels' is int 3.*give a list"),
    ("kore50", changed(KORE, "labels.0.span", [0, 99]), LISTED, "/kore50.benchmark.jsonl:1",
     "no part of a text.*counted"),
    ("kore50", changed(KORE, "labels.0.span", [0]), LISTED, "/kore50.benchmark.jsonl:1", "no part of a text.*counted"),
    ("kore50", KORE, changed({"a": LISTED}, "a.0.text", "Stefan")["a"], "/refined.kore50.eval_cases.jsonl:1",
     "'Stefan' is said to stand.*belong together"),
    ("kore50", KORE, {}, "/refined.kore50.eval_cases.jsonl:1", "wanted a list of cases.*put"),
    ("rss500", KORE, [{}], "/refined.rss-500.eval_cases.jsonl:1", "no 'span' here.*add 'span'"),
    ("rss500", KORE, None, "/rss-500.benchmark.jsonl:1", "the other file ends before.*get both again"),
    ("aida_testa", AIDA | {"id": "0"}, GIVEN, "/aida-conll-dev.benchmark.jsonl:1", "'id' is str.*whole number"),
    ("aida_testa", AIDA, GIVEN | {"mentions": 1}, "/aida_testa_candidates.jsonl:1", "'mentions' is int 1.*give a list"),
    ("aida_testa", AIDA, changed(GIVEN, "mentions.0.gold_url", "Steve"), "/aida_testa_candidates.jsonl:1",
     "'Steve' is no address.*write https"),
    ("aida_testa", AIDA, changed(GIVEN, "mentions.0.candidates.0.in_links", "x"), "/aida_testa_candidates.jsonl:1",
     "'in_links' is str.*whole number"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "document", "cases", "place", "words"), DISAMBIGUATION)
def test_a_folder_of_a_benchmark(run, tmp_path, kind, document, cases, place, words):

    from kedit.benchmarks import AidaTesta, Kore50, Rss500

    documents, candidates = {"kore50": Kore50, "rss500": Rss500, "aida_testa": AidaTesta}[kind].files
    folder = tmp_path / "folder"
    write(folder, documents, lines(document))
    write(folder, candidates, b"" if cases is None else lines(cases))
    told = run("folder")
    assert is_told(told, "folder", place, words), "\n".join(told)
    (folder / candidates).unlink()
    assert any("no file" in line and candidates in line for line in run("folder"))


# configurations

FIT = """\
run: {name: one}
model:
  class_path: kedit.kilm.KilmModule
  init_args:
    backbone: {name: facebook/bart-base}
data:
  class_path: kedit.kilm.KilmData
  init_args:
    corpus: .
    batch_rows: 4
trainer:
  max_steps: 5
"""
CONFIGURATIONS = [
    ("", ":1", "got nothing.*write `model"),
    ("- a\n", ":1", "got a list.*write `model"),
    ("word\n", ":1", "got 'word'.*write `model"),
    ("a: [1\nb: 2", ":2", "is not YAML.*mend"),
    ("a: b: c\n", ":1", "is not YAML.*mend"),
    ("a:\n\t- b\n", ":2", "is not YAML.*mend"),
    ("a: *gone\n", ":1", "is not YAML.*mend"),
    ("a: \x01\n", ":1", "is not YAML.*mend"),
    ("? [a]\n: b\n", ":1", "a key that is itself a list.*write a word"),
    ("[" * 500, "", "too deep|is not YAML"),
    (
        "a: &a [b, b, b, b, b, b, b, b, b, b]\n"
        + "".join(f"{y}: &{y} [{', '.join([f'*{x}'] * 10)}]\n" for x, y in zip("abcdef", "bcdefg", strict=True)),
        ":1",
        "stand for more than 100,000.*write out",
    ),
    ("a: &a [*a]\n", ":1", "stand for more than"),
    (FIT.replace("max_steps", "max_step"), ":12", "unknown key trainer.max_step; did you mean trainer.max_steps"),
    (FIT.replace("  max_steps: 5", "  max_steps: ten"), ":12", "trainer.max_steps: wanted int.*'ten'; give"),
    (FIT.replace("KilmModule", "KilmModul"), ":3", "unknown class.*mean kedit.kilm.KilmModule"),
    (FIT.replace("kedit.kilm.KilmModule", "os.system"), ":3", "not allowed.*--allow"),
    (FIT.replace("corpus: .", "corpus: corpora/none"), ":9", "corpus names what is not there: corpora/none; correct"),
    (FIT.replace("batch_rows: 4", "batch_rows: 0"), ":10", "data.batch_rows is 0, wanted at least 1; give"),
    (FIT.replace("    batch_rows: 4\n", ""), "", "data needs a batch size; give either"),
    (FIT.replace("{name: one}", "{name: ../one}"), ":1", "no folder name"),
    (FIT.replace("max_steps: 5", "max_steps: 5\n  max_steps: 6"), ":13", "max_steps stands twice.*keep one"),
    (FIT.replace("max_steps: 5", "default_root_dir: /elsewhere"), ":12", "wanted a folder within.*move these"),
    ("facts: nowhere.jsonl\noutput: o\n", ":1", "facts names what is not there.*correct"),
    ("facts: c.yaml\noutputs: o\n", ":2", "unknown key outputs; did you mean output"),
    ("dump: [a.xml]\ntokenizer: t\noutput: o\nchunk_tokens: lots\n", ":4", "chunk_tokens: wanted int.*'lots'; give"),
]


@pytest.mark.parametrize(("text", "place", "words"), CONFIGURATIONS)
def test_a_malformed_configuration(run, tmp_path, text, place, words):
    write(tmp_path, "c.yaml", text.encode())
    told = run("c.yaml")
    assert is_told(told, "c.yaml", place, words), "\n".join(told)


def test_mistakes_of_a_configuration_are_told_together(run, tmp_path):
    text = FIT.replace("max_steps: 5", "max_step: 5\n  max_epochs: ten").replace("batch_rows", "batch_row")
    write(tmp_path, "c.yaml", text.replace("name: one", "nme: one").encode())
    told = run("c.yaml")
    assert [line.partition(": ")[0] for line in told] == ["c.yaml:1", "c.yaml:10", "c.yaml:12", "c.yaml:13"]


def test_an_overlay_is_checked_but_for_what_only_the_configuration_below_tells(tmp_path, capsys):
    path = write(tmp_path, "o.yaml", b"trainer: {max_steps: 4}\ndata:\n  init_args: {batch_rows: 3}\n")
    assert main(["check", str(path)]) == 0
    assert "o.yaml:2: note: data has no class_path" in capsys.readouterr().out
    assert main(["check", str(path), "--strict"]) == 2


# several problems, several files, as JSON


def test_all_problems_of_a_file_are_told_in_the_order_of_its_lines(run, tmp_path):
    bad = [other(target=" "), {"prompt": 1, "target": 2, "colour": 3}, other(id="e1", subject="\0")]
    write(tmp_path, "a.jsonl", edits(*bad[:1]) + b"{\n" + lines(*bad[1:]))
    told = run("a.jsonl")
    places = [line.partition(": ")[0] for line in told]
    assert places == ["a.jsonl:2", "a.jsonl:3", *["a.jsonl:4"] * 3, *["a.jsonl:5"] * 2]


def test_problems_beyond_the_limit_are_counted(run, tmp_path):
    write(tmp_path, "a.jsonl", edits(*[other(target="")] * 50))
    told = run("a.jsonl")
    assert len(told) == 21
    assert told[-1] == "a.jsonl: and 30 more"
    assert len(run("a.jsonl", "--limit", "3")) == 4


def test_files_are_told_one_after_another_and_as_json(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "a.jsonl", edits(other(target=4)))
    write(tmp_path, "b.jsonl", lines(EDIT))
    assert main(["check", "a.jsonl", "b.jsonl"]) == 2
    out = capsys.readouterr().out.splitlines()
    assert out[1:] == ["b.jsonl: 1 edits, no problem", "2 files, 1 with problems (1)"]
    assert main(["check", "a.jsonl", "b.jsonl", "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert (told["with_problems"], told["problems"]) == (1, 1)
    one, two = told["files"]
    assert one["problems"] == [{"line": 2, "place": "2", "field": "target", "what": "'target' is int 4, wanted str",
                                "remedy": "quote it"}]  # fmt: skip
    assert (one["kind"], one["records"], one["count"]) == ("edits", 1, 1)
    assert (two["problems"], two["records"]) == ([], 1)
    assert main(["check", "b.jsonl"]) == 0
    assert capsys.readouterr().out.endswith("1 file, none with problems\n")


def test_what_contradicts_or_teaches_nothing_is_a_note(run, tmp_path, capsys):
    notes = [
        (other(target="near"), "the prompt 'The moon is' has the target 'near' here and 'far' at .*:1; keep one"),
        (other(prompt="the  MOON is"), "says again what is said at .*:1; leave one"),
        ({"prompt": "a b", "target": "A  b"}, "target is the prompt again; write what"),
        ({"prompt": "a c", "target": "b", "subject": "Peru"}, "does not name its subject 'Peru'; name it"),
        ({"prompt": "a\u200bd", "target": "b"}, r"U\+200B, which nobody sees.*take it out"),
        ({"prompt": "a\ufffdd", "target": "b"}, r"U\+FFFD.*write what was meant"),
        (other(prompt="e", probes=[{"group": "locality", "prompt": "the moon is"}]), "1 locality probes ask.*take"),
    ]  # fmt: skip
    for number, (record, words) in enumerate(notes):
        path = write(tmp_path, f"{number}.jsonl", lines(other(), record))
        assert main(["check", str(path)]) == 0
        assert re.search(f"note: .*{words}", capsys.readouterr().out), words
        assert main(["check", str(path), "--strict"]) == 2


@pytest.mark.parametrize("record", [FACT | {"definition": "Velmar\u202e is."}, SENTENCE | {"text": "In Velmar\x07."}])
def test_what_nobody_sees_in_facts_and_sentences_is_a_note(tmp_path, capsys, record):
    path = write(tmp_path, "a.jsonl", lines(without(record, "mention")))
    assert main(["check", str(path)]) == 0
    assert re.search(r"a.jsonl:1: note: '(text|definition)' holds U\+.*; take it out", capsys.readouterr().out)


def test_a_configuration_of_ours_is_taken(capsys):
    assert main(["check", str(Path(__file__).parents[2] / "configs" / "quickstart_recipe.yaml")]) == 0
    assert "config, 84 values, no problem" in capsys.readouterr().out


def test_words_that_others_take_for_nothing_are_words(tmp_path, capsys):
    rows = [f"It {number} is,{word},It,So {number},Else,c" for number, word in enumerate(("NA", "null", "None", "nan"))]
    path = write(tmp_path, "a.csv", csv(HEADER, *rows))
    assert main(["check", str(path), "--kind", "counterfact"]) == 0
    assert "counterfact, 4 records, no problem" in capsys.readouterr().out


def test_rows_that_a_table_leaves_out_are_told(tmp_path, capsys):
    path = write(tmp_path, "a.jsonl", lines(FLAT, FLAT | {"case_id": 2, "target_new": ""}))
    assert main(["check", str(path)]) == 0
    captured = capsys.readouterr()
    assert "note: 1 rows whose target is empty are left out" in captured.out
    assert captured.err == ""


@pytest.mark.parametrize(("arguments", "words"), [
    ([], "nothing to check: give FILE"),
    (["a", "--kind", "edit"], "--kind edit: did you mean edits"),
    (["a", "--kind", "xyz"], "--kind xyz: there are edits, facts"),
    (["a", "--limit", "0"], "--limit 0: give the number"),
])  # fmt: skip
def test_wrong_use(capsys, arguments, words):
    assert main(["check", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_the_kinds_can_be_listed(capsys):
    from kedit.checking.kinds import KINDS

    assert main(["check", "--kind", "list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(KINDS)


def test_a_file_that_may_not_be_read(run, tmp_path, monkeypatch):
    def denied(self, *_, **__):
        raise PermissionError(13, "Permission denied", str(self))

    write(tmp_path, "a.jsonl", GOOD)
    monkeypatch.setattr(Path, "open", denied)
    assert run("a.jsonl") == [
        "a.jsonl: cannot be read: Permission denied; see that you may read it, and that its disk is well"
    ]


def test_characters_that_a_terminal_obeys_are_not_printed(run, tmp_path):
    write(tmp_path, "a\x1b[2J.jsonl", edits(other(**{"a\x1b\u202e": 1})))
    told = "".join(run("a\x1b[2J.jsonl"))
    assert "\x1b" not in told
    assert "\u202e" not in told
    assert r"a\u001b[2J.jsonl:2" in told


def test_a_long_file_whose_last_line_is_bad_is_read_quickly(run, tmp_path):
    write(tmp_path, "m.jsonl", lines(MENTION) * 100_000 + b"{")
    start = time.monotonic()
    (told,) = run("m.jsonl")
    assert told.startswith("m.jsonl:100001: not JSON")
    assert time.monotonic() - start < 20


def test_a_line_of_many_keys_is_read_quickly(run, tmp_path):
    keys = ", ".join(f'"{number}": 0' for number in range(100_000))
    write(tmp_path, "a.jsonl", GOOD + f'{{{keys}, "99999": 1}}\n'.encode())
    start = time.monotonic()
    assert is_told(run("a.jsonl"), "a.jsonl", ":2", "'99999' stands twice")
    assert time.monotonic() - start < 5


def test_a_page_without_end_is_given_up(tmp_path, monkeypatch, run):
    monkeypatch.setattr("kedit.kilm.wikipedia.PAGE", 1 << 16)
    assert PAGE > 1 << 16
    write(tmp_path, "d.xml", (HEAD + page("Long", "x" * 400_000) + TAIL).encode())
    assert is_told(run("d.xml"), "d.xml", "", "a page of more than .*download it again")
