"""The table of rules in conf/README.md, made of their docstrings; run this file to write it."""

import inspect
import re
from pathlib import Path

import yaml

import dcasgd_repro.rules
from dcasgd_repro.rules import Rule

CONF = Path(__file__).parents[2] / "conf"
BEGIN, END = "<!-- rules: python tests/rules/test_table.py -->\n", "<!-- end of rules -->\n"


def rules() -> list[Rule]:
    """What conf/rule/ has, with default options, in the order of the families' files."""
    targets = (yaml.safe_load(path.read_text())["_target_"] for path in CONF.glob("rule/*.yaml"))
    found = [getattr(dcasgd_repro.rules, target.rsplit(".", 1)[-1])() for target in targets]
    families = ["averaging", "delay_compensation", "step_size", "buffers", "momentum", "look_ahead"]

    def place(rule: Rule) -> tuple[int, int]:
        family = type(rule).__module__.rsplit(".", 1)[-1]
        return families.index(family), inspect.getsourcelines(type(rule))[1]

    return sorted(found, key=place)


def first_sentence(text: str) -> str:
    """A docstring's first paragraph, in Markdown."""
    line = " ".join(text.split("\n\n")[0].split()).rstrip(".")
    return line.replace("``", "`").replace("|", "\\|")


def source(rule: Rule) -> str:
    """What a docstring says after ``Source:``, in Markdown, without what it is held to."""
    found = re.search(r"Source: (.+?)(?= Held to: |$)", " ".join(inspect.getdoc(rule).split()))
    assert found, f"{type(rule).__name__} names no source"
    return found[1].replace("``", "`").rstrip(".")


def kept(rule: Rule) -> str:
    """The vectors in a rule's state, with M workers."""
    once, each = rule.keeps()
    parts = [str(once)] * (once > 0) + ["M" if each == 1 else f"{each} M"] * (each > 0)
    return " + ".join(parts) or "0"


def table() -> str:
    lines = ["| `rule=` | what | vectors kept | source |\n", "|---|---|---|---|\n"]
    for rule in rules():
        name = f"`{rule.name}`" + ("" if rule.elementwise else " *")
        what = first_sentence(inspect.getdoc(rule))
        lines.append(f"| {name} | {what} | {kept(rule)} | {source(rule)} |\n")
    return "".join(lines)


def between(page: str) -> tuple[str, str, str]:
    """A page before, between and after its two marks."""
    before, rest = page.split(BEGIN)
    inside, after = rest.split(END)
    return before + BEGIN, inside, END + after


def test_the_page_has_what_the_docstrings_say() -> None:
    _, inside, _ = between((CONF / "README.md").read_text())
    assert inside == table()


def test_every_rule_is_in_the_table() -> None:
    """One line each, with a formula, a number of vectors and a source."""
    lines = table().splitlines()[2:]
    assert (
        len(lines)
        == len(list(CONF.glob("rule/*.yaml")))
        == len({r.label or r.name for r in rules()})
    )
    for rule, line in zip(rules(), lines, strict=True):
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        assert len(cells) == 4
        assert cells[0].startswith(f"`{rule.name}`")
        assert cells[1].count("`") >= 2 or rule.name in ("ormo", "server_nadam", "delayed_nesterov")
        assert all(cells)


def test_the_front_page_counts_them() -> None:
    assert f"| the {len(rules())} update rules; " in (CONF.parent / "README.md").read_text()


def test_every_rule_is_given_out_by_the_package() -> None:
    names = {type(rule).__name__ for rule in rules()}
    for package in (dcasgd_repro, dcasgd_repro.rules):
        assert names <= set(package.__all__)


if __name__ == "__main__":
    page = CONF / "README.md"
    before, _, after = between(page.read_text())
    page.write_text(before + table() + after)
