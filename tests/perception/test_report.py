"""The report: valid, whole in itself, and it says what it was given."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from bevstack.perception.report import (
    Ablation,
    Agreement,
    AgreementRow,
    Card,
    ClassResult,
    Commands,
    Configuration,
    DetectionTable,
    FramePicture,
    Gallery,
    LossCurves,
    MapTable,
    PrecisionRecall,
    RunReport,
    SceneVideo,
    Table,
    Timings,
    write_report,
)
from bevstack.perception.report.scene_video import small_webp
from bevstack.perception.report.write import duration, number, render_report, signed
from bevstack.perception.visualize import curves
from bevstack.perception.visualize.video import encode_webp

NAN = float("nan")
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Checker(HTMLParser):
    """Complains about tags that do not nest, ids that repeat, and anything loaded from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
                self.loads.append(value)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def check(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert checker.open == []
    assert len(set(checker.ids)) == len(checker.ids)
    return checker


def losses(steps: int = 50) -> dict[str, np.ndarray]:
    step = np.arange(1, steps + 1)
    falling = 3.0 / step
    return {"step": step, "epoch": step // 10, "lr": step * 1e-5, "total": falling + 1,
            "heatmap": falling, "map": np.where(step == 3, NAN, 0.5)}  # fmt: skip


def full_report() -> RunReport:
    picture = np.zeros((20, 30, 3), np.uint8)
    recall = np.linspace(0, 1, 11)
    return RunReport(
        title="Fusion <script>alert('title')</script>",
        summary="Six & more <b>cameras</b>",
        facts={"Config": "a<script>b", "Seed": 12345},
        cards=(Card.score("mAP", 0.43217, "<i>"), Card("NDS", NAN), Card("time", "7 min")),
        sections=(
            Timings({"train": 432.0, "evaluate": 66.0}),
            Ablation({"both": {"mAP": 0.4}, "camera <script>": {"mAP": NAN}}),
            Gallery(
                (
                    FramePicture("frame <script>", picture, picture, picture, 'a "quote"'),
                    FramePicture("no cameras", None, picture, None),
                )
            ),
            SceneVideo(encode_webp([picture, picture + 200]), "scene <script>"),
            DetectionTable(
                {
                    "car": ClassResult((0.1, 0.2, 0.3, 0.4567), (0.5, 0.1, NAN, 0.2, 0.3), 1234),
                    "<script>class": ClassResult((NAN,) * 4, (NAN,) * 5),
                },
                mean_ap=0.2642,
                mean_errors=(0.5, 0.1, NAN, 0.2, 0.3),
            ),
            Table("By distance", {"car": {"0-20 m": 0.777, "20-50 m": NAN}}, "note"),
            MapTable({"drivable_area": 0.8765, "divider": 0.25}, {"drivable_area": 0.45}),
            Agreement((AgreementRow("mAP", 0.25, 0.25 + 1e-9), AgreementRow("x", NAN, NAN))),
            LossCurves(losses()),
            PrecisionRecall(recall, {"car": np.stack([1 - recall, 1 - recall**2])}),
            Commands(("bevstack train --config a.yaml && echo '<script>'",)),
            Configuration("key: </script><script>alert(1)</script>"),
        ),
    )


@pytest.fixture(scope="module")
def html() -> str:
    return render_report(full_report())


def test_the_whole_page_is_valid_html(html):
    checker = check(html)
    assert html.startswith("<!DOCTYPE html>")
    links = {load[1:] for load in checker.loads if load.startswith("#")}
    assert links <= set(checker.ids)


@pytest.mark.parametrize("k", range(len(full_report().sections)))
def test_each_section_stands_alone(k):
    check(render_report(RunReport("one", sections=(full_report().sections[k],))))


def test_nothing_is_loaded_from_elsewhere(html):
    checker = Checker()
    checker.feed(html)
    assert checker.loads
    assert all(load.startswith(("data:", "#")) for load in checker.loads)
    assert not re.search(r"""url\(\s*['"]?(?!#|data:)""", html)
    assert "@import" not in html
    assert not re.search(r"https?://", html)


@pytest.mark.parametrize(
    "text",
    ["0.432", "12\u202f345", "1\u202f234", "0.264", "0.457", "0.777", "0.876", "0.45", "7 min 12 s",
     "8 min 18 s", "1.0e-09", "0.563", "n/a"],
)  # fmt: skip
def test_the_numbers_that_were_given_are_there(html, text):
    checker = Checker()
    checker.feed(html)
    assert any(text in piece for piece in checker.text)


def test_text_is_escaped(html):
    assert html.count("<script>") == 1  # our own
    assert html.count("</script>") == 1
    assert "Fusion &lt;script&gt;" in html
    assert "Six &amp; more &lt;b&gt;cameras" in html


def test_an_empty_report_is_legal(tmp_path):
    path = write_report(RunReport("nothing"), tmp_path / "deep" / "report.html")
    page = path.read_text(encoding="utf-8")
    check(page)
    assert "<section" not in page
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_sections_without_content_are_left_out():
    empty = (
        Timings({}),
        Gallery(()),
        SceneVideo(b""),
        Table("t", {}),
        Commands(()),
        LossCurves(losses(0)),
    )
    assert "<section" not in render_report(RunReport("x", sections=(*empty, Configuration(""))))


def test_a_failed_report_leaves_the_old_one(tmp_path):
    path = write_report(RunReport("old"), tmp_path / "report.html")
    broken = Ablation({"both": {"mAP": 0.1}, "one": {}})
    with pytest.raises(Exception, match="mAP"):
        write_report(RunReport("new", sections=(broken,)), path)
    assert "old" in path.read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_disagreement_with_the_official_code_is_said():
    row = AgreementRow("mAP", 0.25, 0.26)
    assert not Agreement((row,)).agrees
    assert not Agreement((AgreementRow("mAP", NAN, 0.2),)).agrees
    assert "Different" in render_report(RunReport("x", sections=(Agreement((row,)),)))


def test_same_report_same_bytes():
    assert render_report(full_report()) == render_report(full_report())


def test_numbers_have_one_form():
    assert number(None) == number(NAN) == "n/a"
    assert number(0.12345) == "0.123"
    assert number(np.float32(0.5)) == "0.500"
    assert number(np.int64(1234567)) == "1\u202f234\u202f567"
    assert number(-0.5, 1) == "\u22120.5"
    assert (signed(0.25, 2), signed(-0.25, 2), signed(NAN)) == ("+0.25", "\u22120.25", "n/a")
    assert duration(0.44) == "0.4 s"
    assert duration(59.6) == "1 min 00 s"
    assert duration(7800) == "2 h 10 min"


def test_losses_csv_is_read_as_columns(tmp_path):
    file = tmp_path / "losses.csv"
    file.write_text("step,epoch,lr,total,heatmap\n1,0,0.1,2.5,1\n2,0,0.2,nan,\n3,0,0.")
    columns = curves.read_losses(file)
    assert list(columns) == ["step", "epoch", "lr", "total", "heatmap"]
    np.testing.assert_array_equal(columns["heatmap"], [1, NAN, NAN])
    check(render_report(RunReport("x", sections=(LossCurves(columns),))))


def test_figures_are_also_png():
    for figure in (
        curves.loss_figure(losses()),
        curves.average_precision_figure({"car": 0.5, "bus": NAN}),
    ):
        assert curves.to_png(figure, dpi=40).startswith(b"\x89PNG")


def test_svg_follows_the_page():
    svg = curves.to_svg(curves.average_precision_figure({"car": 0.5}), "ap", 'the "AP"')
    assert svg.startswith("<svg")
    assert "currentColor" in svg
    assert "xmlns" not in svg
    check(svg)


def test_sections_are_made_from_metrics():
    from bevstack.perception.evaluation.detection import DetectionMetrics, RangeMetrics
    from bevstack.perception.evaluation.map import MapMetrics
    from bevstack.perception.report import (
        agreement_section,
        detection_section,
        distance_section,
        map_section,
    )

    errors = ("trans_err", "scale_err", "orient_err", "vel_err", "attr_err")
    metrics = DetectionMetrics(
        {"car": {0.5: 0.1, 1.0: 0.2, 2.0: 0.3, 4.0: 0.4}},
        {"car": dict(zip(errors, (0.5, 0.4, 0.3, NAN, 0.1)))},
        (RangeMetrics(0, 20, {"car": 0.33}, {}), RangeMetrics(20, 50, {"car": NAN}, {})),
        {"car": NAN},
        {"car": 7},
        {"car": 9},
    )
    table = detection_section(metrics)
    assert table.classes["car"].mean == pytest.approx(0.25)
    assert table.classes["car"].errors[:3] == (0.5, 0.4, 0.3)
    assert list(distance_section(metrics).rows["car"]) == ["0–20 m", "20–50 m"]
    same = agreement_section(metrics, metrics.mean_ap, metrics.nd_score, metrics.tp_errors)
    assert same.agrees
    assert [row.metric for row in same.rows] == [
        "mAP",
        "NDS",
        *("mATE", "mASE", "mAOE", "mAVE", "mAAE"),
    ]
    area = map_section(MapMetrics({"divider": {0.4: 0.2, 0.5: 0.6}}, 3))
    assert (area.iou["divider"], area.threshold["divider"]) == (0.6, 0.5)


def test_a_video_stays_below_its_limit():
    noise = np.random.default_rng(0).integers(0, 256, (8, 90, 120, 3), np.uint8)
    whole = len(encode_webp(list(noise), quality=60))
    assert len(small_webp(list(noise), whole)) == whole
    assert len(small_webp(list(noise), whole // 4)) <= whole // 4
    assert small_webp(list(noise), 1)  # one picture at least
