"""Events that a person saw: the file, and what becomes of it in a dataset."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from wm_node.cli.main import main as wm
from wm_node.data.dataset import Dataset
from wm_node.data.event_labels import EventLabels, load_event_labels, write_template
from wm_node.data.resample import NO_LABEL
from wm_node.errors import WmError
from wm_node.profile import load_profile

PROFILE = load_profile("tabletop_hazards")
HEAD = "bag,event,from_s,to_s\n"


def load(tmp_path: Path, text: str) -> EventLabels:
    file = tmp_path / "labels.csv"
    file.write_text(text, encoding="utf-8")
    return load_event_labels(file, PROFILE)


def test_spans_nothing_and_not_looked_at_are_told_apart(tmp_path: Path) -> None:
    text = HEAD + "a,hit,1.0,1.25\na,hit,2,3\n\nb, hit , ,\nc,hit,?,\n"
    labels = load(tmp_path, text)
    times = np.arange(0.0, 4.0, 0.1)
    active = labels.active("a", "hit", times, 0.1)
    assert active is not None
    # 1.0 to 1.25 touches the ticks from 1.0, 1.1 and 1.2 on; 2 to 3 ten more.
    np.testing.assert_allclose(times[active], [1.0, 1.1, 1.2, *np.arange(2.0, 2.95, 0.1)])
    nothing = labels.active("b", "hit", times, 0.1)
    assert nothing is not None
    assert not nothing.any()
    assert labels.active("c", "hit", times, 0.1) is None
    assert labels.active("a", "fell", times, 0.1) is None
    assert labels.digest != load(tmp_path, text.replace("1.25", "1.3")).digest


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "first line must be bag,event,from_s,to_s"),
        ("bag,when\n", "first line must be"),
        (HEAD, "labels nothing"),
        (HEAD + "a,hit,?,\n", "labels nothing"),
        (HEAD + "a,burnt,1,2\n", r"line 2: the robot 'tabletop_hazards' has no event 'burnt'"),
        (HEAD + "a,hit,2,1\n", "no span of time"),
        (HEAD + "a,hit,soon,2\n", "no span of time"),
        (HEAD + "a,hit,1,\n", "no span of time"),
        (HEAD + "a,hit,-1,2\n", "no span of time"),
        (HEAD + "a,hit,1,inf\n", "no span of time"),
        (HEAD + "a,hit,1\n", "3 cells instead of 4"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(WmError, match=told):
        load(tmp_path, text)


def test_a_template_never_overwrites_somebodys_work(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    write_template(file, [("a", "hit")])
    assert file.read_text() == HEAD + "a,hit,?,\n"
    with pytest.raises(WmError, match="is kept"):
        write_template(file, [])
    assert file.read_text() == HEAD + "a,hit,?,\n"


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("label") / "bags"
    words = ["collect", "--out", str(out), "--episodes", "2", "--seed", "21", "--workers", "1"]
    assert wm([*words, "--camera-rate", "10"]) == 0  # of the robot without the event 'hit'
    return out


def test_pictures_out_labels_in(
    bags: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["label", str(bags), "--robot", "tabletop_hazards", "--out", str(tmp_path / "sheets")]
    assert wm([*words, "--json", str(tmp_path / "f.json")]) == 0
    figures = json.loads((tmp_path / "f.json").read_text())
    assert (figures["episodes"], figures["to_label"]) == (2, 2)
    assert len(list((tmp_path / "sheets").glob("*.png"))) == 2
    file = tmp_path / "sheets" / "labels.csv"
    template = file.read_text()
    assert template == HEAD + "episode_00000021,hit,?,\nepisode_00000022,hit,?,\n"
    assert wm(words) == 1
    assert "is kept" in capsys.readouterr().err

    def ingest(out: str) -> Dataset:
        words = ["ingest", str(bags), "--robot", "tabletop_hazards", "--out", str(tmp_path / out)]
        assert wm([*words, "--labels", str(file), "--workers", "1"]) == 0
        return Dataset.open(tmp_path / out)

    file.write_text(template.replace("21,hit,?,", "21,hit,1.0,1.5"))
    dataset = ingest("one")
    hit = PROFILE.event_names.index("hit")
    first, second = (
        np.asarray(dataset.events[e.start : e.start + e.length, hit]) for e in dataset.episodes
    )
    assert np.flatnonzero(first == 1).tolist() == [10, 11, 12, 13, 14]
    assert set(np.unique(first)) == {0, 1}
    assert (second == NO_LABEL).all()  # nobody has looked at it
    fell = np.asarray(dataset.events[:, PROFILE.event_names.index("fell")])
    assert not (fell == NO_LABEL).any()  # a topic told

    file.write_text(file.read_text().replace("22,hit,?,", "22,hit,,"))
    again = ingest("two")
    second = np.asarray(again.events[again.episodes[1].start :, hit])
    assert (second == 0).all()
    assert again.fingerprint != dataset.fingerprint

    file.write_text(file.read_text() + "elsewhere,hit,1,2\n")
    words = ["ingest", str(bags), "--robot", "tabletop_hazards", "--out", str(tmp_path / "three")]
    assert wm([*words, "--labels", str(file)]) == 1
    assert "labels are given for 'elsewhere'" in capsys.readouterr().err
    assert not (tmp_path / "three").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--event", "burnt"], "no event 'burnt'"),
        (["--every", "0"], "--every must lie between"),
    ],
)
def test_wrong_use_of_label_is_one_sentence(
    bags: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    given = ["label", str(bags), "--robot", "tabletop_hazards", "--out", str(tmp_path / "out")]
    assert wm([*given, *words]) == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out" / "labels.csv").exists()
