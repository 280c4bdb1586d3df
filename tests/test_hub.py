"""What is pushed is what was exported: the real client, in processes of its own, against a Hub on 127.0.0.1."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml
from stand_in_hub import TOKEN, at, talking

from finetune.gpt import GPT
from finetune.publishing import export

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the client's own calls

FLAGS = ("--out_dir=out", "--to=mine", "--push_to_hub=me/tiny")
EXPORT = ("-m", "finetune.export", *FLAGS)
AGAIN = f"again: finetune export {' '.join(FLAGS)}\n"


@pytest.fixture
def hub(monkeypatch):
    """A Hub that this process talks to as well; it has no token yet."""
    with talking(monkeypatch) as hub:
        yield hub


@pytest.fixture
def exported(hub, tiny_run, command):
    """The export of a run, so that it is found done below and has only to be pushed."""
    tiny_run("out", "--max_iters=4")
    code, _, error = command("export", *FLAGS)
    assert code == 4 and hub.requests == [], error  # no token, and the export is whole all the same
    assert "there is no token" in error and Path("mine/verification.json").is_file()


@pytest.fixture
def push(command, monkeypatch):
    """A function that pushes the export with some token."""

    def call(*flags, token=TOKEN):
        monkeypatch.setenv("HF_TOKEN", token)
        return command("export", *FLAGS, *flags)

    return call


def environment(hub):
    return {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(Path("hf-home").resolve()),
        "HF_HUB_DISABLE_XET": "1",
    }


def python(hub, *argv):
    """A process of its own, which knows of the Hub by its environment."""
    done = subprocess.run([sys.executable, *argv], capture_output=True, text=True, env=environment(hub), timeout=100)
    return done.returncode, done.stdout, done.stderr


def held(hub, name="me/tiny"):
    return {path: content for path, content in hub.repositories[name]["files"].items() if path != ".gitattributes"}


def here():
    return {path.name: path.read_bytes() for path in Path("mine").iterdir()}


def test_a_push_is_one_commit_that_comes_back_as_it_was(hub, exported, push):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    code, out, error = python(hub, *EXPORT)
    assert code == 0 and error == "", error
    assert "hashes agree" in out and len(hub.commits) == 1 and len({*hub.puts}) == 2  # weights and pictures
    puts = len(hub.puts)
    assert held(hub) == here() and hub.repositories["me/tiny"]["private"] is True
    assert TOKEN.encode() not in b"".join(here().values())
    code, out, error = push()
    assert code == 0 and "holds this export already; nothing to push" in out, error
    assert len(hub.commits) == 1 and len(hub.puts) == puts
    code, out, error = python(hub, "-c", "import huggingface_hub; print(huggingface_hub.snapshot_download('me/tiny'))")
    assert code == 0, error
    pulled, ours = (AutoModelForCausalLM.from_pretrained(place).state_dict() for place in (out.strip(), "out/best"))
    assert pulled.keys() == ours.keys() and all(torch.equal(pulled[name], ours[name]) for name in ours)
    theirs = AutoTokenizer.from_pretrained(out.strip())
    assert theirs("Abc")["input_ids"] == AutoTokenizer.from_pretrained("out/best")("Abc")["input_ids"]


def test_a_pushed_model_is_exported_by_its_name(hub, exported, push, command):
    assert push()[0] == 0
    files = hub.repositories["me/tiny"]["files"]
    files["README.md"] += b"\nMy own words.\n"  # on the Hub's page, where the manifest stays
    files["generation_config.json"] = b'{"max_new_tokens": 3}\n'
    code, _, error = command("export", "--init_from=me/tiny", "--to=pulled")
    assert code == 0, error
    assert Path("pulled/model.safetensors").read_bytes() == Path("out/best/model.safetensors").read_bytes()
    assert json.loads(Path("pulled/generation_config.json").read_text()) == {"max_new_tokens": 3}


def test_a_push_that_fails_leaves_the_export_whole_and_says_how_to_go_on(hub, exported, push, monkeypatch):
    before = here()

    def failed(told, **how):
        began = time.perf_counter()
        code, _, error = push(**how)
        assert code == 4 and told in error and error.endswith(AGAIN) and len(error.splitlines()) == 1, error
        assert here() == before and hub.commits == [] and time.perf_counter() - began < 20
        assert TOKEN not in error and "hf_wrong" not in error

    failed("the Hub does not accept this token", token="hf_wrong")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr("finetune.common.network.SECONDS", 1)
        failed("the Hub cannot be reached")
    failed("the Hub cannot be reached")  # nobody is listening there any more
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    hub.before = lambda method, path: 403 if "/commit/" in path else None  # the weights are up, the commit is not made
    failed("this token may not write there")
    puts = len(hub.puts)
    assert len({*hub.puts}) == 2
    hub.before = lambda method, path: None
    code, out, error = push()
    assert code == 0 and len(hub.commits) == 1 and len(hub.puts) == puts, error  # nothing was sent twice
    assert held(hub) == before


LICENSES = {"errors": [{"message": '"license" must be one of [apache-2.0, mit]'}], "warnings": []}
ANSWERS = {  # part of an address, status, what the Hub says, and what the user reads
    "metadata": (
        "validate-yaml",
        400,
        LICENSES,
        'Invalid metadata in README.md: the Hub answered 400: "license" must be',
    ),
    "a plan": ("/commit/", 403, {"error": "Private storage limit reached"}, "(Private storage limit reached); give it"),
    "a race": ("/commit/", 412, {"error": "A commit has\nhappened since."}, "412: A commit has happened since. The"),
    "a limit": (
        "/commit/",
        429,
        {"error": "You have been rate limited"},
        "answered 429: You have been rate limited. The",
    ),
    "nothing": ("/commit/", 500, {}, "me/tiny was not pushed: the Hub answered 500. The export"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_what_the_hub_says_of_a_push_is_shown(case, hub, exported, push):
    address, status, said, told = ANSWERS[case]
    hub.before = lambda method, path: (status, said) if address in path else None
    code, _, error = push()
    assert code == 4 and told in error and len(error.splitlines()) == 1 and "http" not in error, error


def test_a_hub_that_keeps_something_else_is_noticed(hub, exported, push):
    class Forgetful(hub.RequestHandlerClass):
        def described(self, path, content, with_hashes):
            return super().described(path, content + b"?" if path == "config.json" else content, with_hashes)

    hub.RequestHandlerClass = Forgetful
    code, _, error = push()
    assert code == 4 and "what the Hub holds now is not what was sent: config.json" in error


@pytest.mark.heavy
def test_an_interrupted_push_changes_nothing_and_the_next_one_finishes_it(hub, exported, push):
    begun, released = threading.Event(), threading.Event()

    def hold(method, path):
        if method == "PUT":
            begun.set()
            released.wait(30)

    hub.before = hold
    # where the tests run in the background, Ctrl-C is ignored, and children inherit that
    listening = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    with subprocess.Popen(
        [sys.executable, *EXPORT], stderr=subprocess.PIPE, text=True, env=environment(hub), **listening
    ) as pushing:
        assert begun.wait(300)
        pushing.send_signal(signal.SIGINT)
        time.sleep(0.2)
        released.set()
        error = pushing.communicate(timeout=300)[1]
    assert pushing.returncode == 4 and "me/tiny was not pushed: interrupted" in error and error.endswith(AGAIN)
    assert hub.commits == [] and held(hub) == {}
    hub.before = lambda method, path: None
    code, _, error = push()
    assert code == 0 and len(hub.commits) == 1 and held(hub) == here(), error


def test_what_is_not_ours_or_is_public_is_not_pushed_to(hub, exported, push):
    hub.repositories["me/tiny"] = {"private": True, "files": {"config.json": b"{}", "model.safetensors": b"theirs"}}
    code, _, error = push()
    assert code == 4 and "was not exported by finetune" in error
    hub.repositories["me/tiny"] = {"private": False, "files": {"README.md": b"hello"}}
    code, _, error = push()
    assert code == 4 and "is public already; --private=false" in error and hub.commits == []
    code, out, error = push("--private=false")
    assert code == 0 and "(public)" in out and held(hub) == here(), error


def test_a_private_repository_is_not_made_public_and_that_is_said(hub, exported, push):
    assert "was private before" not in push()[1]
    code, out, error = push("--private=false")
    assert code == 0 and "me/tiny was private before and stays so; its settings on the Hub" in out, error
    assert hub.repositories["me/tiny"]["private"] is True


def test_what_the_next_export_does_not_have_is_removed(hub, exported, push):
    push()
    config = here()["config.json"]
    hub.repositories["me/tiny"]["files"] |= {"merges.txt": b"old", "mine.gguf": b"the user's own"}
    hub.repositories["me/tiny"]["files"] |= {"generation_config.json": b"{}"}
    code, out, error = push()
    assert code == 0 and len(hub.commits) == 2, error
    assert "me/tiny: replacing generation_config.json\nme/tiny: removing merges.txt\n" in out
    hub.repositories["me/tiny"]["files"]["config.json"] = config[:-2] + b" }"  # of the same size
    code, _, error = push()
    assert code == 4 and "config.json would be replaced" in error, error
    hub.repositories["me/tiny"]["files"]["config.json"] = config
    assert held(hub) == {**here(), "mine.gguf": b"the user's own"}


def test_files_of_an_owner_without_a_model_stay(hub, exported, push):
    own = {"vocab.json": b"{}", "loss.png": b"drawn by hand", "notes.txt": b"mine"}
    hub.repositories["me/tiny"] = {"private": True, "files": dict(own)}
    code, out, error = push()
    assert code == 0 and "me/tiny: replacing loss.png\n" in out and "removing" not in out, error
    assert held(hub) == {**own, **here()}


@pytest.mark.heavy
def test_what_fails_after_the_commit_is_not_called_a_failed_push(hub, exported, push):
    def refuse(method, path):
        return 500 if method == "GET" and hub.commits and "/revision/" not in path else None

    hub.before = refuse
    code, _, error = push()
    assert code == 4 and error.startswith("me/tiny was pushed, and not compared: ") and error.endswith(AGAIN)
    assert len(hub.commits) == 1 and len(error.splitlines()) == 1
    hub.before = lambda method, path: None
    code, out, error = push()
    assert code == 0 and "nothing to push" in out and len(hub.commits) == 1, error


def test_a_push_interrupted_at_its_tag_is_made(hub, exported, push, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("huggingface_hub.HfApi.create_tag", interrupted)
    code, out, error = push()
    assert code == 130 and "not pushed" not in error
    assert "all 12 hashes agree" in out and re.search(r"without the tag step-4-\w+: interrupted\n", out)
    assert held(hub) == here()


def test_weights_beside_adapters_and_in_folders_are_read(hub, hf_model, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    theirs = hf_model()
    torch.save(theirs.state_dict(), "w.bin")
    files = {"config.json": theirs.config.to_json_string().encode(), "pytorch_model.bin": Path("w.bin").read_bytes()}
    files |= dict.fromkeys(("adapter_model.safetensors", "onnx/model.safetensors", "model.fp16.safetensors"), b"x")
    hub.repositories["me/old"] = {"private": True, "files": files}
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.allclose(GPT.from_pretrained("me/old").eval()(ids), theirs(ids).logits, atol=1e-4)


def full_disk(*given, **named):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_train_pushes_only_when_it_is_told_to_on_the_command_line(hub, corpus, command, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    recipe = Path("r.yaml")
    model = "init_from: scratch\ntokenizer: char\nn_layer: 1\nn_head: 1\nn_embd: 16\nblock_size: 16\n"
    updates = "batch_size: 2\ngradient_accumulation_steps: 1\nmax_iters: 2\ndtype: float32\n"
    recipe.write_text(f"dataset: {corpus()}\n{model}{updates}push_to_hub: me/trained\n")
    by_hand = "finetune export --out_dir=out --to=out/export --push_to_hub=me/trained"
    code, out, error = command("train", "r.yaml")
    assert code == 0 and hub.requests == [] and not Path("out/export").exists(), error
    assert out.endswith(f"nothing is pushed to me/trained without --push=true; by hand: {by_hand}\n")
    hub.before = lambda method, path: 403
    code, _, error = command("train", "r.yaml", "--push=true", "--overwrite=true")
    assert code == 4 and hub.commits == []
    assert error.endswith(f"The export in {Path('out/export').resolve()} is whole; again: {by_hand}\n")
    hub.before = lambda method, path: None
    code, out, error = command("export", *by_hand.split()[2:])
    assert code == 0 and "is this export already" in out and len(hub.commits) == 1, error
    with monkeypatch.context() as patch:
        patch.setattr(export, "export", full_disk)
        code, _, error = command("train", "r.yaml", "--push=true", "--overwrite=true")
    assert code == 4 and len(hub.commits) == 1 and "was not pushed: [Errno 28]" in error
    assert error.endswith(f"The model is in out/best; again: {by_hand}\n")
    code, out, error = command("train", "r.yaml", "--push=true", "--overwrite=true", "--seed=2")
    assert code == 0 and len(hub.commits) == 2, error
    assert held(hub, "me/trained")["model.safetensors"] == Path("out/best/model.safetensors").read_bytes()
    assert "push: false" in Path("out/recipe.yaml").read_text()
    recipe.write_text(recipe.read_text() + "push: true\n")
    code, _, error = command("train", "r.yaml")
    assert (code, error) == (2, "r.yaml:13: push: can only be given on the command line, as --push=true\n")
    code, _, error = command("train", "--dataset=x", "--push=true")
    assert code == 2 and "give push_to_hub=USER/NAME too" in error
    code, _, error = command("train", "--dataset=x", "--push_to_hub=trained")
    assert code == 2 and "it is USER/NAME" in error


@pytest.fixture
def repository(hub):
    return lambda: hub.repositories["me/tiny"]


def front_matter(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_words_of_the_owner_stay_and_ours_are_new(hub, exported, push, command, tiny_run):
    """Push with license, tags and a GGUF file; the owner edits the card on the Hub; push again after more training."""
    card = ("--license=cc-by-4.0", "--language=en,de", "--tags=tiny,mine", "--gguf_type=f16")
    code, out, error = push(*card)
    assert code == 0 and len(hub.commits) == 1, error
    together = {"model.safetensors", "tiny-F16.gguf", "Modelfile", "template", "params", "report.html", "README.md"}
    assert together <= {*hub.commits[0][1]}
    files = hub.repositories["me/tiny"]["files"]
    assert files["tiny-F16.gguf"][:4] == b"GGUF" and b"ollama run hf.co/me/tiny" in files["README.md"]
    found = front_matter(files["README.md"].decode())
    assert (found["license"], found["language"]) == ("cc-by-4.0", ["en", "de"])
    assert found["tags"][-2:] == ["tiny", "mine"]
    assert b"](report.html)" in files["README.md"]
    [tag] = hub.repositories["me/tiny"]["tags"]
    assert re.fullmatch(r"step-\d+-[0-9a-f]{8}", tag)
    first = held(hub)
    text = (
        files["README.md"]
        .decode()
        .replace("license: cc-by-4.0", "license: mit\nwidget: hello")
        .replace("- mine", "- mine\n- hers")
        .replace("- de\n", "- de\n- fr\n")
    )
    text = text.replace("# tiny", "# My tiny model\n\nWritten by hand, above.").replace(
        "<!-- finetune:usage -->", "Between, too.\n\n<!-- finetune:usage -->"
    )
    files["README.md"] = (text + "\n## Thanks\n\nTo you.\n").encode()
    tiny_run("out", "--max_iters=9", "--overwrite=true")
    code, out, error = push(*card[2:])  # nothing is said of license and language
    assert code == 0 and len(hub.commits) == 2, error
    assert {"model.safetensors", "tiny-F16.gguf", "report.html", "README.md"} <= {*hub.commits[1][1]}
    tags = hub.repositories["me/tiny"]["tags"]
    old = at(hub.repositories["me/tiny"], tags[tag])
    assert len(tags) == 2 and old["model.safetensors"] == first["model.safetensors"] != held(hub)["model.safetensors"]
    new = hub.repositories["me/tiny"]["files"]["README.md"].decode()
    for words in ("# My tiny model\n\nWritten by hand, above.\n", "Between, too.\n", "\n## Thanks\n\nTo you.\n"):
        assert words in new
    assert "| max_iters | 9 |" in new and "| max_iters | 4 |" not in new and new.count("## How to use it") == 1
    found = front_matter(new)
    assert found["language"] == ["en", "de", "fr"]
    assert found["license"] == "mit" and found["widget"] == "hello" and {"hers", "mine", "gpt2"} <= {*found["tags"]}
    assert held(hub) == here() and len(hub.repositories["me/tiny"]["tags"]) == 2
    code, out, error = push(*card[2:])
    assert code == 0 and "nothing to push" in out and len(hub.commits) == 2, error
    code, out, error = push(*card)  # what the command line says goes before what the owner says
    assert code == 0 and front_matter(held(hub)["README.md"].decode())["license"] == "cc-by-4.0", error


OWN = """language: no
version: 1.10
time: 12:30:00
octal: 012
license: cc-by-4.0
widget:
- text: yes
  example_title: 'off'
extra_gated_fields:
  Country: {type: country}
  I agree: checkbox
"""
WAYS = {  # to begin and to end metadata that the Hub reads
    "plain": f"---\n{OWN}---\n\nMine.\n",
    "lines before": f"\n\n---\n{OWN}---\nMine.\n",
    "nothing behind": f"---\n{OWN}---",
    "lines of Windows": f"---\n{OWN}---\n\nMine.\n".replace("\n", "\r\n"),
    "a byte order mark": f"\ufeff---\n{OWN}---\n\nMine.\n",
}


@pytest.mark.parametrize("way", WAYS)
def test_metadata_of_the_owner_stay_as_they_were_written(way):
    from huggingface_hub import ModelCard

    from finetune.publishing import card

    new = "---\nlibrary_name: transformers\ntags:\n- gpt2\n---\n\n# x\n\n"
    new += "<!-- finetune:usage -->\nHow\n<!-- /finetune:usage -->\n"
    merged = card.merge(card.decoded(WAYS[way].encode()), new)
    assert merged.count("---") == 2 and f"\n{OWN}" in merged and ("Mine." in WAYS[way]) == ("Mine." in merged)
    theirs = ModelCard(WAYS[way].removeprefix("\ufeff")).data.to_dict()
    assert ModelCard(merged).data.to_dict() == {"library_name": "transformers", "tags": ["gpt2"], **theirs}
    assert card.merge(merged, new) == merged
    own_tags = merged.replace("- gpt2\n", "- on\n- gpt2\n- 1.10\n")
    assert "tags:\n- gpt2\n- on\n- 1.10\n" in card.merge(own_tags, new)


def test_words_in_both_places_are_not_chosen_between(hub, exported, push):
    push()
    files = hub.repositories["me/tiny"]["files"]
    files["README.md"] += b"\nOn the Hub.\n"
    Path("mine/README.md").write_text(Path("mine/README.md").read_text() + "\nHere.\n")
    code, _, error = push()
    assert code == 4 and "README.md was edited both there and in" in error and len(hub.commits) == 1, error
    assert "\nHere.\n" in Path("mine/README.md").read_text()  # the export was written anew around these words
    Path("mine/README.md").write_bytes(files["README.md"])
    code, _, error = push()
    assert code == 0 and b"\nOn the Hub.\n" in held(hub)["README.md"] and held(hub) == here(), error


def test_our_thumbnail_is_no_word_of_the_owner(hub, exported, push, command):
    push()
    assert front_matter(here()["README.md"].decode())["thumbnail"].endswith("/me/tiny/resolve/main/share.png")
    Path("mine/README.md").write_text(Path("mine/README.md").read_text() + "\nMy own words.\n")
    code, _, error = push()
    assert code == 0 and b"My own words." in held(hub)["README.md"], error
    code, _, error = command("export", "--out_dir=out", "--to=other", "--push_to_hub=me/tiny")
    assert code == 0 and b"My own words." in held(hub)["README.md"], error
    code, _, error = command("export", "--out_dir=out", "--to=other", "--push_to_hub=me/second")
    found = front_matter(held(hub, "me/second")["README.md"].decode())
    assert code == 0 and found["thumbnail"] == "https://huggingface.co/me/second/resolve/main/share.png", error
    files = hub.repositories["me/second"]["files"]  # a picture of the owner's own
    files["README.md"] = files["README.md"].replace(b"/me/second/resolve/main/share.png", b"/me/second/cat.png")
    code, _, error = command("export", "--out_dir=out", "--to=third", "--push_to_hub=me/second")
    found = front_matter(held(hub, "me/second")["README.md"].decode())
    assert code == 0 and found["thumbnail"] == "https://huggingface.co/me/second/cat.png", error


def test_a_branch_gets_the_export_and_main_stays(hub, exported, push):
    push()
    main = held(hub)
    code, out, error = push("--revision=trial", "--license=mit")
    assert code == 0 and held(hub) == main, error
    assert {**hub.repositories["me/tiny"]["branches"]["trial"]}["README.md"] == here()["README.md"]
    code, out, error = push("--revision=trial", "--license=mit")
    assert code == 0 and "nothing to push" in out, error


def test_a_model_of_another_program_is_replaced_only_when_told(hub, exported, push):
    misleading = {
        *("pytorch_model.bin", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "optimizer.pt"),
        *("training_args.bin", "adapter_config.json", "checkpoint-500/model.safetensors", "old-F16.gguf", "vocab.txt"),
        *("onnx/model.onnx", "onnx/model.onnx_data", "model.onnx.data", "merges.txt"),
    }
    replaced = {"config.json", "model.safetensors", "README.md"}
    kept = {"data.csv", "train.bin", "runs/events.out"}
    theirs = dict.fromkeys(misleading | kept | replaced, b"theirs")
    theirs["README.md"] = b"# Hi\n\nMine.\n"
    hub.repositories["me/tiny"] = {"private": True, "files": dict(theirs)}
    code, _, error = push()
    assert code == 4 and "config.json, model.safetensors would be replaced, adapter_config.json, chec" in error
    assert (
        "and 8 more would be removed, train.bin would stay: --overwrite=true" in error and len(error.splitlines()) == 1
    )
    assert held(hub) == theirs
    code, out, error = push("--overwrite=true")
    assert code == 0 and "me/tiny: replacing README.md, config.json, model.safetensors\n" in out, error
    assert f"me/tiny: removing {', '.join(sorted(misleading))}, of the model that was there\n" in out
    assert "the words in its README.md stay" in out and b"\nMine.\n" in held(hub)["README.md"]
    assert held(hub) == {**here(), **dict.fromkeys(kept, b"theirs")} and len(hub.commits) == 1
    code, out, error = push()
    assert code == 0 and "nothing to push" in out, error


def test_a_program_that_pushed_over_an_export_is_noticed(hub, exported, push):
    push()
    files = hub.repositories["me/tiny"]["files"]
    files |= {"model.safetensors": b"trained on", "pytorch_model.bin": b"older", "mine.gguf": b"the owner's"}
    code, _, error = push()
    assert code == 4 and "model.safetensors would be replaced, mine.gguf, pytorch_model.bin would be removed" in error
    del files["pytorch_model.bin"], files["model.safetensors"]
    code, out, error = push()
    assert code == 0 and held(hub) == {**here(), "mine.gguf": b"the owner's"}, error


def test_what_the_card_cannot_say_is_refused(command):
    for flags, told in {
        ("--license=MIT License",): "license: expected the Hub's name of a license, such as mit",
        ("--language=english",): "language: expected codes such as en",
        ("--tags=a b",): "tags: expected words",
        ("--license=mit", "--format=gguf"): "license: goes on the model card, and format=gguf writes none",
        ("--revision=x",): "revision: has no effect without --push_to_hub",
        ("--overwrite=true",): "overwrite: has no effect without --push_to_hub",
        ("--push_to_hub=me/x", "--revision=a..b/"): "revision: expected the name of a branch",
    }.items():
        code, _, error = command("export", "--init_from=x", "--to=g", *flags)
        assert code == 2 and told in error and len(error.splitlines()) == 1, error
