import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kedit.editing.sources import DataError
from kedit.kilm.structured import articles


def link(text, title, host="en.wikipedia.org/wiki/"):
    return {"text": text, "url": f"https://{host}{title}"}


def paragraph(value, *links):
    return {"type": "paragraph", "value": value, "links": list(links)}


ROW = {
    "name": "Joker (2019 film)",
    "abstract": "Joker is a film.",
    "description": "2019 film by Todd Phillips",
    "sections": [
        {
            "name": "Abstract",
            "has_parts": [
                paragraph(
                    "Joker is a 2019  film with Joker and Phoenix, a film.",
                    link("film", "Film"),
                    link("Joker", "Joker_(character)#Origin"),
                    link("Phoenix", "Joaquin_Ph%C3%B6nix"),
                    link("absent", "Absent"),
                    link("film", "File:Film.jpg"),
                    link("site", "Joker", host="joker.com/"),
                    {"text": None, "url": "https://en.wikipedia.org/wiki/X"},
                )
            ],
        },
        {
            "name": "Plot",
            "has_parts": [
                paragraph("First part."),
                {"type": "list", "has_parts": [paragraph("The Wayne family.", link("Wayne", "Wayne"))]},
            ],
        },
        {"name": "References", "has_parts": [paragraph("Book of Wayne.", link("Wayne", "Wayne"))]},
    ],
    "redirects": [{"name": "Joker film", "url": "https://en.wikipedia.org/wiki/Joker_film"}, {"name": None}],
}


def write(path, rows, as_json=False):
    if as_json:
        rows = [row | {"sections": json.dumps(row["sections"])} for row in rows]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("as_json", [False, True])
def test_an_article_with_links_found_again_in_its_paragraphs(tmp_path, as_json):
    path = write(tmp_path / "a.parquet", [ROW], as_json)
    counted = []
    [(title, redirects, cleaned)] = articles(path, "full", counted.append)
    assert (title, redirects) == ("Joker (2019 film)", ["Joker film"])
    assert cleaned.text == "Joker is a 2019 film with Joker and Phoenix, a film.\nFirst part.\nThe Wayne family."
    assert [(cleaned.text[a:b], target) for a, b, target in cleaned.links] == [
        ("film", "Film"),
        ("Joker", "Joker (character)"),
        ("Phoenix", "Joaquin Phönix"),
        ("Wayne", "Wayne"),
    ]
    assert cleaned.links[1][0] > cleaned.links[0][1]  # the second Joker, behind the film
    assert cleaned.short_description == "2019 film by Todd Phillips"
    assert cleaned.fates == {
        "in the text": 4,
        "not found in its paragraph": 1,
        "another namespace or project": 2,
        "nothing shown": 1,
        "in a dropped section": 1,
    }
    assert cleaned.total == 9
    assert sum(counted) == path.stat().st_size


def test_lead_and_abstract(tmp_path):
    bare = {"name": "B", "abstract": "Only  an abstract.", "description": None, "sections": None, "redirects": None}
    (_, _, lead), (_, _, second) = articles(write(tmp_path / "a.parquet", [ROW, bare]), "lead")
    assert "\n" not in lead.text
    assert lead.fates["outside the lead"] == 2
    assert (second.text, second.links, second.short_description) == ("Only an abstract.", [], None)


def test_bad_files(tmp_path):
    path = write(tmp_path / "a.parquet", [{"title": "x"}])
    with pytest.raises(DataError, match=r"wanted the columns name and sections .* found title"):
        list(articles(path, "lead"))
    good = write(tmp_path / "b.parquet", [ROW]).read_bytes()
    path.write_bytes(good[:-20])
    with pytest.raises(DataError, match="no readable parquet file"):
        list(articles(path, "lead"))
    content = bytearray(good)
    content[4:600] = b"\xff" * 596
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"damaged parquet file"):
        list(articles(path, "lead"))
