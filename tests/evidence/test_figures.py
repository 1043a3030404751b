"""What is drawn is what was measured, and the same results give the same bytes."""

import shutil

import numpy as np
import pytest
from made_results import EXAMPLES, LENGTHS, MEDIANS, STEPS, write_pair, write_run
from matplotlib.colors import to_rgba

from bnjax.evidence.figures import (
    NORMALIZED,
    PLAIN,
    Curve,
    Marker,
    Percentiles,
    by_learning_rate,
    learning_curves,
    mark,
    new_figure,
    percentile_paths,
    save,
)
from experiments.harness.results import read_result
from experiments.mnist_lenet import figures
from experiments.mnist_lenet.figures import draw, typical_unit

X = np.array([0, 100, 2000])
Y = np.array([[0.1, 0.5, 0.9], [0.2, 0.5, 0.8], [0.3, 0.8, 1.0]])


def axes():
    return new_figure((4,))[1][0]


def points(line):
    return np.stack(line.get_data(), axis=1)


def band(collection):
    """Lower and upper edge `[points, 2]` each, at ascending x."""
    vertices = collection.get_paths()[0].vertices
    edges = [[vertices[vertices[:, 0] == x, 1] for x in np.unique(vertices[:, 0])]]
    return np.array([[ys.min(), ys.max()] for ys in edges[0]])


def test_learning_curves_show_mean_and_standard_deviation():
    """In percent; the standard deviation is that of a sample, n - 1."""
    panel = axes()
    learning_curves(panel, [Curve("one", "#d55e00", X, Y, line="--")], lowest=0.1)
    (line,) = panel.lines
    np.testing.assert_allclose(points(line), np.stack([X, 100 * Y.mean(0)], axis=1))
    sd = 100 * Y.std(0, ddof=1)
    expected = np.stack([100 * Y.mean(0) - sd, 100 * Y.mean(0) + sd], axis=1)
    np.testing.assert_allclose(band(panel.collections[0]), expected)
    assert (line.get_label(), line.get_linestyle(), line.get_color()) == ("one", "--", "#d55e00")
    assert panel.get_ylim() == (10, 100)
    assert panel.get_xlim() == (0, 2000)
    assert panel.get_ylabel() == "test accuracy, %"
    assert [text.get_text() for text in panel.get_legend().get_texts()] == ["one"]


def saturating(*ends):
    """Curves that come close to their ends soon."""
    x = np.arange(0, 2001, 20)
    ys = [end * (1 - np.exp(-x / 100)) for end in ends]
    return [Curve(f"to {end}", "#0072b2", x, y[None]) for end, y in zip(ends, ys, strict=True)]


def test_curves_are_told_apart_without_colour():
    """By marks that stand at different steps, in the legend as in the axes."""
    panel = axes()
    learning_curves(panel, saturating(0.5, 0.7, 0.9), lowest=0)
    signs = [line.get_marker() for line in panel.lines]
    assert len(set(signs)) == 3
    assert not {"", "None", "D"} & set(signs)
    assert [line.get_marker() for line in panel.get_legend().get_lines()] == signs
    assert len({line.get_markevery() for line in panel.lines}) == 3
    panel = axes()
    by_learning_rate(panel, saturating(0.5, 0.7), lowest=0)
    means = [line for line in panel.lines if line.get_linestyle() != "None"]
    assert len({line.get_marker() for line in means}) == 2


def test_close_ends_are_enlarged_between_whole_per_cents():
    panel = axes()
    curves = saturating(0.969, 0.973)
    learning_curves(panel, curves, lowest=0.7)
    (inset,) = panel.child_axes
    assert inset.get_ylim() == (96, 98)
    first = [curve.x[(100 * curve.y[0] >= 96).argmax()] for curve in curves]
    assert inset.get_xlim() == (max(first), 2000)
    for line, curve in zip(inset.lines, curves, strict=True):
        np.testing.assert_allclose(points(line), np.stack([curve.x, 100 * curve.y[0]], axis=1))
    assert panel.get_legend()._loc == 4  # below it, at the lower right


def test_an_enlargement_begins_where_curves_stay_within():
    """Red if it begins where they first come to it: one that leaves it again was cut to stumps."""
    one, other = saturating(0.969, 0.973)
    back = one.y.copy()
    back[:, one.x == 1500] -= 0.05
    panel = axes()
    learning_curves(panel, [one._replace(y=back), other], lowest=0.7)
    (inset,) = panel.child_axes
    assert inset.get_xlim() == (1520, 2000)
    back[:, -3] -= 0.05
    panel = axes()
    learning_curves(panel, [one._replace(y=back), other], lowest=0.7)
    assert not panel.child_axes


def rising(*ends):
    """Curves that come to their ends at the very last."""
    return [curve._replace(y=curve.y * curve.x / 2000) for curve in saturating(*ends)]


@pytest.mark.parametrize(
    "curves",
    [saturating(0.97), saturating(0.5, 0.97), rising(0.97, 0.972)],
    ids=["one", "apart", "no room"],
)
def test_what_needs_no_enlarging_or_has_no_room_is_left(curves):
    panel = axes()
    learning_curves(panel, curves, lowest=0.1)
    assert not panel.child_axes


def test_a_curve_with_a_run_that_ends_early_ends_there():
    """Red if its missing end, NaN, becomes the limit of an enlargement."""
    panel = axes()
    curves = saturating(0.969, 0.973)
    early = np.concatenate([curves[0].y, curves[0].y])
    early[1, -1] = np.nan
    learning_curves(panel, [curves[0]._replace(y=early), curves[1]], lowest=0.7)
    assert not panel.child_axes
    np.testing.assert_allclose(points(panel.lines[0])[:-1, 1], 100 * early[0, :-1])
    assert np.isnan(points(panel.lines[0])[-1, 1])


def test_runs_that_diverged_are_crossed_on_the_lower_edge():
    lost, whole = saturating(0.5, 0.9)
    panel = axes()
    learning_curves(panel, [lost._replace(diverged=(700.0, 900.0)), whole], lowest=0.2)
    (crosses,) = (
        line for line in panel.lines if line.get_marker() == "x" and len(line.get_xdata())
    )
    assert list(crosses.get_xdata()) == [700, 900]
    assert crosses.get_color() == lost.color
    edge = panel.transData.transform((700, 20))
    np.testing.assert_allclose(crosses.get_transform().transform((700, 0)), edge)
    texts = [text.get_text() for text in panel.get_legend().get_texts()]
    assert texts == ["to 0.5", "to 0.9", "reached infinity"]


def test_long_names_stand_below_and_leave_the_axes_their_room(tmp_path):
    """Red with the legend in the axes: the layout collapses with a warning, an error here."""
    name = ", ".join(f"a_setting_of_the_arm_{i} 0.0001" for i in range(12))
    sizes = {}
    for label in ("short", name):
        figure, (panel,) = new_figure((4,))
        learning_curves(panel, [Curve(label, "#d55e00", X, Y)], lowest=0.1)
        save(figure, tmp_path / "figure.png")
        sizes[label] = panel.get_window_extent().height
    assert panel.get_legend() is None
    (legend,) = figure.legends
    (text,) = (text.get_text() for text in legend.get_texts())
    assert text.replace("\n", " ") == name
    assert sizes[name] > 0.8 * sizes["short"]


def test_many_names_stand_below():
    """Red with the legend in the axes, where eight names hide curves."""
    figure, (panel,) = new_figure((4,))
    learning_curves(panel, saturating(*np.linspace(0.2, 0.9, 8)), lowest=0)
    assert panel.get_legend() is None
    (legend,) = figure.legends
    assert len(legend.get_texts()) == len({line.get_marker() for line in legend.get_lines()}) == 8


def test_an_svg_is_the_same_on_any_day(tmp_path):
    """Red for a date or for ids that are drawn at random."""
    files = []
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        figure, (panel,) = new_figure((4,))
        learning_curves(panel, [Curve("one", "#d55e00", X, Y)], lowest=0.1)
        files.append(save(figure, tmp_path / folder / "figure.svg").read_bytes())
    assert files[0] == files[1]
    assert b"<svg" in files[0]


def test_one_run_has_no_spread():
    panel = axes()
    learning_curves(panel, [Curve("one", "#d55e00", X, Y[:1])], lowest=0.1)
    np.testing.assert_allclose(band(panel.collections[0]), 100 * Y[0][:, None] * np.ones((1, 2)))


def test_percentile_paths_show_one_unit_over_the_medians_of_all():
    medians = np.arange(12.0).reshape(4, 3)
    unit = np.array([[-1.0, 0, 1], [0, 1, 2], [3, 4, 5]])
    panel = axes()
    percentile_paths(panel, Percentiles("(b)", "#0072b2", X, unit, medians), limit=7)
    assert len(panel.lines) == 4 + 3
    for line, values in zip(panel.lines, [*medians, *unit], strict=True):
        np.testing.assert_array_equal(points(line), np.stack([X, values], axis=1))
    assert {line.get_color() for line in panel.lines[:4]} == {"0.8"}
    assert {line.get_color() for line in panel.lines[4:]} == {"#0072b2"}
    np.testing.assert_allclose(band(panel.collections[0]), unit[[0, 2]].T)
    assert panel.get_ylim() == (-7, 7)
    assert panel.get_title() == "(b)"


def test_learning_rates_show_the_mean_and_every_run():
    rates = np.array([0.01, 0.1, 1.0])
    panel = axes()
    by_learning_rate(panel, [Curve("one", "#0072b2", rates, Y)], lowest=0.5)
    mean, *dots = panel.lines
    np.testing.assert_allclose(points(mean), np.stack([rates, 100 * Y.mean(0)], axis=1))
    assert len(dots) == 3
    for line, row in zip(dots, Y, strict=True):
        np.testing.assert_allclose(points(line), np.stack([rates, 100 * row], axis=1))
        assert line.get_linestyle() == "None"
    assert panel.get_xscale() == "log"
    assert panel.get_ylabel() == "final test accuracy, % (from 50)"


def test_markers_at_one_point_are_all_seen():
    """Within each other, above the line that they are held against."""
    panel = axes()
    learning_curves(panel, [Curve("one", "#d55e00", X, Y)], lowest=0, split="validation")
    at = [(5, 0.4, "#009e73"), (7, 0.4, "#0072b2"), (5, 0.4, "#d55e00"), (5, 0.4, "#000000")]
    mark(panel, [Marker(*one, sign) for one, sign in zip(at, "os^v", strict=True)], level=0.4)
    _, line, *marks = panel.lines
    assert set(line.get_ydata()) == {40}
    diamonds = [each for each in marks if each.get_marker() == "D"]
    signs = [each for each in marks if each.get_marker() != "D"]
    assert [(each.get_xdata()[0], each.get_marker()) for each in signs] == [(7, "s"), (5, "v")]
    assert [(*points(d)[0], d.get_color()) for d in diamonds] == [(x, 40, c) for x, _, c in at]
    sizes = [d.get_markersize() for d in diamonds]
    assert sizes[0] > sizes[2] > sizes[3] == sizes[1]
    assert panel.get_ylabel() == "validation accuracy, %"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    out = tmp_path_factory.mktemp("pair")
    write_pair(out)
    return out


@pytest.fixture
def drawn(pair, tmp_path, monkeypatch):
    """The panels of each file that is drawn, by its name; nothing is written."""
    panels = {}

    def keep(figure, path):
        panels[path.name] = figure.axes
        return path

    monkeypatch.setattr(figures, "save", keep)
    files = draw(pair, tmp_path)
    assert [path.parent for path in files] == [tmp_path] * len(files)
    assert [path.name for path in files] == list(panels)
    return panels


def test_the_typical_unit_travels_a_middling_way_once_settled(pair):
    """The median of the lengths 3, 0, 1, 9, 2 is unit 4's; red if earlier steps count."""
    assert np.argsort(LENGTHS)[2] == 4
    assert typical_unit(read_result(pair / "mlp-s0").log) == 4


def test_the_typical_one_of_an_even_number_of_units_is_the_upper_middle(tmp_path):
    write_run(tmp_path, "mlp", 0, [20] * 5, medians=MEDIANS[:, :4])  # lengths 3, 0, 1, 9
    assert typical_unit(read_result(tmp_path / "mlp-s0").log) == 0


def test_figure_1_shows_the_accuracies_of_both_arms(drawn):
    left = drawn["figure1.png"][0]
    plain, normalized = left.lines
    means = {
        "without BN": [20, 100, 170, 183, 194],
        "with BN": [20, 511 / 3, 577 / 3, 195, 589 / 3],
    }
    for line in (plain, normalized):
        expected = 100 * np.array(means[line.get_label()]) / EXAMPLES
        np.testing.assert_allclose(points(line), np.stack([STEPS, expected], axis=1))
    assert (plain.get_label(), plain.get_linestyle()) == ("without BN", "--")
    assert left.get_title() == "(a) test accuracy, 3 seeds"


def test_figure_1_shows_the_inputs_of_the_first_runs_units(drawn):
    _, middle, right = drawn["figure1.png"]
    unit = np.stack([MEDIANS[:, 4] - 1, MEDIANS[:, 4], MEDIANS[:, 4] + 2])
    for panel, title in ((middle, "(b) without BN"), (right, "(c) with BN")):
        assert panel.get_title() == title
        for line, values in zip(panel.lines, [*MEDIANS.T, *unit], strict=True):
            np.testing.assert_array_equal(points(line), np.stack([STEPS, values], axis=1))
    assert middle.get_ylim() == right.get_ylim()
    assert middle.lines[-1].get_color() != right.lines[-1].get_color()


def test_the_sweep_shows_the_last_accuracies(drawn):
    (panel,) = drawn["sweep.png"]
    lines = {line.get_label(): line for line in panel.lines if line.get_linestyle() != "None"}
    assert set(lines) == {"without BN", "with BN"}
    for label, means in {"without BN": [191, 181], "with BN": [195, 185]}.items():
        expected = 100 * np.array(means) / EXAMPLES
        np.testing.assert_allclose(points(lines[label]), np.stack([[0.1, 1], expected], axis=1))
    assert panel.get_title() == "after 2,000 steps"


def test_a_rate_with_fewer_seeds_is_shown_by_those_it_has(pair, tmp_path):
    out = shutil.copytree(pair, tmp_path / "out")
    shutil.rmtree(out / "sweep" / "mlp-lr1-s1")
    panels = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save", lambda figure, path: panels.append(figure.axes) or path)
        draw(out, tmp_path)
    plain = next(line for line in panels[-1][0].lines if line.get_label() == "without BN")
    np.testing.assert_allclose(plain.get_ydata(), 100 * np.array([191, 180]) / EXAMPLES)


def test_the_same_results_give_the_same_bytes(pair, tmp_path):
    """Red for a date or a version of the drawing's day in the file."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        draw(pair, tmp_path / name)
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert names == ["figure1.png", "sweep.png"]
    for name in names:
        first, second = ((tmp_path / side / name).read_bytes() for side in ("first", "second"))
        assert first == second
        assert first.startswith(b"\x89PNG")
    assert not list(pair.glob("*.png"))


@pytest.mark.parametrize("sweep", [False, True])
def test_without_a_pair_there_is_no_figure(tmp_path, sweep):
    """One arm alone cannot be compared."""
    write_run(tmp_path, "mlp", 0, [20] * 5)
    if sweep:
        write_run(tmp_path, "mlp", 0, [20] * 5, sweep_rate=0.1)
    assert draw(tmp_path) == []
    assert not list(tmp_path.glob("*.png"))


def test_a_diverged_run_is_drawn_as_far_as_it_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "save", lambda figure, path: path)
    lost = np.where(np.array(STEPS)[:, None] > 0, np.nan, MEDIANS)
    write_run(tmp_path, "lenet", 0, [20] * 5, medians=lost)
    write_run(tmp_path, "lenet_bn", 0, [20] * 5)
    assert [path.name for path in draw(tmp_path)] == ["figure1_lenet.png"]


def test_runs_that_diverged_are_marked_at_their_step_and_their_rate(pair, tmp_path, monkeypatch):
    out = shutil.copytree(pair, tmp_path / "out")
    fault = {"step": 600, "what": "loss", "leaf": None, "layer": None}
    write_run(out, "mlp", 3, [20, 100], diverged=fault)
    write_run(out, "mlp", 0, [20, 100], diverged=fault, sweep_rate=10.0)
    panels = {}
    monkeypatch.setattr(figures, "save", lambda figure, path: panels.update({path.name: figure}))
    draw(out, tmp_path)
    for name, at in {"figure1.png": 600, "sweep.png": 10}.items():
        crosses = [line for line in panels[name].axes[0].lines if line.get_marker() == "x"]
        assert [list(line.get_xdata()) for line in crosses] == [[at], []], name
    plain, *_ = panels["figure1.png"].axes[0].lines
    assert list(plain.get_xdata()) == list(STEPS)  # the others' curve goes on


def test_a_run_too_short_to_settle_is_drawn(tmp_path, monkeypatch):
    """Units are logged at step 0 alone where a run is shorter than their distance."""
    monkeypatch.setattr(figures, "save", lambda figure, path: path)
    for arm in ("mlp", "mlp_bn"):
        write_run(tmp_path, arm, 0, [20] * 5, medians=[MEDIANS[0], *[None] * 4])
    assert [path.name for path in draw(tmp_path)] == ["figure1.png"]


def test_the_two_arms_can_be_told_apart():
    assert to_rgba(PLAIN) != to_rgba(NORMALIZED)
