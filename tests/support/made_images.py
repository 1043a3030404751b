"""Writes tiny data in the layouts of real data: image folders, ImageNet tars, array_records."""

import contextlib
import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from bnjax.data.prepare.imagenet import Release, Tar

WNIDS = ("n01440764", "n01443537", "n01484850")
"""Genuine ones, the first three: tensorflow-datasets' builder knows no others."""


def encode(pixels: np.ndarray, kind: str = "JPEG", mode: str | None = None) -> bytes:
    """An encoded image, of uint8 `[h, w, 3]` or `[h, w, 1]`; `mode` to convert to, CMYK say."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, kind)
    return file.getvalue()


def picture(seed: int, height: int = 24, width: int = 32) -> np.ndarray:
    """Smooth random pixels, uint8 `[height, width, 3]`, another picture for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height)))


def write_folder(root: Path, counts: dict[str, int], validation: str = "val") -> Path:
    """An image folder with so many images for each class, and half of them to measure on.

    Returns:
        The root.
    """
    seed = 0
    for split, share in (("train", 1), (validation, 2)):
        for name, count in counts.items():
            (root / split / name).mkdir(parents=True)
            for i in range(-(-count // share)):
                (root / split / name / f"{name}_{i}.JPEG").write_bytes(encode(picture(seed)))
                seed += 1
    return root


def write_array_records(
    root: Path,
    splits: dict[str, list[tuple[bytes, int]]],
    *,
    name: str = "made",
    classes: int = 3,
    version: str = "1.0.0",
    files: int = 1,
    file_format: str = "array_record",
    channels: int = 3,
) -> Path:
    """A folder of tensorflow-datasets, below `root`, from encoded images and labels.

    Args:
        root: the root of prepared data sets.
        splits: images with labels, by split.
        name: of the data set.
        classes: number of labels.
        version: of the data set.
        files: in how many files each split is stored.
        file_format: as tensorflow-datasets names it.
        channels: of the images, which are said to be of any size.

    Returns:
        The folder of the version.
    """
    given_name, given_version = name, version

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(given_version)
        name = given_name
        pkg_dir_path = root  # of a description, which there is none of

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, channels)),
                "label": tfds.features.ClassLabel(num_classes=classes),
            }
            info = tfds.core.DatasetInfo
            return info(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(pairs) for split, pairs in splits.items()}

        def _generate_examples(self, pairs):
            for key, (image, label) in enumerate(pairs):
                yield key, {"image": image, "label": label}

    builder = Builder(data_dir=str(root), file_format=file_format)
    config = tfds.download.DownloadConfig(num_shards=files)
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_config=config)
    return Path(builder.data_dir)


def write_tar(path: Path, files: dict[str, bytes]) -> Tar:
    """A tar file, and what a checker should find; `images` counts its files."""
    path.write_bytes(tar_of(files))
    data = path.read_bytes()
    return Tar(path.name, len(data), hashlib.md5(data).hexdigest(), len(files))


def tar_of(files: dict[str, bytes]) -> bytes:
    """The bytes of a tar file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def write_imagenet(folder: Path, per_class: int = 4, validation: int = 5) -> Release:
    """Two tar files in ImageNet's layout and under its names, and the facts about them."""
    folder.mkdir(parents=True, exist_ok=True)
    tars = {
        f"{wnid}.tar": tar_of(
            {f"{wnid}_{i}.JPEG": encode(picture(100 * label + i)) for i in range(per_class)}
        )
        for label, wnid in enumerate(WNIDS)
    }
    train = write_tar(folder / "ILSVRC2012_img_train.tar", tars)
    images = {
        f"ILSVRC2012_val_{i:08}.JPEG": encode(picture(1000 + i)) for i in range(1, validation + 1)
    }
    # In another order than that of their names, as in the genuine file.
    shuffled = dict(sorted(images.items(), key=lambda item: item[0][::-1]))
    held_out = write_tar(folder / "ILSVRC2012_img_val.tar", shuffled)
    labels = tuple(WNIDS[i % len(WNIDS)] for i in range(validation))
    return Release(train._replace(images=per_class * len(WNIDS)), held_out, WNIDS, labels)


def write_tiny_imagenet(root: Path, per_class: int = 3, validation: int = 1) -> Path:
    """A folder in the layout of tiny-imagenet-200, with three classes of 64 x 64 pixels.

    Of the second class, the first training image is grayscale; the validation image of the first
    class is also a training image of the last one.

    Returns:
        The root.
    """
    wnids = (WNIDS[2], WNIDS[0], WNIDS[1])  # not sorted, as in the genuine file
    (root / "val" / "images").mkdir(parents=True)
    (root / "test" / "images").mkdir(parents=True)
    (root / "wnids.txt").write_text("\n".join(wnids))
    (root / "words.txt").write_text("".join(f"{wnid}\tword\n" for wnid in WNIDS))
    (root / "test" / "images" / "test_0.JPEG").write_bytes(encode(picture(999, 64, 64)))
    lines = []
    for label, wnid in enumerate(wnids):
        (root / "train" / wnid / "images").mkdir(parents=True)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
        for i in range(per_class):
            pixels = picture(100 * label + i, 64, 64)
            data = encode(pixels[..., :1] if (label, i) == (1, 0) else pixels)
            (root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG").write_bytes(data)
        for i in range(validation):
            name = f"val_{validation * (2 - label) + i}.JPEG"
            pixels = picture(200 if (label, i) == (0, 0) else 1000 + 10 * label + i, 64, 64)
            (root / "val" / "images" / name).write_bytes(encode(pixels))
            lines.append(f"{name}\t{wnid}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root
