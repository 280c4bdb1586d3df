"""`export --space`: a page with the report, or an app that runs the model; theirs is never replaced unasked."""

import json
from pathlib import Path

import pytest
import yaml
from stand_in_hub import TOKEN, talking

from finetune.publishing import space, space_app

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the client's own calls


@pytest.fixture
def hub(monkeypatch):
    with talking(monkeypatch, TOKEN) as hub:
        yield hub


@pytest.fixture
def run(tiny_run, hub):
    text = Path("text <b>.txt")
    text.write_text("the <script>alert(1)</script> quick & brown fox\n" * 200)
    return tiny_run("out", "--max_iters=4", "--num_samples=2", "--max_new_tokens=30", text=text)


EXPORT = ("export", "--out_dir=out", "--to=mine", "--space=me/demo")
GRADIO = (*EXPORT, "--space_sdk=gradio", "--push_to_hub=me/tiny")


def held(hub):
    files = hub.repositories["spaces/me/demo"]["files"]
    return {name: content for name, content in files.items() if name != ".gitattributes"}


def front_matter(files):
    return yaml.safe_load(files["README.md"].decode().split("---\n")[1])


def test_a_page_with_the_report(hub, run, command):
    code, out, error = command(*EXPORT)
    assert code == 0 and "published the Space me/demo (private)" in out and "hashes agree" in out, error
    files = held(hub)
    assert {*files} == {"README.md", "index.html", "manifest.json", "report.html"} and len(hub.commits) == 1
    assert "removing style.css" in out  # which the Hub puts into a new Space
    assert hub.repositories["spaces/me/demo"] | {"files": 0} == {
        **{"private": True, "sdk": "static", "files": 0},
        "history": hub.repositories["spaces/me/demo"]["history"],
    }
    front = front_matter(files)
    assert (front["title"], front["sdk"], front["app_file"]) == (
        "demo",
        "static",
        "index.html",
    ) and "models" not in front
    page, report = (files[name].decode() for name in ("index.html", "report.html"))
    assert "<script" not in page + report and 'href="report.html"' in page and "<pre" in page
    assert str(Path.cwd()) not in page + report and TOKEN not in page + report
    told = {name: entry["bytes"] for name, entry in json.loads(files["manifest.json"])["files"].items()}
    assert told == {name: len(content) for name, content in files.items() if name != "manifest.json"}
    code, out, error = command(*EXPORT)
    assert code == 0 and "shows this already; nothing to publish" in out and len(hub.commits) == 1, error


def test_a_space_that_was_made_and_not_filled_is_filled_later(hub, run, command):
    hub.before = lambda method, path: 500 if "/commit/" in path else None
    assert command(*EXPORT)[0] == 4 and {*held(hub)} == {"index.html", "style.css"}
    hub.before = lambda method, path: None
    code, _, error = command(*EXPORT)
    assert code == 0 and {*held(hub)} == {"README.md", "index.html", "manifest.json", "report.html"}, error
    hub.repositories["spaces/me/demo"]["files"] = {"index.html": b"my own page", "style.css": b""}
    code, _, error = command(*EXPORT)
    assert code == 4 and "edited: index.html, style.css;" in error


def test_words_of_the_owner_stay_and_the_page_is_new(hub, run, command, tiny_run):
    command(*EXPORT)
    files = hub.repositories["spaces/me/demo"]["files"]
    files["README.md"] = files["README.md"].replace(b"title: demo", b"title: My demo\nemoji: X") + b"\nHello.\n"
    page = files["index.html"]
    tiny_run("out", "--max_iters=6", "--overwrite=true", "--num_samples=1")
    code, out, error = command(*EXPORT, "--push_to_hub=me/tiny")
    assert code == 0 and "the Space me/demo: replacing index.html, report.html\n" in out, error
    files = held(hub)
    assert files["index.html"] != page and b"https://huggingface.co/me/tiny" in files["index.html"]
    front = front_matter(files)
    assert (front["title"], front["emoji"], front["models"]) == ("My demo", "X", ["me/tiny"])
    assert files["README.md"].endswith(b"\nHello.\n") and files["README.md"].count(b"finetune:space") == 2


def test_what_is_not_ours_is_not_replaced(hub, run, command):
    hub.repositories["spaces/me/demo"] = {"private": True, "files": {"app.py": b"print()", "README.md": b"# Hi\n"}}
    code, _, error = command(*EXPORT)
    assert code == 4 and "the Space me/demo was not published: it holds files that finetune did not write" in error
    assert "edited: app.py; choose another name" in error and len(error.splitlines()) == 1 and hub.commits == []
    del hub.repositories["spaces/me/demo"]["files"]["app.py"]
    code, _, error = command(*EXPORT)
    assert code == 0 and b"# Hi\n" in held(hub)["README.md"], error
    hub.repositories["spaces/me/demo"]["files"]["index.html"] += b"<p>by hand"
    code, _, error = command(*EXPORT)
    assert code == 4 and "edited: index.html" in error and len(hub.commits) == 1
    hub.repositories["spaces/me/demo"] = {"private": False, "files": {}}
    code, _, error = command(*EXPORT)
    assert code == 4 and "is public already; --private=false" in error
    code, out, error = command(*EXPORT, "--private=false")
    assert code == 0 and "(public)" in out, error


def test_an_app_that_runs_the_pushed_model(hub, run, command, monkeypatch):
    command(*EXPORT)
    monkeypatch.setitem(hub.repositories["spaces/me/demo"], "sdk", "gradio")
    code, out, error = command(*GRADIO)
    assert code == 0 and "removing index.html, report.html" in out and "secret HF_TOKEN" in out, error
    files = held(hub)
    assert {*files} == {"README.md", "app.py", "manifest.json", "requirements.txt", "space.json"}
    front = front_matter(files)
    assert (front["sdk"], front["app_file"], front["models"]) == ("gradio", "app.py", ["me/tiny"])
    assert front["sdk_version"] and not any(TOKEN.encode() in content for content in files.values())
    assert b"\ntransformers==" in files["requirements.txt"]
    # as the Space does: app.py and its settings alone, with the model from the Hub
    for name in ("app.py", "space.json"):
        Path(name).write_bytes(files[name])
    app, settings = {"__name__": "app", "__file__": "app.py"}, json.loads(Path("space.json").read_text())
    exec(compile(files["app.py"], "app.py", "exec"), app)
    assert "finetune" not in files["app.py"].decode().replace("no other of finetune", "")
    generator = app["load"](settings)
    greedy = app["generate"](generator, settings, "the quick", 5, 0)
    wanted = generator("the quick", max_new_tokens=5, do_sample=False)[0]["generated_text"]
    assert greedy == wanted and greedy.startswith("the quick") and len(greedy) == len("the quick") + 5
    assert len(app["generate"](generator, settings, "the quick", 1000, 1.0)) <= settings["context"]
    assert "too long" in app["generate"](generator, settings, "the quick " * 100, 5, 0)
    assert app["generate"](generator, settings, "", 2, 0).startswith(settings["start"])
    # the app keeps to the commit that was verified
    commit = settings["revision"]
    assert hub.repositories["me/tiny"]["tags"] and commit in hub.repositories["me/tiny"]["tags"].values()


def test_a_text_that_brings_tags_is_not_published(hub, run, command):
    report = Path("out/report.html")
    report.write_text(report.read_text().replace("</body>", "<img src=x onerror=alert(1)></body>"))
    code, _, error = command(*EXPORT)
    assert code == 4 and "report.html holds img, which none of our pages has" in error and hub.commits == []


def test_a_space_without_a_report_or_a_model_is_refused(command, run, hub):
    for flags, told in {
        ("--space_sdk=static",): "space_sdk: has no effect without --space",
        ("--space=demo",): "is not the name of a repository",
        ("--space=me/demo", "--format=nanogpt"): "space: shows a model of format=hf",
        ("--space=me/demo", "--space_sdk=gradio"): "give --push_to_hub=USER/NAME too",
        ("--space=me/demo", "--init_from=mine"): "a static Space shows the report of a run; give --out_dir=OUT",
    }.items():
        source = () if "--init_from=mine" in flags else ("--out_dir=out",)
        code, _, error = command("export", *source, "--to=g", *flags)
        assert code == 2 and told in error and len(error.splitlines()) == 1, error
    Path("out/report.html").unlink()
    code, _, error = command(*EXPORT)
    assert code == 2 and "out has no report.html, which a static Space shows; finetune report out" in error
    assert not Path("mine").exists() and hub.requests == []


def test_the_app_answers_in_chats():
    class Tokenizer:
        chat_template = "a template"

        def apply_chat_template(self, messages, return_dict, add_generation_prompt):
            return {"input_ids": list(messages[0]["content"])}

    said = {}

    class Generator:
        tokenizer = Tokenizer()

        def __call__(self, messages, **options):
            said.update(messages=messages, **options)
            return [{"generated_text": "hello"}]

    answer = space_app.generate(Generator(), {"context": 10, "start": "x"}, "hi", 30, 0.5)
    assert answer == "hello" and said["max_new_tokens"] == 8 and said["return_full_text"] is False
    assert said["messages"] == [{"role": "user", "content": "hi"}] and said["temperature"] == 0.5


def test_the_app_answers_long_prompts_in_chats(tmp_path):
    """The real pipeline, and a template whose answer begins with four tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"?": 0, "a": 1, "b": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?", pad_token="?")
    tokenizer.chat_template = "{{ messages[0].content }}{% if add_generation_prompt %} b b b b{% endif %}"
    tokenizer.save_pretrained(tmp_path)
    config = GPT2Config(vocab_size=3, n_positions=16, n_layer=1, n_head=1, n_embd=8, eos_token_id=None)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    settings = {"model": str(tmp_path), "revision": None, "context": 16, "start": "x"}
    generator = space_app.load(settings)
    for count in range(9, 17):
        said = space_app.generate(generator, settings, " ".join("a" * count), 30, 0)
        assert said.startswith("This prompt is too long") == (count > 11), (count, said)
        assert count > 11 or len(said.split()) == 12 - count


def test_names_cannot_become_tags(tmp_path):
    page = tmp_path / "index.html"
    for text, active in {"<b>&lt;script&gt;</b><meta charset=utf-8>": set(), "<p onclick=x>": {"p"}}.items():
        page.write_text(text)
        (tmp_path / "report.html").write_text("<p>")
        shown = space.Shown(tmp_path, tmp_path)
        if active:
            with pytest.raises(space.Refused):
                space.verify(tmp_path, "static", shown)
        else:
            space.verify(tmp_path, "static", shown)
