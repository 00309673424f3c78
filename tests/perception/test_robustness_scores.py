"""Robustness metrics against numbers worked out by hand, and the table they stand in."""

import csv
import io
import json
import math
from dataclasses import replace

import pytest

from bevstack.perception.robustness.results import UNCHANGED, Results, assemble
from bevstack.perception.robustness.scores import suite_scores
from bevstack.perception.robustness.tables import (
    TextTable,
    all_tables,
    csv_text,
    latex_text,
    markdown_text,
)

CLEAN = 0.8
OURS = {"fog": {1: 0.6, 2: 0.5, 3: 0.4}, "snow": {1: 0.8, 2: 0.4, 3: 0.0}}
THEIRS = {"fog": {1: 0.5, 2: 0.5, 3: 0.2}, "snow": {1: 0.5, 2: 0.5, 3: 0.5}}


def test_metrics_by_hand():
    scores = suite_scores(OURS, CLEAN, THEIRS)
    fog, snow = scores.corruptions["fog"], scores.corruptions["snow"]
    # fog: mean 0.5 of 0.8; 1.5 against 1.2; missed 1.5 against 1.8.
    assert fog.ra == pytest.approx(0.625)
    assert fog.rce == pytest.approx(0.375)
    assert fog.rra == pytest.approx(0.25)
    assert fog.ce == pytest.approx(1.5 / 1.8)
    # snow: mean 0.4 of 0.8; 1.2 against 1.5; missed 1.8 against 1.5.
    assert snow.ra == pytest.approx(0.5)
    assert snow.rra == pytest.approx(-0.2)
    assert snow.ce == pytest.approx(1.2)
    assert scores.mra == pytest.approx((0.625 + 0.5) / 2)
    assert scores.mrr == pytest.approx((1.5 / 2.4 + 1.2 / 2.4) / 2)
    assert scores.mrra == pytest.approx((0.25 - 0.2) / 2)
    assert scores.mce == pytest.approx((1.5 / 1.8 + 1.2) / 2)
    assert scores.rce == pytest.approx((0.8 - 0.45) / 0.8)
    assert scores.worst == ("snow", 3, 0.0)


def test_the_baseline_against_itself_is_neither_better_nor_worse():
    scores = suite_scores(THEIRS, CLEAN, THEIRS)
    assert scores.mrra == pytest.approx(0)
    assert scores.mce == pytest.approx(1)


def test_a_corruption_with_a_cell_that_does_not_count_is_left_out_and_named():
    table = OURS | {"fog": {1: 0.6, 2: math.nan, 3: 0.4}}
    scores = suite_scores(table, CLEAN)
    assert scores.left_out == ("fog",)
    assert scores.mra == pytest.approx(0.5)


def test_without_a_baseline_or_with_one_that_lacks_cells_there_is_no_relative_figure():
    assert math.isnan(suite_scores(OURS, CLEAN).mce)
    partial = {"fog": THEIRS["fog"], "snow": {1: 0.5}}
    scores = suite_scores(OURS, CLEAN, partial)
    assert scores.corruptions["fog"].rra == pytest.approx(0.25)
    assert math.isnan(scores.mrra)


def test_a_model_that_finds_nothing_has_no_share_to_lose():
    scores = suite_scores({"fog": {1: 0.0}}, 0.0, {"fog": {1: 0.0}})
    assert math.isnan(scores.mra)
    assert math.isnan(scores.mrra)
    assert scores.mce == 1


def cell(group: str, name: str, severity: int, score: float, inputs: str) -> dict:
    """What is stored of a cell."""
    ranges = [{"near": 0.0, "far": 20.0, "mAP": score, "NDS": score / 2}]
    return {
        "group": group, "name": name, "severity": severity, "fidelity": "same algorithm",
        "parameters": "Fog(alpha=0.1)", "scores": {"mAP": score / 2, "NDS": score},
        "ranges": ranges, "frames": 2, "skipped": [], "inputs": {"a": inputs, "b": "same"},
        "damage": {"pixel_change": 3.0, "psnr_db": None}, "seconds": 1.0,
    }  # fmt: skip


def example(snow_inputs: str = "other") -> Results:
    cells = [cell("clean", "clean", 0, CLEAN, "clean")]
    cells.append(cell("sensors", "LiDAR lost", 1, 0.1, "no points"))
    for name, row in OURS.items():
        given = snow_inputs if name == "snow" else "other"
        cells += [cell("demo_suite", name, s, score, given) for s, score in row.items()]
    return assemble({"split": "val"}, cells)


def test_cells_of_clean_inputs_are_refused():
    results = example(snow_inputs="clean")
    refused = [row for row in results.rows if row.refused]
    assert [(row.name, row.severity) for row in refused] == [("snow", s) for s in (1, 2, 3)]
    assert all(row.refused == UNCHANGED and not row.scores for row in refused)
    assert results.summary()["demo_suite"]["NDS"]["mRA"] == pytest.approx(0.625)
    assert results.summary()["demo_suite"]["NDS"]["left_out"] == ["snow"]
    text = markdown_text(all_tables(results))
    assert "means over 1 of 2 corruptions" in text
    assert "| snow |  |  |  |  |  |  |" in text


def test_results_survive_the_file(tmp_path):
    results = example()
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results.to_json(), allow_nan=False))
    assert Results.read(path) == results
    assert example().summary(Results.read(path))["demo_suite"]["NDS"]["mCE"] == pytest.approx(1)


def test_a_file_of_something_else_is_named(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"metrics\.json is no results\.json"):
        Results.read(path)


def test_csv_has_a_line_for_every_cell():
    rows = list(csv.DictReader(io.StringIO(csv_text(example()))))
    assert len(rows) == 8
    assert float(rows[2]["NDS"]) == 0.6
    assert rows[2]["changed frames"] == "1"
    assert float(rows[2]["NDS 0-20 m"]) == 0.3


def test_latex_escapes_and_balances():
    table = TextTable("50 % & more_", ("a_b", "RA"), (("x & y", 0.5), ("z", math.nan)))
    text = latex_text([table])
    assert r"\caption{50 \% \& more\_.}" in text
    assert r"x \& y & 0.500 \\" in text
    assert text.count("\\begin") == text.count("\\end") == 2


def test_nds_by_distance_is_the_mean_over_severities():
    table = next(t for t in all_tables(example()) if "distance" in t.title)
    assert table.rows[0] == ("clean", pytest.approx(0.4))
    assert table.rows[1] == ("fog", pytest.approx(0.25))


def test_the_report_shows_scores_and_refusals(tmp_path):
    from test_report import check

    from bevstack.perception.report.of_robustness import write_robustness_report

    results, path = example(snow_inputs="clean"), tmp_path / "report.html"
    third = replace(results, rows=(*results.rows, *[
        replace(row, name=f"third {k}") for k in range(3) for row in results.of("demo_suite")[:3]
    ]))  # fmt: skip
    write_robustness_report(
        path, third, example(), {("demo_suite", "fog"): b"jpeg"}, {}, "bevstack"
    )
    page = path.read_text()
    check(page)
    assert "mCE, demo_suite" in page
    assert UNCHANGED in page
    assert page.count("<svg") == 2  # radar and curves
    assert "data:image/jpeg;base64,anBlZw==" in page


def test_a_run_shows_the_results_of_its_own_weights_only(tmp_path):
    from bevstack.perception.report.of_robustness import stored_results
    from bevstack.perception.robustness.store import run_digest

    (tmp_path / "last.safetensors").write_bytes(b"weights")
    (tmp_path / "config.yaml").write_text("model: {}")
    assert stored_results(tmp_path) is None
    results = replace(example(), setup={"model": run_digest(tmp_path)})
    (tmp_path / "robustness").mkdir()
    (tmp_path / "robustness" / "results.json").write_text(json.dumps(results.to_json()))
    assert stored_results(tmp_path) == results
    (tmp_path / "last.safetensors").write_bytes(b"trained on")
    assert stored_results(tmp_path) is None
