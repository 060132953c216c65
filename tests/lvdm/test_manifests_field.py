"""Manifests as people write them: what goes wrong is said by its true name, and no caption becomes another one."""

import json
import os
from unicodedata import normalize

import pytest

from aicl.reference_retrieval import VerbIndex, VerbPairSampler, build_library, load_library, save_library
from lvdm.data import read_folder, read_webvid
from lvdm.data.checking import check_records
from lvdm.data.sampling import sample_rng
from lvdm.errors import DataError
from lvdm.video import write_video
from tests.lvdm.videos import pixels


@pytest.fixture
def videos(tmp_path):
    for name in ("a", "b", "c"):
        write_video(tmp_path / f"{name}.mp4", pixels(3, 16, 16), fps=8)
        (tmp_path / "page").mkdir(exist_ok=True)
        (tmp_path / "page" / f"{name}.mp4").write_bytes((tmp_path / f"{name}.mp4").read_bytes())
    return tmp_path


def manifest(folder, text, name="list.csv", encoding="utf-8"):
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


def captions(folder, text, **options):
    return [record.caption for record in read_folder(folder, manifest(folder, text, **options))]


FAULTS = {
    "file,caption\nb.mp4,A dog\na.mp4,A man, tall, is running\n": r"line 3 has 4 fields where the header has 2.*quotes",
    "file,caption\na.mp4\n": "line 2 has 1 fields where the header has 2",
    'file,caption\na.mp4,"A man\nb.mp4,A dog\nc.mp4,A cat\n': "line 2 has a quote that is not closed",
    'file,caption\na.mp4,"A man\nb.mp4,A dog\nc.mp4,"A cat"\n': "line 2 has a quote that is not closed, or text behind",
    'file,caption\na.mp4,"A man\nb.mp4,A dog"\n': "line 2 opens a quote that is not closed on that line",
    "file;caption\na.mp4;A man\n": "separates its columns by semicolons",
    "file\tcaption\na.mp4\tA man\n": "separates its columns by tabs",
    "File,Caption\na.mp4,A man\n": "has the column 'File', not 'file'; write it in lower case",
    "name,text\na.mp4,A man\n": "has no column 'file'",
    "file,caption,caption\na.mp4,A,B\n": "has the column 'caption' twice",
    "file,caption\n../a\0.mp4,A\n": "line 2 holds NUL characters",
    f"file,caption\n{'x' * 300}.mp4,A man\n": "longer than 255 bytes",
    "": "is empty",
    "file,caption\na.mp4,\n": "line 2 has no 'caption'",
    "file,caption\n,A man\n": "line 2 has no 'file'",
}


@pytest.mark.parametrize("text", FAULTS)
def test_faults_of_csv_files_are_named(videos, text):
    with pytest.raises(DataError, match=FAULTS[text]):
        captions(videos, text)


def test_the_same_faults_in_webvids_columns(videos):
    head = "videoid,contentUrl,duration,page_dir,name\n"
    good = head + 'a,u,PT1S,page,"A man, tall, is running"\nb,u,PT1S,page,A dog\n'
    assert [r.caption for r in read_webvid(manifest(videos, good), videos)] == ["A man, tall, is running", "A dog"]
    for text, reason in (
        (head + "a,u,PT1S,page,A man, tall, is running\n", "line 2 has 7 fields where the header has 5"),
        (head + 'a,u,PT1S,page,"A man\nb,u,PT1S,page,A dog\nc,u,PT1S,page,A cat\n', "line 2 has a quote"),
        (good.replace(",", ";"), "separates its columns by semicolons"),
    ):
        with pytest.raises(DataError, match=reason):
            read_webvid(manifest(videos, text), videos)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_are_dropped_everywhere(videos, encoding):
    assert captions(videos, "file,caption\na.mp4,Ein Mädchen\n", encoding=encoding) == ["Ein Mädchen"]
    row = json.dumps({"file": "a.mp4", "caption": "Ein Mädchen"}, ensure_ascii=False)
    assert captions(videos, row + "\n", name="list.jsonl", encoding=encoding) == ["Ein Mädchen"]
    webvid = "videoid,page_dir,name\na,page,Ein Mädchen\n"
    assert [r.caption for r in read_webvid(manifest(videos, webvid, encoding=encoding), videos)] == ["Ein Mädchen"]
    for name in ("a", "b", "c"):
        for folder in (videos, videos / "page"):
            (folder / f"{name}.TXT").write_bytes("Ein Mädchen\n".encode(encoding))
    (videos / "list.csv").unlink()
    assert {record.caption for record in read_folder(videos)} == {"Ein Mädchen"}


def test_other_encodings_are_named(videos):
    text = "file,caption\nb.mp4,A dog\na.mp4,Ein Mädchen\n"
    with pytest.raises(DataError, match=r"line 3 is no UTF-8 text .*Windows-1252.*save the file as UTF-8"):
        captions(videos, text, encoding="cp1252")
    with pytest.raises(DataError, match="NUL characters"):
        captions(videos, text, encoding="utf-16-le")
    for folder in (videos, videos / "page"):
        for name in ("a", "b", "c"):
            (folder / f"{name}.txt").write_bytes("Ein Mädchen".encode("cp1252"))
    (videos / "list.csv").unlink()
    with pytest.raises(DataError, match=r"a\.txt: line 1 is no UTF-8 text"):
        read_folder(videos)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"file": 3, "caption": "A man"}', "'file': must be a text, not 3"),
        ('{"file": "a.mp4", "caption": ["A man"]}', "'caption': must be a text"),
        ('{"file": "a.mp4", "caption": "A \\ud800 man"}', "half a character"),
        ('{"file": "a.mp4", "caption": "A \\u0000 man"}', "NUL character"),
        ('{"file": "a\\u0000.mp4", "caption": "A man"}', "NUL character"),
        ('{"file": "a.mp4", "caption": NaN}', "no valid JSON"),
        ('{"file": "a.mp4", "caption": ' + "9" * 5000 + "}", "no number that can be used"),
        ('{"file": "a.mp4", "caption": ' + "[" * 20000 + "]" * 20000 + "}", "nested too deeply"),
        ('{"file": "a.mp4", "caption": ' + "[" * 60 + "]" * 60 + "}", "nested too deeply"),
    ],
)
def test_rows_of_other_types(videos, row, reason):
    with pytest.raises(DataError, match=reason) as caught:
        captions(videos, '{"file": "b.mp4", "caption": "A dog"}\n' + row + "\n", name="list.jsonl")
    assert "line 2" in str(caught.value) and len(str(caught.value)) < 400


def test_hidden_files_are_left_out(videos):
    for folder in (videos, videos / "page"):
        for name in ("a", "b", "c"):
            (folder / f"{name}.txt").write_text(f"caption {name}")
    (videos / "._a.mp4").write_bytes(b"\0\5\26\7")
    (videos / ".trash").mkdir()
    (videos / ".trash" / "d.mp4").touch()
    assert [record.key for record in read_folder(videos)] == ["a.mp4", "b.mp4", "c.mp4"] + [
        f"page/{name}.mp4" for name in "abc"
    ]


def test_linked_folders_are_read_and_links_to_nothing_are_counted(tmp_path, caplog):
    mine, elsewhere = tmp_path / "mine", tmp_path / "elsewhere"
    for folder in (mine, elsewhere / "deep"):
        folder.mkdir(parents=True)
    for path in (mine / "a.mp4", elsewhere / "b.mp4", elsewhere / "deep" / "c.mp4"):
        write_video(path, pixels(3, 16, 16), fps=8)
    (mine / "linked").symlink_to(elsewhere)
    (elsewhere / "deep" / "back").symlink_to(elsewhere)  # would be walked without end
    (mine / "self").symlink_to(mine)
    (mine / "lost.mp4").symlink_to(tmp_path / "gone.mp4")
    found = [record.key for record in read_folder(mine, default_caption="a person is moving")]
    assert found == ["a.mp4", "linked/b.mp4", "linked/deep/c.mp4"]
    assert "lead to no file are left out: 1" in caplog.text and "lost.mp4" in caplog.text


@pytest.mark.parametrize(("of_videos", "of_captions"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_that_differ_in_the_form_of_unicode_are_the_same(tmp_path, of_videos, of_captions):
    film, text = normalize(of_videos, "café.mp4"), normalize(of_captions, "café.mp4")
    write_video(tmp_path / film, pixels(3, 16, 16), fps=8)
    assert captions(tmp_path, f"file,caption\n{text},a man is waving\n") == ["a man is waving"]
    assert read_folder(tmp_path, tmp_path / "list.csv")[0].key == film
    (tmp_path / text).with_suffix(".txt").write_text("a man is running")
    assert [record.caption for record in read_folder(tmp_path)] == ["a man is running"]
    (tmp_path / film).with_suffix(".txt").write_text("a man is dancing")  # of the very name
    assert [record.caption for record in read_folder(tmp_path)] == ["a man is dancing"]


def test_a_folder_that_cannot_be_read_is_named(videos, monkeypatch):
    listing = os.scandir

    def scandir(path):
        if str(path).endswith("page"):
            raise PermissionError(13, "Permission denied", str(path))
        return listing(path)

    monkeypatch.setattr(os, "scandir", scandir)  # whoever runs tests as root may read everything
    with pytest.raises(DataError, match=r"page: cannot be read \(Permission denied\)"):
        read_folder(videos, default_caption="a person is moving")


SEVERAL = """file,caption
a.mp4,A man is running
a.mp4,A man runs on a road
./a.mp4,Somebody is running
b.mp4,A dog runs
c.mp4,A cat sleeps
"""


def test_a_video_with_several_captions_is_one_video(videos):
    records = read_folder(videos, manifest(videos, SEVERAL))
    assert len(records) == 5 and len({record.key for record in records}) == 3
    index = VerbIndex.of_records(records)
    assert index.counts() == {"run": 2, "sleep": 1} and index.num_videos == 3
    assert index.targets(1).tolist() == [0, 1, 2, 3] and index.targets(2).tolist() == []
    sampler, targets = VerbPairSampler(index), []
    for number in range(200):
        target, reference = sampler(sample_rng(0, number), records)
        assert records[target].key != records[reference].key
        targets.append(target)
    assert sampler.unused == 1 and set(targets) == {0, 1, 2, 3}
    assert 70 < targets.count(3) < 130  # each video as often as the other, not each caption
    assert {c.index for seed in range(20) for c in index.select("a panda runs", 2, seed)} <= {0, 1, 2, 3}
    assert all(len({records[c.index].key for c in index.select("a panda runs", 2, seed)}) == 2 for seed in range(20))
    with pytest.raises(DataError, match="2 of the 3 videos share"):
        index.select("a panda runs", 3, 0)
    report = check_records(records, videos / "report.json", quick=True)
    assert report["checked"] == 3


def test_an_index_file_keeps_videos_apart(videos):
    save_library(videos / "index.json", build_library(read_folder(videos, manifest(videos, SEVERAL))))
    library = load_library(videos / "index.json")
    assert library.index.num_videos == 3 and library.index.counts()["run"] == 2
