"""The report as a file: what it says, what it escapes, and what it refuses. test_browser.py tests how it looks."""

import copy
import json
import math
import re
from html.parser import HTMLParser

import pytest
from tests.example_results import ARMS, example_results

from gammabeta.pages.report import read_results, write_report
from gammabeta.pages.validation import ReportError, check
from gammabeta.pages.verdicts import MEANINGS, VERDICTS


class Page(HTMLParser):
    """The page's elements, and the text that a reader sees."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self.scripts, self._inside = [], "", [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._inside = tag if tag in ("script", "style") else None

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts.append(data)
        elif self._inside is None:
            self.text += data


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = write_report(example_results(), tmp_path_factory.mktemp("study") / "report.html")
    return path, Page(path.read_text(encoding="utf-8"))


def test_what_is_much_is_folded(tmp_path):
    results = example_results()
    claim = next(claim for claim in results["claims"] if claim["name"] == "small_batch")
    claim["pictures"] = claim["pictures"] * 3
    claim["effects"] = claim["effects"] * 5
    page = Page(write_report(results, tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.text.count("4 more pictures") == page.text.count("14 further effects") == 1
    pictures = [given["data-of"] for _, given in page.elements if given.get("data-of", "").startswith("small_batch-")]
    assert pictures == [f"small_batch-{index}" for index in range(1, 7)]
    numbers = [given["id"] for tag, given in page.elements if given.get("id", "") in pictures and tag == "script"]
    assert numbers == pictures


def test_cards_come_first_then_what_holds_then_the_data_then_the_claims(page):
    order = (
        "Use BatchNorm at batches of 16",
        "18\u00a0% less time",
        "Holds here",
        "Training",
        "none trains above 20 %",
    )
    places = [page[1].text.index(part) for part in order]
    assert places == sorted(places)


def test_the_contents_lead_to_every_part(page):
    links = [a["href"] for tag, a in page[1].elements if tag == "a"]
    parts = ["#recommendations", "#summary", "#data", "#claims", "#identities", "#reading", "#run"]
    assert links[: len(parts)] == parts


def test_identities_are_counted_apart(page):
    text = re.sub(r"\s+", " ", page[1].text)
    assert re.search(r"7 empirical claims.*?1 identity ✓ 1 supported", text)
    assert text.index("Identities: holds here") > text.index("Not finished")


def test_the_head_says_how_large_the_study_was(tmp_path):
    def head(**given):
        return Page(write_report(example_results() | given, tmp_path / "report.html").read_text(encoding="utf-8")).text[
            :200
        ]

    assert "gammabeta study, quick," in head(quick=True)
    assert "gammabeta study, at scale," in head(quick=True, at_scale=True)
    assert "quick" not in head(quick=True, at_scale=True)
    assert "gammabeta study, " in head(quick=False)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"status": "exploratory", "claims_hash": "c0ffee"}, "Exploratory run"),
        ({"confirmatory": False}, "Exploratory run"),
        ({"confirmatory": True, "claims_hash": "c0ffee"}, "Confirmatory run"),
        ({}, ""),
    ],
)
def test_a_run_says_whether_it_is_exploratory(given, said, tmp_path):
    text = Page(write_report(example_results() | given, tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert [word for word in ("Exploratory run", "Confirmatory run") if word in text] == ([said] if said else [])
    assert ("c0ffee" in text) == ("claims_hash" in given)


def test_every_data_set_is_listed_with_what_was_used_of_what_there_is(tmp_path):
    results = example_results()
    results["tasks"] = [results["task"], {"name": "strokes", "kind": "sequences", "samples": {"train": 1500}}]
    page = Page(write_report(results, tmp_path / "report.html").read_text(encoding="utf-8"))
    text = re.sub(r"\s+", " ", page.text)
    assert "What normalization does on digits and strokes" in text
    assert "1078 of 1438" in text
    assert "1500 training" in text
    table = next(json.loads(script) for script in page.scripts if '"train, available"' in script)
    facts = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    assert [fact["train"] for fact in facts] == [1078, 1500]
    assert [fact["train, available"] for fact in facts] == [1438, None]


def test_every_table_has_its_full_numbers_for_a_file(page):
    named = {given["data-table"] for tag, given in page[1].elements if tag == "script" and "data-table" in given}
    assert {"norms-1", "comparison-1-1", "effects-small_batch", "small_batch-1", "regimes-gradient_flow"} <= named
    norms = next(json.loads(script) for script in page[1].scripts if '"GroupNorm",1.5' in script)
    assert norms == {"columns": ["norm", "test error, %"], "rows": [["GroupNorm", 1.5], ["BatchNorm", 2.03125]]}


def test_a_recommendation_s_picture_is_checked():
    results = example_results()
    results["recommendations"][0]["picture"]["series"][0]["y"] = []
    with pytest.raises(ReportError, match="a recommendation, picture 'Test error of BatchNorm minus"):
        check(results)


def test_every_verdict_has_a_meaning():
    assert set(MEANINGS) == set(VERDICTS)


def test_every_part_of_the_results_is_on_the_page(page):
    text = page[1].text
    for verdict in VERDICTS:
        assert verdict in text
    for part in (
        "Is it so that batchNorm needs a large enough batch?",
        "BatchNorm reaches a training loss of 0.1 in 1.9 times fewer steps",
        "1.9 [1.5, 2.2]",
        "about 23 would decide",
        "gammabeta study gradient_flow --quick --out 'a <b> folder-again' --seed 1 --seeds 23",
        "gammabeta study --compare --until-settled --seed 1 --out again",
        "depth 8, width 64, relu, He",
        "Ioffe & Szegedy 2015",
        "A processor of some kind, 2 cores",
        "4 March 2026, 05:06 UTC",
        "1 × 8 × 8",
        "2 min 23 s",
        "Every number here is from 6 replicates.",
    ):
        assert part in re.sub(r"\s+", " ", text), part


def test_evidence_links_to_its_claim_and_only_to_claims_that_are_there(page):
    links = [a["href"] for tag, a in page[1].elements if tag == "a"]
    ids = {a["id"] for _, a in page[1].elements if "id" in a}
    assert "#claim-faster_convergence" in links
    assert all(link[1:] in ids for link in links if link.startswith("#"))


def test_what_comes_from_users_is_text_and_never_markup(page):
    path, parsed = page
    source = path.read_text(encoding="utf-8")
    assert '<script>alert("x")</script>' not in source
    assert "<b>bold</b>" not in source
    assert parsed.text.count('<script>alert("x")</script>') >= 8  # as a reader sees it, in title, question, criterion …
    assert "gammabeta study --quick --out 'a <b> folder'" in parsed.text


def test_nothing_is_loaded_from_elsewhere(page):
    for tag, attributes in page[1].elements:
        assert "src" not in attributes, (tag, attributes)
        if tag == "link":
            assert attributes["href"] == "data:,"
    policy = next(a["content"] for tag, a in page[1].elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    styles = re.findall(r"<style>(.*?)</style>", page[0].read_text(encoding="utf-8"), re.S)
    assert not any("@import" in style or "url(" in style for style in styles)


def test_the_page_stays_small(page):
    assert page[0].stat().st_size < 6_000_000


def test_trials_are_listed_by_key_with_what_varies(page):
    tables = json.loads(next(s for s in page[1].scripts if '"columns":["trial"' in s and "rate" in s))
    (table,) = tables
    assert table["run"] == "gammabeta.lab.images.training:train"
    assert table["columns"][: table["given"]] == ["trial", "norm", "rate", "seed"]
    assert "network.width = 64" in table["same"]
    assert len(table["rows"]) == 24
    row = dict(zip(table["columns"], table["rows"][3], strict=True))
    assert "03c0ffee0003".startswith(row["trial"])
    assert row["norm"] == ARMS[3]
    assert row["steps"] == "–"
    assert row["loss"] == "2.3, 1.15, … 0.046 (50 values)"


def test_bare_results_make_a_page(tmp_path):
    path = write_report({"schema": 2, "claims": []}, tmp_path / "new" / "report.html")
    text = Page(path.read_text(encoding="utf-8")).text
    assert "No claim was decided in this run." in text
    assert "No recommendation: the claims that it needs were not decided" in text
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def broken(change):
    results = copy.deepcopy(example_results())
    change(results)
    return results


def first(results):
    return results["claims"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda r: r.update(schema=1),
            "results: expected schema 2, got 1: draw the report with the gammabeta that ran the study, "
            "or run the study again.",
        ),
        (lambda r: r.pop("claims"), "results: expected a list under 'claims', got NoneType."),
        (lambda r: first(r).pop("name"), "results.claims[0]: expected an object with a name."),
        (
            lambda r: first(r).update(verdict="true"),
            "claim faster_convergence: expected a verdict out of supported, contradicted, mixed, equivalent, "
            "reported, inconclusive, no room here, does not apply, failed, interrupted, got 'true'.",
        ),
        (
            lambda r: first(r)["effects"][0].pop("value"),
            "claim faster_convergence, an effect: expected an object with 'value'.",
        ),
        (
            lambda r: first(r)["pictures"][0].update(kind="pie"),
            "claim faster_convergence, picture 'Training loss': expected the kind line, bar or heatmap, got 'pie'.",
        ),
        (
            lambda r: first(r)["pictures"][0]["series"][1]["low"].pop(),
            "claim faster_convergence, picture 'Training loss', series 'BatchNorm': expected 40 values in low, "
            "as many as in x, got 39.",
        ),
        (
            lambda r: r["claims"][5]["pictures"][0]["heat"]["z"].pop(),
            "claim axes, picture 'What leaves the output as it is': expected z of 5 rows of 5, "
            "as many as y and x have labels.",
        ),
        (
            lambda r: first(r)["effects"][0].update(high=math.inf),
            "results.claims[0].effects[0].high: expected a finite number or null, got NaN or an infinity.",
        ),
    ],
)
def test_broken_results_are_refused_in_one_sentence(change, message, tmp_path):
    with pytest.raises(ReportError) as error:
        write_report(broken(change), tmp_path / "report.html")
    assert str(error.value) == message
    assert not list(tmp_path.iterdir())


def test_results_that_are_no_object_are_refused():
    with pytest.raises(ReportError) as error:
        check([])
    assert str(error.value) == "results: expected an object, got list."


def test_read_results_says_what_is_missing(tmp_path):
    with pytest.raises(ReportError) as error:
        read_results(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}/results.json: no such file; name the folder to which `gammabeta study --out` wrote."
    )
    (tmp_path / "results.json").write_text("{", encoding="utf-8")
    with pytest.raises(ReportError) as error:
        read_results(tmp_path)
    assert str(error.value).startswith(
        f"{tmp_path}/results.json: expected what a study writes, got a file that is not JSON"
    )
    (tmp_path / "results.json").write_text(json.dumps(example_results()), encoding="utf-8")
    assert read_results(tmp_path) == example_results()
