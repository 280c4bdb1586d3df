"""What an export says at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune.common.commands import join


def summary(to: Path, verified: dict[str, Any]) -> str:
    """The last lines that the command prints."""
    unknown = {of: verified[of]["not_compared"] for of in ("source", "base") if "not_compared" in verified.get(of, {})}
    why = [f"not compared with its {of}: {reason}" for of, reason in unknown.items()]
    return "\n".join([*why, _summary(to, verified)])


def _summary(to: Path, verified: dict[str, Any]) -> str:
    if verified["format"] == "nanogpt":
        equal = f"{verified['tensors_compared']} tensors read back are equal"
        gelu = f"nanoGPT's exact GELU moves logits by at most {verified['max_difference_by_exact_gelu']:.1e}"
        sample = f"in nanoGPT's directory: python sample.py {join([f'--out_dir={to}'])}"
        lines = [f"verified: {equal}; {gelu}", f"exported to {to}; {sample}"]
        if (to / "meta.pkl").is_file():
            data, meta = join([f"data/{to.name}"]), join([f"{to}/meta.pkl"])
            lines.append(f"for its characters first: mkdir -p {data} && cp {meta} {data}/")
        return "\n".join(lines)
    lines = [_summary_of_gguf(to, verified["gguf"])] if "gguf" in verified else []
    if verified["format"] == "gguf":
        return f"{lines[0]}\nexported to {to}"
    ids, logits = f"{verified['ids_compared']:,} ids equal", f"{verified['logits_compared']:,} logits"
    moved = f"; {verified['dtype']} moves them by at most {verified['rounding']:.1e}" if "rounding" in verified else ""
    found = f"{ids}, {logits} differ by at most {verified['max_difference']:.1e}{moved}"
    if "onnx" in verified:
        lines.insert(0, _onnx(verified["onnx"]))
    if added := verified.get("special_tokens_added"):
        who = f"its tokenizer puts {' and '.join(added)} around a text, which training and sample do not"
        lines.append(f"{who}: give pipeline() add_special_tokens=False")
    with_transformers = f"verified with transformers {verified['versions']['transformers']}: {found}"
    return "\n".join([with_transformers, *lines, f"exported to {to}"])


def _onnx(onnx: dict[str, Any]) -> str:
    found = f"{onnx['logits_compared']:,} logits differ by at most {onnx['max_difference']:.1e}"
    return f"verified model.onnx with onnxruntime {onnx['versions']['onnxruntime']}: {found}"


def _summary_of_gguf(to: Path, gguf: dict[str, Any]) -> str:
    found = f"verified {gguf['file']}: {gguf['tensors_compared']} tensors read back are as they were written"
    lines = [f"{found}; logits move by at most {gguf['max_difference']:.1e}", _llama_cpp(gguf["llama_cpp"])]
    if gguf["modelfile"]:
        create = join(["ollama", "create", to.name, "-f", f"{to}/Modelfile"])
        return "\n".join([*lines, f"for Ollama: {create}"])
    return "\n".join([*lines, "no Modelfile: Ollama's templates cannot write what this chat template does"])


def _llama_cpp(found: dict[str, Any]) -> str:
    if "not_checked" in found:
        return f"not checked with llama.cpp: {found['not_checked']}"
    prompts = f"ids of {found['prompts']} prompts and " if "prompts" in found else ""
    ties = f", {found['ties']} more within rounding" if found["ties"] else ""
    return f"checked with llama.cpp ({found['by']}): {prompts}{found['greedy_ids']} greedy ids equal{ties}"
