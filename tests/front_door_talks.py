"""Rows of questions with answers, and of conversations, for the cases of both."""

from front_door import changed, json_lines, talk, talks

TALKS = talks()
N = range(12)


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


def pair(i, **more):
    return [turn("user", f"What is {i}?"), turn("assistant", f"It is {i}.", **more)]


def lines_of(make, count=12):
    return {"a.jsonl": json_lines(make(i) for i in range(count))}


def messages(make, column="messages"):
    """A file with a conversation `make(i)` in each row."""
    return lines_of(lambda i: {column: make(i)})


def one_odd(number, row, make=lambda i: {"messages": pair(i)}):
    """A file whose row `number` is another one."""
    return {"a.jsonl": json_lines(changed([make(i) for i in N], number, row))}


def roles(user, assistant):
    return messages(lambda i: [turn(user, f"What is {i}?"), turn(assistant, f"It is {i}.")])


def sharegpt(i, human="human", gpt="gpt"):
    return [{"from": human, "value": f"What is {i}?"}, {"from": gpt, "value": f"It is {i}."}]


def asked(i):
    return {"prompt": f"What is {i}?", "completion": f"It is {i}."}


SKIPPED = r"\b1\b.*(left out|skipped|empty|without)"
ROW_5 = "(row|line) 5"
SYSTEM = [talk("system: Be kind.", f"user: What is {i}?", f"assistant: It is {i}.") for i in N]
