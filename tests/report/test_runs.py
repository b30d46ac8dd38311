"""Which runs a report is on, and where it goes."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from layerwise.errors import CheckpointError, ConfigError
from layerwise.files import held
from layerwise.report import figures, report
from tests.report.folders import config, evaluated, put, record
from tests.report.test_page import PIXEL, Page


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made, but not turned into files, which takes most of the time."""
    monkeypatch.setattr(figures, "_encoded", lambda figure: (f"data:image/png;base64,{PIXEL}", (400, 300)))


def test_there_is_no_ratio_to_errors_on_fewer_than_ten_images(tmp_path: Path) -> None:
    """Nine images of a hundred are 45 errors at five severities, always the same ones; the base is the one that was named."""
    one, other = put(tmp_path / "a", evaluated(wrong=10)), put(tmp_path / "b", evaluated(wrong=9))
    markdown = report([one, other], baseline=other).to_markdown()
    assert re.search(r"^\| a \| 90\.0 [^|]* \|$", markdown, re.MULTILINE)
    assert (
        "No ratio to b where it erred on fewer than 10 images, since chance decides that: under gaussian noise, "
        in markdown
    )
    assert "CE of each corruption" not in markdown
    with pytest.raises(ConfigError, match=r"--baseline .*c is none of the runs; .*a"):
        report([one], baseline=tmp_path / "c")


def test_settings_keep_their_lines_in_markdown(tmp_path: Path) -> None:
    markdown = report([put(tmp_path / "a", record(clean=90, fgsm=40))]).to_markdown()
    assert "\nmethod:\n  name: SLAT\nmodel:\n" in markdown


def test_another_report_goes_beside_the_first(tmp_path: Path) -> None:
    a, b = (put(tmp_path / name, record(clean=90, fgsm=40)) for name in "ab")
    place = tmp_path / "report"
    assert report([a, b]).place(place) == place
    report([a, b]).write(place)
    assert report([b, a]).place(place) == place
    assert report([a]).place(place) == tmp_path / "report-2"
    report([a]).write(tmp_path / "report-2")
    assert report([b]).place(place) == tmp_path / "report-3"


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_trains_has_its_curves(tmp_path: Path) -> None:
    done, going = put(tmp_path / "a", record(clean=90, fgsm=40)), put(tmp_path / "b", record(clean=1))
    (going / "evaluation.json").unlink()
    settings = config() | {"training": {"epochs": 400}}
    (going / "config.yaml").write_text(json.dumps(settings))
    with held(going):
        made = report([done, going])
        assert made.verdicts[1].sentence == "still training (epoch 2 of 400)"
        assert made.verdicts[0].figure.startswith("40.0 %")
        alone = report([going])
        assert Page(alone.to_html()).said("h2") == ["b", "Training", "Settings"]
        assert "still training (epoch 2 of 400)" in alone.summary()
        assert list(json.loads(alone.to_json())["unfinished"]) == [str(going)]
        assert "b" in Page(made.to_html()).said("th")
    assert (
        report([going]).verdicts[0].text.startswith("stopped in epoch 2 of 400; go on with: layerwise train --resume ")
    )


def test_a_folder_of_runs_names_what_to_type(tmp_path: Path) -> None:
    for name in "ab":
        put(tmp_path / "my runs" / name, record(clean=90))
    with pytest.raises(CheckpointError) as error:
        report([tmp_path / "my runs"])
    quoted = shlex.quote(str(tmp_path / "my runs"))
    assert str(error.value) == f"{tmp_path}/my runs holds 2 runs: type layerwise report {quoted}/*"
    with pytest.raises(CheckpointError, match=r"there is no folder .*nothing; give a run folder"):
        report([tmp_path / "nothing"])
