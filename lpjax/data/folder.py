"""A folder of image files in class sub-folders, with the splits that people have them in.

    DIR/train/CLASS/..  and  DIR/test/CLASS/..     (or val, valid, ..), files at any depth below CLASS
    DIR/train/CLASS/..  or  DIR/CLASS/..           with data.holdout
    DIR/val/ILSVRC2012_val_00000001.JPEG ..        ImageNet's validation images, as they come

Classes are the sub-folders of the training split, in alphabetical order.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lpjax.config.schema import DataConfig
from lpjax.data import tree
from lpjax.data.source import Source, Spec, Stream, data_folder
from lpjax.data.subset import held_out, without_examples
from lpjax.data.tree import Files, LeftOut, Split, read_split
from lpjax.errors import BadInput, extra_packages, require

CONTENT = "train/CLASS/*.jpg and test/CLASS/*.jpg (or val)"
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "val", "valid", "validation", "dev", "eval")
"""Names of a split that is tested on, in any case of letters; the first that has class folders is."""

HOLDOUT = "data.holdout=0.1 holds a tenth of each class out to test on"
_IMAGENET = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


@dataclass(frozen=True, eq=False)
class _Layout:
    """A set on disk.

    Attributes:
      classes: Their names.
      train: Files of the training split.
      test: Files of the test split.
      notes: What is unusual, in lines for people.
    """

    classes: tuple[str, ...]
    train: Files
    test: Files
    notes: tuple[str, ...]


def _find(config: DataConfig) -> _Layout:
    """Find the classes and the files of each split.

    Raises:
      BadInput, FileNotFoundError: The folder is not laid out as it should be.
    """
    parent = data_folder(config.dir, f"set data.dir to the folder with {CONTENT}")
    left_out, notes = LeftOut(), []
    train = read_split(_training_folder(parent, config), left_out)
    _check_classes(train, left_out, parent)
    classes = tuple(train.classes)
    files = train.files(classes)
    beside = [] if train.folder == parent else _test_folders(parent, train, config)
    others = [read_split(path, left_out) for path in beside]
    tested = Split(parent, {}, [])
    if config.holdout is not None:
        files, test = _held_out(files, train.folder, config)
    else:
        chosen = _choose(others, classes, parent, config)
        others.remove(chosen)
        if _is_imagenet(chosen):
            test = _imagenet(chosen, classes)
            if left := len(chosen.beside) - len(test):
                notes.append(f"left out, of no class of train: {left:,} images of {chosen.folder.name}")
        else:
            tested, test = chosen, chosen.files(classes)
    notes += [f"not tested on, {split.in_words()}: data.test_split chooses" for split in others]
    notes += without_examples([files.labels, test.labels], classes)
    for path in train.beside + tested.beside:
        left_out.add(tree.BESIDE, path)
    if train.folder != parent:
        used = {train.folder, train.folder.parent, *_of_names(parent.iterdir(), TEST_NAMES)}
        for path in set(parent.iterdir()) - used:
            left_out.add(tree.STRAY if tree.is_stray(path.name) else tree.UNUSED, path)
    reasons = left_out.in_words(parent)
    unread = left_out.count(tree.NO_TARGET, tree.NO_PERMISSION)
    require(
        unread <= config.max_corrupt,
        f"{parent}: {unread} files cannot be read: expected at most data.max_corrupt={config.max_corrupt}; "
        f"{'; '.join(reasons)}; is a disk not mounted?",
    )
    return _Layout(classes, files, test, (*notes, *_alike(classes), *reasons))


def _training_folder(parent: Path, config: DataConfig) -> Path:
    """The folder of the training split, which is the parent where there are class folders only."""
    inside = tree.folders_in(parent)
    train, test = _of_names(inside, TRAIN_NAMES), _of_names(inside, TEST_NAMES)
    if train:
        own = tree.folders_in(train[0])  # train/train/CLASS, as some archives unpack
        return own[0] if len(own) == 1 and own[0].name == train[0].name else train[0]
    deeper = [folder for folder in inside if _of_names(tree.folders_in(folder), TRAIN_NAMES)]
    missing = f"{parent}: no folder train: expected {CONTENT}; make it, or correct data.dir"
    if len(deeper) == 1:
        raise FileNotFoundError(f"{missing}: {deeper[0]} has one")
    if deeper:
        raise FileNotFoundError(f"{missing}: the splits are inside of {tree.some([f.name for f in deeper])}")
    if test or not inside:
        named = f"; is {test[0].name} a class? it has the name of a split: rename it" if len(inside) > len(test) else ""
        raise FileNotFoundError(f"{missing}{named}")
    if config.holdout is None:
        names = tree.some([folder.name for folder in inside])
        raise FileNotFoundError(f"{missing}; if {names} are the classes, {HOLDOUT}")
    return parent


def _test_folders(parent: Path, train: Split, config: DataConfig) -> list[Path]:
    """The folders that may be the test split, the one that the configuration names first.

    Raises:
      BadInput, FileNotFoundError: There is none, or not the one named.
    """
    real = train.folder.resolve()
    inside = [folder for folder in tree.folders_in(parent) if folder.resolve() != real]
    usual = _of_names(inside, TEST_NAMES)
    if config.test_split is not None:
        named = _of_names(inside, (config.test_split.lower(),))
        there = ", ".join(folder.name for folder in inside) or "none"
        require(named, f"data.test_split={config.test_split}: expected a folder beside {train.folder.name}: {there}")
        return list(dict.fromkeys(named + usual))
    if not usual and config.holdout is None:
        raise FileNotFoundError(
            f"{parent}: no folder {' or '.join(TEST_NAMES[:5])}: expected {CONTENT}; make it, or correct "
            f"data.dir, or hold images out: {HOLDOUT}"
        )
    return usual


def _of_names(folders: Iterable[Path], names: Sequence[str]) -> list[Path]:
    """Those folders that have one of the names, in any case of letters, in the order of the names."""
    found = [folder for folder in folders if folder.name.lower() in names]
    return sorted(found, key=lambda folder: names.index(folder.name.lower()))


def _check_classes(train: Split, left_out: LeftOut, parent: Path) -> None:
    """Refuse a training split without an image, or with a class that has none."""
    empty = [name for name, files in train.classes.items() if not files]
    require(
        train.classes or not train.beside,
        f"{train.folder}: {len(train.beside)} images in no class folder: expected {train.folder.name}/CLASS/*.jpg; "
        f"sort them into a folder for each class",
    )
    reasons = "".join(f"; {line}" for line in left_out.in_words(parent))
    require(
        len(empty) < len(train.classes),
        f"{train.folder}: the split is empty: expected CLASS/*.jpg with at least one image; add images, or correct "
        f"data.dir{reasons}",
    )
    require(
        not empty,
        f"{train.folder}: no image of {tree.some(empty)}: expected at least one in each class folder; add images, or "
        f"remove the folder{reasons}",
    )


def _choose(others: list[Split], classes: Sequence[str], parent: Path, config: DataConfig) -> Split:
    """The split to test on: the first one whose images are in folders of the classes, or are ImageNet's.

    Raises:
      BadInput: There is none, or a class is not in train.
    """
    candidates = others[:1] if config.test_split else others
    for split in candidates:
        filled = [name for name, files in split.classes.items() if files]
        if _is_imagenet(split):
            return split
        if set(filled) & set(classes) or (filled and len(candidates) == 1 and not split.beside):
            _check_known(split.folder, filled, classes)
            return split
    found = [split.in_words() for split in candidates if split.beside or any(split.classes.values())]
    if not found:
        folder = candidates[0].folder
        raise BadInput(
            f"{folder}: the split is empty: expected CLASS/*.jpg; add images, or correct data.dir; {HOLDOUT}"
        )
    raise BadInput(
        f"{parent}: no images to test on in folders of the classes ({'; '.join(found)}): expected test/CLASS/*.jpg or "
        f"val/CLASS/*.jpg; sort them into class folders, or hold images out: {HOLDOUT}"
    )


def _check_known(folder: Path, names: list[str], classes: Sequence[str]) -> None:
    """Refuse a class to be tested on that is not in train."""
    alike = {name.casefold(): name for name in classes}
    for name in names:
        near = alike.get(name.casefold())
        require(
            name in classes,
            f"{folder / name}: no class of that name in train: expected one of its {len(classes)} sub-folders"
            f"{f', is it {near}?' if near else ''}; rename or remove it, or hold images out: {HOLDOUT}",
        )


def _is_imagenet(split: Split) -> bool:
    """Whether the images are those of ImageNet's validation split, in one folder."""
    no_classes = not any(split.classes.values())
    return no_classes and bool(split.beside) and all(_IMAGENET.fullmatch(path.name) for path in split.beside)


def _imagenet(split: Split, classes: Sequence[str]) -> Files:
    """ImageNet's validation images, in one folder, labelled by the list that came with the set; those of the classes.

    Raises:
      BadInput: tensorflow-datasets, which has the list, is not installed, or none is of the classes.
    """
    from lpjax.data.tfds_sets import imagenet_validation_labels

    synsets, label_of = imagenet_validation_labels(), {name: label for label, name in enumerate(classes)}
    pairs = []
    for path in split.beside:
        number = int(path.name[15:23])
        if 1 <= number <= len(synsets) and synsets[number - 1] in label_of:
            pairs.append((path, label_of[synsets[number - 1]]))
    require(
        pairs,
        f"{split.folder}: {len(split.beside)} images of ImageNet's validation split in no class folders, and none is "
        f"of a class of train, by the set's own list; sort them into class folders, or hold images out: {HOLDOUT}",
    )
    return Files([path for path, _ in pairs], [label for _, label in pairs])


def _held_out(files: Files, folder: Path, config: DataConfig) -> tuple[Files, Files]:
    """Training files without those that are held out, and these: see `subset.held_out`."""
    names = [path.relative_to(folder).as_posix() for path in files.paths]
    out = held_out(files.labels, names, config)
    train, test = ([i for i in range(len(files)) if out[i] == wanted] for wanted in (False, True))
    return files.only(train), files.only(test)


def _alike(classes: Iterable[str]) -> list[str]:
    """A line for class names that differ in nothing but the case of letters."""
    found: dict[str, list[str]] = {}
    for name in classes:
        found.setdefault(name.casefold(), []).append(name)
    return [
        f"classes of one name but for the case of letters: {tree.some(names)}" for names in found.values() if names[1:]
    ]


def _describe(config: DataConfig) -> Spec:
    found = _find(config)
    shape = (config.image_size, config.image_size, config.channels)
    return Spec(shape, len(found.classes), len(found.train), len(found.test), found.classes, notes=found.notes)


def _load(config: DataConfig) -> Stream:
    with extra_packages():
        from lpjax.data.images import sampled_moments
    found = _find(config)
    return Stream(found.train, found.test, *sampled_moments(found.train, config))


folder = Source("folder", _describe, _load, splits=True)
