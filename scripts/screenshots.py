"""Pictures of what others see of a model, docs/images/*.webp: its card, its report and its Space, 400 and 1,200 pixels
wide, light and dark. A small run is trained, pushed to the stand-in Hub of the tests, and what lies there is shown.

pip install playwright markdown pillow, and a chromium:

python scripts/screenshots.py --text=FILE [--chromium=PROGRAM]
"""

import argparse
import html
import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import markdown
import yaml
from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from stand_in_hub import TOKEN, serving  # noqa: E402

WIDTHS, SCHEMES, MOST_PIXELS = (400, 1200), ("light", "dark"), 1500  # of the height
NAME = "me/shakespeare-small"
TRAIN = (
    "--init_from=scratch --tokenizer=char --n_layer=2 --n_head=4 --n_embd=64 --block_size=64 --batch_size=8"
    " --gradient_accumulation_steps=1 --max_iters=150 --eval_interval=25 --eval_iters=5 --learning_rate=2e-3"
    " --dtype=float32 --num_samples=2 --max_new_tokens=200 --out_dir=shakespeare"
)
STYLE = """
:root{color-scheme:light dark;--back:#fff;--ink:#1f2328;--soft:#59636e;--rule:#d1d9e0;--card:#f6f8fa;--link:#0969da}
@media(prefers-color-scheme:dark){:root{--back:#0d1117;--ink:#e6edf3;--soft:#9198a1;--rule:#3d444d;--card:#151b23;
--link:#4493f8}}
*{box-sizing:border-box}body{margin:0 auto;max-width:56rem;padding:1.2rem 1rem 3rem;background:var(--back);
color:var(--ink);font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}a{color:var(--link)}
h1,h2{line-height:1.25;border-bottom:1px solid var(--rule);padding-bottom:.3em}h2{font-size:1.4em}
table{display:block;width:max-content;max-width:100%;overflow-x:auto;border-collapse:collapse;margin:1rem 0;
overflow-wrap:normal}th,td{padding:6px 13px;border:1px solid var(--rule);text-align:left}
pre{background:var(--card);padding:1rem;overflow-x:auto;border-radius:6px;overflow-wrap:normal}
pre,code{font:85%/1.45 ui-monospace,monospace}:not(pre)>code{background:var(--card);padding:.2em .4em;border-radius:6px}
img{max-width:100%}.tags{display:flex;flex-wrap:wrap;gap:.4rem;margin:0 0 1rem}
.tags span{font-size:.85rem;border:1px solid var(--rule);border-radius:999px;padding:.1rem .7rem;color:var(--soft)}
"""


def push(work, text):
    """What a run has on the Hub after a push: {repository: {file: content}}."""
    with serving() as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(work / "hub")}
        environment |= {"HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT)}

        def finetune(verb, *flags):
            subprocess.run([sys.executable, "-m", f"finetune.{verb}", *flags], cwd=work, env=environment, check=True)

        finetune("train", f"--dataset={text}", *TRAIN.split())
        card = ("--license=mit", "--language=en", "--tags=poems", "--gguf_type=f16")
        to = ("--to=shakespeare-small", f"--push_to_hub={NAME}", f"--space={NAME}")
        finetune("export", "--out_dir=shakespeare", *to, *card)
        return {name: repository["files"] for name, repository in hub.repositories.items()}


def card_page(text):
    """README.md as a page, much as the Hub shows it: the metadata as labels above the text."""
    front, body = text.split("---\n", 2)[1:]
    found = yaml.safe_load(front)
    labels = [found["pipeline_tag"], found["library_name"], f"license: {found['license']}", *found["tags"]]
    labels += found["language"] if isinstance(found["language"], list) else [found["language"]]
    tags = "".join(f"<span>{html.escape(label)}</span>" for label in labels)
    shown = markdown.markdown(body, extensions=["tables", "fenced_code"])
    viewport = '<meta name="viewport" content="width=device-width,initial-scale=1">'
    head = f'<!doctype html><meta charset="utf-8">{viewport}<style>{STYLE}</style>'
    return f'{head}<div class="tags">{tags}</div>{shown}'


def write_pages(work, repositories):
    """{name: file} of the pages to show."""
    model, space = repositories[NAME], repositories[f"spaces/{NAME}"]
    for directory, files in (("model", model), ("space", space)):
        for name, content in files.items():
            (work / directory / name).parent.mkdir(exist_ok=True)
            (work / directory / name).write_bytes(content)
    card = work / "model" / "card.html"
    card.write_text(card_page(model["README.md"].decode()))
    return {"card": card, "report": work / "model" / "report.html", "space": work / "space" / "index.html"}


def take(pages, to, chromium):
    """Write the pictures; complain of a page that is wider than its window."""
    with sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=chromium, chromium_sandbox=os.getuid() != 0)
        for width in WIDTHS:
            for scheme in SCHEMES:
                page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
                for name, path in pages.items():
                    page.goto(path.as_uri())
                    wide, high = page.evaluate("[document.documentElement.scrollWidth, document.body.scrollHeight]")
                    if wide > width:
                        print(f"{name} is {wide} pixels wide in a window of {width}")
                    clip = {"x": 0, "y": 0, "width": width, "height": min(high, MOST_PIXELS)}
                    picture = Image.open(io.BytesIO(page.screenshot(full_page=True, clip=clip)))
                    picture.convert("RGB").save(to / f"{name}-{width}-{scheme}.webp", quality=80, method=6)
        browser.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, type=Path)
    parser.add_argument("--to", default=ROOT / "docs" / "images", type=Path)
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    parser.add_argument("--chromium", default=found, help="program of the browser [%(default)s]")
    given = parser.parse_args()
    if not given.chromium:
        parser.error("no chromium on PATH; give --chromium=PROGRAM")
    given.to.mkdir(exist_ok=True, parents=True)
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        take(write_pages(work, push(work, given.text.resolve())), given.to, given.chromium)


if __name__ == "__main__":
    main()
