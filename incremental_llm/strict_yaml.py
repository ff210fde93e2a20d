"""YAML as people write it, read strictly: a key that stands twice is an error, not the last one's word."""

from __future__ import annotations

from typing import Any

import yaml

from incremental_llm.errors import InputError


def parse_yaml(text: str, source: str, error_type: type[InputError]) -> Any:
    """Plain data from YAML that people write: a suite's head, a recipe, an override.

    Raises:
        InputError: as `error_type`: no YAML, or a mapping that holds a key twice; the message names `source` and line.
    """
    try:
        return yaml.load(text, Loader=_EachKeyOnce)
    except (ValueError, RecursionError) as error:  # a date that is none, a number without digits, a thousand brackets
        raise error_type(f"{source}: not valid YAML ({error}).") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise error_type(f"{source}{line}: not valid YAML ({getattr(error, 'problem', error)}).") from error


class _EachKeyOnce(yaml.SafeLoader):
    """YAML in which no mapping holds a key twice: PyYAML itself keeps the last one and drops the others unsaid."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], int] = {}
        for key, _value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if (key.tag, key.value) in first:
                raise yaml.MarkedYAMLError(
                    problem=f"expected each key once, found {key.value!r} again after line "
                    f"{first[key.tag, key.value]}; remove one of the two, or join them",
                    problem_mark=key.start_mark,
                )
            first[key.tag, key.value] = line
        return node
