"""What tests save where nobody looks: pictures that are drawn, and tokens that an evaluation reads."""

import base64
import io
from pathlib import Path

from matplotlib.figure import Figure

from finetune.evaluation import split_loss
from finetune.training import validation

PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")
draw = Figure.savefig


def draw_nothing(figure, file, **options):
    """Figure.savefig, but what is drawn into a file is one pixel."""
    if isinstance(file, io.IOBase):
        draw(figure, file, **options)
    else:
        Path(file).write_bytes(PIXEL)


def save_time(replace=setattr):
    """Replace what takes long; `replace` may be monkeypatch.setattr."""
    replace(Figure, "savefig", draw_nothing)
    for module in (split_loss, validation):
        replace(module, "TRAIN_PROBE", 2048)
