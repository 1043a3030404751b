"""The page of results in a browser: it loads, filters, sorts, draws, and fits a telephone."""

import json
import math

import pytest

from experiments.harness.experiment import ROOT
from experiments.harness.found import experiment
from experiments.results_page.groups import read_groups

pytest.importorskip("bokeh", reason="needs the extra `page`")
pytest.importorskip("selenium", reason="needs the extra `test`")

from chromium import PROGRAMS, chromium, select, texts, width
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from experiments.results_page.page import page

pytestmark = pytest.mark.skipif(
    None in PROGRAMS, reason="needs Chromium: apt-get install chromium chromium-driver"
)
RESULTS = ROOT / "experiments" / "norms" / "results"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "index.html"
    found = map(experiment, ("norms", "why_it_works"))
    groups = [group for each in found for group in read_groups(each.name, each.results, each.arms)]
    file.write_text(page(groups), encoding="utf-8")
    return file.as_uri()


@pytest.fixture(scope="module")
def started():
    with chromium() as browser:
        yield browser


@pytest.fixture
def browser(started, address):
    """The page just loaded, 1,400 pixels wide; no error may be left on its console."""
    width(started, 1400)
    started.get(address)
    yield started
    errors = [line for line in started.get_log("browser") if line["level"] != "INFO"]
    assert not errors


def column(browser, table, head):
    script = "return [...document.querySelectorAll(arguments[0])].map((head) => head.innerText)"
    heads = browser.execute_script(script, f"#{table} th")  # of hidden columns, too
    return texts(browser, f"#{table} tbody td:nth-child({1 + heads.index(head)})")


def committed(name):
    """How many runs an experiment has."""
    return len(list((ROOT / "experiments" / name / "results").rglob("record.json")))


def of_record(arm, seed):
    record = json.loads((RESULTS / f"{arm}-s{seed}" / "record.json").read_text())
    return record["final"]["test"]


def legend(browser):
    return dict(zip(*[texts(browser, f"#legend td:nth-child({i})") for i in (2, 3)], strict=True))


def drawn_lines(browser):
    """Paths of Bokeh's figure, whose elements lie in shadows of the document."""
    return browser.execute_script("""
        const all = (root) => [...root.querySelectorAll("*")].flatMap(
            (node) => [node, ...(node.shadowRoot ? all(node.shadowRoot) : [])]);
        const drawn = all(document.getElementById("chart"));
        return drawn.filter((node) => node.tagName === "path").length;
    """)


def test_curves_are_drawn_and_their_values_are_the_records(browser):
    select(browser, "draw", "each run")
    test = of_record("batch", 2)
    value = legend(browser)["batch, seed 2"]
    assert value == f"{100 * test['correct'] / test['examples']:.2f}"
    assert len(legend(browser)) == 12  # of 15, as the page says
    assert texts(browser, "#note") == [
        "The first 12 of 15 curves: filters and ticks choose others."
    ]
    assert drawn_lines(browser) > 12


def test_filters_narrow_tables_curves_and_records(browser):
    assert len(texts(browser, "#runs tbody tr")) == committed("norms")  # the first experiment
    select(browser, "arm", "layer")
    assert set(legend(browser)) == {"layer"}
    select(browser, "seed", "1")
    assert texts(browser, "#runs tbody tr td:nth-child(4)") == ["1"]
    test = of_record("layer", 1)
    shown = column(browser, "runs", "final, %")
    assert shown == [f"{100 * test['correct'] / test['examples']:.2f}"]
    select(browser, "experiment", "why_it_works")
    assert len(texts(browser, "#runs tbody tr")) == committed("why_it_works")
    reset = browser.find_element(By.CSS_SELECTOR, "[type=reset]")
    assert reset.text == "show all"
    reset.click()
    all_runs = committed("norms") + committed("why_it_works")
    WebDriverWait(browser, 5).until(lambda _: len(texts(browser, "#runs tbody tr")) == all_runs)


def test_a_field_of_the_configuration_filters(browser):
    select(browser, "field", "norm")
    select(browser, "value", "group:4")
    assert set(column(browser, "runs", "network or question")) == {"4 groups"}
    assert "value=group" in browser.current_url


def test_an_address_keeps_its_filters(browser, address):
    browser.get(f"{address}?experiment=norms&arm=batch&seed=2")
    assert column(browser, "runs", "seed") == ["2"]


def test_tables_sort_both_ways_by_number(browser):
    browser.get(browser.current_url.partition("?")[0] + "?experiment=norms")
    for order in (sorted, lambda values: sorted(values, reverse=True)):
        browser.find_element(By.XPATH, "//table[@id='runs']//button[.='final loss']").click()
        values = [float(text) for text in column(browser, "runs", "final loss")]
        assert values == order(values)
        assert len(set(values)) == 15


def test_the_pointer_shows_all_values_at_its_step(browser):
    before = legend(browser)
    assert texts(browser, "#at") == ["last value, at 150"]
    chart = browser.find_element(By.ID, "chart")
    ActionChains(browser).move_to_element(chart).perform()
    (head,) = texts(browser, "#at")
    assert head in ("at 50", "at 75", "at 100")
    assert legend(browser).keys() == before.keys()
    assert legend(browser) != before


def test_a_number_leads_to_its_record(browser):
    select(browser, "seed", "0")
    browser.find_element(By.CSS_SELECTOR, "#runs tbody tr:not([hidden]) a").click()
    (card,) = texts(browser, "details[open]")
    assert "python -m experiments.verify experiments/norms/results/none-s0" in card
    record = json.loads((RESULTS / "none-s0" / "record.json").read_text())
    assert record["environment"]["git"]["commit"] in card
    assert record["data"]["sha256"] in card


def test_curves_leave_out_what_is_no_number(browser, tmp_path):
    """Of a run's end, of all of a run, and of all of a network. Seen red: the script ended."""
    found = experiment("norms")
    groups = read_groups(found.name, found.results, found.arms)
    first, second, third = groups[0].runs
    for entry in (first.log[-1], *second.log, *(e for run in groups[1].runs for e in run.log)):
        entry["test"]["loss"] = math.nan
    file = tmp_path / "index.html"
    file.write_text(page(groups), encoding="utf-8")
    browser.get(file.as_uri())
    select(browser, "measure", "test loss")
    own, other = (group.label for group in groups[:2])
    losses = [run.log[-2]["test"] for run in (first, third)]
    mean = sum(test["loss"] / test["examples"] for test in losses) / 2
    assert legend(browser)[own].startswith(f"{mean:.3f}")
    assert other not in legend(browser)
    assert len(legend(browser)) == 4
    select(browser, "draw", "each run")
    assert f"{own}, seed 0" in legend(browser)
    assert f"{own}, seed 1" not in legend(browser)
    select(browser, "measure", "test accuracy, %")
    assert f"{own}, seed 1" in legend(browser)


def test_it_fits_a_telephone(browser, address):
    """What is wider, tables, scrolls by itself."""
    width(browser, 400)
    browser.get(address)
    assert browser.execute_script("return document.documentElement.scrollWidth") == 400
    assert len(legend(browser)) == 5
