"""TensorFlow Datasets as text, through their own loader and without TensorFlow::

    corpus = tfds.load("text_folder/novels")            # what experiments.data.text_folder prepared
    corpus = tfds.load("ag_news_subset:description")    # one field of a dataset
    corpus = tfds.load("imdb_reviews/plain_text:1.0.0") # NAME[/CONFIG][:VERSION][:FIELD]

Datasets are read as ArrayRecord, record by record. TFRecord needs TensorFlow; Parquet, as TFDS 4.9
writes it, loses records.
"""

import contextlib
import difflib
import hashlib
import importlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.data import text

try:
    import tensorflow_datasets as tfds
except ImportError as error:
    # As for any other input that cannot be read: the command line says it in a line.
    raise ValueError(
        f"datasets need tensorflow-datasets ({error}): pip install 'lagjax[experiments]'"
    ) from error

FORMAT = "array_record"
_VERSION = re.compile(r"(\d+|\*)(\.(\d+|\*)){0,2}")
_CHUNK = 1000


class Name(NamedTuple):
    """What a specification asks for."""

    dataset: str
    config: str | None
    version: str | None
    field: str | None

    def builder(self) -> str:
        """As `tfds.builder` takes it."""
        config = f"/{self.config}" if self.config else ""
        return f"{self.dataset}{config}" + (f":{self.version}" if self.version else "")


@dataclass(frozen=True, eq=False)
class Records:
    """The text of one split; iterated over as often as wanted, it is read anew each time."""

    builder: Any
    split: str
    field: str

    def __iter__(self) -> Iterator[bytes]:
        found = (record[self.field] for record in records(self.builder, self.split))
        return filter(_usable, found)


class Dataset(NamedTuple):
    """A prepared dataset, of which nothing is read yet.

    Attributes:
        parts: `train`, then, where there is one, `validation`, or else `test`.
        found: number of records in them, those without text included.
        origin: as a specification spells it.
        licence: as TFDS states it; None where it does not.
    """

    parts: dict[str, Records]
    found: int
    origin: str
    licence: str | None

    def digest(
        self, parts: Mapping[str, Collection[bytes] | Records]
    ) -> tuple[str, dict[str, int]]:
        """SHA-256, hexadecimal, of the records, not of their files; and how many each part has."""
        counts = {split: sum(1 for _ in each) for split, each in parts.items()}
        digest = hashlib.sha256(self.parts["train"].builder.info.full_name.encode())
        for split, each in parts.items():
            digest.update(f"\0{split} {counts[split]}".encode())
            for record in each:
                digest.update(f" {len(record)} ".encode() + record)
        return digest.hexdigest(), counts


def load(name: str, data_dir: Path | str | None = None) -> text.Corpus:
    """Reads a dataset's text: `train` for training, `validation`, or else `test`, for validation.

    Where there is only `train`, every twentieth stretch of it is for validation. A newline stands
    between records. The digest is that of the records, not of the files that hold them.

    Args:
        name: `NAME[/CONFIG][:VERSION][:FIELD]`; without a field, `text`, or the only text.
        data_dir: where datasets are prepared; by default TFDS's own place. What is
            not there is downloaded.

    Raises:
        ValueError: for a dataset, config, version, split or field that does not exist, with the
            nearest that do; where it is prepared in another format than ArrayRecord, or cannot be
            prepared here.
    """
    dataset = opened(name, data_dir)
    kept = {split: list(records) for split, records in dataset.parts.items()}
    digest, counts = dataset.digest(kept)
    parts = [np.frombuffer(b"\n".join(each), np.uint8) for each in kept.values()]
    if not parts[0].size:
        raise without_text(name, dataset)
    train, valid = parts if len(parts) == 2 else text.split(parts[0])
    used = sum(counts.values())
    return text.Corpus(train, valid, digest, used, dataset.found - used, dataset.origin)


def opened(name: str, data_dir: Path | str | None = None) -> Dataset:
    """Opens a dataset, prepared where it has not been; arguments and errors are those of `load`."""
    builder, root = _builder(name, data_dir)
    # First the field, so that nothing is downloaded for one that does not exist.
    field = _field(builder, parse(name).field)
    _prepare(builder, root)
    splits = builder.info.splits
    if "train" not in splits:
        raise ValueError(
            f"tfds:{name} has no split 'train'; it has {list(splits)}{nearest('train', splits)}; "
            "choose another dataset"
        )
    second = next((each for each in ("validation", "test") if each in splits), None)
    used = [split for split in ("train", second) if split]
    return Dataset(
        {split: Records(builder, split, field) for split in used},
        sum(splits[split].num_examples for split in used),
        f"tfds:{_spelled(builder)}:{field}",
        builder.info.redistribution_info.license or None,
    )


def prepared(name: str, data_dir: Path | str | None = None) -> Any:
    """The TFDS builder of NAME[/CONFIG][:VERSION], prepared; raises ValueError as `load` does."""
    builder, root = _builder(name, data_dir)
    _prepare(builder, root)
    return builder


def without_text(name: str, dataset: Dataset) -> ValueError:
    """What to raise for a dataset without text to train on."""
    return ValueError(
        f"tfds:{name}: no record of 'train' has text in {dataset.parts['train'].field!r}; choose "
        "another field or dataset"
    )


def parse(name: str) -> Name:
    """Takes `NAME[/CONFIG][:VERSION][:FIELD]` apart; a version is digits and dots."""
    first, *rest = name.split(":")
    dataset, _, config = first.partition("/")
    version = rest.pop(0) if rest and _VERSION.fullmatch(rest[0]) else None
    if not dataset or len(rest) > 1 or "" in rest:
        raise ValueError(
            f"tfds:{name} is no dataset; expected tfds:NAME[/CONFIG][:VERSION][:FIELD], as "
            "tfds:ag_news_subset:title"
        )
    return Name(dataset, config or None, version, rest[0] if rest else None)


def _builder(name: str, data_dir: Path | str | None) -> tuple[Any, Path]:
    """A builder, and where it keeps its files; nothing is prepared yet."""
    wanted = parse(name)
    root = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    _check_known(wanted, root)
    try:
        return tfds.builder(wanted.builder(), data_dir=root), root
    except Exception as error:
        raise ValueError(f"tfds:{name} cannot be opened: {_first(error)}") from error


def _check_known(wanted: Name, root: Path) -> None:
    """Names the nearest where TFDS has neither the code nor the prepared files."""
    registered = tfds.list_builders(with_community_datasets=False)
    if wanted.dataset not in registered:
        # TFDS imports its older datasets up to the first that lacks a package, which may be before
        # those of text.
        with contextlib.suppress(ImportError):
            importlib.import_module("tensorflow_datasets.text")
        registered = tfds.list_builders(with_community_datasets=False)
    there = _folders(root)
    if wanted.dataset not in {*registered, *there}:
        raise ValueError(
            f"there is no dataset {wanted.dataset!r}, neither prepared in {root} nor known to "
            f"TFDS {tfds.__version__}{nearest(wanted.dataset, [*there, *registered])}"
        )
    inside = _folders(root / wanted.dataset)
    versions = [each for each in inside if _VERSION.fullmatch(each)]
    configs = [each for each in inside if each not in versions]
    if wanted.dataset in registered:
        try:
            made = tfds.builder_cls(wanted.dataset)
        except ImportError as error:
            raise ValueError(
                f"the code of {wanted.dataset} needs a package that is not installed "
                f"({_first(error)}); install it, or choose another dataset"
            ) from error
        configs += list(made.builder_configs)
        stated = [made.VERSION, *made.SUPPORTED_VERSIONS]
        # Many datasets give versions to their configs only.
        for config in made.builder_configs.values():
            stated += [config.version, *config.supported_versions]
        versions += [str(each) for each in stated if each]
    if wanted.config and wanted.config not in configs:
        raise ValueError(
            f"{wanted.dataset} has no config {wanted.config!r}; it has "
            f"{configs or 'none'}{nearest(wanted.config, configs)}"
        )
    if not wanted.config and configs and wanted.dataset not in registered:
        raise ValueError(
            f"{wanted.dataset} has several configs; say which: tfds:{wanted.dataset}/CONFIG with "
            f"one of {configs}"
        )
    if wanted.config:
        found = _folders(root / wanted.dataset / wanted.config)
        versions += [each for each in found if _VERSION.fullmatch(each)]
    if wanted.version and "*" not in wanted.version and wanted.version not in versions:
        raise ValueError(
            f"{wanted.dataset} has no version {wanted.version}; it has "
            f"{sorted(set(versions))}{nearest(wanted.version, versions)}"
        )


def _prepare(builder: Any, root: Path) -> None:
    """Downloads what is not there; raises ValueError where it fails or finds another format."""
    if not builder.info.splits:
        try:
            builder.download_and_prepare(file_format=FORMAT)
        except Exception as error:
            raise ValueError(
                f"{builder.info.full_name} is not in {root}, and cannot be prepared here: "
                f"{_first(error)}. Prepare it where there are TensorFlow and the network, bring "
                f"the folder here and give it as --data-dir: {_command(builder)}"
            ) from error
    # A builder that has just prepared its files does not always know their format.
    found = builder.info.file_format
    if found is not None and found.value != FORMAT:
        raise ValueError(
            f"{builder.info.full_name} is prepared in {root} as {found.value}, which cannot be "
            "read safely without TensorFlow; prepare it again in another folder and give that as "
            f"--data-dir: {_command(builder)}"
        )


def _spelled(builder: Any) -> str:
    """NAME[/CONFIG]:VERSION."""
    # The full name has a slash before the version, which TFDS's own parser refuses.
    return ":".join(builder.info.full_name.rsplit("/", 1))


def _command(builder: Any) -> str:
    return (
        f'python -c "import tensorflow_datasets as tfds; tfds.builder({_spelled(builder)!r}, '
        "data_dir='datasets')"
        f'.download_and_prepare(file_format={FORMAT!r})"'
    )


def _field(builder: Any, wanted: str | None) -> str:
    features = builder.info.features
    # Read from files, features come in no fixed order.
    texts = sorted(name for name, feature in features.items() if _is_text(feature))
    name = builder.info.full_name
    if wanted is None and (len(texts) == 1 or "text" in texts):
        return "text" if "text" in texts else texts[0]
    if wanted is None:
        raise ValueError(
            f"{name} has {len(texts) or 'no'} fields of "
            f"text{': ' * bool(texts)}{', '.join(texts)}; "
            + (
                f"say which, as tfds:...:{texts[0]}"
                if texts
                else f"its fields are {sorted(features)}; choose another dataset"
            )
        )
    if wanted not in features:
        raise ValueError(
            f"{name} has no field {wanted!r}; its fields of text are "
            f"{texts}{nearest(wanted, texts)}"
        )
    if wanted not in texts:
        raise ValueError(
            f"the field {wanted!r} of {name} is {type(features[wanted]).__name__}, not text; its "
            f"fields of text are {texts}"
        )
    return wanted


def _is_text(feature: Any) -> bool:
    """Whether a feature is one string; many datasets declare no Text, but a scalar of type str."""
    return (
        isinstance(feature, tfds.features.Tensor)
        and feature.shape == ()
        and tfds.core.utils.dtype_utils.is_string(feature.np_dtype)
    )


def records(builder: Any, split: str) -> Iterator[dict[str, Any]]:
    """Field -> value of every record of a split; raises ValueError where some are lost."""
    source = builder.as_data_source(split=split)
    expected = builder.info.splits[split].num_examples
    if len(source) != expected:
        raise ValueError(
            f"{builder.info.full_name}: the split {split!r} holds {len(source)} records, its "
            f"description says {expected}; prepare it again"
        )
    for start in range(0, expected, _CHUNK):
        yield from source.__getitems__(range(start, min(start + _CHUNK, expected)))


def _usable(record: bytes) -> bool:
    return bool(record) and text.is_text(record)


def _folders(root: Path) -> list[str]:
    """What may be datasets, configs or versions; `downloads` is TFDS's own."""
    if not root.is_dir():
        return []
    return sorted(
        each.name
        for each in root.iterdir()
        if each.is_dir() and each.name != "downloads" and ".incomplete" not in each.name
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """What an error adds after a name that is not among those known; "" where none is near."""
    found = difflib.get_close_matches(name, dict.fromkeys(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else ""


def _first(error: Exception) -> str:
    """The first line of an error, or that of the missing package behind it."""
    # TFDS wraps that together with a record.
    chain: list[BaseException] = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    shown = next((each for each in chain[::-1] if isinstance(each, ImportError)), error)
    return f"{type(shown).__name__}: {(str(shown).splitlines() or [''])[0][:300]}"
