"""A configuration made in Python holds what its flags could hold."""

from dataclasses import fields, replace

import pytest

from experiments.harness import found

NAMED = [("mnist_lenet", "lenet_pool"), ("norms", "compute"), ("imagenet_inception", "running_var")]


@pytest.mark.parametrize(("name", "field"), NAMED)
def test_a_choice_that_no_flag_offers_is_refused_by_name(name, field):
    """`compute="float8"` trained in float32."""
    experiment = found.experiment(name)
    usual = experiment.config()
    assert field in {item.name for item in fields(usual)}
    with pytest.raises(ValueError, match=f"{field}: unknown 'none such'; choose from "):
        experiment.tasks_of(replace(usual, **{field: "none such"}))
