"""Completions that no verifier may raise over, or be slow with."""

from __future__ import annotations

MEGABYTE = 1_000_000

HOSTILE = {
    "empty": "",
    "blank": " \n\t\r\v\f\u2028",
    "controls": "".join(map(chr, range(32))) + "\x7f\x85\x00",
    "surrogates": "\ud800 a \udfff \ud83d",
    "astral": "\U0001f600\u202e\u0301" * 100,
    "a megabyte of letters": "a" * MEGABYTE,
    "a megabyte of words": "the cat sat. " * (MEGABYTE // 13),
    "a megabyte of lines": "\n" * MEGABYTE,
    "a megabyte of spaces": " " * MEGABYTE + "x",
    "a megabyte of digits": "9" * MEGABYTE,
    **{
        f"100,000 x {unit!r}": unit * 100_000
        for unit in (
            *("(", "[", "{", "<", "<<", "*", "**", "***", '"', "`", "```", "```json\n", "\\", ">>"),
            *("\\boxed{", "<think>", "</think>", "<answer>A</answer>", "[a", "*a", "<<a", "- \n"),
            *(
                "A ",
                "(A) ",
                "answer: ",
                "#### ",
                "\n\n",
                "p. ",
                "Section ",
                '{"a":',
                "1,",
                ". ",
                "!",
            ),
            *("A.", "a. ", "\r\n", "<a", "-", "\ud800", "$", "%s", "0"),
        )
    },
}
