"""Rows of columnar files: Parquet, Arrow, and data sets saved by the package ``datasets``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from burnish.data.files import RawRow, opened
from burnish.errors import InputError, one_line
from burnish.registry import nearest
from burnish.system.optional_packages import needed

ROWS_AT_ONCE = 1024

Decode = Callable[[Any], Any]
_VALUE_ERRORS = (ValueError, OverflowError, KeyError)
"""Text that is not UTF-8, a date that Python does not have, a map with a key twice."""


def read_parquet(path: Path) -> Iterator[RawRow]:
    """Yield the rows of a Parquet file. Raises InputError if pyarrow is missing or cannot read the file."""
    library = needed("pyarrow.parquet", "parquet", f"path = '{path}'")
    with opened(path):
        pass
    try:
        file = library.ParquetFile(path)
        yield from _rows(path, file.schema_arrow, file.iter_batches(batch_size=ROWS_AT_ONCE))
    except (ValueError, OSError) as error:  # the base classes of pyarrow's errors
        raise InputError(f"path = '{path}': not a whole Parquet file ({one_line(error)[:120]})") from error


def read_arrow(path: Path) -> Iterator[RawRow]:
    """Yield the rows of an Arrow file or stream. Raises InputError if pyarrow is missing or cannot read the file."""
    library = needed("pyarrow.ipc", "parquet", f"path = '{path}'")
    with opened(path):
        pass
    try:
        with path.open("rb") as file:
            if file.read(6) == b"ARROW1":
                whole = library.open_file(path)
                batches = (whole.get_batch(index) for index in range(whole.num_record_batches))
                yield from _rows(path, whole.schema, batches)
            else:
                file.seek(0)
                stream = library.open_stream(file)
                yield from _rows(path, stream.schema, stream)
    except (ValueError, OSError) as error:
        raise InputError(f"path = '{path}': not a whole Arrow file ({one_line(error)[:120]})") from error


def _rows(path: Path, schema: Any, batches: Iterable[Any]) -> Iterator[RawRow]:
    if len(set(schema.names)) < len(schema.names):
        raise InputError(f"path = '{path}': two columns have the same name")
    decoders = json_decoders(schema)
    number = 0
    for batch in batches:
        _refuse_damaged(batch)
        for values in _plain_rows(batch):
            number += 1
            yield _decoded(f"row {number}", values, decoders)


def _refuse_damaged(batch: Any) -> None:
    """Raise ValueError if a batch has offsets or lengths that lead out of its memory: pyarrow follows them blindly."""
    for column in batch.columns:
        try:
            column.validate(full=True)
        except ValueError as error:
            # Text that is not UTF-8 costs its row only; its offsets were proved before.
            if str(column.type) not in ("string", "large_string") or "UTF8" not in str(error):
                raise


def _plain_rows(batch: Any) -> Iterator[Any]:
    """Yield the rows of a batch as mappings, or the error of a row that has a value which Python does not."""
    try:
        yield from batch.to_pylist(maps_as_pydicts="strict")
        return
    except _VALUE_ERRORS:
        pass
    for index in range(batch.num_rows):
        try:
            yield batch.slice(index, 1).to_pylist(maps_as_pydicts="strict")[0]
        except _VALUE_ERRORS as error:
            yield error


def _decoded(position: str, values: Any, decoders: Mapping[str, Decode]) -> RawRow:
    if isinstance(values, Exception):
        return RawRow(position, None, f"a value cannot be read ({one_line(values)[:80]})")
    try:
        return RawRow(position, values | {name: decode(values[name]) for name, decode in decoders.items()})
    except (ValueError, RecursionError) as error:
        return RawRow(position, None, f"a column of type JSON is not JSON ({one_line(error)[:80]})")


def json_decoders(schema: Any) -> dict[str, Decode]:
    """Return column -> function that decodes the JSON text in it, for columns of the type JSON or that contain it."""
    decoders = {field.name: decode for field in schema if (decode := _decoder(field.type)) is not None}
    features = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        declared = json.loads(features)["info"]["features"]
        names = [name for name, feature in declared.items() if feature.get("_type") == "Json"]
    except (ValueError, TypeError, KeyError, AttributeError):
        names = []
    return {name: _loads for name in names if name in schema.names} | decoders


def _decoder(type: Any) -> Decode | None:
    if getattr(type, "extension_name", "") == "arrow.json":
        return _loads
    kind = str(type).partition("<")[0]
    if kind in ("list", "large_list", "fixed_size_list", "list_view", "large_list_view"):
        inner = _decoder(type.value_type)
        return None if inner is None else lambda values: None if values is None else [inner(one) for one in values]
    if kind != "struct":
        return None
    fields = {field.name: decode for field in type if (decode := _decoder(field.type)) is not None}
    if not fields:
        return None
    return lambda value: None if value is None else value | {name: fields[name](value[name]) for name in fields}


def _loads(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str | bytes) else value


def saved_files(path: Path, side: str) -> list[Path]:
    """Return the Arrow files of a folder that ``datasets`` saved, of the split ``side`` if it has several.

    Raises InputError if the folder is not a saved data set, or has no such split.
    """
    folder = path
    if (path / "dataset_dict.json").is_file():
        description = _read(path / "dataset_dict.json")
        splits = description.get("splits") if isinstance(description, dict) else None
        if not isinstance(splits, list) or not all(isinstance(one, str) for one in splits):
            raise InputError(f"path = '{path}': its dataset_dict.json does not name its splits")
        if side not in splits:
            raise InputError(f"path = '{path}': no split '{side}'{nearest(side, splits)}; it has {', '.join(splits)}")
        folder = path / side
    if not (folder / "state.json").is_file():
        raise InputError(f"path = '{path}': cannot be read: Is a directory; name its files, as in '{path}/*.jsonl'")
    try:
        names = [str(one["filename"]) for one in _read(folder / "state.json")["_data_files"]]
    except (KeyError, TypeError) as error:
        raise InputError(f"path = '{path}': its state.json does not name its files") from error
    if any(Path(name).name != name for name in names):
        raise InputError(f"path = '{path}': its state.json names a file outside of the folder")
    return [folder / name for name in names]


def _read(path: Path) -> Any:
    with opened(path) as file:
        try:
            return json.loads(file.read())
        except (ValueError, RecursionError) as error:
            raise InputError(f"path = '{path}': not JSON ({one_line(error)[:80]})") from error
