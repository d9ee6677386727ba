"""The report: what it says, and that nothing in it can act or be fetched."""

import importlib.metadata
import json
import re

import pytest
from matplotlib.figure import Figure
from report_files import (
    FIRST_LIGHT,
    SETTING,
    Page,
    curvature,
    first_light,
    json_document,
    predict_document,
    predict_row,
    spectrum_document,
    written,
)

import hessian_lr
from hessian_lr.digits import rate
from hessian_lr.figures import sweep_figure
from hessian_lr.figures.rows import sweep_panel
from hessian_lr.figures.style import INK, METHOD_STYLES, MUTED
from hessian_lr.report import write_report
from hessian_lr.report.svg import inline
from hessian_lr.rows import SpectrumRow
from hessian_lr.setting import Setting
from hessian_lr.validated import read_validated


def page_of(tmp_path, *runs):
    out = tmp_path / "report.html"
    write_report(runs, out)
    return Page(out.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A report with everything in it, as its page and its source."""
    folder = tmp_path_factory.mktemp("report")
    spectrum = written(folder / "spectrum.json", spectrum_document(("lora", "pissa")))
    write_report([FIRST_LIGHT, spectrum], folder / "report.html")
    source = (folder / "report.html").read_text(encoding="utf-8")
    return Page(source), source


def test_it_recommends_what_the_sweeps_found_best(whole):
    best = min(first_light()["results"], key=lambda row: row["best_loss"])
    assert best["method"] == "lora"
    between = "by interpolation between 5 short runs with 1 seed"
    assert f"Train lora at a learning rate of 2.6e-3: {between}" in whole[0].text
    assert "anything from 2.5e-3 to 3.5e-3 kept 99% of the improvement." in whole[0].text
    assert f"loss of its runs is {best['best_loss']:.3f} nats per token" in whole[0].text
    near = sum(row["factor_error"] <= 2 for row in first_light()["results"])
    assert f"within 2× of the best learning rate for {near} of 4 methods" in whole[0].text


def test_it_has_every_section_and_each_figure_in_words(whole):
    page, source = whole
    headings = re.findall(r"<h2>(.*?)</h2>", source)
    assert headings == [
        *(
            "Learning rates",
            "Sharpness",
            "Sweeps",
            "Eigenvalue against best learning rate",
            "Largest eigenvalues",
            "Module by module",
        ),
        *("Spectral density", "Cost against the sweep it replaces", "Setting", "Versions"),
        *("How to make these results again", "Notes"),
    ]
    figures = page.tags("svg")
    assert len(figures) == 2 * (1 + 1 + 2 + 2)  # each for a wide page and for a phone
    assert all(figure["role"] == "img" and len(figure["aria-label"]) > 40 for figure in figures)
    assert len(page.tags("figcaption")) == len(figures) / 2
    assert all("scope" in head for head in page.tags("th"))
    assert all(table["role"] == "table" for table in page.tags("table"))


def test_the_certificate_stands_with_as_many_digits_as_are_known(whole):
    for cell in (
        "1.05 ± 0.12",
        "9.8 ± 3.5",
        "410 ± 90",
        "−1.05",
        "33000 ± 8000",
        "converged",
        "0.940 ± 0.012",
    ):
        assert f">{cell}</td>" in whole[1]


def test_no_line_of_text_ends_at_the_hyphen_of_a_number(whole):
    """A phone's column broke 3.3e-3 in two; tables and code have rules of their own."""
    page, source = whole
    assert re.search(r"\.number \{ white-space: nowrap; \}", "".join(page.styles))
    text = "".join(
        re.findall(r"<(?:p|li|caption|figcaption)\b.*?</(?:p|li|caption|figcaption)>", source, re.S)
    )
    numbers = re.findall(r"(.{21})\b\d[\d.]*e-\d", text, re.S)
    assert len(numbers) > 5 and {*numbers} == {'<span class="number">'}


def test_nothing_is_loaded_from_anywhere(whole):
    page, source = whole
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "img", "image", "iframe", "object", "embed", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("href", "src", "xlink:href", "srcset", "action", "data"):
                assert value.startswith("#")
    assert "@import" not in source and not re.search(r"url\((?!#)", source)
    (policy,) = [m["content"] for m in page.tags("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")


def test_no_id_is_there_twice_and_none_is_missed(whole):
    page, source = whole
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids)) > 100
    used = re.findall(r'href="#([^"]+)"', source) + re.findall(r"url\(#([^)]+)\)", source)
    assert set(used) <= set(ids)


def test_figures_follow_the_page_and_keep_the_methods_colours():
    panels = [sweep_panel(one) for one in read_validated([FIRST_LIGHT])]
    svg = str(inline(sweep_figure(panels), "a", "words"))
    for neutral in (INK, MUTED, "#FFFFFF"):
        assert neutral.lower() not in svg.lower()
    assert "var(--ink)" in svg and "var(--muted)" in svg and "var(--line)" in svg
    for method in ("lora", "pissa", "rslora", "olora"):
        assert METHOD_STYLES[method][0].lower() in svg
    assert "<style" not in svg and "metadata" not in svg and "http" not in svg


def test_two_figures_share_no_id():
    def ids(prefix):
        figure = Figure()
        figure.add_subplot().plot([1, 2])
        return set(re.findall(r' id="([^"]+)"', inline(figure, prefix, "words")))

    assert ids("a") and not ids("a") & ids("b")


DIVERGED = [
    {"lr": lr, "initial_loss": 2.0, "final_loss": 7.0, "steps": 3, "diverged": True} for lr in (1.0, 3.0)
]
DIVERGED = [run | {"seconds": 1.0, "seed": 0} for run in DIVERGED]
NASTY = '<script>alert("x")</script>$\\frac{<img src=x onerror=y>'


def test_whatever_a_file_calls_itself_is_text_and_nothing_else(tmp_path):
    """Every string of a file is replaced by markup that would act."""
    validated = first_light()
    validated["setting"] |= {"model": NASTY, "data": NASTY, "methods": [NASTY], "fields": [NASTY]}
    validated["results"] = validated["results"][:1]
    validated["results"][0] |= {"method": NASTY, "status": NASTY, "notes": [NASTY], "calibration": NASTY}
    validated |= {"notes": [NASTY], "versions": {NASTY: NASTY}, "data_digest": NASTY, "seeds": [NASTY]}
    validated["lrs"] = validated["results"][0]["predictor"] = NASTY
    spectrum = spectrum_document((NASTY,), Setting(**{**vars(SETTING), "model": NASTY, "data": NASTY}))
    document = json.loads(json.dumps(spectrum))
    for module in document["results"][0]["modules"]["modules"]:
        module["kind"] += NASTY
    (tmp_path / NASTY.replace("/", "")).mkdir()
    page = page_of(
        tmp_path,
        written(tmp_path / NASTY.replace("/", "") / "validate.json", validated),
        written(tmp_path / f"{NASTY.replace('/', '')}.json", document),
    )
    tags = {tag for tag, _ in page.elements}
    assert "script" not in tags and "img" not in tags
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert page.text.count('<script>alert("x")</script>') > 8
    assert any(NASTY in figure["aria-label"] for figure in page.tags("svg"))


def test_predictions_alone_give_each_method_with_its_range(tmp_path):
    other = predict_row("pissa", lr=4.2e-4, lr_low=1.9e-4, lr_high=9.2e-4, notes=["a note"])
    page = page_of(tmp_path, written(tmp_path / "p.json", predict_document(predict_row(), other)))
    said = "Start lora at 2.1e-3 (9.4e-4 to 4.6e-3), pissa at 4.2e-4 (1.9e-4 to 9.2e-4): the best"
    assert said in page.text
    assert "Not in these results" in page.text
    for hint in ("validate --out DIR", "--top 10", "--per-module", "--density"):
        assert hint in page.text
    assert not page.tags("svg")
    assert "pissa: a note" in page.text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"censored": True, "best_lr": 1e-2}, "lora did best at 1.0e-2, the largest of its sweep"),
        ({"censored": True, "best_lr": 1e-3}, "lora did best at 1.0e-3, the smallest of its sweep"),
        ({"best_lr": None, "best_loss": None}, "No learning rate that was run lowered the held-out loss"),
        ({"best_lr": None, "best_loss": None, "runs": DIVERGED}, "Every run diverged: run smaller learning"),
        ({"band_low": None}, "anything up to 3.5e-3 kept 99%"),
        ({"predicted_lr": None, "predicted_low": None, "predicted_high": None}, "Train lora"),
    ],
)
def test_the_recommendation_owns_up_to_what_is_not_known(tmp_path, change, said):
    document = first_light()
    document["results"] = document["results"][:1]
    document["results"][0] |= change
    assert said in page_of(tmp_path, written(tmp_path / "v.json", document)).text


def test_a_spectrum_alone_recommends_nothing_and_says_how_to_get_it(tmp_path):
    page = page_of(tmp_path, written(tmp_path / "s.json", spectrum_document()))
    assert "λ was measured (lora 1.25 ± 0.04), which by itself recommends no learning rate" in page.text
    assert "hessian-lr predict" in page.text


def test_a_method_that_failed_is_shown_as_failed_with_its_reason(tmp_path):
    nothing = dict.fromkeys(("lr", "lr_low", "lr_high", "lambda_preconditioned", "sampling_error"))
    row = predict_row(**nothing, status="failed", notes=["no memory"])
    page = page_of(tmp_path, written(tmp_path / "p.json", predict_document(row)))
    assert "Nothing could be measured here" in page.text and "lora: no memory" in page.text


def test_a_spectrum_goes_with_the_sweeps_of_its_adapter_and_stands_alone_otherwise(tmp_path):
    same = Setting(**{**vars(SETTING), "steps": 60, "batch_size": 4, "samples": 2})
    other = Setting(**{**vars(SETTING), "rank": 4, "alpha": 4})
    one = write_report(
        [FIRST_LIGHT, written(tmp_path / "same.json", spectrum_document(setting=same))], tmp_path / "r.html"
    )
    two = write_report(
        [FIRST_LIGHT, written(tmp_path / "other.json", spectrum_document(setting=other))], tmp_path / "r.html"
    )
    assert [part.subtitle for part in one] == ["rank 16, alpha 16, 16 steps of 2 rows with adamw"]
    assert [part.subtitle for part in two][1:] == ["rank 4, alpha 4"]


def test_data_under_two_paths_make_one_part(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("")
    files = [
        written(tmp_path / f"{number}.json", predict_document(setting=Setting(data=path)))
        for number, path in enumerate(("rows.jsonl", "./rows.jsonl", str(tmp_path / "rows.jsonl")))
    ]
    assert len(write_report(files, tmp_path / "r.html")) == 1


def test_a_prediction_that_a_sweep_already_tells_is_not_told_twice(tmp_path):
    (lora, *_) = first_light()["results"]
    names = {"lr": "predicted_lr", "lr_low": "predicted_low", "lr_high": "predicted_high"}
    same = {name: lora[there] for name, there in names.items()}
    told = written(tmp_path / "same.json", predict_document(predict_row(**same)))
    news = written(tmp_path / "news.json", predict_document(predict_row(predictor="eigenvalue")))
    (part,) = write_report([FIRST_LIGHT, told, news], tmp_path / "r.html")
    rates = part.sections[0].tables[0]
    assert [row[:3] for row in rates.rows if row[0] == "lora"] == [
        ["lora", "results", rate(lora["predicted_lr"])],
        ["lora", "news.json", "2.1e-3"],
    ]


def test_panels_of_one_method_are_told_apart_by_their_files(tmp_path, monkeypatch):
    drawn = []

    def draw(panels, **more):
        drawn.append([panel.title for panel in panels])
        return sweep_figure(panels, **more)

    monkeypatch.setattr("hessian_lr.report.drawings.sweep_figure", draw)
    document = first_light()
    document["setting"]["samples"] = 16
    document["results"] = document["results"][:1]
    again = written(tmp_path / "again.json", document)
    (part,) = write_report([FIRST_LIGHT, again], tmp_path / "r.html")
    titles = ["lora (results)", "rslora", "pissa", "olora", "lora (again.json)"]
    assert drawn == [titles, titles], "wide and narrow"
    (sweeps,) = (section for section in part.sections if section.title == "Sweeps")
    assert all(f"{title}: 5 runs" in sweeps.drawings[0].wide for title in titles)


def test_documents_name_the_versions_they_were_made_with(tmp_path):
    document = spectrum_document()
    assert document["versions"]["hessian-lr"] == hessian_lr.__version__
    for name in ("torch", "transformers", "peft"):
        assert document["versions"][name] == importlib.metadata.version(name)
    page = page_of(tmp_path, written(tmp_path / "s.json", document))
    assert document["versions"]["torch"] in page.text
    older = written(tmp_path / "validate.json", first_light() | {"versions": {}})
    assert "do not name the versions" in page_of(tmp_path, older).text


def _colours(css):
    return dict(re.findall(r"(--\w+): (#[0-9a-f]{6})", css))


def _luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    """WCAG 2.2's contrast ratio."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_all_text_has_contrast_in_light_and_dark(whole):
    light, dark = "".join(whole[0].styles).split("prefers-color-scheme: dark")
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for colours in (_colours(light), _colours(dark)):
        for ground in ("--paper", "--raised"):
            for text in ("--ink", "--muted", "--accent"):
                assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)


def test_lambda_that_failed_has_a_row_and_no_number(tmp_path):
    row = SpectrumRow.of("lora", curvature().failed("the loss is NaN")).to_dict()
    document = json_document([SETTING], [row])
    (part,) = write_report([written(tmp_path / "s.json", document)], tmp_path / "r.html")
    (table,) = next(section for section in part.sections if section.title == "Sharpness").tables
    assert table.columns == ["method", "status"] and table.rows == [["lora", "failed"]]
