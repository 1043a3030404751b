"""Eight CPU devices, strict promotion: set before any test can start a backend."""

import gc
import os
from importlib.metadata import version

from packaging.version import Version

# The suite's programs are many and run for milliseconds: XLA's compiler is most of its time. So
# LLVM does not optimize, and fusions are written out in XLA's older way, which JAX 0.12 no longer
# has. XLA's own passes stay: memory, fusions and collectives are those of any program. `.ci/run`
# has it all for normalization and the notebooks, on Colab's versions, by
# JAX_DISABLE_MOST_OPTIMIZATIONS=0.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1" and Version(version("jaxlib")) < Version(
    "0.11"
):
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_cpu_use_fusion_emitters=false"
    )

import jax
import pytest

# JAX's traces are large, and Python looks through them all too often: a tenth of the suite's time.
gc.set_threshold(100_000, 20, 100)

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(scope="session", autouse=True)
def _eight_devices():
    assert jax.device_count() == 8


@pytest.fixture(scope="session", autouse=True)
def _programs_are_compiled_once(tmp_path_factory):
    """By this process and those that its tests start: most of the suite's time is XLA's compiler.

    Each worker of pytest-xdist has a folder of its own, for JAX does not write its files at once.
    """
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
        "jax_persistent_cache_min_compile_time_secs": 0,
    }
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


@pytest.fixture
def x64():
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", False)


@pytest.fixture
def promotion():
    """Flax and Haiku themselves rely on implicit promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield
