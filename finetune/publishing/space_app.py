"""A prompt, and how a model of the Hub goes on: app.py of a Space, which has this file and no other of finetune."""

import json
from pathlib import Path
from typing import Any


def load(settings: dict[str, Any]) -> Any:
    """The model of the settings, as a pipeline of transformers."""
    from transformers import pipeline

    return pipeline("text-generation", settings["model"], revision=settings["revision"])


def generate(generator: Any, settings: dict[str, Any], prompt: str, length: float, temperature: float) -> str:
    """What the model says after `prompt`: the text that goes on, or the answer of a model with a chat template. At most
    `length` tokens, and no more than its context has room for; temperature 0 takes the likeliest token each time."""
    is_chat = bool(generator.tokenizer.chat_template)
    asked: Any = [{"role": "user", "content": prompt}] if is_chat else prompt or settings["start"]
    tokenizer, as_asked = generator.tokenizer, {"return_dict": True, "add_generation_prompt": True}
    ids = tokenizer.apply_chat_template(asked, **as_asked) if is_chat else tokenizer(asked)
    room = settings["context"] - len(ids["input_ids"])
    if room < 1:
        return f"This prompt is too long: the model reads {settings['context']} tokens."
    sampling: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature > 0 else {}
    options = {"max_new_tokens": min(int(length), room), "return_full_text": not is_chat, **sampling}
    return generator(asked, **(options if sampling else {**options, "do_sample": False}))[0]["generated_text"]


def main() -> None:
    import gradio  # pyrefly: ignore[missing-import]

    settings = json.loads(Path(__file__).with_name("space.json").read_text(encoding="utf-8"))
    generator = load(settings)

    def answer(prompt: str, length: float, temperature: float) -> str:
        return generate(generator, settings, prompt, length, temperature)

    most = max(2, settings["context"] // 2)
    gradio.Interface(
        answer,
        [
            gradio.Textbox(settings["start"], label="Prompt", lines=4),
            gradio.Slider(1, most, value=min(100, most), step=1, label="Tokens"),
            gradio.Slider(0, 1.5, value=0.8, step=0.1, label="Temperature"),
        ],
        gradio.Textbox(label="Text", lines=8),
        title=settings["title"],
        description=settings["about"],
        flagging_mode="never",
    ).launch()


if __name__ == "__main__":
    main()
