"""What normalization gains, paired by seed, changes with the rate."""

from made_results import write_run

from experiments.harness.comparison import Comparison
from experiments.imagenet_inception.arms import ARMS
from experiments.imagenet_inception.rates import rates_text


def test_gains_are_paired_at_each_rate_and_then_between_rates(tmp_path):
    """Of 200 images; seeds are not alike. Seen red with the gains of both rates exchanged."""
    pairs = {2: ("bn_x5", "recipe_x5/inception"), 6: ("bn_x30", "recipe_x30/inception")}
    for gain, (arm, other) in pairs.items():
        for seed in (0, 1, 2):
            usual, (*folder, control) = 100 + 20 * seed, other.split("/")
            write_run(tmp_path, arm, seed, [20, 30, 40, 50, usual + gain + seed])
            write_run(tmp_path.joinpath(*folder), control, seed, [20, 30, 40, 50, usual])
    report = Comparison(ARMS, reference="inception")

    def runs(name):
        path = tmp_path / name
        return report.load(path.parent)[path.name]

    assert rates_text(runs) == (
        "- The gain at x30 minus that at x5: +2.00 points, 95 % confidence interval "
        "+2.00 to +2.00 (3 seeds, paired)."
    )
