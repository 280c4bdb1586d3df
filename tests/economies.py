"""What tests save where nobody looks: files of pictures are one pixel, an evaluation reads fewer tokens, and a
request is tried again after a tenth of a second.

In the test's process and in forks; ranks that a launcher starts, and the fixture `pictures`, do without."""

import base64
import io
from pathlib import Path

from matplotlib.figure import Figure

from finetune.common import hub_client
from finetune.evaluation import split_loss
from finetune.training import validation

PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAAC0lEQVR4nGP4DwQACfsD/fteaysAAAAASUVORK5CYII=")
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
    replace(hub_client, "PAUSE_SECONDS", 0.1)
