import bz2

import pytest
from tiny_dump import HEAD, TAIL, page, sample, streams, write

from kedit.editing.sources import DataError
from kedit.kilm.wikipedia import Part, pages, split


def read(path, part_bytes=1 << 24):
    return [page for part in split(path, part_bytes) for page in pages(part)]


@pytest.fixture
def titles():
    return [text.split("<title>")[1].split("</title>")[0] for text in sample()]


@pytest.mark.parametrize("each", [None, 1, 7, 1000])
@pytest.mark.parametrize("part_bytes", [200, 3000, 1 << 24])
def test_multistream_and_single_stream_give_every_page_once_and_in_order(tmp_path, titles, each, part_bytes):
    path = write(tmp_path / "a.xml.bz2", sample(), each)
    assert [page.title for page in read(path, part_bytes)] == titles
    if each == 1:
        assert (len(split(path, part_bytes)) > 1) == (part_bytes < path.stat().st_size)


@pytest.mark.parametrize("part_bytes", [200, 3000, 1 << 24])
def test_plain_xml(tmp_path, titles, part_bytes):
    path = write(tmp_path / "a.xml", sample())
    assert len(split(path, part_bytes)) > (part_bytes < 1 << 24)
    assert [page.title for page in read(path, part_bytes)] == titles


def test_streams_that_do_not_begin_with_a_page_are_not_split(tmp_path, titles):
    whole = (HEAD + "".join(sample()) + TAIL).encode()
    path = tmp_path / "pbzip2.xml.bz2"
    path.write_bytes(b"".join(bz2.compress(whole[i : i + 900]) for i in range(0, len(whole), 900)))
    assert len(split(path, 200)) == 1
    assert [page.title for page in read(path, 200)] == titles


def test_pages_hold_namespace_text_and_where_a_redirect_leads(tmp_path):
    made = [
        page("A", "x < y & z\n''é''"),
        page("Talk:A", "t", namespace=1),
        page("B", "#REDIRECT [[A]]", redirect="A"),
        page("C", " #redirect: [[a#part|label]] {{R}}"),
        page("D", None),
    ]
    a, talk, b, c, d = read(write(tmp_path / "a.xml", made))
    assert (a.text, a.namespace, a.redirect) == ("x < y & z\n''é''", 0, None)
    assert talk.namespace == 1
    assert (b.redirect, c.redirect) == ("A", "a#part")
    assert d.text is None


def test_bytes_read_are_reported(tmp_path):
    path = write(tmp_path / "a.xml.bz2", sample(), 5)
    counted = []
    list(pages(split(path, 1 << 24)[0], counted.append))
    assert sum(counted) == path.stat().st_size


def damaged(tmp_path, content, part_bytes=1 << 24):
    path = tmp_path / "damaged.xml.bz2"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(path, part_bytes)
    assert "damaged.xml.bz2" in str(caught.value)
    return str(caught.value)


def test_cut_in_the_middle_of_a_stream(tmp_path):
    parts = streams(sample(), 10)
    message = damaged(tmp_path, b"".join(parts)[: len(b"".join(parts[:4])) + 40])
    assert "cut short (in the middle of a bzip2 stream)" in message
    assert "after 30 whole pages, the last one 'Old name 14'" in message
    assert "cut short" in damaged(tmp_path, b"BZh9")


@pytest.mark.parametrize("part_bytes", [300, 1 << 24])
def test_cut_between_two_streams(tmp_path, part_bytes):
    parts = streams(sample(), 10)
    message = damaged(tmp_path, b"".join(parts[:4]), part_bytes)
    assert "no </mediawiki>" in message


@pytest.mark.parametrize("part_bytes", [300, 1 << 24])
def test_damaged_stream_header(tmp_path, part_bytes):
    parts = streams(sample(), 10)
    start = len(b"".join(parts[:4]))
    content = bytearray(b"".join(parts))
    content[start : start + 3] = b"xxx"
    message = damaged(tmp_path, bytes(content), part_bytes)
    assert "a damaged bzip2 stream header" in message
    assert f"near byte {start:,}" in message


def test_damaged_stream_content(tmp_path):
    parts = streams(sample(), 10)
    content = bytearray(b"".join(parts))
    content[len(b"".join(parts[:4])) + 60] ^= 0xFF
    assert "damaged bzip2 data" in damaged(tmp_path, bytes(content))


@pytest.mark.parametrize("packed", [True, False])
def test_broken_xml_says_where(tmp_path, packed):
    text = HEAD + page("Good", "x") + "<page><title>Bad</tit" + TAIL
    path = tmp_path / ("a.xml.bz2" if packed else "a.xml")
    path.write_bytes(bz2.compress(text.encode()) if packed else text.encode())
    with pytest.raises(DataError, match=r"broken XML .*after 1 whole pages, the last one 'Good'"):
        read(path)


def test_a_namespace_that_is_no_number(tmp_path):
    path = write(tmp_path / "a.xml", [page("Good", "x"), page("Bad", "y", namespace="abc")])
    with pytest.raises(DataError, match=r"a\.xml: page 'Bad' with namespace 'abc' .*after 1 whole pages"):
        read(path)


def test_another_kind_of_xml(tmp_path):
    (tmp_path / "a.xml").write_text("<?xml version='1.0'?><feed><page/></feed>")
    with pytest.raises(DataError, match=r"a\.xml is no Wikipedia dump: .*found <feed>"):
        read(tmp_path / "a.xml")


def test_xml_cut_short(tmp_path):
    path = write(tmp_path / "a.xml", sample())
    path.write_bytes(path.read_bytes()[: -len(TAIL)])
    with pytest.raises(DataError, match="no </mediawiki>"):
        read(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>404</html>", "is it an error page"),
        (b"\x1f\x8b\x08\x00rest", "unpack it first"),
        (b"{}", "no Wikipedia dump"),
    ],
)
def test_what_is_no_dump(tmp_path, content, said):
    path = tmp_path / "a.xml.bz2"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said):
        split(path, 1 << 24)


def test_a_dump_without_pages_gives_none(tmp_path):
    assert read(write(tmp_path / "a.xml.bz2", [])) == []


def test_a_file_that_shrank_is_an_error(tmp_path):
    path = write(tmp_path / "a.xml", sample())
    part = Part(path, 0, path.stat().st_size + 100)
    with pytest.raises(DataError, match="became shorter"):
        list(pages(part))
