"""Of a Parquet file the columns in use are read, and all are named."""

import pyarrow
import pyarrow.parquet
import pytest
import tiny_text as tiny

from hessian_lr import data
from hessian_lr.errors import RequestError

UNREADABLE = {
    "a date after the year 9999": pyarrow.array([2**62] * 4, pyarrow.timestamp("us")),
    "a zone that no system knows": pyarrow.array([1] * 4, pyarrow.timestamp("us", tz="Mars/Base")),
}


@pytest.mark.parametrize("column", UNREADABLE.values(), ids=UNREADABLE)
def test_a_parquet_column_that_python_cannot_hold_matters_only_where_it_is_used(tmp_path, column):
    path, tokenizer = tmp_path / "rows.parquet", tiny.byte_tokenizer()
    pairs = pyarrow.Table.from_pylist(tiny.sums(2))
    pyarrow.parquet.write_table(pairs.append_column("when", column), path)
    loaded = data.load(str(path), tokenizer)
    assert len(loaded.train) + len(loaded.heldout) == 4
    with pytest.raises(RequestError, match=r"rows\.parquet \(.* bytes\) is not a readable Parquet file"):
        data.load(str(path), tokenizer, fields=("prompt", "when"))


def test_all_columns_of_a_parquet_file_are_named_where_none_is_found(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"a": ["x"], "b": ["y"]}), tmp_path / "rows.parquet")
    with pytest.raises(RequestError, match=r"cannot tell which columns to use\. Columns found: a, b"):
        data.check(str(tmp_path / "rows.parquet"))
