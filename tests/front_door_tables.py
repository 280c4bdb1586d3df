"""Tables of typed columns: parquet, Arrow, Feather, and what `save_to_disk` writes."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
from front_door import changed, either, plain, reads, refuses, talks, texts, without

T, P = texts(), plain()
MESSAGES = [
    [{"role": "user", "content": f"What is {i}?"}, {"role": "assistant", "content": f"It is {i}."}] for i in range(12)
]


def parquet(columns, name="a.parquet", **options):
    """A function that writes these columns."""

    def write():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pa.table(columns), name, **options)

    return write


def feather(name, **options):
    return lambda: pyarrow.feather.write_feather(pa.table({"id": list(range(12)), "text": T}), name, **options)


def ipc(name, new):
    def write():
        table = pa.table({"text": T})
        with new(name, table.schema) as writer:
            writer.write_table(table, max_chunksize=5)

    return write


def rewrite(change, name="a.arrow"):
    Path(name).write_bytes(change(Path(name).read_bytes()))


def saved(splits, shards=1):
    """A function that writes a Dataset, or a DatasetDict of several splits, to the directory saved."""

    def write():
        import datasets

        parts = {name: datasets.Dataset.from_dict(columns) for name, columns in splits.items()}
        if len(parts) > 1:
            datasets.DatasetDict(parts).save_to_disk("saved")
        else:
            next(iter(parts.values())).save_to_disk("saved", num_shards=shards)

    return write


def several(*writers):
    return lambda: [write() for write in writers]


def dictionary(values):
    return pa.array(values).dictionary_encode()


def of_one_name(write, name, *columns):
    """A function that writes a table whose columns are all named text."""
    return lambda: write(pa.Table.from_arrays([pa.array(column) for column in columns], ["text"] * len(columns)), name)


PARQUET, FEATHER = pyarrow.parquet.write_table, pyarrow.feather.write_feather
ONE_NAME = [
    refuses(
        "parquet of two texts of one name", of_one_name(PARQUET, "a.parquet", P, P[::-1]), r"text \(1\)", "a.parquet"
    ),
    refuses(
        "feather of two texts of one name", of_one_name(FEATHER, "a.feather", P, P[::-1]), r"text \(2\)", "a.feather"
    ),
    reads(
        "parquet of two texts of one name, one named",
        of_one_name(PARQUET, "a.parquet", T, P),
        T,
        "a.parquet '--text_column=text (1)'",
    ),
    reads(
        "parquet of a text and a number of one name",
        of_one_name(PARQUET, "a.parquet", T, list(range(12))),
        T,
        "a.parquet",
        says=r"'text \(1\)', not read: text \(2\)",
    ),
]
FILES = [
    reads("parquet", parquet({"text": T}), T, "a.parquet"),
    reads(
        "parquet in row groups, zstd",
        parquet({"id": list(range(12)), "text": T}, row_group_size=5, compression="zstd"),
        T,
        "a.parquet",
        says="12 rows.*column 'text'",
    ),
    reads("parquet of large strings", parquet({"text": pa.array(T, pa.large_string())}), T, "a.parquet"),
    reads("parquet of a dictionary", parquet({"text": dictionary(P[:4] * 3)}), P[:4] * 3, "a.parquet"),
    *[
        reads(f"parquet of texts as {kind}", parquet({"text": pa.array([t.encode() for t in T], kind)}), T, "a.parquet")
        for kind in (pa.binary(), pa.large_binary(), pa.binary_view())
    ],
    reads(
        "parquet of a dictionary of bytes",
        parquet({"body": pa.array([t.encode() for t in P]).dictionary_encode(), "image": [b"\x89PNG\r\n"] * 12}),
        P,
        "a.parquet",
        says="not read: image",
    ),
    *[
        reads(f"parquet of texts beside {what} as bytes", parquet({"ids": [cell] * 12, "body": T}), T, "a.parquet")
        for what, cell in (("ids", np.arange(2000, dtype="<i4").tobytes()), ("zeros", bytes(8000)))
    ],
    *[
        refuses(
            f"parquet of texts beside {what} as bytes",
            parquet({"picture": [cell] * 12, "caption": T}),
            ["'picture' holds bytes, 'caption' texts", "--text_column="],
            "a.parquet",
        )
        for what, cell in (("SVG", b"<svg><path d='M 1 2'/></svg>" * 99), ("base64", b"iVBORw0KGgo" * 99))
    ],
    reads(
        "parquet of texts as bytes beside short texts",
        parquet({"body": [t.encode() for t in T], "lang": ["en"] * 12}),
        T,
        "a.parquet",
    ),
    refuses(
        "parquet of bytes of which some are no text",
        parquet({"text": [*[t.encode() for t in P], b"caf\xe9"]}),
        ["row 13", "bytes that are no text in UTF-8", "--on_bad_row=skip"],
        "a.parquet",
    ),
    reads(
        "parquet of bytes of which some are left out",
        parquet({"text": [*[t.encode() for t in P], b"caf\xe9"]}),
        P,
        "a.parquet --on_bad_row=skip",
        says="left out 1 row",
    ),
    reads("parquet of string views", parquet({"text": pa.array(T, pa.string_view())}), T, "a.parquet"),
    reads(
        "parquet with odd columns beside",
        parquet(
            {
                "text": T,
                "day": pa.array([0] * 12, pa.date32()),
                "at": pa.array([0] * 12, pa.timestamp("ns", "UTC")),
                "raw": [b"\xff"] * 12,
                "none": pa.nulls(12),
            }
        ),
        T,
        "a.parquet",
    ),
    reads(
        "parquet of lists of strings, named", parquet({"parts": [[t] for t in T]}), T, "a.parquet --text_column=parts"
    ),
    either(
        "parquet of lists of strings",
        parquet({"parts": [[t] for t in T]}),
        [T],
        ["parts", "--text_column"],
        "a.parquet",
    ),
    either(
        "parquet with a null",
        parquet({"text": changed(T, 7, None)}),
        [without(T, 7)],
        ["row 7", "null"],
        "a.parquet",
        says=r"\b1\b.*(null|empty|left out|without)",
    ),
    reads(
        "parquet with a null, skipped",
        parquet({"text": changed(T, 7, None)}),
        without(T, 7),
        "a.parquet --on_bad_row=skip",
        says=r"\b1\b",
    ),
    either(
        "parquet of numbers, named",
        parquet({"n": list(range(12))}),
        [[str(i) for i in range(12)]],
        ["row 1", "'n'"],
        "a.parquet --text_column=n",
    ),
    either(
        "parquet of bytes, named",
        parquet({"raw": [t.encode() for t in T]}),
        [T],
        ["raw"],
        "a.parquet --text_column=raw",
    ),
    either(
        "parquet of days, named",
        parquet({"day": pa.array(range(12), pa.date32())}),
        [[f"1970-01-{i + 1:02}" for i in range(12)]],
        ["day"],
        "a.parquet --text_column=day",
    ),
    refuses(
        "parquet of a label beside lists",
        parquet({"label": ["yes", "no"] * 6, "parts": [[t] for t in T]}),
        ["parts", "--text_column"],
        "a.parquet",
    ),
    refuses(
        "parquet without that column",
        parquet({"text": T}),
        ["no column 'body'", "text"],
        "a.parquet --text_column=body",
    ),
    refuses("parquet without rows", parquet({"text": pa.array([], pa.string())}), "no (text|row)|empty", "a.parquet"),
    refuses(
        "parquet that is cut",
        several(parquet({"text": T}), lambda: rewrite(lambda data: data[:-30], "a.parquet")),
        ["a.parquet: ", "cut short"],
        "a.parquet",
    ),
    refuses("text as parquet", {"a.parquet": "id,text\n1,one\n"}, "a.parquet: .*parquet"),
    refuses("parquet as JSON lines", parquet({"text": T}, "a.jsonl"), "parquet", "a.jsonl"),
    refuses("parquet as text", parquet({"text": T}, "a.txt"), "parquet", "a.txt"),
    reads("parquet of messages", parquet({"messages": MESSAGES}), talks(), "a.parquet"),
    reads(
        "parquet of prompts",
        parquet(
            {
                "prompt": [f"What is {i}?" for i in range(12)],
                "completion": pa.array([f"It is {i}." for i in range(12)], pa.large_string()),
            }
        ),
        talks(),
        "a.parquet",
    ),
    reads("feather", feather("a.feather"), T, "a.feather"),
    reads("feather, uncompressed", feather("a.feather", compression="uncompressed"), T, "a.feather"),
    reads("an Arrow file", ipc("a.arrow", pa.ipc.new_file), T, "a.arrow"),
    reads("an Arrow stream", ipc("a.arrow", pa.ipc.new_stream), T, "a.arrow"),
    refuses(
        "an Arrow file that is cut",
        several(ipc("a.arrow", pa.ipc.new_stream), lambda: rewrite(lambda data: data[:-200])),
        ["a.arrow: ", "ends within a message"],
        "a.arrow",
    ),
    *(
        refuses(
            f"an Arrow {what}", several(ipc("a.arrow", new), lambda change=change: rewrite(change)), says, "a.arrow"
        )
        for what, new, change, says in [
            (
                "stream without its end",
                pa.ipc.new_stream,
                lambda data: data[:-8],
                ["no end mark", "rows can be missing"],
            ),
            ("stream without its end, as of old", pa.ipc.new_stream, lambda data: data[:-4], "damaged|end mark"),
            ("stream of a schema", pa.ipc.new_stream, lambda data: data[:120], "no end mark|damaged"),
            ("stream behind another", pa.ipc.new_stream, lambda data: data + data, "several Arrow streams"),
            ("file cut", pa.ipc.new_file, lambda data: data[:-30], "cut short"),
            ("file behind another", pa.ipc.new_file, lambda data: data + data, "several Arrow files"),
        ]
    ),
    refuses(
        "parquet behind another",
        several(parquet({"text": T}), lambda: rewrite(lambda data: data + data, "a.parquet")),
        "several parquet files",
        "a.parquet",
    ),
    refuses("text as Arrow", {"a.arrow": "one, two\n" * 9}, "a.arrow: "),
]

DIRECTORIES = [
    reads("save_to_disk", saved({"train": {"text": T}}), T, "saved"),
    reads("save_to_disk in shards", saved({"train": {"id": list(range(12)), "text": T}}, shards=3), T, "saved"),
    reads(
        "save_to_disk of splits",
        saved({"train": {"text": P}, "validation": {"text": ["val one", "val two"]}, "test": {"text": ["test"]}}),
        [*P, "val one", "val two"],
        "saved",
        says="test",
    ),
    reads(
        "save_to_disk of train and test",
        saved({"train": {"text": P}, "test": {"text": ["test one"]}}),
        P,
        "saved",
        says="test",
    ),
    reads("save_to_disk of messages", saved({"train": {"messages": MESSAGES}}), talks(), "saved"),
    reads("save_to_disk, a column named", saved({"train": {"title": P, "body": T}}), T, "saved --text_column=body"),
    refuses(
        "save_to_disk of ids and lists",
        saved({"train": {"id": P, "parts": [[t] for t in T]}}),
        ["parts", "--text_column"],
        "saved",
    ),
    reads(
        "parquet of a snapshot",
        several(
            parquet({"text": P[:6]}, "d/data/train-00000-of-00002.parquet"),
            parquet({"text": P[6:]}, "d/data/train-00001-of-00002.parquet"),
            parquet({"text": ["test"]}, "d/data/test-00000-of-00001.parquet"),
            lambda: Path("d/README.md").write_text("# A card"),
        ),
        P,
        "d",
        says="test",
    ),
]


def beyond(kind, number):
    """A column of one date that Python has no value for, among others that it has."""
    width = pa.int32() if kind == pa.date32() else pa.int64()
    return pa.array([number, *range(1, 12)], width).cast(kind)


DATES = {
    "a date": beyond(pa.date32(), 2**31 - 1),
    "a date before the year 1": beyond(pa.date32(), -(2**31) + 1),
    "a time": beyond(pa.timestamp("s"), 253402300800),
    "a time before the year 1": beyond(pa.timestamp("us", tz="UTC"), -62135596800000001),
    "a duration": beyond(pa.duration("s"), 2**60),
    "an unknown time zone": beyond(pa.timestamp("s", tz="Mars/Base"), 1),
    "a date in a list": pa.array([[value] for value in range(12)], pa.list_(pa.int64())).cast(
        pa.list_(pa.timestamp("us"))
    ),
}


def dates_in_feather():
    pyarrow.feather.write_feather(pa.table({"text": T, "when": DATES["a time"]}), "a.feather")


NO_VALUES = [
    *[reads(f"{what} beyond Python", parquet({"text": T, "when": one}), T, "a.parquet") for what, one in DATES.items()],
    reads("a date beyond Python in Feather", dates_in_feather, T, "a.feather"),
    refuses(
        "a date beyond Python as text",
        parquet({"text": T, "when": DATES["a date"]}),
        ["row 1", "'when'", "9999"],
        "a.parquet --text_column=when",
    ),
]
CASES = [*ONE_NAME, *NO_VALUES, *FILES, *DIRECTORIES]
