"""Text files: other encodings are read or refused with the likely one, and texts are cut into documents."""

import bz2
import codecs
import gzip
import hashlib
import json
import lzma
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest

from finetune.common.errors import UsageError
from finetune.data import sources, text_files
from finetune.data.text_files import TextOptions

TEXT = "Some plain text, line by line.\nAnd a second line.\n"
WESTERN = "Un café très “chaud” – oui, où l’été est là.\r\n" * 5
RUSSIAN = "Привет, как дела? Это простой текст.\n" * 5
JAPANESE = "これは日本語のテキストです。今日は良い天気ですね。\n" * 5
CHINESE = "这是一个中文文本。我们在学习。\n" * 5
# text, encoding for iconv and Python, name that the message proposes and --encoding takes
PROPOSED = [
    (WESTERN, "CP1252", "cp1252"),
    ("Größe, Straße, schön für alle.\n" * 3, "ISO-8859-1", "cp1252"),
    ("El niño comió piñas en España, ¿verdad? Sí, mañana.\n", "CP1252", "cp1252"),
    ("It’s a “test” — don’t worry\n", "CP1252", "cp1252"),
    ("It fell by 3½¢ in a year; it was a quick decrease.\n", "CP1252", "cp1252"),
    ("Rocky ChÌÁvez,CA\nCristina OsmeÌ±a,CA\n", "CP1252", "cp1252"),  # two faults, but no Japanese
    (RUSSIAN, "CP1251", "cp1251"),
    (RUSSIAN, "KOI8-R", "koi8_r"),
    (RUSSIAN, "CP866", "cp866"),
    (JAPANESE, "CP932", "cp932"),
    (JAPANESE, "EUC-JP", "euc_jp"),
    (CHINESE, "GB18030", "gb18030"),
    ("這是一個繁體中文文本，我們在學習。\n" * 5, "BIG5", "big5"),
    ("이것은 한국어 텍스트입니다. 안녕하세요.\n" * 5, "CP949", "cp949"),
    ("Příliš žluťoučký kůň úpěl ďábelské ódy\n" * 3, "CP1250", "cp1250"),
    ("Η γλώσσα είναι όμορφη και παλιά.\n" * 4, "CP1253", "cp1253"),
    ("Bu çok güzel bir gün, değil mi? Şimdi gidiyoruz, ışık.\n" * 4, "CP1254", "cp1254"),
    ("שלום לכולם, זה טקסט פשוט בעברית.\n" * 4, "CP1255", "cp1255"),
    ("مرحبا بالعالم، هذا نص بسيط باللغة العربية.\n" * 4, "CP1256", "cp1256"),
]
# these pass for UTF-8, or for binary data
LOOKS_LIKE = [
    *[
        (text, f"{name}{end}", f"{name}-{end}".lower())
        for text in (TEXT, RUSSIAN, JAPANESE)
        for name in ("UTF-16", "UTF-32")
        for end in ("LE", "BE")
    ],
    (JAPANESE, "ISO-2022-JP", "iso2022_jp"),
    ("이것은 한국어 텍스트입니다.\n", "ISO-2022-KR", "iso2022_kr"),
]


# languages, and the encodings in which each must be found by one sentence
SENTENCES = [
    ("We met at the café in the evening.\n", "cp1252 mac_roman cp437 cp850"),
    ("Le café était fermé, où l'élève a payé la reine. Ça va très bien; même à Noël.\n", "latin-1 mac_roman cp850"),
    ("Überall grüßen die Bäume, und die Straße ist naß.\n", "cp1252 mac_roman cp437 cp850 cp273"),
    ("El niño comió piñas en España, sí, mañana.\n", "cp1252 mac_roman cp437"),
    ("Não há razão para a informação estar lá, irmão. Então, amanhã às três.\n", "cp1252 mac_roman"),
    ("Åsa går på ön och äter smörgås när det är kallt.\n", "cp1252 mac_roman cp850"),
    ("It’s a “test” — don’t worry… he said.\n", "cp1252 mac_roman"),
    ("He waited – then left.\n", "cp1252 mac_roman"),
    ("America’s “so” it is—yes, we don’t.\n", "cp1252 mac_roman big5 gb18030"),
    ("He said “Où est”, or rather oü.\n", "cp1252"),
    ("Mr. Müller and Mrs. Škoda met Žižek.\n", "cp1252"),
    ("Zażółć gęślą jaźń. Wszyscy są tu, również żółw i łoś.\n", "cp1250 iso8859-2"),
    ("Příliš žluťoučký kůň úpěl ďábelské ódy. Včera jsem šel domů.\n", "cp1250 iso8859-2"),
    ("Árvíztűrő tükörfúrógép. Az idő szép, és a lányok énekelnek.\n", "cp1250 iso8859-2"),
    ("Это русское предложение. Москва очень большой город.\n", "cp1251 koi8-r cp866 iso8859-5 mac_cyrillic"),
    ("Це українське речення, її місто Київ є великим.\n", "cp1251 koi8-u"),
    ("Η γλώσσα είναι όμορφη και παλιά. Η Αθήνα είναι μεγάλη πόλη.\n", "cp1253 iso8859-7"),
    ("Bu çok güzel bir gün, değil mi? Şimdi gidiyoruz, ışık.\n", "cp1254 iso8859-9"),
    ("これは日本語の文章です。東京は大きい都市であり、人が多い。\n", "shift_jis euc_jp"),
    ("コンピュータのプログラム\n", "shift_jis euc_jp"),
    ("カタカナ コンピュータ プログラム テスト\n", "shift_jis euc_jp"),
    ("这是一个中文句子。北京是一个很大的城市，有很多人。\n", "gbk gb18030"),
    ("這是一個繁體中文句子，臺北是一個很大的城市。\n", "big5"),
    ("이것은 한국어 문장입니다. 서울은 큰 도시이고 사람이 많습니다.\n", "euc_kr"),
    ("The quick brown fox jumps over the lazy dog. It was late and cold that night.\n", "cp037 cp500"),
]
IN_ENCODINGS = [(text, encoding) for text, encodings in SENTENCES for encoding in encodings.split()]


@pytest.mark.parametrize("times", [1, 20])
@pytest.mark.parametrize(
    "text, encoding", IN_ENCODINGS, ids=[f"{text[:9]} {encoding}" for text, encoding in IN_ENCODINGS]
)
def test_the_encoding_that_is_proposed_gives_the_text(text, encoding, times):
    Path("a.txt").write_bytes((text * times).encode(encoding))
    with pytest.raises(UsageError, match="is not UTF-8; probably .*: --encoding=") as caught:
        text_files.open_text(Path("a.txt")).read()
    assert text_files.open_text(Path("a.txt"), str(caught.value).split("--encoding=")[1]).read() == text * times


def test_a_stray_byte_does_not_make_another_encoding():
    french = ("Le café déjà vu près de l'hôtel où l'été fut long. " * 20).encode("cp1252")
    path = Path("a.txt")
    path.write_bytes(french[:300] + b"\x81" + french[300:])  # which Windows does not use
    with pytest.raises(UsageError, match="is not cp1252; drop it with (iconv -c -f CP1252 -t UTF-8)$") as caught:
        text_files.open_text(path, "cp1252").read()
    way = str(caught.value).partition("with ")[2]
    read = subprocess.run([*way.split(), path], capture_output=True).stdout  # 1 where it dropped something
    assert read.decode() == french.decode("cp1252")
    path.write_bytes("日本語の文章です。カタカナも。".encode("cp932") * 9)
    with pytest.raises(UsageError, match="is not cp1252; probably cp932: --encoding=cp932"):
        text_files.open_text(path, "cp1252").read()


def test_flaws_of_utf8_are_named():
    for data, message in (
        (
            "so 😀".encode("utf-16-be").decode("utf-16-be").encode("utf-8") + b" \xed\xa0\xbd\xed\xb8\x80",
            "offset 8 .*surrogate pair",
        ),
        (b"caf\xc3\xa9 \xed\xa0\xbd so", "half of a surrogate pair.*uconv -f CESU-8"),
        (b"a\xc0\x80b", "more bytes than it has"),
        (
            "größe\n".encode() * 9 + "café\nétés\n".encode("cp1252") * 9,
            "some lines are UTF-8 and some are not, probably cp1252",
        ),
        (b"caf\xc3\xa9 and d\xe9j\xe0 vu, \xe9t\xe9", "probably cp1252"),  # one pair that is UTF-8 by chance
    ):
        Path("a.txt").write_bytes(data)
        with pytest.raises(UsageError, match=message):
            text_files.open_text(Path("a.txt")).read()


def test_byte_order_marks_of_two_programs_are_dropped():
    Path("a.txt").write_bytes(codecs.BOM_UTF8 * 2 + RUSSIAN.encode())
    assert whole(Path("a.txt")) == [RUSSIAN]


def iconv(text, encoding):
    """The text in this encoding, by iconv where it is installed, else by Python."""
    if shutil.which("iconv"):
        return subprocess.run(["iconv", "-f", "UTF-8", "-t", encoding], input=text.encode(), stdout=-1).stdout
    return text.encode(encoding)


@pytest.mark.parametrize("text, encoding, proposed", PROPOSED, ids=[row[1] for row in PROPOSED])
def test_a_byte_that_is_not_utf8_is_refused_with_its_place_and_the_likely_encoding(text, encoding, proposed):
    before = "A line of English.\n" * 3000
    data = iconv(before + text, encoding)
    Path("a.txt").write_bytes(data)
    first = next(i for i, byte in enumerate(data) if byte > 127)
    line = data[:first].count(b"\n") + 1
    message = f"a.txt: byte 0x{data[first]:02X} at offset {first:,} (line {line:,}) is not UTF-8; probably {proposed}: "
    for read in (lambda: text_files.open_text(Path("a.txt")).read(), lambda: list(text_files.read_file(Path("a.txt")))):
        with pytest.raises(UsageError, match="^" + re.escape(f"{message}--encoding={proposed}")):
            read()
    assert text_files.open_text(Path("a.txt"), proposed).read() == before + text


@pytest.mark.parametrize("text, encoding, proposed", LOOKS_LIKE, ids=[row[1] for row in LOOKS_LIKE])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_wide_and_seven_bit_encodings_are_refused_and_read_when_named(text, encoding, proposed, mark):
    if mark and not encoding.startswith("UTF"):
        return
    Path("a.txt").write_bytes(iconv(mark + text, encoding))
    with pytest.raises(
        UsageError, match=f"looks like {encoding}.*--encoding={proposed}, .*iconv -f {encoding} -t UTF-8"
    ):
        text_files.open_text(Path("a.txt")).read()
    names = [proposed, proposed[:6]] if encoding.startswith("UTF") else [proposed]
    for name in names:
        assert text_files.open_text(Path("a.txt"), name).read() == text
        assert whole(Path("a.txt"), encoding=name) == [text]


def whole(path, chunk_bytes=1 << 22, **options):
    """The documents of a text file, each as one text."""
    documents, text = [], ""
    for chunk in text_files.read_file(path, chunk_bytes=chunk_bytes, options=TextOptions(**options)):
        text += chunk.text
        if chunk.is_last:
            documents.append(text)
            text = ""
    assert not text
    return documents


def test_seven_bit_text_late_in_a_file_is_found():
    for encoding, shown in (("iso2022_jp", "looks like ISO-2022-JP"), ("utf-16-le", "is binary data, not text")):
        Path("a.txt").write_bytes(TEXT.encode() * 200_000 + JAPANESE.encode(encoding) * 9000)
        with pytest.raises(UsageError, match=f"a.txt: from line [0-9,]+ on: {shown}"):
            text_files.open_text(Path("a.txt")).read()


def test_an_encoding_that_the_file_is_not_in_is_refused():
    Path("utf8.txt").write_text(RUSSIAN + CHINESE, encoding="utf-8")
    Path("ascii.txt").write_text(TEXT)
    Path("wide.txt").write_bytes(TEXT.encode("utf-16-be"))
    for name, encoding, message in (
        ("utf8.txt", "cp1252", "is UTF-8, not cp1252; leave --encoding=cp1252 out"),
        ("utf8.txt", "gb18030", "is UTF-8, not gb18030"),
        ("utf8.txt", "utf-16", "is UTF-8, not utf-16"),
        ("utf8.txt", "ascii", "is UTF-8, not ascii; leave --encoding=ascii out"),
        ("ascii.txt", "utf-16-le", "is UTF-8, not utf-16-le"),
        ("wide.txt", "utf-16-le", "looks like UTF-16BE; .*--encoding=utf-16-be"),
        ("wide.txt", "cp1252", "looks like UTF-16BE"),
    ):
        with pytest.raises(UsageError, match=message):
            text_files.open_text(Path(name), encoding).read()
    assert text_files.open_text(Path("ascii.txt"), "cp1252").read() == TEXT
    Path("marked.txt").write_bytes(codecs.BOM_UTF8 + RUSSIAN.encode())
    assert text_files.open_text(Path("marked.txt"), "cp1251").read() == RUSSIAN


def test_unknown_encodings_are_refused_with_similar_names():
    Path("a.txt").write_text(TEXT)
    for name, message in (
        ("cp1525", "no encoding 'cp1525'; did you mean .*cp1252|cp1255"),
        ("utf-9", "did you mean .*utf-8"),
        ("shiftjs", "did you mean .*shift_jis"),
        ("win1252", "did you mean cp1252"),
        ("base64", "no encoding 'base64'; examples are"),
        ("Unicode Text", "no encoding 'Unicode Text'; did you mean utf-16"),
        ("ANSI", "no encoding 'ANSI'; did you mean cp1252"),  # of Notepad; a traceback where Windows is not
        ("mbcs", "no encoding 'mbcs'"),
        ("rot13", "no encoding 'rot13'"),
        ("nonsense", "examples are utf-8"),
    ):
        with pytest.raises(UsageError, match=message):
            text_files.open_text(Path("a.txt"), name).read()


def test_a_damaged_byte_in_utf8_is_no_other_encoding():
    Path("a.txt").write_bytes("größe\n".encode() * 50 + b"f\xffne\n")
    with pytest.raises(UsageError, match=r"byte 0xFF at offset 401 \(line 51\) is not UTF-8, the text before it is"):
        text_files.open_text(Path("a.txt")).read()
    Path("b.txt").write_bytes("größe".encode() + "é".encode()[:1])
    with pytest.raises(UsageError, match=r"ends within a character of UTF-8 \(line 1\); head -c 7 keeps"):
        text_files.open_text(Path("b.txt")).read()


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".bz2", ".zst"])
def test_compressed_text_is_read_and_damage_is_refused(suffix):
    text = "".join(f"line {i}: größe 漢字\r\n" for i in range(3000))
    pack = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress, "": bytes}
    pack[".zst"] = lambda data: pyarrow.compress(data, "zstd", asbytes=True)
    data = pack[suffix](codecs.BOM_UTF8 + text.encode())
    path = Path(f"a.txt{suffix}")
    path.write_bytes(data)
    assert text_files.open_text(path).read() == text
    assert list(text_files.open_text(path)) == text.splitlines(keepends=True)
    assert text_files.open_text(path).readline() == "line 0: größe 漢字\r\n"
    assert whole(path) == [text.replace("\r\n", "\n")]
    if suffix:
        damaged = bytearray(data)
        damaged[len(data) // 2] ^= 0xFF
        # pyarrow writes no checksums into zstd files
        for content in (data[: len(data) // 2], *([bytes(damaged)] if suffix != ".zst" else [])):
            path.write_bytes(content)
            with pytest.raises(UsageError, match=f"^a.txt{suffix}: "):
                text_files.open_text(path).read()


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".bz2", ".zst"])
def test_what_is_wrong_with_compressed_text_is_said_in_words(suffix):
    pack = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}
    pack[".zst"] = lambda data: pyarrow.compress(data, "zstd", asbytes=True)
    data, path = pack[suffix](random.Random(0).randbytes(3000).hex().encode()), Path(f"a.jsonl{suffix}")
    again = "download or copy it again"
    for content, message in (
        (data[:-5], f"cut short; {again}"),
        (data[: len(data) // 2], f"cut short; {again}"),
        (data[:3], f"cut short; {again}"),
        (data + b"and more", f"damaged; {again}"),
        (b'{"text": "a"}\n' * 9, r"not compressed with \w+; if it is text as it is, name it a.jsonl"),
    ):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=f"^{path}: cannot be read: {message}$"):
            text_files.open_text(path).read()
    path.write_bytes(data + data)  # as cat joins them
    assert len(text_files.open_text(path).read()) == 12000


def test_documents_between_separators_are_those_of_split_wherever_chunks_end():
    rng = random.Random(0)
    for _ in range(200):
        text = "".join(
            rng.choice(["\n", "\n\n\n", "-", "--", "ab", " ", "é漢", "\t", "<|endoftext|>"]) for _ in range(60)
        )
        Path("a.txt").write_bytes(text.encode())
        for typed, separator in (
            ("lines", "\n"),
            ("\\n\\n\\n", "\n\n\n"),
            ("--", "--"),
            ("\\t", "\t"),
            ("\n\n", "\n\n"),
        ):
            expected = [part for part in text.split(separator) if part.strip()]
            assert whole(Path("a.txt"), rng.randint(1, 9), documents=typed) == expected
        assert whole(Path("a.txt"), rng.randint(1, 9)) == [text]


def test_lines_of_windows_and_of_old_macs_are_documents_too():
    for end in ("\r\n", "\r", "\n"):
        Path("a.txt").write_bytes(f"one{end}{end}two{end} {end}three".encode())
        assert whole(Path("a.txt"), 4, documents="lines") == ["one", "two", "three"]
        assert whole(Path("a.txt"), 4, documents="\\r\\n\\r\\n") == ["one", "two\n \nthree"]


def test_a_separator_that_is_a_slip_is_refused():
    for documents in ("", "line", "Lines", "files", "row"):
        with pytest.raises(UsageError, match="documents: .* is not file, lines or a separator"):
            _ = TextOptions(documents).separator


def test_the_digest_is_that_of_the_decompressed_bytes():
    content = codecs.BOM_UTF8 + b"a\r\nb\n" * 1000
    Path("a.txt.gz").write_bytes(gzip.compress(content))
    digest = hashlib.sha256()
    list(text_files.read_file(Path("a.txt.gz"), digest, 100, TextOptions("lines")))
    assert digest.hexdigest() == hashlib.sha256(content).hexdigest()


@pytest.mark.heavy
def test_memory_does_not_grow_with_the_file():
    program = """if True:
        import resource, sys
        from pathlib import Path
        from finetune.data.text_files import TextOptions, open_text, read_file
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        lines = sum(1 for line in open_text(Path("big.txt")))
        documents = sum(chunk.is_last for chunk in read_file(Path("big.txt"), options=TextOptions("lines")))
        print(lines, documents, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    with open("big.txt", "w") as file:
        for _ in range(120):
            file.write("größe of a line of the text\n" * 20_000)
    lines, documents, grown = subprocess.run([sys.executable, "-c", program], stdout=-1, check=True).stdout.split()
    assert int(lines) == int(documents) == 2_400_000 and int(grown) < 60_000, grown  # kB; the file has 72 MB


@pytest.mark.parametrize("text", [b"hello caf\xe9\n", b"caf\xe9", b"one\ncaf\xe9\ntwo\n"])
def test_a_letter_at_the_end_of_a_line_is_not_half_of_utf_8(tmp_path, text):
    (tmp_path / "a.txt").write_bytes(text)
    with pytest.raises(UsageError, match="probably cp1252: --encoding=cp1252"):
        text_files.open_text(tmp_path / "a.txt").read()


def test_lines_that_end_with_cr_alone_are_not_one_line(monkeypatch):
    monkeypatch.setattr(text_files, "MOST_CHARACTERS", 100)
    Path("mac.csv").write_bytes(b"id,text\r" + b"1,A few words.\r" * 50)
    assert list(text_files.open_text(Path("mac.csv"))) == ["id,text\r"] + ["1,A few words.\r"] * 50
    Path("mac.csv").write_bytes(b"id,text\r" + b"1,A few words. " * 50)
    with pytest.raises(UsageError, match="a line of more than 100 characters"):
        list(text_files.open_text(Path("mac.csv")))


def test_yaml_without_a_key_of_rows_is_not_parsed(tmp_path, monkeypatch):
    """A repository may hold thousands of such files, and each would take a third of a second."""

    def parse(text):
        raise AssertionError(text)

    monkeypatch.setattr("yaml.safe_load", parse)
    text = "- name: build\n  run: make\n" * 10
    (tmp_path / "jobs.yaml").write_text(text)
    chunks = sources.documents_of(sources.find([tmp_path / "jobs.yaml"]))
    assert "".join(chunk.text for chunk in chunks) == text


@pytest.mark.skipif(sys.platform == "win32", reason="a command for a POSIX shell")
def test_the_command_for_rows_in_yaml_writes_dates_too(tmp_path):
    rows = [{"date": f"2024-01-0{day}", "text": f"It rained on day {day}."} for day in range(1, 6)]
    path = tmp_path / "a.yaml"
    path.write_text("".join(f"- date: {row['date']}\n  text: {row['text']}\n" for row in rows))
    with pytest.raises(UsageError) as refused:
        list(sources.documents_of(sources.find([path])))
    typed = re.search("python (-c .*) > out.jsonl", str(refused.value))[1].replace("FILE", str(path))
    done = subprocess.run(f"{sys.executable} {typed}", shell=True, capture_output=True, text=True)
    assert [json.loads(line) for line in done.stdout.splitlines()] == rows, done.stderr
