"""What an export says at its end."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any


def summary(to: Path, verified: dict[str, Any]) -> str:
    """The last lines that the command prints."""
    if verified["format"] == "nanogpt":
        equal = f"{verified['tensors_compared']} tensors read back are equal"
        gelu = f"nanoGPT's exact GELU moves logits by at most {verified['max_difference_by_exact_gelu']:.1e}"
        sample = f"in nanoGPT's directory: python sample.py {shlex.quote(f'--out_dir={to}')}"
        lines = [f"verified: {equal}; {gelu}", f"exported to {to}; {sample}"]
        if (to / "meta.pkl").is_file():
            data, meta = shlex.quote(f"data/{to.name}"), shlex.quote(f"{to}/meta.pkl")
            lines.append(f"for its characters first: mkdir -p {data} && cp {meta} {data}/")
        return "\n".join(lines)
    lines = [_summary_of_gguf(to, verified["gguf"])] if "gguf" in verified else []
    if verified["format"] == "gguf":
        return f"{lines[0]}\nexported to {to}"
    ids, logits = f"{verified['ids_compared']:,} ids equal", f"{verified['logits_compared']:,} logits"
    moved = f"; {verified['dtype']} moves them by at most {verified['rounding']:.1e}" if "rounding" in verified else ""
    found = f"{ids}, {logits} differ by at most {verified['max_difference']:.1e}{moved}"
    with_transformers = f"verified with transformers {verified['versions']['transformers']}: {found}"
    return "\n".join([with_transformers, *lines, f"exported to {to}"])


def _summary_of_gguf(to: Path, gguf: dict[str, Any]) -> str:
    found = f"verified {gguf['file']}: {gguf['tensors_compared']} tensors read back are as they were written"
    moved = f"logits move by at most {gguf['max_difference']:.1e}"
    if gguf["modelfile"]:
        return f"{found}; {moved}\nfor Ollama: {shlex.join(['ollama', 'create', to.name, '-f', f'{to}/Modelfile'])}"
    return f"{found}; {moved}\nno Modelfile: Ollama's templates cannot write what this chat template does"
