"""Whether JAX runs where it should: hosts, backend, accelerators, and who else takes them."""

from collections.abc import Iterator

from bnjax.doctor.finding import Finding
from bnjax.doctor.snapshot import Snapshot, host_count, hosts_wait

CUDA_PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin")

_PLUGINS = {"NVIDIA GPU": CUDA_PLUGINS, "TPU": ("libtpu",)}
_PLATFORMS = {"NVIDIA GPU": "cuda", "TPU": "tpu"}  # as JAX_PLATFORMS names them
_EXTRAS = {"NVIDIA GPU": "cuda13", "TPU": "tpu"}
_HIDE = "before its first operation: tf.config.set_visible_devices([], 'GPU'), and 'TPU'"
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
    remedy = "python -c 'import jax; jax.devices()' says more"
    if "Unknown flag" in seen.failure:
        remedy = "correct XLA_FLAGS; flags that begin with --xla_tpu belong into LIBTPU_INIT_ARGS"
    elif "already in use" in seen.failure or "ALREADY_EXISTS" in seen.failure:
        remedy = "end the other process that holds the device: an older kernel or run"
    elif "did not start within" in seen.failure:
        remedy = "look for another process on the device, and for other hosts of the same slice"
    elif _asked(seen):
        remedy = (
            "unset JAX_PLATFORMS, or install what it names: pip install 'jax[cuda13]', 'jax[tpu]'"
        )
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
                "unset JAX_PLATFORMS",
            )
            continue
        yield Finding(
            "error",
            f"JAX runs on the CPU, although there is: {accelerator}.",
            _bring(accelerator, seen),
        )
    if "COLAB_RELEASE_TAG" in seen.environ and not _accelerators(seen):
        yield Finding(
            "note",
            "This Colab has no accelerator: all works, but slowly.",
            "Runtime > Change runtime type: a TPU (v5e-1) or a GPU",
        )


def _asked(seen: Snapshot) -> str:
    """The platforms that JAX was told to use; empty if it may choose."""
    return str(seen.settings.get("jax_platforms") or seen.environ.get("JAX_PLATFORMS") or "")


def _accelerators(seen: Snapshot) -> tuple[str, ...]:
    """What is there by device files, or by what the environment says."""
    return tuple(
        kind
        for kind, names in _SIGNS.items()
        if kind in seen.plugged or any(seen.environ.get(n, "0") not in ("", "0") for n in names)
    )


def _bring(accelerator: str, seen: Snapshot) -> str:
    """How JAX gets to it."""
    if "COLAB_TPU_ADDR" in seen.environ:
        return "Runtime > Change runtime type > v5e-1 TPU: JAX left the older TPU nodes"
    if accelerator == "NVIDIA GPU" and seen.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return "unset CUDA_VISIBLE_DEVICES, which hides it"
    if any(name in seen.versions for name in _PLUGINS[accelerator]):
        driver = "nvidia-smi shows driver and GPU; " if accelerator == "NVIDIA GPU" else ""
        platform = _PLATFORMS[accelerator]
        return f"{driver}JAX_PLATFORMS={platform} python -c 'import jax; jax.devices()' says why"
    if "COLAB_RELEASE_TAG" in seen.environ:
        return "Runtime > Disconnect and delete runtime, then install nothing over its JAX"
    pin = f"=={seen.versions['jax']}" if "jax" in seen.versions else ""
    return f"pip install 'jax[{_EXTRAS[accelerator]}]{pin}'"


def _absent_devices(seen: Snapshot) -> Iterator[Finding]:
    """Compilers of chips that are not here: JAX looks for the chips at every start."""
    if seen.backend != "cpu" or _asked(seen) or _accelerators(seen):
        return
    for accelerator, names in _PLUGINS.items():
        installed = [name for name in names if name in seen.versions]
        if installed:
            yield Finding(
                "note",
                f"{installed[0]} is installed, and there is no {accelerator}: JAX looks for one at "
                "every start.",
                "export JAX_PLATFORMS=cpu",
            )


def _tensorflow(seen: Snapshot) -> Iterator[Finding]:
    if seen.tensorflow_sees:
        yield Finding(
            "error" if seen.backend == "tpu" else "warning",
            f"TensorFlow is imported and may take {', '.join(seen.tensorflow_sees)}: it and JAX "
            "then fight for the device and its memory.",
            _HIDE,
        )
    elif "tensorflow" in seen.versions and seen.backend in ("gpu", "tpu"):
        yield Finding(
            "note",
            "TensorFlow is installed: where it is imported, it takes all memory of the device.",
            _HIDE,
        )
    if "tensorflow-tpu" in seen.versions:
        yield Finding(
            "error" if "TPU" in _accelerators(seen) else "warning",
            "tensorflow-tpu is installed: it replaces the libtpu that JAX needs.",
            "pip uninstall tensorflow-tpu, then pip install tensorflow-cpu if you need TensorFlow",
        )


RULES = (_hosts, _backend, _cpu_fallback, _absent_devices, _tensorflow)
