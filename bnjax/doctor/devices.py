"""Rules about where JAX runs: hosts, backend, accelerators, and who else takes them."""

from collections.abc import Iterator

from bnjax.doctor.finding import Finding
from bnjax.doctor.remedies import LATEST_RUNTIME, NEW_RUNTIME, command, first, pip, variables
from bnjax.doctor.snapshot import Snapshot, host_count, hosts_wait

CUDA_PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin")

_PLUGINS = {"NVIDIA GPU": CUDA_PLUGINS, "TPU": ("libtpu",)}
_PLATFORMS = {"NVIDIA GPU": "cuda", "TPU": "tpu"}  # as JAX_PLATFORMS names them
_EXTRAS = {"NVIDIA GPU": "cuda13", "TPU": "tpu"}
_LOOK = "python -c 'import jax; jax.devices()'"
_SIGNS = {  # in the environment
    "NVIDIA GPU": ("COLAB_GPU",),
    "TPU": ("COLAB_TPU_ADDR", "TPU_NAME", "TPU_ACCELERATOR_TYPE", "TPU_CHIPS_PER_HOST_BOUNDS"),
}


def _hosts(seen: Snapshot) -> Iterator[Finding]:
    if hosts_wait(seen.environ, seen.distributed):
        yield Finding(
            "error",
            f"The environment is that of {host_count(seen.environ)} processes that work together, "
            "and jax.distributed is not initialized: each would train by itself, or wait for ever.",
            "bnjax.training.parallel.initialize_hosts(), before anything else of JAX; where "
            "neither Slurm nor Cloud TPU says who is who, with coordinator, process_count and "
            "process_index",
        )


def _backend(seen: Snapshot) -> Iterator[Finding]:
    if seen.backend is not None or hosts_wait(seen.environ, seen.distributed):
        return
    remedy = command(seen, f"{_LOOK} says more") + (f"; or {NEW_RUNTIME}" if seen.colab else "")
    if "Unknown flag" in seen.failure:
        remedy = "correct XLA_FLAGS; flags that begin with --xla_tpu belong into LIBTPU_INIT_ARGS"
    elif "already in use" in seen.failure or "ALREADY_EXISTS" in seen.failure:
        remedy = "end the other process that holds the device: an older kernel or run"
    elif "did not start within" in seen.failure:
        remedy = "look for another process on the device, and for other hosts of the same slice"
        if seen.colab:
            remedy = NEW_RUNTIME
    elif _asked(seen):
        remedy = _any_platform(seen)
        if not seen.colab:
            install = pip(seen, "install 'jax[cuda13]', or 'jax[tpu]'")
            remedy += f"; or install what it names: {install}"
    yield Finding("error", f"JAX has no backend: {seen.failure}.", remedy)


def _cpu_fallback(seen: Snapshot) -> Iterator[Finding]:
    if seen.backend != "cpu":
        return
    asked = _asked(seen)
    for accelerator in _accelerators(seen):
        if asked.startswith("cpu"):
            yield Finding(
                "note",
                f"JAX runs on the CPU as it was told (JAX_PLATFORMS={asked}); there is also: "
                f"{accelerator}.",
                _any_platform(seen),
            )
            continue
        yield Finding(
            "error",
            f"JAX runs on the CPU, although there is: {accelerator}.",
            _bring(accelerator, seen),
        )
    if seen.colab and not _accelerators(seen):
        yield Finding(
            "note",
            "This Colab has no accelerator: all works, but slowly.",
            "Runtime > Change runtime type: a TPU (v5e-1) or a GPU",
        )


def _asked(seen: Snapshot) -> str:
    """Returns the platforms that JAX was told to use; empty if it may choose."""
    return str(seen.settings.get("jax_platforms") or seen.environ.get("JAX_PLATFORMS") or "")


def _any_platform(seen: Snapshot) -> str:
    """Returns the remedy that lets JAX choose its platform."""
    if seen.notebook:
        line = "import os; os.environ.pop('JAX_PLATFORMS', None)"
        return first(seen, f'{line}; import jax; jax.config.update("jax_platforms", None)')
    return variables(seen, JAX_PLATFORMS=None)


def _accelerators(seen: Snapshot) -> tuple[str, ...]:
    """Returns the accelerators that device files or environment variables show."""
    return tuple(
        kind
        for kind, names in _SIGNS.items()
        if kind in seen.plugged or any(seen.environ.get(n, "0") not in ("", "0") for n in names)
    )


def _bring(accelerator: str, seen: Snapshot) -> str:
    """Returns the remedy that lets JAX use an accelerator."""
    if "COLAB_TPU_ADDR" in seen.environ:
        return "Runtime > Change runtime type > v5e-1 TPU: JAX left the older TPU nodes"
    if accelerator == "NVIDIA GPU" and seen.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return f"{variables(seen, CUDA_VISIBLE_DEVICES=None)} (it hides the GPU)"
    if any(name in seen.versions for name in _PLUGINS[accelerator]):
        smi = command(seen, "nvidia-smi")
        driver = f"{smi} shows driver and GPU; " if accelerator == "NVIDIA GPU" else ""
        why = command(seen, f"JAX_PLATFORMS={_PLATFORMS[accelerator]} {_LOOK}")
        return f"{driver}{why} says why" + (f"; or {NEW_RUNTIME}" if seen.colab else "")
    if seen.colab:
        return NEW_RUNTIME
    pin = f"=={seen.versions['jax']}" if "jax" in seen.versions else ""
    return pip(seen, f"install 'jax[{_EXTRAS[accelerator]}]{pin}'")


def _absent_devices(seen: Snapshot) -> Iterator[Finding]:
    """Finds plugins for chips that are not here: JAX looks for the chips at every start."""
    if seen.backend != "cpu" or seen.colab or _asked(seen) or _accelerators(seen):
        return  # Colab has them on every runtime, and they belong there
    for accelerator, names in _PLUGINS.items():
        installed = [name for name in names if name in seen.versions]
        if installed:
            yield Finding(
                "note",
                f"{installed[0]} is installed, and there is no {accelerator}: JAX looks for one at "
                "every start.",
                variables(seen, JAX_PLATFORMS="cpu"),
            )


def _tensorflow(seen: Snapshot) -> Iterator[Finding]:
    kind = "TPU" if seen.backend == "tpu" else "GPU"
    hide = f"before its first operation: tf.config.set_visible_devices([], '{kind}')"
    if seen.tensorflow_sees:
        yield Finding(
            "error" if seen.backend == "tpu" else "warning",
            f"TensorFlow is imported and may take {', '.join(seen.tensorflow_sees)}: it and JAX "
            "then fight for the device and its memory.",
            hide,
        )
    elif "tensorflow" in seen.versions and seen.backend in ("gpu", "tpu"):
        yield Finding(
            "note",
            "TensorFlow is installed: where it is imported, it takes all memory of the device.",
            hide,
        )
    if "tensorflow-tpu" in seen.versions:
        yield Finding(
            "error" if "TPU" in _accelerators(seen) else "warning",
            "tensorflow-tpu is installed: it replaces the libtpu that JAX needs.",
            f"{LATEST_RUNTIME}, and install no tensorflow-tpu there"
            if seen.colab
            else f"{pip(seen, 'uninstall tensorflow-tpu')}, then "
            f"{pip(seen, 'install tensorflow-cpu')} if you need TensorFlow",
        )


RULES = (_hosts, _backend, _cpu_fallback, _absent_devices, _tensorflow)
