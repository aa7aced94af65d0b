"""The parquet and Arrow files of a Hugging Face data set, read by pyarrow, which is an optional extra."""

import re
from collections.abc import Iterator
from pathlib import Path

from engine.command import UserError, one_line, some


def files_of(source: Path) -> list[Path]:
    """A data set's files, caches left out. Raises UserError for none, and for a folder that holds several splits."""
    found = [f for f in source.rglob("*") if f.suffix in (".parquet", ".arrow") and not f.name.startswith("cache-")]
    found = sorted(found) if source.is_dir() else [source] * source.is_file()
    if not found:
        raise UserError(f"{source}: no parquet file and no folder with parquet or Arrow files; correct the path")
    splits = {str(f.with_name(re.sub(r"([-_.]?\d+(-of-\d+(-\w+)?)?)?$", "*", f.stem, count=1))) for f in found}
    if len(splits) > 1:
        raise UserError(f"{source}: several splits; give the files of one: {some(sorted(splits))}")
    return found


def batches_of(file: Path, columns: list[str] | None = None) -> Iterator:
    """A file's rows as Arrow record batches of 64. Raises UserError for an unreadable file, and without pyarrow."""
    try:
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError("tools.convert reads parquet and Arrow files with pyarrow: pip install pyarrow") from None
    try:
        if file.suffix != ".arrow":
            yield from ParquetFile(file).iter_batches(64, columns=columns)
            return
        mapped = pa.memory_map(str(file))
        is_stream = mapped.read(6) != b"ARROW1"  # the form that save_to_disk writes; the other one has a directory
        mapped.seek(0)
        table = (pa.ipc.open_stream if is_stream else pa.ipc.open_file)(mapped).read_all()
        yield from table.select(columns or table.column_names).to_batches(64)
    except (pa.ArrowException, KeyError, OSError) as error:
        raise UserError(f"{file}: cannot be read ({one_line(error)}); copy it anew") from None
