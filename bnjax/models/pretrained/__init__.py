"""Public weights into our networks, and our variables out into files."""

from bnjax.models.pretrained.loading import Pretrained, load_pretrained
from bnjax.models.pretrained.safetensors_files import Saved, load_safetensors, save_safetensors
from bnjax.models.pretrained.sources import Preprocessing

__all__ = [
    "Preprocessing",
    "Pretrained",
    "Saved",
    "load_pretrained",
    "load_safetensors",
    "save_safetensors",
]
