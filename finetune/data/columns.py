"""Which columns of a table are its text, as the verbs that read tables are told: --text_column and its like."""

KINDS = ("text", "messages", "prompt", "completion")


def chosen_columns(options):
    """{kind: name} of the columns that were named."""
    named = {kind: getattr(options, f"{kind}_column") for kind in KINDS}
    return {kind: name for kind, name in named.items() if name is not None}


def problems_of_columns(options):
    """(key, message) for each contradiction among them."""
    named = chosen_columns(options)
    if ("prompt" in named) != ("completion" in named):
        yield "prompt_column", "--prompt_column and --completion_column go together"
    if len(named.keys() - {"completion"}) > 1:
        yield (
            "text_column",
            "a table is read as text, as prompts and completions, or as messages: name the columns of one of them",
        )
